"""Llama (Touvron et al. 2023) and networks of its architecture: Mistral, Qwen2 and Qwen3; SmolLM2 is a Llama.

Norms by the root mean square, rotary positions, heads of keys that serve several of the queries, gated MLPs. They model
language, by the word vectors or an output layer, which is a gene, or classify texts by their last token, or each token.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, decoders, layers, rotary
from gafreeze_jax.models.base import Family, Layout, Part
from gafreeze_jax.models.checkpoints import Table, dense

with needs("text"):
    import flax.linen as nn


def scale(name: str, path: str) -> Table:
    """A row for a norm without a bias."""
    return ((f"{name}.weight", f"{path}/scale", None),)


LAYOUT = Layout(
    prefix="model.",
    bare=("score.", "lm_head."),
    # Heads of other tasks; buffers.
    ignored=r"lm_head\.weight|qa_outputs\..*|layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    tied=("lm_head.weight", "embed_tokens.weight"),
    table=(
        ("embed_tokens.weight", "embeddings/word", None),
        *scale("layers.{}.input_layernorm", "block_{}/attention/norm"),
        *dense("layers.{}.self_attn.q_proj", "block_{}/attention/query"),
        *dense("layers.{}.self_attn.k_proj", "block_{}/attention/key"),
        *dense("layers.{}.self_attn.v_proj", "block_{}/attention/value"),
        *dense("layers.{}.self_attn.o_proj", "block_{}/attention/out"),
        *scale("layers.{}.self_attn.q_norm", "block_{}/attention/query_norm"),
        *scale("layers.{}.self_attn.k_norm", "block_{}/attention/key_norm"),
        *scale("layers.{}.post_attention_layernorm", "block_{}/mlp/norm"),
        *dense("layers.{}.mlp.gate_proj", "block_{}/mlp/gate"),
        *dense("layers.{}.mlp.up_proj", "block_{}/mlp/up"),
        *dense("layers.{}.mlp.down_proj", "block_{}/mlp/down"),
        *scale("norm", "final_norm/norm"),
        ("lm_head.weight", "output/dense/kernel", (1, 0)),
        *dense("score", "head/score"),
    ),
)


@dataclass(frozen=True)
class LlamaConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs.

    Attributes:
      norms_heads: whether each head's queries and keys are normalised.
    """

    num_types = 1
    norms_heads = False

    vocab_size: int = configs.field(configs.COUNT)
    hidden_size: int = configs.field(configs.COUNT)
    num_hidden_layers: int = configs.field(configs.DEPTH)
    num_attention_heads: int = configs.field(configs.COUNT)
    intermediate_size: int = configs.field(configs.COUNT)
    num_key_value_heads: int | None = configs.field(configs.or_null(configs.COUNT), None)
    head_dim: int | None = configs.field(configs.or_null(configs.COUNT), None)
    hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "silu")
    max_position_embeddings: int = configs.field(configs.COUNT, 2048)
    rms_norm_eps: float = configs.field(configs.POSITIVE, 1e-6)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    attention_dropout: float = configs.field(configs.RATE, 0.0)
    classifier_dropout: float | None = configs.field(configs.or_null(configs.RATE), None)
    attention_bias: bool = configs.field(configs.FLAG, False)
    mlp_bias: bool = configs.field(configs.FLAG, False)
    tie_word_embeddings: bool = configs.field(configs.FLAG, False)
    rope_theta: float = configs.field(configs.POSITIVE, 10_000.0)
    rope_scaling: tuple | None = configs.field(rotary.SETTINGS, None)
    rope_parameters: tuple | None = configs.field(rotary.SETTINGS, None)

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings

    @property
    def num_key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> dict[str, Any]:
        longest = {"original_max_position_embeddings": self.max_position_embeddings}
        return rotary.settings(self.rope_theta, self.rope_scaling or self.rope_parameters, **longest)

    @property
    def biases(self) -> dict[str, bool]:
        """Whether layers have one: queries, keys and values; attention's output; the MLP."""
        return {"in": self.attention_bias, "out": self.attention_bias, "mlp": self.mlp_bias}

    def reach(self, index: int) -> int | None:
        """How many tokens back the tokens of a block still see others; None: all."""
        return None


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """Llama's without biases, with a window of attention."""

    num_key_value_heads: int | None = configs.field(configs.or_null(configs.COUNT), 8)
    max_position_embeddings: int = configs.field(configs.COUNT, 131072)
    sliding_window: int | None = configs.field(configs.or_null(configs.COUNT), 4096)

    @property
    def biases(self) -> dict[str, bool]:
        return {"in": False, "out": False, "mlp": False}

    def reach(self, index: int) -> int | None:
        return None if self.sliding_window is None else self.sliding_window - 1


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Llama's, with biases where queries, keys and values are made, and with a window of attention in some blocks."""

    max_position_embeddings: int = configs.field(configs.COUNT, 32768)
    use_sliding_window: bool = configs.field(configs.FLAG, False)
    sliding_window: int | None = configs.field(configs.or_null(configs.COUNT), 4096)
    max_window_layers: int = configs.field(configs.NUMBER, 28)
    layer_types: tuple[str, ...] | None = configs.field(configs.LAYER_TYPES, None)

    @property
    def biases(self) -> dict[str, bool]:
        return {"in": True, "out": False, "mlp": False}

    def reach(self, index: int) -> int | None:
        if not self.use_sliding_window or self.sliding_window is None:
            return None
        slides = index >= self.max_window_layers if self.layer_types is None else self.layer_types[index] == configs.SLIDING
        return self.sliding_window - 1 if slides else None


@dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """Qwen2's with norms of queries and keys, and with heads of a width of their own."""

    norms_heads = True

    head_dim: int | None = configs.field(configs.or_null(configs.COUNT), 128)

    @property
    def biases(self) -> dict[str, bool]:
        return {"in": self.attention_bias, "out": self.attention_bias, "mlp": False}


def problems(raw: Mapping[str, Any], config: LlamaConfig | None) -> Iterator[str]:
    if not config:
        return
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        yield f"{config.num_attention_heads} attention heads do not divide hidden_size {config.hidden_size}"
    elif config.head_width % 2:
        yield f"heads must have an even width, got {config.head_width}"
    if config.num_attention_heads % config.num_key_heads:
        yield f"num_key_value_heads {config.num_key_heads} must divide num_attention_heads {config.num_attention_heads}"
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and len(kinds) != config.num_hidden_layers:
        yield f"layer_types has {len(kinds)} entries, expected num_hidden_layers {config.num_hidden_layers}"
    yield from rotary.problems(config.rope)
    if config.rope["partial_rotary_factor"] != 1:
        yield f"partial_rotary_factor must be 1, got {config.rope['partial_rotary_factor']}"


def _norm(config: LlamaConfig, dtype: Any, name: str = "norm") -> nn.Module:
    return layers.rms_norm(config.rms_norm_eps, dtype, name)


class LlamaAttention(nn.Module):
    """Norm, causal self-attention within the texts of a row, residual: [R * S, D] -> [R * S, D], or [B, D] where `last`.

    Attributes:
      frequencies: of the rotary positions.
      reach: how many tokens back a token still sees others; None: all.
    """

    config: LlamaConfig
    frequencies: tuple[float, ...]
    reach: int | None = None
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg, width = self.config, self.config.head_width
        at = context["lasts"] if self.last else None  # [B], index into R * S
        h = _norm(cfg, x.dtype)(x)

        def make(name: str, num_heads: int, h: Array) -> Array:
            made = layers.dense(num_heads * width, cfg, self.dtype, name, cfg.biases["in"])(h)
            return made.reshape(len(h), num_heads, width)

        def normed(name: str, h: Array) -> Array:
            return _norm(cfg, h.dtype, f"{name}_norm")(h) if cfg.norms_heads else h

        key, value = (make(name, cfg.num_key_heads, h) for name in ("key", "value"))
        key = normed("key", key)
        if at is not None:
            x, h = x[at], h[at]
        query = normed("query", make("query", cfg.num_attention_heads, h))
        mixed = rotary.attend(
            self, query, key, value, context["segments"], at, frequencies=self.frequencies,
            causal=True, reach=self.reach, dropout_rate=cfg.attention_dropout, frozen=frozen,
        )  # fmt: skip
        return x + layers.dense(cfg.hidden_size, cfg, self.dtype, "out", cfg.biases["out"])(mixed)


class LlamaMLP(nn.Module):
    """Norm, two dense layers of which one is the other's gate, a third one, residual."""

    config: LlamaConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: dict[str, Array], frozen: Any) -> Array:
        cfg, bias = self.config, self.config.biases["mlp"]
        h = _norm(cfg, x.dtype)(x)
        gate, up = (layers.dense(cfg.intermediate_size, cfg, self.dtype, name, bias)(h) for name in ("gate", "up"))
        return x + layers.dense(cfg.hidden_size, cfg, self.dtype, "down", bias)(layers.activate(cfg.hidden_act, gate) * up)


def blocks(config: LlamaConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", decoders.WordVectors(config, dtype), per_example=False)
    frequencies = rotary.frequencies(config.head_width, config.rope)
    for i in range(config.num_hidden_layers):
        last = per_example and i == config.num_hidden_layers - 1
        attention = LlamaAttention(config, frequencies, config.reach(i), dtype, last)
        yield Part(f"block_{i}", {"attention": attention, "mlp": LlamaMLP(config, dtype)}, per_example=last)
    yield Part("final_norm", decoders.FinalNorm(layers.rms_norm, config.rms_norm_eps), per_example=per_example)


def family(model_type: str, title: str, stem: str, config: type) -> Family:
    """A family, whose networks' names begin with `stem` in PyTorch."""
    return Family(
        model_type=model_type,
        kind="decoder",
        title=title,
        config=config,
        problems=problems,
        layout=LAYOUT,
        blocks=blocks,
        heads=decoders.heads(stem),
    )


FAMILIES = (
    family("llama", "a Llama", "Llama", LlamaConfig),
    family("mistral", "a Mistral", "Mistral", MistralConfig),
    family("qwen2", "a Qwen2", "Qwen2", Qwen2Config),
    family("qwen3", "a Qwen3", "Qwen3", Qwen3Config),
)
