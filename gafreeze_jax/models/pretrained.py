"""Pretrained networks: a checkpoint is read once, its family is found, and its tensors become parameters."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from gafreeze_jax.listing import listed, shorten
from gafreeze_jax.masking import leaf_paths
from gafreeze_jax.models import (
    albert,
    bert,
    checkpoints,
    configs,
    convnext,
    deberta,
    dinov2,
    distilbert,
    electra,
    gpt2,
    gpt_neox,
    llama,
    modernbert,
    mpnet,
    preprocessing,
    resnet,
    roberta,
    vit,
)
from gafreeze_jax.models.base import Family, Model

FAMILIES: tuple[Family, ...] = (
    bert.FAMILY,
    *roberta.FAMILIES,
    distilbert.FAMILY,
    electra.FAMILY,
    albert.FAMILY,
    modernbert.FAMILY,
    mpnet.FAMILY,
    deberta.FAMILY,
    gpt2.FAMILY,
    *llama.FAMILIES,
    gpt_neox.FAMILY,
    resnet.FAMILY,
    vit.VIT,
    vit.DEIT,
    *dinov2.FAMILIES,
    convnext.FAMILY,
)
EXPERIMENTS = {"encoder": "run_bert.py", "decoder": "run_gpt2.py", "images": "run_resnet.py"}  # which take a kind of families


def families_of(kind: str) -> list[Family]:
    """The families of a kind (see `Family`)."""
    return [family for family in FAMILIES if family.kind == kind]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model that was read from a checkpoint.

    Attributes:
      params: {block name: arrays, "head": ...} in the checkpoint's dtypes, bfloat16, float16 or float32. To train them, take
        float32: a `Population` and a `FrozenPrefix` do.
      fresh: paths of the head's leaves that are not from the checkpoint.
      source: folder or file.
      carried: as for `Model.save`.
    """

    model: Model
    params: dict
    fresh: tuple[str, ...]
    source: Path
    carried: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def output(self) -> str:
        """Path of the head's layer with a row for each class."""
        return self.model.family.heads[self.model.head].output

    @property
    def has_bias(self) -> bool:
        """Whether this layer has one."""
        return f"{self.output}/bias" in leaf_paths(self.params)

    @property
    def read_leaves(self) -> dict[str, np.ndarray]:
        """The leaves that are from the checkpoint, by path."""
        leaves = zip(leaf_paths(self.params), jax.tree.leaves(self.params), strict=True)
        return {path: leaf for path, leaf in leaves if path not in self.fresh}

    @property
    def torch_names(self) -> dict[str, tuple[str, ...]]:
        """As `Model.torch_names`."""
        return self.model.torch_names(self.params, self.carried)

    def make_head(self, key: Array) -> dict:
        """The head with other fresh leaves."""
        return _complete(self.params["head"], self.model, self.fresh, key)

    def save(self, folder: Path, params: dict, **given: Any) -> None:
        """As `Model.save`, which also says what may be given."""
        self.model.save(folder, params, source=self.source, carried=self.carried, **given)


