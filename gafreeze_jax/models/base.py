"""Families of pretrained networks, such as BERT: what differs between them is data, and what they share is written here, once.

A family is one file with a `Family`: a config whose fields come with their rules, a table of tensors, blocks and heads.
Networks, initialisation, tensor names, saving and loading (`pretrained.py`) follow from these; docs/families.md has an example.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine.network import STATISTICS, Block, Network
from gafreeze_jax.extras import needs
from gafreeze_jax.models import checkpoints, configs, layers, preprocessing
from gafreeze_jax.models.preprocessing import Preprocessing

with needs("text"):
    import flax.linen as nn

Granularity = Literal["layer", "sublayer"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a checkpoint calls its tensors.

    Attributes:
      table: rows of (name without prefix, path in our tree, axes permutation); see `checkpoints.Table`.
      prefix: of all names but those that begin with one of `bare`. A checkpoint may leave it out.
      old_endings: endings of names in old checkpoints, and what they are today.
      ignored: regular expression of tensors that are not used: heads of other tasks, buffers.
      tied: names of the output layer's tensor and of the word vectors, which a checkpoint may store under either name.
      carried: regular expression of tensors that are not used, and are saved again as they are.
      renamed: regular expressions and replacements, of which there may be several, where transformers 5 calls parameters in
        memory otherwise than in checkpoints.
    """

    table: checkpoints.Table
    prefix: str = ""
    bare: tuple[str, ...] = ()
    old_endings: tuple[tuple[str, str], ...] = ()
    ignored: str = ""
    tied: tuple[str, str] | None = None
    carried: str = ""
    renamed: tuple[tuple[str, ...], ...] = ()

    def standard_name(self, name: str) -> str:
        """A name as it stands in the table."""
        name = checkpoints.unwrapped(name, self._first_parts).removeprefix(self.prefix)
        for old, new in self.old_endings:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        return name

    def module_of(self, names: Iterable[str]) -> str:
        """Where a network lies that is part of a module of the user's own, such as "encoder."; "" if it is no part of one."""
        first = self.table[0][0]
        before = {name.removesuffix(first) for name in names if f".{name}".endswith(f".{first}")}
        return before.pop().removesuffix(self.prefix) if len(before) == 1 else ""

    @functools.cached_property
    def _first_parts(self) -> set[str]:
        """Of its names, which are no wrappers'."""
        return {self.full_name(name).partition(".")[0] for name, *_ in self.table}

    def full_name(self, name: str) -> str:
        return name if name.startswith(self.bare) else self.prefix + name

    def torch_names(self, name: str) -> tuple[str, ...]:
        """The full name of a tensor, and what else PyTorch may call it, or parts of it."""
        names = [self.full_name(name)]
        for pattern, *replacements in self.renamed:
            names = [re.sub(pattern, replacement, known) for known in names for replacement in replacements]
        return tuple(dict.fromkeys([self.full_name(name), *names]))


class Part(NamedTuple):
    """The Flax module of a block.

    Attributes:
      module: called as `module(x, context, frozen)`; or the modules of a layer's sublayers by their names, lowest first.
      per_example: whether its output has one row per example, as in `Block`.
      computes: False for parameters that only higher parts read, whose modules name this part in `reads` and find them in their
        context. It is a gene, too; its module passes x on, and only initialises them.
    """

    name: str
    module: nn.Module | Mapping[str, nn.Module]
    per_example: bool = True
    computes: bool = True


@dataclass(frozen=True, kw_only=True)
class Head:
    """A kind of head, on top of the blocks.

    Attributes:
      architecture: PyTorch's name of the network with such a head, for `config.json`.
      make: `make(config, num_classes, dtype)` returns the function that is the `Network`'s head; see `fixed`.
      init: `init(key, config, num_classes)` returns its parameters.
      output: path of the layer with a row for each class, such as "head/classifier". It is fresh where a number of classes is
        asked for; the head's other layers are where the checkpoint lacks them. "" for a head without classes, of which nothing
        is fresh.
      per_example: whether it reads one row per example, so that the last layer need not be computed for the others.
      shared: names of blocks whose parameters it reads, too, as in `Network`.
      tied: whether its output layer is the word vectors (`Layout.tied`).
      untied: the head of networks whose config has a false `tie_word_embeddings`; None: they are refused.
      blocks: `blocks(config, dtype)` returns parts between the family's blocks and the head, which are genes as well.
    """

    architecture: str
    make: Callable[[Any, Any, Any], Callable[..., Any]]
    init: Callable[[Array, Any, Any], dict]
    output: str = ""
    per_example: bool = True
    shared: tuple[str, ...] = ()
    tied: bool = False
    untied: "Head | None" = None
    blocks: "Callable[[Any, Any], Iterable[Part]] | None" = None


def fixed(apply: Callable[..., Any]) -> Callable[[Any, Any, Any], Callable[..., Any]]:
    """A head's `make` where its function is the same for all networks."""
    return lambda config, num_classes, dtype: apply


