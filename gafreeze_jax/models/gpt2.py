"""GPT-2 (Radford et al. 2019) as a chain of blocks: the embeddings, one block per block, the final norm.

It models language, with the word vectors as its output layer too, or classifies texts by their last token. Token arrays are
flat, `[tokens, features]`, and texts share rows (see `data/tokens.py`); a token sees earlier ones of its own text. For
classification the last block and the final norm are computed for the last token of every text alone.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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

TaskName = Literal["lm", "classify"]

# Name in a Hugging Face checkpoint (without the prefix "transformer."), path in our tree, axes permutation.
CHECKPOINT_MAP: checkpoints.Map = (
    ("wte.weight", "embeddings/word", None),
    ("wpe.weight", "embeddings/position", None),
    ("h.{}.ln_1.weight", "block_{}/attention/norm/scale", None),
    ("h.{}.ln_1.bias", "block_{}/attention/norm/bias", None),
    ("h.{}.attn.c_attn.weight", "block_{}/attention/qkv/kernel", None),
    ("h.{}.attn.c_attn.bias", "block_{}/attention/qkv/bias", None),
    ("h.{}.attn.c_proj.weight", "block_{}/attention/out/kernel", None),
    ("h.{}.attn.c_proj.bias", "block_{}/attention/out/bias", None),
    ("h.{}.ln_2.weight", "block_{}/mlp/norm/scale", None),
    ("h.{}.ln_2.bias", "block_{}/mlp/norm/bias", None),
    ("h.{}.mlp.c_fc.weight", "block_{}/mlp/up/kernel", None),
    ("h.{}.mlp.c_fc.bias", "block_{}/mlp/up/bias", None),
    ("h.{}.mlp.c_proj.weight", "block_{}/mlp/down/kernel", None),
    ("h.{}.mlp.c_proj.bias", "block_{}/mlp/down/bias", None),
    ("ln_f.weight", "final_norm/norm/scale", None),
    ("ln_f.bias", "final_norm/norm/bias", None),
    ("score.weight", "head/score/kernel", (1, 0)),
)
# Buffers; the output layer, which is the word vectors; the head of the other task.
NOT_USED = r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight|score\.weight"


@dataclass(frozen=True)
class GPT2Config:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs."""

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    n_positions: int = 1024
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True


CONFIG_RULES: dict[str, configs.Rule] = {
    "vocab_size": configs.COUNT,
    "n_embd": configs.COUNT,
    "n_layer": configs.DEPTH,
    "n_head": configs.COUNT,
    "n_inner": configs.or_null(configs.COUNT),
    "activation_function": configs.one_of(list(layers.ACTIVATIONS)),
    "n_positions": configs.COUNT,
    "layer_norm_epsilon": configs.POSITIVE,
    "initializer_range": configs.POSITIVE,
    "embd_pdrop": configs.RATE,
    "attn_pdrop": configs.RATE,
    "resid_pdrop": configs.RATE,
    "scale_attn_weights": configs.FLAG,
    "scale_attn_by_inverse_layer_idx": configs.FLAG,
    "tie_word_embeddings": configs.FLAG,
}


def read_config(folder: Path) -> GPT2Config:
    """Reads and checks a `config.json`. (`reorder_and_upcast_attn` says what we always do: softmax is in float32.)

    Raises:
      ValueError: if it is not a GPT-2 that this file implements; all reasons at once.
    """
    path = folder / "config.json"
    raw = configs.read(path, "gpt2", "a GPT-2")
    values, problems = configs.check(raw, GPT2Config, CONFIG_RULES)
    if not problems and values["n_embd"] % values["n_head"]:
        problems.append(f"{values['n_head']} attention heads do not divide n_embd {values['n_embd']}")
    if raw.get("add_cross_attention"):
        problems.append("it has cross-attention to an encoder; expected a decoder by itself")
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return GPT2Config(**values)


class Embeddings(nn.Module):
    config: GPT2Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg, init = self.config, nn.initializers.normal(self.config.initializer_range)
        word = self.param("word", init, (cfg.vocab_size, cfg.n_embd))
        position = self.param("position", init, (cfg.n_positions, cfg.n_embd))
        h = (word[x["ids"]] + position[x["positions"]]).astype(layers.activation_dtype(self.dtype))
        return layers.dropout(self, h, cfg.embd_pdrop, frozen)


