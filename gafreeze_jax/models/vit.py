"""Vision transformers: ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021), which has one more token.

DINOv2 shares much of this file. Where a classifier reads one token alone, the last layer is computed for it alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, layers, preprocessing
from gafreeze_jax.models.base import Family, Head, Layout, Part, linear_head
from gafreeze_jax.models.checkpoints import OIHW, dense, norm
from gafreeze_jax.models.convolutions import convolve_patches
from gafreeze_jax.models.preprocessing import BICUBIC, BILINEAR, Preprocessing

with needs("images"):
    import flax.linen as nn

EMBEDDINGS = (
    ("embeddings.cls_token", "embeddings/class", None),
    ("embeddings.position_embeddings", "embeddings/position", None),
    ("embeddings.patch_embeddings.projection.weight", "embeddings/kernel", OIHW),
    ("embeddings.patch_embeddings.projection.bias", "embeddings/bias", None),
)
ATTENTION = (
    *dense("encoder.layer.{}.attention.attention.query", "layer_{}/attention/query"),
    *dense("encoder.layer.{}.attention.attention.key", "layer_{}/attention/key"),
    *dense("encoder.layer.{}.attention.attention.value", "layer_{}/attention/value"),
    *dense("encoder.layer.{}.attention.output.dense", "layer_{}/attention/out"),
)
RENAMED = (  # of attention, in transformers 5
    (r"attention\.attention\.(query|key|value)", r"attention.\1"),
    (r"attention\.query", "attention.q_proj"),
    (r"attention\.key", "attention.k_proj"),
    (r"attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
)
TOP = (*norm("layernorm", "final_norm/norm"), *dense("classifier", "head"))


def layout(prefix: str) -> Layout:
    return Layout(
        prefix=prefix,
        bare=("classifier.",),
        ignored=r"(pooler|decoder|(cls|distillation)_classifier)\..*|embeddings\.mask_token",  # for other tasks
        table=(
            *EMBEDDINGS,
            ("embeddings.distillation_token", "embeddings/distillation", None),
            *ATTENTION,
            *norm("encoder.layer.{}.layernorm_before", "layer_{}/attention/norm"),
            *norm("encoder.layer.{}.layernorm_after", "layer_{}/mlp/norm"),
            *dense("encoder.layer.{}.intermediate.dense", "layer_{}/mlp/up"),
            *dense("encoder.layer.{}.output.dense", "layer_{}/mlp/down"),
            *TOP,
        ),
        renamed=(
            *RENAMED,
            (r"encoder\.layer\.", "layers."),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """What of a Hugging Face `config.json` changes the computation of any vision transformer. Names are theirs.

    Modules take configs that also have

      special_tokens: names of the tokens before those of the image; the first is for classification.
      num_register_tokens: that come next and have no positions.
      averages: whether the classifier also reads the average over the image's tokens.
      antialiases: how positions are resized for images of another size.
      intermediate_size, use_swiglu_ffn: of MLPs, which may be gated.
      layer_dropout: of what attention and MLP return.
      layerscale_value: initial factors of that; None: there are none.
      drop_path_rate: of stochastic depth.
    """

    hidden_size: int = configs.field(configs.COUNT, 768)
    num_hidden_layers: int = configs.field(configs.DEPTH, 12)
    num_attention_heads: int = configs.field(configs.COUNT, 12)
    hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    hidden_dropout_prob: float = configs.field(configs.RATE, 0.0)
    attention_probs_dropout_prob: float = configs.field(configs.RATE, 0.0)
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    layer_norm_eps: float = configs.field(configs.POSITIVE, 1e-12)
    image_size: int = configs.field(configs.COUNT, 224)
    patch_size: int = configs.field(configs.COUNT, 16)
    num_channels: int = configs.field(configs.COUNT, 3)
    qkv_bias: bool = configs.field(configs.FLAG, True)

    @property
    def side(self) -> int:
        """Patches in a row, for which there are positions."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ViTConfig(VisionConfig):
    special_tokens: ClassVar[tuple[str, ...]] = ("class",)
    num_register_tokens = 0
    averages = antialiases = use_swiglu_ffn = False
    layerscale_value, drop_path_rate = None, 0.0

    intermediate_size: int = configs.field(configs.COUNT, 3072)

    @property
    def layer_dropout(self) -> float:
        return self.hidden_dropout_prob


