"""ResNets for image classification (He et al. 2016): the stem, then one block per residual block.

Those for ImageNet (7 x 7 stem with max-pooling; basic or bottleneck blocks) and those for CIFAR (3 x 3 stem; shortcuts
without parameters). `context["weights"]` [B] says which rows of a batch are examples (1) and which only fill it up (0).
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.extras import needs
from gafreeze_jax.models import configs, preprocessing
from gafreeze_jax.models.base import Family, Head, Layout, Part, fixed
from gafreeze_jax.models.checkpoints import OIHW, Table, dense
from gafreeze_jax.models.convolutions import convolve
from gafreeze_jax.models.preprocessing import BILINEAR, Preprocessing

with needs("images"):
    import flax.linen as nn

EPSILON, MOMENTUM = 1e-5, 0.1  # of batch normalisation, as PyTorch has them
REDUCTION = 4  # of the channels inside a bottleneck block


def batch_norm(name: str, parent: str, norm: str) -> Table:
    """Rows for a batch normalisation with running statistics."""
    statistics = f"{parent}/batch_stats/{norm}"
    return (
        (f"{name}.weight", f"{parent}/{norm}/scale", None),
        (f"{name}.bias", f"{parent}/{norm}/bias", None),
        (f"{name}.running_mean", f"{statistics}/mean", None),
        (f"{name}.running_var", f"{statistics}/var", None),
    )


CARRIED = r".*\.num_batches_tracked"
HUGGING_FACE = Layout(  # it counts stages and convolutions from 0
    prefix="resnet.",
    bare=("classifier.",),
    carried=CARRIED,
    table=(
        ("embedder.embedder.convolution.weight", "stem/conv/kernel", OIHW),
        *batch_norm("embedder.embedder.normalization", "stem", "norm"),
        ("encoder.stages.{-1}.layers.{}.layer.{-1}.convolution.weight", "layer{}_{}/conv{}/kernel", OIHW),
        *batch_norm("encoder.stages.{-1}.layers.{}.layer.{-1}.normalization", "layer{}_{}", "norm{}"),
        ("encoder.stages.{-1}.layers.{}.shortcut.convolution.weight", "layer{}_{}/shortcut/kernel", OIHW),
        *batch_norm("encoder.stages.{-1}.layers.{}.shortcut.normalization", "layer{}_{}", "shortcut_norm"),
        *dense("classifier.1", "head"),
    ),
)


def pytorch_layout(classifier: str) -> Layout:
    """torchvision's names ("fc"), and those of the CIFAR family ("linear")."""
    table = (
        ("conv1.weight", "stem/conv/kernel", OIHW),
        *batch_norm("bn1", "stem", "norm"),
        ("layer{}.{}.conv{}.weight", "layer{}_{}/conv{}/kernel", OIHW),
        *batch_norm("layer{}.{}.bn{}", "layer{}_{}", "norm{}"),
        ("layer{}.{}.downsample.0.weight", "layer{}_{}/shortcut/kernel", OIHW),
        *batch_norm("layer{}.{}.downsample.1", "layer{}_{}", "shortcut_norm"),
        *dense(classifier, "head"),
    )
    return Layout(table=table, carried=CARRIED)


CIFAR, TORCHVISION = pytorch_layout("linear"), pytorch_layout("fc")


@dataclass(frozen=True)
class ResNetConfig:
    """The architecture. Names and defaults are those of a Hugging Face `config.json`, apart from the last two.

    Attributes:
      hidden_sizes, depths: output channels and number of blocks of each stage (in He's sense: blocks of equal width).
      stem: imagenet: 7 x 7 with stride 2, then max-pooling; cifar: 3 x 3.
      shortcut: where a block changes the shape, its input is projected, or subsampled and padded with zero channels.
    """

    num_channels: int = configs.field(configs.COUNT, 3)
    embedding_size: int = configs.field(configs.COUNT, 64)
    hidden_sizes: tuple[int, ...] = configs.field(configs.list_of(configs.COUNT), (256, 512, 1024, 2048))
    depths: tuple[int, ...] = configs.field(configs.list_of(configs.DEPTH), (3, 4, 6, 3))
    layer_type: Literal["basic", "bottleneck"] = configs.field(configs.one_of(["basic", "bottleneck"]), "bottleneck")
    downsample_in_first_stage: bool = configs.field(configs.FLAG, False)
    downsample_in_bottleneck: bool = configs.field(configs.FLAG, False)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "padding"] = "projection"