class Attention(nn.Module):
    """Norm, causal self-attention within the texts of a row, residual: [R * S, D] -> [R * S, D], or [B, D] where `last`.

    Attributes:
      scale: of the attention scores.
    """

    config: GPT2Config
    scale: float
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        at = context["lasts"] if self.last else None  # [B], index into R * S
        h = layers.norm(cfg.layer_norm_epsilon, x.dtype, "norm")(x)
        qkv = layers.Dense(3 * cfg.n_embd, self.dtype, cfg.initializer_range, name="qkv")(h)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        if at is not None:
            x, query = x[at], query[at]
        mixed = layers.attend(
            self, query, key, value, context["segments"], at,
            num_heads=cfg.n_head, scale=self.scale, causal=True, dropout_rate=cfg.attn_pdrop, frozen=frozen,
        )  # fmt: skip
        out = layers.Dense(cfg.n_embd, self.dtype, _residual_stddev(cfg), name="out")(mixed)
        return x + layers.dropout(self, out, cfg.resid_pdrop, frozen)


class MLP(nn.Module):
    """Norm, two dense layers, residual."""

    config: GPT2Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = layers.norm(cfg.layer_norm_epsilon, x.dtype, "norm")(x)
        h = layers.Dense(cfg.n_inner or 4 * cfg.n_embd, self.dtype, cfg.initializer_range, name="up")(h)
        h = layers.activate(cfg.activation_function, h)
        out = layers.Dense(cfg.n_embd, self.dtype, _residual_stddev(cfg), name="down")(h)
        return x + layers.dropout(self, out, cfg.resid_pdrop, frozen)


def _residual_stddev(config: GPT2Config) -> float:
    """Of kernels whose outputs are added up along the depth of the network."""
    return config.initializer_range / (2 * config.n_layer) ** 0.5


class TransformerBlock(nn.Module):
    config: GPT2Config
    scale: float
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        x = Attention(self.config, self.scale, self.dtype, self.last, name="attention")(x, context, frozen)
        return MLP(self.config, self.dtype, name="mlp")(x, context, frozen)