@dataclass(frozen=True, kw_only=True)
class DeiTConfig(ViTConfig):
    special_tokens: ClassVar[tuple[str, ...]] = ("class", "distillation")


def problems(raw: Mapping[str, Any], config: VisionConfig | None) -> Iterator[str]:
    if config and config.hidden_size % config.num_attention_heads:
        yield f"{config.num_attention_heads} attention heads do not divide hidden_size {config.hidden_size}"
    if config and not config.side:
        yield f"patch_size {config.patch_size} must be at most image_size {config.image_size}"


class PatchEmbeddings(nn.Module):
    """Images [B, H, W, C] -> tokens [B, N, D]: special ones, then one for each patch, row by row."""

    config: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        cfg, init = self.config, nn.initializers.normal(self.config.initializer_range)
        if min(x.shape[1:3]) < cfg.patch_size:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} pixels are smaller than a patch of {cfg.patch_size}")
        kernel = self.param("kernel", init, (cfg.patch_size, cfg.patch_size, cfg.num_channels, cfg.hidden_size))
        bias = self.param("bias", nn.initializers.zeros, (cfg.hidden_size,))
        patches = convolve_patches(x, kernel, self.dtype).astype(x.dtype) + bias[None, None, None].astype(x.dtype)
        batch, *grid, width = patches.shape

        def tokens(name: str, num: int) -> Array:
            return self.param(name, init, (1, num, width)).astype(jnp.float32)

        special = [tokens(name, 1) for name in cfg.special_tokens]
        positions = tokens("position", len(special) + cfg.side**2)
        special = jnp.concatenate(special, 1) + positions[:, : len(special)]
        positions = resized(positions[0, len(cfg.special_tokens) :].reshape(cfg.side, cfg.side, width), grid, cfg.antialiases)
        if cfg.num_register_tokens:
            special = jnp.concatenate([special, tokens("registers", cfg.num_register_tokens)], 1)
        special = jnp.broadcast_to(special, (batch, *special.shape[1:])).astype(x.dtype)
        patches = (patches + positions[None].astype(x.dtype)).reshape(batch, -1, width)
        return layers.dropout(self, jnp.concatenate([special, patches], 1), cfg.hidden_dropout_prob, frozen)


def resized(positions: Array, shape: list[int], antialiases: bool) -> Array:
    """Positions [side, side, D] for another number of rows and columns, by bicubic interpolation as PyTorch does it."""
    if list(positions.shape[:2]) == shape:
        return positions
    if antialiases:
        return jax.image.resize(positions, (*shape, positions.shape[2]), "cubic")
    rows, columns = (cubic_weights(len(positions), num) for num in shape)
    return jnp.einsum("ri,cj,ijd->rcd", rows, columns, positions)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Shares that `old` places have in `new` ones, [new, old] float32; by Keys' kernel (1981)."""
    a = -0.75  # PyTorch's
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old), np.float32)
    for offset in (-1, 0, 1, 2):
        places = np.floor(centers) + offset
        d = np.abs(centers - places)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(weights, (np.arange(new), np.clip(places, 0, old - 1).astype(int)), np.where(d <= 1, near, far))
    return weights


def _add(module: nn.Module, x: Array, rows: Array, frozen: Any) -> Array:
    """The end of a sublayer: dropout, factors, stochastic depth, residual. x [B, N, D], rows [B * N, D] -> [B, N, D]."""
    cfg = module.config
    rows = layers.dropout(module, rows, cfg.layer_dropout, frozen)
    if cfg.layerscale_value is not None:
        scale = module.param("scale", nn.initializers.constant(cfg.layerscale_value), rows.shape[-1:])
        rows = rows * scale[None].astype(rows.dtype)
    return x + layers.drop_path(module, rows.reshape(x.shape), cfg.drop_path_rate, frozen)