def problems(raw: Mapping[str, Any], config: ResNetConfig | None) -> Iterator[str]:
    if raw.get("hidden_act", "relu") != "relu":
        yield f"hidden_act must be 'relu', got {raw['hidden_act']!r}"
    if config and len(config.hidden_sizes) != len(config.depths):
        yield f"hidden_sizes has {len(config.hidden_sizes)} entries, depths {len(config.depths)}"
    if config and config.layer_type == "bottleneck" and (odd := [n for n in config.hidden_sizes if n % REDUCTION]):
        yield f"the hidden_sizes of bottleneck blocks must be multiples of {REDUCTION}, got {odd[0]}"


def cifar_config(depth: int, num_channels: int = 3) -> ResNetConfig:
    """ResNet-20, 32, 44, 56, 110, ... for small images: 6n + 2 layers.

    >>> cifar_config(20).depths
    (3, 3, 3)
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"ResNets for CIFAR have 6n + 2 layers (8, 14, 20, ...), got {depth}")
    blocks = (depth - 2) // 6
    return ResNetConfig(num_channels, 16, (16, 32, 64), (blocks,) * 3, "basic", stem="cifar", shortcut="padding")


def infer(tensors: Mapping[str, np.ndarray], where: str) -> tuple[ResNetConfig, Layout]:
    """The architecture of tensors with PyTorch's names, and whose names these are.

    Raises:
      ValueError: if they are not those of a ResNet that this file implements.
    """
    kernels = {name: np.shape(tensor) for name, tensor in tensors.items() if np.ndim(tensor) == 4}
    matches = (re.fullmatch(r"layer(\d+)\.\d+\.conv1\.weight", name) for name in kernels)
    stages = [int(match[1]) for match in matches if match]
    depths = tuple(stages.count(stage) for stage in range(1, max(stages, default=0) + 1))
    num_convolutions = 3 if "layer1.0.conv3.weight" in kernels else 2
    last = [f"layer{stage}.0.conv{num_convolutions}.weight" for stage in range(1, len(depths) + 1)]
    needed = ["conv1.weight", *(last or ["layer1.0.conv1.weight"])]
    if missing := [name for name in needed if name not in kernels]:
        raise ValueError(
            f"{where}: not a ResNet with PyTorch's names: no convolution {missing[0]}; its tensors are "
            f"{', '.join(sorted(tensors)[:3])}, ... Give a Hugging Face model as a folder with config.json"
        )
    features, channels, size, _ = kernels["conv1.weight"]
    if size not in (3, 7):
        raise ValueError(f"{where}: conv1.weight must be 3 x 3 (for CIFAR) or 7 x 7 (for ImageNet), got {size} x {size}")
    widths = tuple(kernels[name][0] for name in last)
    inner = kernels["layer1.0.conv2.weight"][1]
    if num_convolutions == 3 and not inner * REDUCTION == kernels["layer1.0.conv1.weight"][0] * REDUCTION == widths[0]:
        raise ValueError(f"{where}: wide or grouped bottleneck blocks (wide ResNet, ResNeXt) are not implemented")
    config = ResNetConfig(
        channels,
        features,
        widths,
        depths,
        "bottleneck" if num_convolutions == 3 else "basic",
        stem="cifar" if size == 3 else "imagenet",
        shortcut="projection" if any(".downsample." in name for name in kernels) else "padding",
    )
    return config, CIFAR if "linear.bias" in tensors else TORCHVISION


def default_preprocessing(config: ResNetConfig) -> Preprocessing:
    """That of the family."""
    size, crop = (32, 1.0) if config.stem == "cifar" else (224, 0.875)
    return preprocessing.imagenet(size, crop, BILINEAR, config.num_channels)


class Convolution(nn.Module):
    """[B, H, W, I] -> [B, H / stride, W / stride, features], without a bias; the kernel is float32."""

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        return convolve(x, kernel, self.stride, self.dtype).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with PyTorch's conventions, in float32.

    With the statistics of the batch, which also update the running ones unless all weights are 0; where `frozen` with the
    running ones alone.
    """

    @nn.compact
    def __call__(self, x: Array, weights: Array, frozen: Any) -> Array:
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        if frozen is True:
            return normalise(x, mean.value, var.value, scale, bias)
        y, batch_mean, batch_var = normalise_by_batch(x, weights, frozen, mean.value, var.value, scale, bias)
        num = weights.sum() * np.prod(x.shape[1:3])
        unbiased = batch_var * (num / jnp.maximum(num - 1, 1))
        mean.value, var.value = (
            jnp.where(num > 0, (1 - MOMENTUM) * old + MOMENTUM * new, old)
            for old, new in ((mean.value, batch_mean), (var.value, unbiased))
        )
        return y


def normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array) -> Array:
    factor = scale * jax.lax.rsqrt(var + EPSILON)
    y = (x.astype(jnp.float32) - mean[None, None, None]) * factor[None, None, None] + bias[None, None, None]
    return y.astype(x.dtype)


@jax.custom_vjp
def normalise_by_batch(
    x: Array, weights: Array, frozen: Any, mean: Array, var: Array, scale: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """Normalises by the batch's mean and variance, or by those given where `frozen`; returns the batch's as well.

    Gradients by x, scale and bias are written out, so that the input is all that is kept and the statistics are not computed
    again. None pass through the two statistics that are returned.
    """
    return _normalise_by_batch_forward(x, weights, frozen, mean, var, scale, bias)[0]


def _shares(x: Array, weights: Array) -> Array:
    """Of each pixel in the mean over a batch, by example: [B]."""
    return weights / (jnp.maximum(weights.sum(), 1) * np.prod(x.shape[1:3]))


def _normalise_by_batch_forward(x, weights, frozen, mean, var, scale, bias):
    exact, share = x.astype(jnp.float32), _shares(x, weights)
    batch_mean = jnp.einsum("b,bhwc->c", share, exact)
    batch_var = jnp.einsum("b,bhwc->c", share, jnp.square(exact - batch_mean[None, None, None]))
    used = jnp.where(frozen, mean, batch_mean), jnp.where(frozen, var, batch_var)
    return (normalise(x, *used, scale, bias), batch_mean, batch_var), (x, weights, frozen, *used, scale)


def _normalise_by_batch_backward(residuals, cotangents):
    x, weights, frozen, mean, var, scale = residuals
    cotangent = cotangents[0].astype(jnp.float32)
    inverse = jax.lax.rsqrt(var + EPSILON)
    centred = (x.astype(jnp.float32) - mean[None, None, None]) * inverse[None, None, None]
    of_bias, of_scale = (terms.sum((1, 2)).sum(0) for terms in (cotangent, cotangent * centred))
    through_mean, through_var = (jnp.where(frozen, 0, gradient)[None, None, None] for gradient in (of_bias, of_scale))
    through_statistics = _shares(x, weights)[:, None, None, None] * (through_mean + centred * through_var)
    of_x = (scale * inverse)[None, None, None] * (cotangent - through_statistics)
    return of_x.astype(x.dtype), None, None, None, None, of_scale, of_bias


normalise_by_batch.defvjp(_normalise_by_batch_forward, _normalise_by_batch_backward)


def max_pool(x: Array) -> Array:
    """Maximum of 3 x 3 pixels around every other one: [B, H, W, C] -> [B, H / 2, W / 2, C], sizes rounded up.

    Its gradient takes a fraction of the time of that of `lax.reduce_window` on a CPU.
    """
    for axis in (1, 2):
        margins = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, margins, constant_values=-jnp.inf)
        num = -(-x.shape[axis] // 2)
        parts = (jax.lax.slice_in_dim(padded, first, first + 2 * num - 1, 2, axis) for first in range(3))
        x = functools.reduce(jnp.maximum, parts)
    return x


class Stem(nn.Module):
    """Convolution, norm, relu and for ImageNet max-pooling: [B, H, W, C] -> [B, H', W', features]."""

    features: int
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        size, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = Convolution(self.features, size, stride, self.dtype, name="conv")(x)
        x = nn.relu(BatchNorm(name="norm")(x, context["weights"], frozen))
        return max_pool(x) if self.kind == "imagenet" else x


class ResidualBlock(nn.Module):
    """Convolutions with norms and relu between them, and a shortcut around them.

    Attributes:
      features, sizes, strides: of each convolution.
      project: whether the shortcut is a 1 x 1 convolution; else it has no parameters.
    """

    features: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    project: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        weights, stride = context["weights"], max(self.strides)
        h = x
        for number, shape in enumerate(zip(self.features, self.sizes, self.strides, strict=True), start=1):
            h = nn.relu(h) if number > 1 else h
            h = Convolution(*shape, self.dtype, name=f"conv{number}")(h)
            h = BatchNorm(name=f"norm{number}")(h, weights, frozen)
        if self.project:
            x = Convolution(h.shape[-1], 1, stride, self.dtype, name="shortcut")(x)
            x = BatchNorm(name="shortcut_norm")(x, weights, frozen)
        else:
            missing = h.shape[-1] - x.shape[-1]
            x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return nn.relu(h + x)


def blocks(config: ResNetConfig, dtype: Any, per_example: bool) -> Iterator[Part]:
    yield Part("stem", Stem(config.embedding_size, config.stem, dtype))
    inputs = config.embedding_size
    for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True), start=1):
        for number in range(depth):
            stride = 2 if number == 0 and (stage > 1 or config.downsample_in_first_stage) else 1
            project = config.shortcut == "projection" and (stride > 1 or inputs != width)
            features, sizes, strides = (width, width), (3, 3), (stride, 1)
            if config.layer_type == "bottleneck":
                features, sizes = (width // REDUCTION, width // REDUCTION, width), (1, 3, 1)
                strides = (stride, 1, 1) if config.downsample_in_bottleneck else (1, stride, 1)
            yield Part(f"layer{stage}_{number}", ResidualBlock(features, sizes, strides, project, dtype))
            inputs = width


def _average_and_classify(params, x, context, *, frozen, key):
    """Average over all pixels, and a linear classifier: [B, H, W, D] -> logits [B, C]."""
    return x.astype(jnp.float32).mean((1, 2)) @ params["kernel"] + params["bias"][None]


def init_head(key: Array, config: ResNetConfig, num_classes: int) -> dict:
    """A fresh classifier."""
    kernel = nn.initializers.lecun_normal()(key, (config.hidden_sizes[-1], num_classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}


FAMILY = Family(
    model_type="resnet",
    kind="images",
    title="a ResNet",
    config=ResNetConfig,
    problems=problems,
    layout=HUGGING_FACE,
    infer=infer,
    blocks=blocks,
    heads={
        "classify": Head(
            architecture="ResNetForImageClassification", make=fixed(_average_and_classify), init=init_head, output="head"
        )
    },
    preprocessing=default_preprocessing,
)
CIFAR_FAMILY = dataclasses.replace(FAMILY, layout=CIFAR)  # what new networks are saved as