class FinalNorm(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        return layers.norm(self.config.layer_norm_epsilon, x.dtype, "norm")(x)


def _score(params, x, context, *, frozen, key):
    """The classifier: [B, D] -> logits [B, C]."""
    return x.astype(jnp.float32) @ params["score"]["kernel"]


@functools.cache  # so that equal networks are equal
def _next_token(dtype: Any) -> Callable:
    """The output layer, which is the word vectors: [N, D] -> logits [N, V]."""

    def apply(params, x, context, *, frozen, key):
        return layers.matmul(dtype, x.astype(jnp.float32), params["embeddings"]["word"].T)

    return apply


class _Named(NamedTuple):
    name: str
    module: nn.Module
    per_example: bool


def _modules(config: GPT2Config, task: TaskName, dtype: Any, granularity: Granularity) -> list[_Named]:
    """All blocks, lowest first."""
    modules = [_Named("embeddings", Embeddings(config, dtype), False)]
    for i in range(config.n_layer):
        last = task == "classify" and i == config.n_layer - 1
        scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= i + 1
        if granularity == "sublayer":
            modules.append(_Named(f"block_{i}/attention", Attention(config, scale, dtype, last), last))
            modules.append(_Named(f"block_{i}/mlp", MLP(config, dtype), last))
        else:
            modules.append(_Named(f"block_{i}", TransformerBlock(config, scale, dtype, last), last))
    return [*modules, _Named("final_norm", FinalNorm(config), task == "classify")]


def make_gpt2(config: GPT2Config, task: TaskName, *, dtype: Any = jnp.float32, granularity: Granularity = "layer") -> Network:
    """The network: genes `embeddings`, `block_0`, ..., `final_norm`.

    Args:
      task: "lm": an example is a token, whose target is the next one; the head has no parameters of its own. "classify": an
        example is a text; the head is a linear classifier.
      dtype: of products, and of activations where that is faster; all parameters, sums, softmax and logits are float32.
      granularity: "sublayer" has the genes `block_0/attention`, `block_0/mlp`, ...; parameters go through
        `trees.split_layers`.
    """
    modules = _modules(config, task, dtype, granularity)
    blocks = tuple(Block(name, layers.as_block(module), per_example) for name, module, per_example in modules)
    if task == "lm":
        return Network(blocks, _next_token(jnp.dtype(dtype)), classification, shared=("embeddings",))
    return Network(blocks, _score, classification)


def init_head(key: Array, config: GPT2Config, num_classes: int | None) -> dict:
    """A fresh classifier; no parameters for None, which is language modelling."""
    if num_classes is None:
        return {}
    return {"score": {"kernel": config.initializer_range * jax.random.normal(key, (config.n_embd, num_classes))}}


def init_params(key: Array, config: GPT2Config, num_classes: int | None) -> dict:
    """A randomly initialised tree {block name: parameters, "head": parameters}, as `init_head`."""
    index = jnp.zeros(1, jnp.int32)
    x: Any = {"ids": index, "positions": index}
    params = {}
    for name, module, _ in _modules(config, "lm", jnp.float32, "layer"):
        key, key_block = jax.random.split(key)
        params[name] = module.init(key_block, x, {"segments": index[None]}, True)["params"]
        x = jnp.zeros((1, config.n_embd))
    return {**params, "head": init_head(key, config, num_classes)}


def load_gpt2(folder: Path, task: TaskName, key: Array, num_classes: int | None = None) -> tuple[GPT2Config, dict, list[str]]:
    """Reads a Hugging Face GPT-2 checkpoint, with or without a head.

    Args:
      key: for a fresh classifier.
      num_classes: of a fresh classifier; None = the checkpoint has one and it is read, or the task needs none.

    Returns:
      Its config, its parameters {block name: float32 arrays, "head": ...}, and the paths of leaves that are fresh.

    Raises:
      ValueError, FileNotFoundError: if anything is missing, left over, of another shape or damaged; all at once.
    """
    config = read_config(folder)
    tensors = checkpoints.renamed(checkpoints.read_tensors(folder), lambda name: name.removeprefix("transformer."), folder)
    fresh: tuple[str, ...] = ()
    if task == "lm":
        num_classes = None
        output = tensors.get("lm_head.weight")
        if not config.tie_word_embeddings or not (output is None or np.array_equal(output, tensors.get("wte.weight", output))):
            raise ValueError(f"{folder}: its output layer is not its word vectors, as it is in a GPT-2 that models language")
    elif num_classes is not None:
        fresh = ("head/score/kernel",)
    elif "score.weight" in tensors:
        num_classes = len(tensors["score.weight"])
    else:
        raise ValueError(f"{folder}: the checkpoint has no classifier")
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config, num_classes))
    params = checkpoints.to_tree(tensors, CHECKPOINT_MAP, shapes, fresh=fresh, ignore=NOT_USED, where=str(folder))
    if task == "lm" or fresh:
        params["head"] = jax.tree.map(np.asarray, init_head(key, config, num_classes))
    return config, params, list(fresh)


def _full_name(name: str) -> str:
    return name if name.startswith("score.") else f"transformer.{name}"


def tensor_names(params: dict) -> dict[str, str]:
    """What the leaves of a tree are called in PyTorch's `GPT2LMHeadModel` or `GPT2ForSequenceClassification`: {path: name}."""
    return {path: _full_name(name) for path, name in checkpoints.names(params, CHECKPOINT_MAP).items()}


def save_gpt2(
    folder: Path, source: Path, params: dict, label_names: Sequence[str] = (), padding: tuple[int, str] | None = None
) -> None:
    """Writes a folder that PyTorch's `GPT2LMHeadModel` loads, or, if there are labels, `GPT2ForSequenceClassification`.

    Args:
      source: folder the model came from; its config and tokenizer files are taken over.
      params: the whole tree.
      label_names: the C classes, in the order of the logits.
      padding: id and text of the token that fills up batches of texts, which PyTorch's classifier has to know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changes: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"]}
    if label_names:
        changes = {"architectures": ["GPT2ForSequenceClassification"], **configs.labels(label_names)}
    configs.write(folder, source, **changes, **({"pad_token_id": padding[0]} if padding else {}))
    tensors = checkpoints.from_tree(params, CHECKPOINT_MAP)
    checkpoints.write_tensors(folder, {_full_name(name): value for name, value in tensors.items()})
    checkpoints.copy_tokenizer(source, folder, **({"pad_token": padding[1]} if padding else {}))
