"""BERT for sequence classification (Devlin et al. 2019) as a chain of blocks: the embeddings, then one per layer.

Token arrays are flat, `[tokens, features]`: matrix products are then single large ones, and short texts share rows (see
`data/tokens.py`). The last layer is computed for the first token of every text alone, as nothing else is read from it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.engine.network import Block, Network, classification
from gafreeze_jax.extras import needs
from gafreeze_jax.models import checkpoints, configs, layers
from gafreeze_jax.models.trees import Granularity

with needs("text"):
    import flax.linen as nn

# Name in a Hugging Face checkpoint (without the prefix "bert."), path in our tree, axes permutation.
CHECKPOINT_MAP: checkpoints.Map = (
    ("embeddings.word_embeddings.weight", "embeddings/word", None),
    ("embeddings.position_embeddings.weight", "embeddings/position", None),
    ("embeddings.token_type_embeddings.weight", "embeddings/type", None),
    ("embeddings.LayerNorm.weight", "embeddings/norm/scale", None),
    ("embeddings.LayerNorm.bias", "embeddings/norm/bias", None),
    ("encoder.layer.{}.attention.self.query.weight", "layer_{}/attention/query/kernel", (1, 0)),
    ("encoder.layer.{}.attention.self.query.bias", "layer_{}/attention/query/bias", None),
    ("encoder.layer.{}.attention.self.key.weight", "layer_{}/attention/key/kernel", (1, 0)),
    ("encoder.layer.{}.attention.self.key.bias", "layer_{}/attention/key/bias", None),
    ("encoder.layer.{}.attention.self.value.weight", "layer_{}/attention/value/kernel", (1, 0)),
    ("encoder.layer.{}.attention.self.value.bias", "layer_{}/attention/value/bias", None),
    ("encoder.layer.{}.attention.output.dense.weight", "layer_{}/attention/out/kernel", (1, 0)),
    ("encoder.layer.{}.attention.output.dense.bias", "layer_{}/attention/out/bias", None),
    ("encoder.layer.{}.attention.output.LayerNorm.weight", "layer_{}/attention/norm/scale", None),
    ("encoder.layer.{}.attention.output.LayerNorm.bias", "layer_{}/attention/norm/bias", None),
    ("encoder.layer.{}.intermediate.dense.weight", "layer_{}/mlp/up/kernel", (1, 0)),
    ("encoder.layer.{}.intermediate.dense.bias", "layer_{}/mlp/up/bias", None),
    ("encoder.layer.{}.output.dense.weight", "layer_{}/mlp/down/kernel", (1, 0)),
    ("encoder.layer.{}.output.dense.bias", "layer_{}/mlp/down/bias", None),
    ("encoder.layer.{}.output.LayerNorm.weight", "layer_{}/mlp/norm/scale", None),
    ("encoder.layer.{}.output.LayerNorm.bias", "layer_{}/mlp/norm/bias", None),
    ("pooler.dense.weight", "head/pooler/kernel", (1, 0)),
    ("pooler.dense.bias", "head/pooler/bias", None),
    ("classifier.weight", "head/classifier/kernel", (1, 0)),
    ("classifier.bias", "head/classifier/bias", None),
)
NOT_USED = r"cls\..*|.*\.position_ids"  # heads of pre-training; a buffer


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


CONFIG_RULES: dict[str, configs.Rule] = {
    "vocab_size": configs.COUNT,
    "hidden_size": configs.COUNT,
    "num_hidden_layers": configs.DEPTH,
    "num_attention_heads": configs.COUNT,
    "intermediate_size": configs.COUNT,
    "hidden_act": configs.one_of(list(layers.ACTIVATIONS)),
    "max_position_embeddings": configs.COUNT,
    "type_vocab_size": configs.COUNT,
    "layer_norm_eps": configs.POSITIVE,
    "initializer_range": configs.POSITIVE,
    "hidden_dropout_prob": configs.RATE,
    "attention_probs_dropout_prob": configs.RATE,
    "classifier_dropout": configs.or_null(configs.RATE),
}


def read_config(folder: Path) -> BertConfig:
    """Reads and checks a `config.json`.

    Raises:
      ValueError: if it is not a BERT that this file implements; all reasons at once.
    """
    path = folder / "config.json"
    raw = configs.read(path, "bert", "a BERT")
    values, problems = configs.check(raw, BertConfig, CONFIG_RULES)
    if not problems and values["hidden_size"] % values["num_attention_heads"]:
        problems.append(f"{values['num_attention_heads']} attention heads do not divide hidden_size {values['hidden_size']}")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        problems.append(f"position_embedding_type must be 'absolute', got {raw['position_embedding_type']!r}")
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        problems.append("it is a decoder; expected an encoder")
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return BertConfig(**values)


def _dense(features: int, config: BertConfig, dtype: Any, name: str) -> layers.Dense:
    return layers.Dense(features, dtype, config.initializer_range, name=name)


def _norm(config: BertConfig, dtype: Any, name: str) -> nn.Module:
    return layers.norm(config.layer_norm_eps, dtype, name)


class Embeddings(nn.Module):
    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg, init = self.config, nn.initializers.normal(self.config.initializer_range)
        word = self.param("word", init, (cfg.vocab_size, cfg.hidden_size))
        position = self.param("position", init, (cfg.max_position_embeddings, cfg.hidden_size))
        kind = self.param("type", init, (cfg.type_vocab_size, cfg.hidden_size))
        h = word[x["ids"]] + position[x["positions"]] + kind[x["types"]]
        return layers.dropout(self, _norm(cfg, layers.activation_dtype(self.dtype), "norm")(h), cfg.hidden_dropout_prob, frozen)


class Attention(nn.Module):
    """Self-attention within the texts of a row, residual, norm: [R * S, D] -> [R * S, D], or [B, D] where `last`."""

    config: BertConfig
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        at = context["firsts"] if self.last else None  # [B], index into R * S
        key, value = (_dense(cfg.hidden_size, cfg, self.dtype, name)(x) for name in ("key", "value"))
        x = x if at is None else x[at]
        query = _dense(cfg.hidden_size, cfg, self.dtype, "query")(x)
        mixed = layers.attend(
            self, query, key, value, context["segments"], at,
            num_heads=cfg.num_attention_heads, scale=(cfg.hidden_size // cfg.num_attention_heads) ** -0.5, causal=False,
            dropout_rate=cfg.attention_probs_dropout_prob, frozen=frozen,
        )  # fmt: skip
        out = layers.dropout(self, _dense(cfg.hidden_size, cfg, self.dtype, "out")(mixed), cfg.hidden_dropout_prob, frozen)
        return _norm(cfg, x.dtype, "norm")(x + out)


class MLP(nn.Module):
    """Two dense layers, residual, norm."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = layers.activate(cfg.hidden_act, _dense(cfg.intermediate_size, cfg, self.dtype, "up")(x))
        out = layers.dropout(self, _dense(cfg.hidden_size, cfg, self.dtype, "down")(h), cfg.hidden_dropout_prob, frozen)
        return _norm(cfg, x.dtype, "norm")(x + out)