class ViTAttention(nn.Module):
    """Norm, self-attention, residual: [B, N, D] -> [B, N, D], or [B, 1, D], the first token, where `last`."""

    config: Any
    dtype: Any = jnp.float32
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        cfg, (batch, _, width) = self.config, x.shape
        h = layers.norm(cfg.layer_norm_eps, x.dtype, "norm")(x)

        def make(name: str, h: Array) -> Array:
            made = layers.dense(width, cfg, self.dtype, name, cfg.qkv_bias)(h.reshape(-1, width))
            return made.reshape(batch, -1, cfg.num_attention_heads, width // cfg.num_attention_heads)

        key, value = make("key", h), make("value", h)
        x, h = (x[:, :1], h[:, :1]) if self.last else (x, h)
        mixed = layers.mix(
            self, make("query", h), key, value, None,
            scale=(width // cfg.num_attention_heads) ** -0.5, dropout_rate=cfg.attention_probs_dropout_prob, frozen=frozen,
        )  # fmt: skip
        return _add(self, x, layers.dense(width, cfg, self.dtype, "out")(mixed.reshape(-1, width)), frozen)


class ViTMLP(nn.Module):
    """Norm, two dense layers, of which the first may have a gate, residual: [B, N, D] -> [B, N, D]."""

    config: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        cfg, width = self.config, x.shape[-1]
        h = layers.norm(cfg.layer_norm_eps, x.dtype, "norm")(x).reshape(-1, width)
        if cfg.use_swiglu_ffn:
            gate, h = jnp.split(layers.dense(2 * cfg.intermediate_size, cfg, self.dtype, "gated_up")(h), 2, axis=-1)
            h = layers.dense(width, cfg, self.dtype, "gated_down")(layers.activate("silu", gate) * h)
        else:
            h = layers.activate(cfg.hidden_act, layers.dense(cfg.intermediate_size, cfg, self.dtype, "up")(h))
            h = layers.dense(width, cfg, self.dtype, "down")(h)
        return _add(self, x, h, frozen)


class ViTFinalNorm(nn.Module):
    """What the classifier reads: [B, N, D] -> [B, D], or [B, 2 D] with the average over the image's tokens."""

    config: Any

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        cfg, norm = self.config, layers.norm(self.config.layer_norm_eps, x.dtype, "norm")
        if not cfg.averages:
            return norm(x[:, 0])
        h = norm(x)
        return jnp.concatenate([h[:, 0], h[:, len(cfg.special_tokens) + cfg.num_register_tokens :].mean(1)], -1)


def blocks(config: Any, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("embeddings", PatchEmbeddings(config, dtype))
    for i in range(config.num_hidden_layers):
        last = i == config.num_hidden_layers - 1 and not config.averages
        yield Part(f"layer_{i}", {"attention": ViTAttention(config, dtype, last), "mlp": ViTMLP(config, dtype)})
    yield Part("final_norm", ViTFinalNorm(config))


def _width(config: Any) -> int:
    """Of what the classifier reads."""
    return config.hidden_size * (2 if config.averages else 1)


def classify(architecture: str) -> Head:
    return linear_head(architecture, _width)


def vit_preprocessing(config: VisionConfig) -> Preprocessing:
    """As ViT was trained: all of the image, squashed."""
    half = (0.5,) * config.num_channels
    return Preprocessing(config.image_size, 1.0, BILINEAR, half, half, squashes=True)


def cropped_preprocessing(config: VisionConfig) -> Preprocessing:
    """As DeiT and DINOv2 were trained: the middle of the image."""
    return preprocessing.imagenet(config.image_size, 0.875, BICUBIC, config.num_channels)


VIT = Family(
    model_type="vit",
    kind="images",
    title="a ViT",
    config=ViTConfig,
    problems=problems,
    layout=layout("vit."),
    blocks=blocks,
    heads={"classify": classify("ViTForImageClassification")},
    preprocessing=vit_preprocessing,
)
DEIT = Family(
    model_type="deit",
    kind="images",
    title="a DeiT",
    config=DeiTConfig,
    problems=problems,
    layout=layout("deit."),
    blocks=blocks,
    heads={"classify": classify("DeiTForImageClassification")},
    preprocessing=cropped_preprocessing,
)
