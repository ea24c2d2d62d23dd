"""GPT-2 (Radford et al. 2019): the embeddings, one block per block, the final norm.

It models language, with the word vectors as its output layer too, or classifies texts by their last token, or each token.
Token arrays are flat, `[tokens, features]`, and texts share rows (see `data/tokens.py`); a token sees earlier ones of its own
text. To classify texts, the last block and the final norm are computed for the last token of every text alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import checkpoints, configs, decoders, layers, products
from gafreeze_jax.models.base import Family, Layout, Part
from gafreeze_jax.models.checkpoints import Table, norm

with needs("text"):
    import flax.linen as nn


def dense(name: str, path: str) -> Table:
    """Rows for a dense layer, whose kernel is stored as ours is."""
    return ((f"{name}.weight", f"{path}/kernel", None), (f"{name}.bias", f"{path}/bias", None))


LAYOUT = Layout(
    prefix="transformer.",
    bare=("score.", "classifier."),
    # Buffers; the output layer, which is the word vectors; heads of other tasks.
    ignored=r"h\.\d+\.attn\.(masked_)?bias|(lm|v|multiple_choice)_head\..*|qa_outputs\..*",
    tied=("lm_head.weight", "wte.weight"),
    table=(
        ("wte.weight", "embeddings/word", None),
        ("wpe.weight", "embeddings/position", None),
        *norm("h.{}.ln_1", "block_{}/attention/norm"),
        *dense("h.{}.attn.c_attn", "block_{}/attention/qkv"),
        *dense("h.{}.attn.c_proj", "block_{}/attention/out"),
        *norm("h.{}.ln_2", "block_{}/mlp/norm"),
        *dense("h.{}.mlp.c_fc", "block_{}/mlp/up"),
        *dense("h.{}.mlp.c_proj", "block_{}/mlp/down"),
        *norm("ln_f", "final_norm/norm"),
        ("score.weight", "head/score/kernel", (1, 0)),
        *checkpoints.dense("classifier", "head/classifier"),
    ),
)


@dataclass(frozen=True)
class GPT2Config:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs.

    (`reorder_and_upcast_attn` says what we always do: softmax is in float32.)
    """

    num_types = 1

    vocab_size: int = configs.field(configs.COUNT)
    n_embd: int = configs.field(configs.COUNT)
    n_layer: int = configs.field(configs.DEPTH)
    n_head: int = configs.field(configs.COUNT)
    n_inner: int | None = configs.field(configs.or_null(configs.COUNT), None)
    activation_function: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu_new")
    n_positions: int = configs.field(configs.COUNT, 1024)
    layer_norm_epsilon: float = configs.field(configs.POSITIVE, 1e-5)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    embd_pdrop: float = configs.field(configs.RATE, 0.1)
    attn_pdrop: float = configs.field(configs.RATE, 0.1)
    resid_pdrop: float = configs.field(configs.RATE, 0.1)
    scale_attn_weights: bool = configs.field(configs.FLAG, True)
    scale_attn_by_inverse_layer_idx: bool = configs.field(configs.FLAG, False)
    classifier_dropout: float | None = configs.field(configs.or_null(configs.RATE), None)
    tie_word_embeddings: bool = configs.field(configs.FLAG, True)

    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def max_tokens(self) -> int:
        return self.n_positions

    def attention_scale(self, index: int) -> float:
        """Of the attention scores in a block."""
        scale = (self.n_embd // self.n_head) ** -0.5 if self.scale_attn_weights else 1.0
        return scale / (index + 1) if self.scale_attn_by_inverse_layer_idx else scale


def problems(raw: Mapping[str, Any], config: GPT2Config | None) -> Iterator[str]:
    if config and config.n_embd % config.n_head:
        yield f"{config.n_head} attention heads do not divide n_embd {config.n_embd}"
    if raw.get("add_cross_attention"):
        yield "it has cross-attention to an encoder; expected a decoder by itself"


class GPT2Embeddings(nn.Module):
    config: GPT2Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: dict[str, Array], context: dict[str, Array], frozen: Any) -> Array:
        cfg, init = self.config, nn.initializers.normal(self.config.initializer_range)
        word = self.param("word", init, (cfg.vocab_size, cfg.n_embd))
        position = self.param("position", init, (cfg.n_positions, cfg.n_embd))
        h = layers.add_rows([(word, x["ids"]), (position, x["positions"])]).astype(products.activation_dtype(self.dtype))
        return layers.dropout(self, h, cfg.embd_pdrop, frozen)


class GPT2Attention(nn.Module):
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
        qkv = layers.dense(3 * cfg.n_embd, cfg, self.dtype, "qkv")(h)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        if at is not None:
            x, query = x[at], query[at]
        mixed = layers.attend(
            self, query, key, value, context["segments"], at,
            num_heads=cfg.n_head, scale=self.scale, causal=True, dropout_rate=cfg.attn_pdrop, frozen=frozen,
        )  # fmt: skip
        out = layers.Dense(cfg.n_embd, self.dtype, layers.residual_stddev(cfg, cfg.n_layer), name="out")(mixed)
        return x + layers.dropout(self, out, cfg.resid_pdrop, frozen)


class GPT2MLP(nn.Module):
    """Norm, two dense layers, residual."""

    config: GPT2Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = layers.norm(cfg.layer_norm_epsilon, x.dtype, "norm")(x)
        h = layers.dense(cfg.n_inner or 4 * cfg.n_embd, cfg, self.dtype, "up")(h)
        h = layers.activate(cfg.activation_function, h)
        out = layers.Dense(cfg.n_embd, self.dtype, layers.residual_stddev(cfg, cfg.n_layer), name="down")(h)
        return x + layers.dropout(self, out, cfg.resid_pdrop, frozen)


def blocks(config: GPT2Config, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", GPT2Embeddings(config, dtype), per_example=False)
    for i in range(config.n_layer):
        last = per_example and i == config.n_layer - 1
        attention = GPT2Attention(config, config.attention_scale(i), dtype, last)
        yield Part(f"block_{i}", {"attention": attention, "mlp": GPT2MLP(config, dtype)}, per_example=last)
    yield Part("final_norm", decoders.FinalNorm(layers.norm, config.layer_norm_epsilon), per_example=per_example)


FAMILY = Family(
    model_type="gpt2",
    kind="decoder",
    title="a GPT-2",
    config=GPT2Config,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads=decoders.heads("GPT2", lm="GPT2LMHeadModel", token_layer="classifier", can_be_untied=False),
)