class Layer(nn.Module):
    config: BertConfig
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        x = Attention(self.config, self.dtype, self.last, name="attention")(x, context, frozen)
        return MLP(self.config, self.dtype, name="mlp")(x, context, frozen)


class Head(nn.Module):
    """Pooler and classifier: [B, D] -> logits [B, C]."""

    config: BertConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any = False) -> Array:
        pooled = jnp.tanh(_dense(self.config.hidden_size, self.config, jnp.float32, "pooler")(x))
        pooled = layers.dropout(self, pooled, self.config.head_dropout, frozen)
        return _dense(self.num_classes, self.config, jnp.float32, "classifier")(pooled)


def make_bert(config: BertConfig, num_classes: int, *, dtype: Any = jnp.float32, granularity: Granularity = "layer") -> Network:
    """The network: genes `embeddings`, `layer_0`, ...; pooler and classifier are the head.

    Args:
      dtype: of products, and of activations where that is faster; all parameters, sums, softmax and the head are float32.
      granularity: "sublayer" has the genes `layer_0/attention`, `layer_0/mlp`, ...; parameters go through `split_layers`.
    """
    modules: list[tuple[str, Any, bool]] = [("embeddings", Embeddings(config, dtype), False)]
    for i in range(config.num_hidden_layers):
        last = i == config.num_hidden_layers - 1
        if granularity == "sublayer":
            modules.append((f"layer_{i}/attention", Attention(config, dtype, last), last))
            modules.append((f"layer_{i}/mlp", MLP(config, dtype), last))
        else:
            modules.append((f"layer_{i}", Layer(config, dtype, last), last))
    blocks = tuple(Block(name, layers.as_block(module), last) for name, module, last in modules)
    head: Any = Head(config, num_classes)
    return Network(blocks, layers.as_block(head), classification)