def module_head(architecture: str, module: Callable[[Any, int], nn.Module], output: str, per_example: bool = True) -> Head:
    """A head that is a Flax module.

    Args:
      module: `module(config, num_classes)` makes it; it is called as that of a `Part`, with x [B, config.hidden_size].
      architecture, output, per_example: as in `Head`.
    """

    def make(config: Any, num_classes: int, dtype: Any) -> Callable[..., Any]:
        return layers.as_block(module(config, num_classes))

    def init(key: Array, config: Any, num_classes: int) -> dict:
        return dict(module(config, num_classes).init(key, jnp.zeros((1, config.hidden_size)), {})["params"])

    return Head(architecture=architecture, make=make, init=init, output=output, per_example=per_example)


def linear_head(architecture: str, width: Callable[[Any], int]) -> Head:
    """A head that is a linear classifier of an example's features [B, D].

    Args:
      width: `width(config)` is D.
    """

    def init(key: Array, config: Any, num_classes: int) -> dict:
        kernel = config.initializer_range * jax.random.normal(key, (width(config), num_classes))
        return {"kernel": kernel, "bias": jnp.zeros(num_classes)}

    return Head(architecture=architecture, make=fixed(_linear), init=init, output="head")


def _linear(params, x, context, *, frozen, key):
    return x.astype(jnp.float32) @ params["kernel"] + params["bias"][None]