def _complete(head: dict, model: Model, fresh: Sequence[str], key: Array) -> dict:
    """A head whose fresh leaves are drawn."""
    if not fresh:
        return head
    known = dict(zip(leaf_paths(head), jax.tree.leaves(head), strict=True))
    drawn = model.init_head(key)
    leaves = [
        np.asarray(leaf) if f"head/{path}" in fresh else known[path]
        for path, leaf in zip(leaf_paths(drawn), jax.tree.leaves(drawn), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(drawn), leaves)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint as it was read, before a task says which head it needs.

    Attributes:
      path: of the folder or file.
      model: without a number of classes.
      tensors: by their names in the layout's table; `carried` are no parameters.
      label_names: of its classifier's classes; () if they are not known.
    """

    path: Path
    model: Model
    tensors: dict[str, np.ndarray]
    carried: dict[str, np.ndarray]
    label_names: tuple[str, ...] = ()

    def num_classes(self, head: str = "classify") -> int | None:
        """Of its classifier; None if it has none of this kind, only parts of one, or parts of another."""
        kind, table = self.model.family.heads.get(head), self.model.family.layout.table
        if kind is None:
            return None
        tree = jax.eval_shape(lambda key: kind.init(key, self.model.config, 2), jax.random.key(0))
        own = set(checkpoints.names({"head": tree}, table).values())
        stored = {name for name, path, _ in table if re.match(r"head(/|$)", path)} & self.tensors.keys()
        return self._count_classes(kind.output) if stored and stored == own else None

    def load(self, head: str = "classify", *, num_classes: int | None = None, key: Array | None = None) -> Pretrained:
        """The parameters of a network with a head.

        Args:
          head: its kind.
          num_classes: of a fresh output layer; None = the checkpoint has one and it is read, or such a head has none.
          key: for what is fresh; by default that of seed 0.

        Raises:
          ValueError: if anything is missing, left over or of another shape; all at once.
        """
        family, layout = self.model.family, self.model.family.layout
        if head not in family.heads:
            raise ValueError(f"{self.path}: {family.title} has no head for {head!r}; it has: {', '.join(family.heads)}")
        kind = dataclasses.replace(self.model, head=head).head_kind
        if kind.tied and not self._is_tied():
            raise ValueError(
                f"{self.path}: its output layer is not its word vectors, as it is in {family.title} that models language"
            )
        renewed = None if num_classes is None else kind.output
        if num_classes is None and kind.output:
            num_classes = self._count_classes(kind.output)
        model = dataclasses.replace(self.model, head=head, num_classes=num_classes)
        shapes = jax.eval_shape(model.init_params, jax.random.key(0))
        fresh = self._fresh_leaves(shapes["head"], renewed) if kind.output else ()
        of_head = checkpoints.names({"head": shapes["head"]}, layout.table).values()
        others = [name for name, path, _ in layout.table if path.startswith("head/") and name not in of_head]
        ignored = "|".join([layout.ignored, checkpoints.LEFTOVERS, *map(re.escape, others)])
        params = checkpoints.to_tree(self.tensors, layout.table, shapes, fresh=fresh, ignore=ignored, where=str(self.path))
        params["head"] = _complete(params.get("head", {}), model, fresh, jax.random.key(0) if key is None else key)
        return Pretrained(model=model, params=params, fresh=fresh, source=self.path, carried=self.carried)

    def _is_tied(self) -> bool:
        stored = [self.tensors[name] for name in self.model.family.layout.tied or () if name in self.tensors]
        return _says_tied(self.model.config) and (len(stored) < 2 or np.array_equal(stored[0], stored[1]))

    def _count_classes(self, layer: str) -> int:
        names = [name for name, path, _ in self.model.family.layout.table if path.rpartition("/")[0] == layer]
        for name in names:
            if name in self.tensors:
                return np.atleast_1d(self.tensors[name]).shape[0]
        raise ValueError(f"{self.path}: the checkpoint has no classifier ({listed(names)})")

    def _fresh_leaves(self, head: Any, renewed: str | None) -> tuple[str, ...]:
        """Paths of the leaves of a layer of the head that is renewed, and of layers of which the checkpoint has nothing."""
        places = checkpoints.names({"head": head}, self.model.family.layout.table)
        layer = {path: path.rpartition("/")[0] for path in places}
        there = {layer[path] for path, name in places.items() if name in self.tensors} - {renewed}
        return tuple(path for path in places if layer[path] not in there)


def _says_tied(config: Any) -> bool:
    return getattr(config, "tie_word_embeddings", True)


def _find_family(raw: Mapping[str, Any], families: Sequence[Family]) -> Family | None:
    """The family of a config: by its `model_type`, else, in old ones, by its architecture, else by its entries."""
    if (model_type := raw.get("model_type")) is not None:
        return next((family for family in families if family.model_type == model_type), None)
    if isinstance(architectures := raw.get("architectures"), list):
        return next((family for family in families if _stems(family) & {_stem(str(name)) for name in architectures}), None)
    return next((family for family in families if (need := configs.required(family.config)) and need <= raw.keys()), None)


def _stems(family: Family) -> set[str]:
    return {_stem(head.architecture) for head in family.heads.values()}


def _stem(architecture: str) -> str:
    """
    >>> _stem("BertForMaskedLM"), _stem("GPT2LMHeadModel"), _stem("ResNetModel")
    ('Bert', 'GPT2', 'ResNet')
    """
    return re.sub(r"(For[A-Z]|LMHead|DoubleHeads|Model).*", "", architecture)


def read_config(folder: Path, families: Sequence[Family] = FAMILIES) -> tuple[Family, Any]:
    """Finds the family of a folder by its `config.json`, and reads and checks this.

    Raises:
      ValueError, FileNotFoundError: if there is none, or not of a network that these families implement; all reasons at once.
    """
    path = folder / "config.json"
    raw = configs.read(path)
    family = _find_family(raw, families) if isinstance(raw, dict) else None
    if family is None:
        known = ", ".join(family.model_type for family in families)
        model_type = raw.get("model_type") if isinstance(raw, dict) else raw
        other = _find_family(raw, FAMILIES) if isinstance(raw, dict) else None
        hint = f"{other.title} is for {EXPERIMENTS[other.kind]}" if other else "for other networks see examples/"
        raise ValueError(f"{path}: unknown model_type {shorten(repr(model_type), 100)}, expected {known}; {hint}")
    values, problems = configs.check(raw, family.config)
    config = None if problems else family.config(**values)
    problems += family.problems(raw, config)
    if raw.get("quantization_config"):
        problems = [*problems, "its weights are quantised and cannot be trained; give the unquantised model"]
    if problems:
        raise ValueError(f"{path}: {listed(problems, '; ', most=checkpoints.PROBLEMS)}")
    return family, config


def read(path: Path, families: Sequence[Family] = FAMILIES, *, image_size: int | None = None) -> Checkpoint:
    """Reads a folder in the Hugging Face layout; with a family that infers configs, also a safetensors file by itself.

    Args:
      image_size: of the images that the network will get, if not that which it was made for.

    Raises:
      ValueError, FileNotFoundError: if it is damaged, or not of a network that these families implement.
    """
    inferring = [family for family in families if family.infer]
    if inferring and not (path / "config.json").exists():
        (family,) = inferring
        tensors = checkpoints.read_tensors(path) if path.is_dir() else checkpoints.read_file(path)
        assert family.infer
        tensors = checkpoints.renamed(tensors, checkpoints.unwrapped, path)
        config, layout = family.infer(tensors, str(path))
        family = dataclasses.replace(family, layout=layout)
        names = checkpoints.read_label_names(path)
    else:
        family, config = read_config(path, families)
        names = checkpoints.label_names(configs.read(path / "config.json").get("id2label"))
        tensors, layout = checkpoints.read_tensors(path), family.layout
    module = layout.module_of(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith((module, *layout.bare))}
    tensors = checkpoints.renamed(tensors, lambda name: layout.standard_name(name.removeprefix(module)), path)
    if any(".lora_" in name for name in tensors):
        raise ValueError(f"{path}: it contains unmerged LoRA weights; merge them first with peft's merge_and_unload()")
    if layout.tied and layout.tied[1] not in tensors and layout.tied[0] in tensors and _says_tied(config):
        tensors[layout.tied[1]] = tensors.pop(layout.tied[0])
    carried = {name: tensor for name, tensor in tensors.items() if layout.carried and re.fullmatch(layout.carried, name)}
    images = family.preprocessing and preprocessing.read(path, family.preprocessing(config), image_size)
    return Checkpoint(
        path=path,
        model=Model(family, config, preprocessing=images),
        tensors={name: tensor for name, tensor in tensors.items() if name not in carried},
        carried=carried,
        label_names=names,
    )


def load(
    path: Path,
    head: str = "classify",
    *,
    families: Sequence[Family] = FAMILIES,
    num_classes: int | None = None,
    key: Array | None = None,
) -> Pretrained:
    """`read` and `Checkpoint.load` at once."""
    return read(path, families).load(head, num_classes=num_classes, key=key)