def init_head(key: Array, config: BertConfig, num_classes: int) -> dict:
    """Fresh pooler and classifier."""
    return dict(Head(config, num_classes).init(key, jnp.zeros((1, config.hidden_size)), {})["params"])


def init_params(key: Array, config: BertConfig, num_classes: int) -> dict:
    """A randomly initialised tree {block name: parameters, "head": parameters}."""
    index = jnp.zeros(1, jnp.int32)
    context = {"segments": index[None], "firsts": index}
    x: Any = {"ids": index, "positions": index, "types": index}
    params = {}
    modules = {f"layer_{i}": Layer(config, last=i == config.num_hidden_layers - 1) for i in range(config.num_hidden_layers)}
    for name, module in {"embeddings": Embeddings(config), **modules}.items():
        key, key_block = jax.random.split(key)
        params[name] = module.init(key_block, x, context, True)["params"]
        x = jnp.zeros((1, config.hidden_size))
    return {**params, "head": init_head(key, config, num_classes)}


def load_bert(folder: Path, key: Array, num_classes: int | None = None) -> tuple[BertConfig, dict, list[str]]:
    """Reads a Hugging Face BERT checkpoint.

    Args:
      key: for parts of the head that are not in the checkpoint.
      num_classes: of a fresh classifier; None = the checkpoint has one and it is read.

    Returns:
      Its config, its parameters {block name: float32 arrays, "head": ...}, and the paths of leaves that are fresh.

    Raises:
      ValueError, FileNotFoundError: if anything is missing, left over, of another shape or damaged; all at once.
    """
    config = read_config(folder)
    tensors = checkpoints.renamed(checkpoints.read_tensors(folder), _standard_name, folder)
    fresh: tuple[str, ...] = ()
    if num_classes is None:
        if "classifier.bias" not in tensors:
            raise ValueError(f"{folder}: the checkpoint has no classifier")
        num_classes = tensors["classifier.bias"].size
    else:
        fresh += ("head/classifier/kernel", "head/classifier/bias")
    if not any(name.startswith("pooler.") for name in tensors):
        fresh += ("head/pooler/kernel", "head/pooler/bias")
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config, num_classes))
    params = checkpoints.to_tree(tensors, CHECKPOINT_MAP, shapes, fresh=fresh, ignore=NOT_USED, where=str(folder))
    head = init_head(key, config, num_classes) if fresh else {}
    for path in fresh:
        _, layer, leaf = path.split("/")
        params.setdefault("head", {}).setdefault(layer, {})[leaf] = np.asarray(head[layer][leaf])
    return config, params, list(fresh)


def _standard_name(name: str) -> str:
    """Old checkpoints call the norm's parameters gamma and beta; some leave the prefix out."""
    name = name.removeprefix("bert.")
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def _full_name(name: str) -> str:
    return name if name.startswith("classifier.") else f"bert.{name}"


def tensor_names(params: dict) -> dict[str, str]:
    """What the leaves of a tree are called in PyTorch's `BertForSequenceClassification`: {path: name}."""
    return {path: _full_name(name) for path, name in checkpoints.names(params, CHECKPOINT_MAP).items()}


def save_bert(folder: Path, source: Path, params: dict, label_names: tuple[str, ...]) -> None:
    """Writes a folder that `AutoModelForSequenceClassification.from_pretrained` loads.

    Args:
      source: folder the model came from; its config and tokenizer files are taken over.
      params: the whole tree.
      label_names: the C classes, in the order of the logits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configs.write(folder, source, architectures=["BertForSequenceClassification"], **configs.labels(label_names))
    tensors = checkpoints.from_tree(params, CHECKPOINT_MAP)
    checkpoints.write_tensors(folder, {_full_name(name): value for name, value in tensors.items()})
    checkpoints.copy_tokenizer(source, folder)