def no_problems(raw: Mapping[str, Any], config: Any) -> Iterable[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that differ by their config only.

    Attributes:
      model_type: in `config.json`.
      kind: which experiment takes it: run_bert.py encoders of texts, run_gpt2.py decoders, run_resnet.py networks for images.
      title: what one is called, such as "a BERT".
      config: a frozen dataclass of what changes the computation, by Hugging Face's names, with fields from `configs.field`.
        For texts it has `vocab_size`, and says `max_tokens` and `num_types` (of tokens).
      layout: of Hugging Face's checkpoints.
      blocks: `blocks(config, dtype, per_example)` returns the parts, lowest first; where `per_example` the last layer
        computes only what a head reads that looks at one token of each text, `context["firsts"]` or `context["lasts"]`.
      heads: by their kinds: "classify", "tokens" (a class of each token), "lm" (the next token).
      problems: `problems(raw, config)` says what is wrong with a `config.json` besides its fields; `config` is None if a field
        is wrong.
      preprocessing: for images, `preprocessing(config)` is the family's way to prepare them. None = texts.
      infer: `infer(tensors, where)` returns config and layout of a checkpoint without `config.json`, or raises a ValueError.
    """

    model_type: str
    kind: Literal["encoder", "decoder", "images"]
    title: str
    config: type
    layout: Layout
    blocks: Callable[[Any, Any, bool], Iterable[Part]]
    heads: Mapping[str, Head]
    problems: Callable[[Mapping[str, Any], Any], Iterable[str]] = no_problems
    preprocessing: Callable[[Any], Preprocessing] | None = None
    infer: Callable[[Mapping[str, np.ndarray], str], tuple[Any, Layout]] | None = None


@dataclass(frozen=True)
class Model:
    """A network of a family with a head: all but the values of its parameters.

    Attributes:
      head: its kind.
      num_classes: None for a head without classes.
      preprocessing: of images; the family's by default.
    """

    family: Family
    config: Any
    _: dataclasses.KW_ONLY
    head: str = "classify"
    num_classes: int | None = None
    preprocessing: Preprocessing | None = None

    @property
    def head_kind(self) -> Head:
        """Its kind of head, as the config needs it."""
        head = self.family.heads[self.head]
        return head if head.untied is None or self.config.tie_word_embeddings else head.untied

    @property
    def pixels(self) -> Preprocessing | None:
        """How it wants its images; None for texts."""
        return self.preprocessing or (self.family.preprocessing and self.family.preprocessing(self.config))

    def make_network(self, *, dtype: Any = jnp.float32, granularity: Granularity = "layer") -> Network:
        """The network. Blocks are the family's parts, or their sublayers, such as `layer_0/attention`.

        Args:
          dtype: of products, and of activations where that is faster; parameters that train, sums, statistics, softmax and
            logits are float32.
          granularity: with "sublayer", parameters go through `split_layers`.
        """
        head = self.head_kind
        blocks = [
            Block(name, layers.as_block(module) if part.computes else None, part.per_example, layers.reads(module))
            for part in self._parts(dtype, head.per_example)
            for name, module in _modules(part, granularity)
        ]
        if self.pixels:
            blocks[0] = blocks[0]._replace(apply=preprocessing.on_pixels(blocks[0].apply, self.pixels, jnp.dtype(dtype)))
        apply = head.make(self.config, self.num_classes, jnp.dtype(dtype))
        return Network(tuple(blocks), apply, shared=head.shared, master_dtype=jnp.float32, dtype=jnp.dtype(dtype))

    def init_head(self, key: Array) -> dict:
        """A fresh head."""
        return self.head_kind.init(key, self.config, self.num_classes)

    def init_params(self, key: Array) -> dict:
        """A randomly initialised tree {block name: parameters, "head": parameters}."""
        x, context = self._smallest_input()
        traced = isinstance(key, jax.core.Tracer)  # by `eval_shape`, within which nothing is compiled
        init = _init_compiled if self.family.preprocessing and not traced else _init
        params = {}
        for part in self._parts(jnp.float32, False):
            ((name, module),) = _modules(part, "layer")
            key, key_block = jax.random.split(key)
            x, variables = init(module, key_block, x, context | {read: params[read] for read in layers.reads(module)})
            statistics = {STATISTICS: variables[STATISTICS]} if STATISTICS in variables else {}
            params[name] = {**variables["params"], **statistics}
        return {**params, "head": self.init_head(key)}

    def _parts(self, dtype: Any, per_example: bool) -> Iterable[Part]:
        yield from self.family.blocks(self.config, dtype, per_example)
        if self.head_kind.blocks:
            yield from self.head_kind.blocks(self.config, dtype)

    def _smallest_input(self) -> tuple[Any, dict[str, Array]]:
        """A text of one token, or an image of the family's size, and its context."""
        if self.family.preprocessing:
            wanted = self.family.preprocessing(self.config)
            return jnp.zeros((1, wanted.size, wanted.size, len(wanted.mean))), {"weights": jnp.ones(1)}
        index = jnp.zeros(1, jnp.int32)
        context = {"segments": index[None], "firsts": index, "lasts": index}
        return {"ids": index, "positions": index, "types": index}, context

    def torch_names(self, params: dict, carried: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
        """All that PyTorch may call the leaves of a tree, by path, and tensors that are carried along."""
        layout = self.family.layout
        names = checkpoints.names(params, layout.table) | {f"carried/{name}": name for name in carried}
        return {path: layout.torch_names(name) for path, name in names.items()}

    def save(
        self,
        folder: Path,
        params: dict,
        *,
        source: Path,
        label_names: Sequence[str] = (),
        problem_type: str | None = "single_label_classification",
        padding: tuple[int, str] | None = None,
        input_names: Sequence[str] = (),
        carried: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes a model in the layout that it has; with a `config.json`, PyTorch's `AutoModelFor...` loads the folder.

        Args:
          source: folder or file that the model came from; its config, tokenizer and preprocessor files are taken over.
          params: the whole tree.
          label_names: the C classes, in the order of the logits.
          problem_type: what transformers calls the task; None for a class of each token.
          padding: id and text of the token that fills up batches of texts, if PyTorch has to know it.
          input_names: what the tokenizer returns, if PyTorch has to know it.
          carried: tensors that are saved as they are, by their names in the table.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if (source / "config.json").exists():
            changes = {
                "model_type": self.family.model_type,  # old ones lack it
                "architectures": [self.head_kind.architecture],
            }
            changes |= configs.labels(label_names, problem_type) if label_names else {}
            changes |= {"pad_token_id": padding[0]} if padding else {}
            configs.write(folder, source, **changes)
        layout = self.family.layout
        tensors = {**(carried or {}), **checkpoints.from_tree(params, layout.table)}
        checkpoints.write_tensors(folder, {layout.full_name(name): tensor for name, tensor in tensors.items()}, label_names)
        pad_token = padding[1] if padding else None
        as_words = self.head == "tokens"
        checkpoints.copy_tokenizer(source, folder, as_words=as_words, pad_token=pad_token, input_names=input_names)
        if self.pixels and self.family.preprocessing:
            preprocessing.take_over(source, folder, self.family.preprocessing(self.config), self.pixels.size)


def _modules(part: Part, granularity: Granularity) -> Iterable[tuple[str, nn.Module]]:
    """Name and module of each block that a part makes."""
    if isinstance(part.module, nn.Module):
        return [(part.name, part.module)]
    if granularity == "sublayer":
        return [(f"{part.name}/{name}", module) for name, module in part.module.items()]
    return [(part.name, layers.Sublayers(tuple(part.module.items())))]


def _init(module: nn.Module, key: Array, x: Any, context: dict[str, Array]) -> tuple[Array, Any]:
    """What shape the output has, and the variables."""
    x, variables = module.init_with_output(key, x, context, True)
    return jnp.zeros_like(x), variables


# What convolutions compute is left out then, as only its shape counts. XLA:CPU takes 1 to 7 s for the random numbers of a small
# kernel otherwise; these are the same.
_init_compiled = jax.jit(_init, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})


def split_layers(params: dict, names: Iterable[str]) -> dict:
    """A model's parameters by the names of a network's blocks: `layer_0/attention` is "attention" of "layer_0"."""
    split = {}
    for name in (*names, "head"):
        layer, _, sublayer = name.partition("/")
        split[name] = params[layer][sublayer] if sublayer else params[layer]
    return split


def join_layers(params: dict) -> dict:
    """The reverse of `split_layers`; leaves whole layers as they are."""
    joined: dict = {}
    for name, tree in params.items():
        layer, _, sublayer = name.partition("/")
        joined[layer] = {**joined.get(layer, {}), sublayer: tree} if sublayer else tree
    return joined
