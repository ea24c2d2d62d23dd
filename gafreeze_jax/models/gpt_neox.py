"""GPT-NeoX (Black et al. 2022), and so Pythia (Biderman et al. 2023): rotary positions in a part of each head.

In most of them attention and MLP of a block read the same input. Such a block is one gene by sublayers as well.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, decoders, layers, rotary
from gafreeze_jax.models.base import Family, Layout, Part
from gafreeze_jax.models.checkpoints import dense, norm

with needs("text"):
    import flax.linen as nn

LAYOUT = Layout(
    prefix="gpt_neox.",
    bare=("score.", "classifier.", "embed_out."),
    # Heads of other tasks; buffers.
    ignored=r"embed_out\.weight|qa_outputs\..*|layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\..*)",
    tied=("embed_out.weight", "embed_in.weight"),
    renamed=(("embed_out", "lm_head"),),
    table=(
        ("embed_in.weight", "embeddings/word", None),
        *norm("layers.{}.input_layernorm", "block_{}/attention/norm"),
        *dense("layers.{}.attention.query_key_value", "block_{}/attention/qkv"),
        *dense("layers.{}.attention.dense", "block_{}/attention/out"),
        *norm("layers.{}.post_attention_layernorm", "block_{}/mlp/norm"),
        *dense("layers.{}.mlp.dense_h_to_4h", "block_{}/mlp/up"),
        *dense("layers.{}.mlp.dense_4h_to_h", "block_{}/mlp/down"),
        *norm("final_layer_norm", "final_norm/norm"),
        ("embed_out.weight", "output/dense/kernel", (1, 0)),
        ("score.weight", "head/score/kernel", (1, 0)),
        *dense("classifier", "head/classifier"),
    ),
)


@dataclass(frozen=True)
class GPTNeoXConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs, some of them in old configs only."""

    num_types = 1

    vocab_size: int = configs.field(configs.COUNT)
    hidden_size: int = configs.field(configs.COUNT)
    num_hidden_layers: int = configs.field(configs.DEPTH)
    num_attention_heads: int = configs.field(configs.COUNT)
    intermediate_size: int = configs.field(configs.COUNT)
    hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    max_position_embeddings: int = configs.field(configs.COUNT, 2048)
    layer_norm_eps: float = configs.field(configs.POSITIVE, 1e-5)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    attention_dropout: float = configs.field(configs.RATE, 0.0)
    hidden_dropout: float = configs.field(configs.RATE, 0.0)
    classifier_dropout: float | None = configs.field(configs.or_null(configs.RATE), None)
    attention_bias: bool = configs.field(configs.FLAG, True)
    use_parallel_residual: bool = configs.field(configs.FLAG, True)
    tie_word_embeddings: bool = configs.field(configs.FLAG, False)
    rotary_pct: float = configs.field(configs.POSITIVE, 0.25)
    rotary_emb_base: float = configs.field(configs.POSITIVE, 10_000.0)
    rope_scaling: tuple | None = configs.field(rotary.SETTINGS, None)
    rope_parameters: tuple | None = configs.field(rotary.SETTINGS, None)

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> dict[str, Any]:
        defaults = {
            "partial_rotary_factor": self.rotary_pct,
            "original_max_position_embeddings": self.max_position_embeddings,
        }
        return rotary.settings(self.rotary_emb_base, self.rope_scaling or self.rope_parameters, **defaults)

    @property
    def rotated_width(self) -> int:
        """Features of a head that positions turn."""
        return int(self.head_width * self.rope["partial_rotary_factor"])


def problems(raw: Mapping[str, Any], config: GPTNeoXConfig | None) -> Iterator[str]:
    if not config:
        return
    if wrong := list(rotary.problems(config.rope)):
        yield from wrong
    elif config.hidden_size % config.num_attention_heads:
        yield f"{config.num_attention_heads} attention heads do not divide hidden_size {config.hidden_size}"
    elif not 0 < config.rotated_width <= config.head_width or config.rotated_width % 2:
        yield f"the rotary width must be even, and from 2 to the head width {config.head_width}, got {config.rotated_width}"


