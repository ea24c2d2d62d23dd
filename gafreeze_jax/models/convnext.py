"""ConvNeXt (Liu et al. 2022): the patches, then one block per layer; a stage's first block also makes the image smaller."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, layers, preprocessing
from gafreeze_jax.models.base import Family, Layout, Part, linear_head
from gafreeze_jax.models.checkpoints import OIHW, Table, dense, norm
from gafreeze_jax.models.convolutions import convolve_depthwise, convolve_patches
from gafreeze_jax.models.preprocessing import BICUBIC, Preprocessing

with needs("images"):
    import flax.linen as nn

EPSILON = 1e-6  # of all norms but the last
KERNEL, SHRINKING, WIDENING = 7, 2, 4  # sizes of kernels; factor of the width inside a block


def convolution(name: str, path: str) -> Table:
    return ((f"{name}.weight", f"{path}/kernel", OIHW), (f"{name}.bias", f"{path}/bias", None))


STAGE, LAYER = "encoder.stages.{-1}", "encoder.stages.{-1}.layers.{}"  # counted from 0
LAYOUT = Layout(
    prefix="convnext.",
    bare=("classifier.",),
    table=(
        *convolution("embeddings.patch_embeddings", "stem/patches"),
        *norm("embeddings.layernorm", "stem/norm"),
        *norm(f"{STAGE}.downsampling_layer.0", "layer{}_0/shrink_norm"),
        *convolution(f"{STAGE}.downsampling_layer.1", "layer{}_0/shrink"),
        *convolution(f"{LAYER}.dwconv", "layer{}_{}/conv"),
        *norm(f"{LAYER}.layernorm", "layer{}_{}/norm"),
        *dense(f"{LAYER}.pwconv1", "layer{}_{}/up"),
        *dense(f"{LAYER}.pwconv2", "layer{}_{}/down"),
        (f"{LAYER}.layer_scale_parameter", "layer{}_{}/scale", None),
        *norm("layernorm", "final_norm/norm"),
        *dense("classifier", "head"),
    ),
)


@dataclass(frozen=True)
class ConvNextConfig:
    """What of a Hugging Face `config.json` changes the computation. Names are theirs."""

    num_channels: int = configs.field(configs.COUNT, 3)
    patch_size: int = configs.field(configs.COUNT, 4)
    hidden_sizes: tuple[int, ...] = configs.field(configs.list_of(configs.COUNT), (96, 192, 384, 768))
    depths: tuple[int, ...] = configs.field(configs.list_of(configs.DEPTH), (3, 3, 9, 3))
    hidden_act: str = configs.field(configs.one_of(layers.ACTIVATIONS), "gelu")
    initializer_range: float = configs.field(configs.POSITIVE, 0.02)
    layer_norm_eps: float = configs.field(configs.POSITIVE, 1e-12)
    layer_scale_init_value: float = configs.field(configs.NOT_NEGATIVE, 1e-6)
    drop_path_rate: float = configs.field(configs.RATE, 0.0)
    image_size: int = configs.field(configs.COUNT, 224)


def problems(raw: Mapping[str, Any], config: ConvNextConfig | None) -> Iterator[str]:
    if config and len(config.hidden_sizes) != len(config.depths):
        yield f"hidden_sizes has {len(config.hidden_sizes)} entries, depths {len(config.depths)}"
    if config and raw.get("num_stages", len(config.depths)) != len(config.depths):
        yield f"num_stages is {raw['num_stages']}, but depths has {len(config.depths)} entries"


class Patches(nn.Module):
    """Convolution with a stride of the kernel's size: [B, H, W, C] -> [B, H // size, W // size, features]."""

    features: int
    size: int
    stddev: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        if min(x.shape[1:3]) < self.size:
            raise ValueError(
                f"images are too small: {x.shape[1]} x {x.shape[2]} where {self.size} x {self.size} become one place"
            )
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve_patches(x, kernel, self.dtype).astype(x.dtype) + bias[None, None, None].astype(x.dtype)


class Depthwise(nn.Module):
    """A convolution of each channel by itself: [B, H, W, C] -> [B, H, W, C]."""

    size: int
    stddev: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (self.size, self.size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return convolve_depthwise(x, kernel.astype(x.dtype)) + bias[None, None, None].astype(x.dtype)


class ConvNextStem(nn.Module):
    """Patches and a norm."""

    config: ConvNextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        cfg = self.config
        h = Patches(cfg.hidden_sizes[0], cfg.patch_size, cfg.initializer_range, self.dtype, name="patches")(x)
        return layers.norm(EPSILON, h.dtype, "norm")(h)


class ConvNextBlock(nn.Module):
    """Depthwise convolution, norm, two dense layers, factors, residual.

    Attributes:
      features: of its output.
      shrinks: whether the image first becomes half as large.
      drop_path_rate: of stochastic depth.
    """

    config: ConvNextConfig
    features: int
    shrinks: bool
    drop_path_rate: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        cfg, stddev = self.config, self.config.initializer_range
        if self.shrinks:
            h = layers.norm(EPSILON, x.dtype, "shrink_norm")(x)
            x = Patches(self.features, SHRINKING, stddev, self.dtype, name="shrink")(h)
        h = Depthwise(KERNEL, stddev, name="conv")(x)
        h = layers.norm(EPSILON, h.dtype, "norm")(h).reshape(-1, self.features)
        h = layers.activate(cfg.hidden_act, layers.Dense(WIDENING * self.features, self.dtype, stddev, name="up")(h))
        h = layers.Dense(self.features, self.dtype, stddev, name="down")(h)
        if cfg.layer_scale_init_value:
            scale = self.param("scale", nn.initializers.constant(cfg.layer_scale_init_value), (self.features,))
            h = h * scale[None].astype(h.dtype)
        return x + layers.drop_path(self, h.reshape(x.shape), self.drop_path_rate, frozen)


class ConvNextFinalNorm(nn.Module):
    """The average over all places and its norm: [B, H, W, D] -> [B, D]."""

    config: ConvNextConfig

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        return layers.norm(self.config.layer_norm_eps, jnp.float32, "norm")(x.astype(jnp.float32).mean((1, 2)))


def blocks(config: ConvNextConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("stem", ConvNextStem(config, dtype))
    rates = iter(np.linspace(0, config.drop_path_rate, sum(config.depths)).tolist())
    for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True), start=1):
        for number in range(depth):
            shrinks = stage > 1 and number == 0
            yield Part(f"layer{stage}_{number}", ConvNextBlock(config, width, shrinks, next(rates), dtype))
    yield Part("final_norm", ConvNextFinalNorm(config))


def _width(config: ConvNextConfig) -> int:
    """Of what the classifier reads."""
    return config.hidden_sizes[-1]


def default_preprocessing(config: ConvNextConfig) -> Preprocessing:
    return preprocessing.imagenet(config.image_size, 0.875, BICUBIC, config.num_channels)


FAMILY = Family(
    model_type="convnext",
    kind="images",
    title="a ConvNeXt",
    config=ConvNextConfig,
    problems=problems,
    layout=LAYOUT,
    blocks=blocks,
    heads={"classify": linear_head("ConvNextForImageClassification", _width)},
    preprocessing=default_preprocessing,
)