def _norm(config: GPTNeoXConfig, dtype: Any) -> nn.Module:
    return layers.norm(config.layer_norm_eps, dtype, "norm")


class GPTNeoXAttention(nn.Module):
    """Norm and causal self-attention within the texts of a row: [R * S, D] -> [R * S, D], or [B, D] where `last`.

    Attributes:
      frequencies: of the rotary positions.
      adds: whether the input is added.
    """

    config: GPTNeoXConfig
    frequencies: tuple[float, ...]
    dtype: Any = jnp.float32
    last: bool = False
    adds: bool = True

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        at = context["lasts"] if self.last else None  # [B], index into R * S
        h = _norm(cfg, x.dtype)(x)
        h = layers.dense(3 * cfg.hidden_size, cfg, self.dtype, "qkv", cfg.attention_bias)(h)
        h = h.reshape(len(h), cfg.num_attention_heads, 3, cfg.head_width)
        query, key, value = (h[:, :, i] for i in range(3))
        if at is not None:
            x, query = x[at], query[at]
        mixed = rotary.attend(
            self, query, key, value, context["segments"], at,
            frequencies=self.frequencies, causal=True, dropout_rate=cfg.attention_dropout, frozen=frozen,
        )  # fmt: skip
        out = layers.dense(cfg.hidden_size, cfg, self.dtype, "out", cfg.attention_bias)(mixed)
        out = layers.dropout(self, out, cfg.hidden_dropout, frozen)
        return x + out if self.adds else out


class GPTNeoXMLP(nn.Module):
    """Norm and two dense layers.

    Attributes:
      adds: whether the input is added.
    """

    config: GPTNeoXConfig
    dtype: Any = jnp.float32
    adds: bool = True

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = _norm(cfg, x.dtype)(x)
        h = layers.dense(cfg.intermediate_size, cfg, self.dtype, "up")(h)
        h = layers.activate(cfg.hidden_act, h)
        out = layers.dense(cfg.hidden_size, cfg, self.dtype, "down")(h)
        out = layers.dropout(self, out, cfg.hidden_dropout, frozen)
        return x + out if self.adds else out


class GPTNeoXBlock(nn.Module):
    """Attention and MLP of the same input, side by side: [R * S, D] -> [R * S, D], or [B, D] where `last`."""

    config: GPTNeoXConfig
    frequencies: tuple[float, ...]
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        attention = GPTNeoXAttention(self.config, self.frequencies, self.dtype, self.last, adds=False, name="attention")
        mixed = attention(x, context, frozen)
        x = x[context["lasts"]] if self.last else x
        return x + mixed + GPTNeoXMLP(self.config, self.dtype, adds=False, name="mlp")(x, context, frozen)


def blocks(config: GPTNeoXConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", decoders.WordVectors(config, dtype, config.hidden_dropout), per_example=False)
    frequencies = rotary.frequencies(config.rotated_width, config.rope)
    for i in range(config.num_hidden_layers):
        last = per_example and i == config.num_hidden_layers - 1
        if config.use_parallel_residual:
            module = GPTNeoXBlock(config, frequencies, dtype, last)
        else:
            module = {"attention": GPTNeoXAttention(config, frequencies, dtype, last), "mlp": GPTNeoXMLP(config, dtype)}
        yield Part(f"block_{i}", module, per_example=last)
    yield Part("final_norm", decoders.FinalNorm(layers.norm, config.layer_norm_eps), per_example=per_example)


FAMILY = Family(
    model_type="gpt_neox",
    kind="decoder",
    title="a GPT-NeoX",
    config=GPTNeoXConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads=decoders.heads("GPTNeoX", token_layer="classifier"),
)
