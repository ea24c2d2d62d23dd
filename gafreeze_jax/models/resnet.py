"""ResNets for image classification (He et al. 2016) as a chain of blocks: the stem, then one per residual block.

Those for ImageNet (7 x 7 stem with max-pooling; basic or bottleneck blocks) and those for CIFAR (3 x 3 stem; shortcuts
without parameters). Images are [B, H, W, C] uint8: what scales them to the numbers that the network was trained with belongs
to the stem. `context["weights"]` [B] says which rows of a batch are examples (1) and which only fill it up (0).
"""

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.data import files
from gafreeze_jax.engine.network import STATISTICS, Block, Network, classification, parameters
from gafreeze_jax.extras import needs
from gafreeze_jax.models import checkpoints, configs, layers
from gafreeze_jax.models.convolutions import convolve

with needs("images"):
    import flax.linen as nn

EPSILON, MOMENTUM = 1e-5, 0.1  # of batch normalisation, as PyTorch has them
REDUCTION = 4  # of the channels inside a bottleneck block
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR, BICUBIC = 2, 3  # as pillow counts them
SQUASHED_FROM = 384  # size from which Hugging Face's preprocessing for ConvNext crops no more
PREFIX = "resnet."  # of all names in a Hugging Face checkpoint but the classifier's


def _norm(name: str, parent: str, norm: str) -> checkpoints.Map:
    statistics = f"{parent}/batch_stats/{norm}"
    return (
        (f"{name}.weight", f"{parent}/{norm}/scale", None),
        (f"{name}.bias", f"{parent}/{norm}/bias", None),
        (f"{name}.running_mean", f"{statistics}/mean", None),
        (f"{name}.running_var", f"{statistics}/var", None),
    )


# Name in a checkpoint, path in our tree, axes permutation. Hugging Face counts stages and convolutions from 0.
HUGGING_FACE_MAP: checkpoints.Map = (
    ("embedder.embedder.convolution.weight", "stem/conv/kernel", (2, 3, 1, 0)),
    *_norm("embedder.embedder.normalization", "stem", "norm"),
    ("encoder.stages.{-1}.layers.{}.layer.{-1}.convolution.weight", "layer{}_{}/conv{}/kernel", (2, 3, 1, 0)),
    *_norm("encoder.stages.{-1}.layers.{}.layer.{-1}.normalization", "layer{}_{}", "norm{}"),
    ("encoder.stages.{-1}.layers.{}.shortcut.convolution.weight", "layer{}_{}/shortcut/kernel", (2, 3, 1, 0)),
    *_norm("encoder.stages.{-1}.layers.{}.shortcut.normalization", "layer{}_{}", "shortcut_norm"),
    ("classifier.1.weight", "head/kernel", (1, 0)),
    ("classifier.1.bias", "head/bias", None),
)
BODY_MAP: checkpoints.Map = (
    ("conv1.weight", "stem/conv/kernel", (2, 3, 1, 0)),
    *_norm("bn1", "stem", "norm"),
    ("layer{}.{}.conv{}.weight", "layer{}_{}/conv{}/kernel", (2, 3, 1, 0)),
    *_norm("layer{}.{}.bn{}", "layer{}_{}", "norm{}"),
    ("layer{}.{}.downsample.0.weight", "layer{}_{}/shortcut/kernel", (2, 3, 1, 0)),
    *_norm("layer{}.{}.downsample.1", "layer{}_{}", "shortcut_norm"),
)
# torchvision's names, and those of the CIFAR family; they differ by the classifier's.
PYTORCH_MAPS: dict[str, checkpoints.Map] = {
    name: (*BODY_MAP, (f"{name}.weight", "head/kernel", (1, 0)), (f"{name}.bias", "head/bias", None))
    for name in ("fc", "linear")
}
NOT_USED = r".*\.num_batches_tracked"


@dataclass(frozen=True)
class ResNetConfig:
    """The architecture. Names and defaults are those of a Hugging Face `config.json`, apart from the last two.

    Attributes:
      hidden_sizes, depths: output channels and number of blocks of each stage (in He's sense: blocks of equal width).
      stem: imagenet: 7 x 7 with stride 2, then max-pooling; cifar: 3 x 3.
      shortcut: where a block changes the shape, its input is projected, or subsampled and padded with zero channels.
    """

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "padding"] = "projection"


def cifar_config(depth: int, num_channels: int = 3) -> ResNetConfig:
    """ResNet-20, 32, 44, 56, 110, ... for small images: 6n + 2 layers.

    >>> cifar_config(20).depths
    (3, 3, 3)
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"ResNets for CIFAR have 6n + 2 layers (8, 14, 20, ...), got {depth}")
    blocks = (depth - 2) // 6
    return ResNetConfig(num_channels, 16, (16, 32, 64), (blocks,) * 3, "basic", stem="cifar", shortcut="padding")


class Preprocessing(NamedTuple):
    """How a network wants its images.

    Attributes:
      size: height and width.
      crop: share of the shorter side that is kept, from the middle; None: all is, and the sides' ratio changes.
      resample: pillow's filter for resizing.
      mean, std: of each channel, for pixels from 0 to 1.
    """

    size: int
    crop: float | None
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def default_preprocessing(config: ResNetConfig) -> Preprocessing:
    """That of the family; a network for gray images has the averages over the colours."""
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if config.num_channels != len(mean):
        mean, std = ((sum(values) / len(values),) * config.num_channels for values in (mean, std))
    return Preprocessing(*((32, 1.0) if config.stem == "cifar" else (224, 0.875)), BILINEAR, mean, std)


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

    With the statistics of the batch, which also update the running ones; where `frozen` with the running ones alone.
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
            (1 - MOMENTUM) * old + MOMENTUM * new for old, new in ((mean.value, batch_mean), (var.value, unbiased))
        )
        return y


def normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array) -> Array:
    factor = scale * jax.lax.rsqrt(var + EPSILON)
    y = (x.astype(jnp.float32) - mean[None, None, None]) * factor[None, None, None] + bias[None, None, None]
    return y.astype(x.dtype)


@jax.checkpoint  # so that the input is all that is kept
def normalise_by_batch(
    x: Array, weights: Array, frozen: Any, mean: Array, var: Array, scale: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """Normalises by the batch's mean and variance, or by those given where `frozen`; returns the batch's as well."""
    own = x.astype(jnp.float32)
    share = weights / (weights.sum() * np.prod(x.shape[1:3]))
    batch_mean = jnp.einsum("b,bhwc->c", share, own)
    batch_var = jnp.einsum("b,bhwc->c", share, jnp.square(own - batch_mean[None, None, None]))
    used = jnp.where(frozen, mean, batch_mean), jnp.where(frozen, var, batch_var)
    return normalise(x, *used, scale, bias), batch_mean, batch_var


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
    """Scales pixels; convolution, norm, relu and for ImageNet max-pooling: [B, H, W, C] uint8 -> [B, H', W', features]."""

    features: int
    kind: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Mapping[str, Array], frozen: Any) -> Array:
        mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in (self.mean, self.std))
        x = ((x.astype(jnp.float32) / 255 - mean) / std).astype(layers.activation_dtype(self.dtype))
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


def _modules(config: ResNetConfig, preprocessing: Preprocessing, dtype: Any) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", Stem(config.embedding_size, config.stem, preprocessing.mean, preprocessing.std, dtype)
    inputs = config.embedding_size
    for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True), start=1):
        for number in range(depth):
            stride = 2 if number == 0 and (stage > 1 or config.downsample_in_first_stage) else 1
            project = config.shortcut == "projection" and (stride > 1 or inputs != width)
            features, sizes, strides = (width, width), (3, 3), (stride, 1)
            if config.layer_type == "bottleneck":
                features, sizes = (width // REDUCTION, width // REDUCTION, width), (1, 3, 1)
                strides = (stride, 1, 1) if config.downsample_in_bottleneck else (1, stride, 1)
            yield f"layer{stage}_{number}", ResidualBlock(features, sizes, strides, project, dtype)
            inputs = width


@functools.cache  # equal blocks have one function, and so share compiled code
def _apply(module: nn.Module) -> Callable:
    def apply(params, x, context, *, frozen, key):
        variables = {"params": parameters(params), STATISTICS: params[STATISTICS]}
        if frozen is True:
            return module.apply(variables, x, context, True)
        x, updated = module.apply(variables, x, context, frozen, mutable=[STATISTICS])
        return x, updated[STATISTICS]

    return apply


def _head(params, x, context, *, frozen, key):
    """Average over all pixels, and a linear classifier: [B, H, W, D] -> logits [B, C]."""
    return x.astype(jnp.float32).mean((1, 2)) @ params["kernel"] + params["bias"][None]


def make_resnet(config: ResNetConfig, preprocessing: Preprocessing | None = None, *, dtype: Any = jnp.float32) -> Network:
    """The network: genes `stem`, `layer1_0`, `layer1_1`, ... (PyTorch's layer1.0, ...); the classifier is the head.

    Args:
      preprocessing: its scale of pixels; that of the family by default.
      dtype: of products, and of activations where that is faster; all parameters, statistics and the head are float32.
    """
    modules = _modules(config, preprocessing or default_preprocessing(config), dtype)
    return Network(tuple(Block(name, _apply(module)) for name, module in modules), _head, classification)


def init_head(key: Array, config: ResNetConfig, num_classes: int) -> dict:
    """A fresh classifier."""
    kernel = nn.initializers.lecun_normal()(key, (config.hidden_sizes[-1], num_classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}


def init_params(key: Array, config: ResNetConfig, num_classes: int) -> dict:
    """A randomly initialised tree {block name: parameters and "batch_stats", "head": parameters}."""

    @jax.jit  # in which only shapes matter of what the blocks compute, so that it is left out
    def init(key: Array) -> dict:
        x: Any = jnp.zeros((1, 8, 8, config.num_channels), jnp.uint8)
        context = {"weights": jnp.ones(1)}
        params = {}
        for name, module in _modules(config, default_preprocessing(config), jnp.float32):
            key, key_block = jax.random.split(key)
            x, variables = module.init_with_output(key_block, x, context, True)
            params[name] = {**variables["params"], "batch_stats": variables["batch_stats"]}
        return {**params, "head": init_head(key, config, num_classes)}

    return init(key)


# Checkpoints

CONFIG_RULES: dict[str, configs.Rule] = {
    "num_channels": configs.COUNT,
    "embedding_size": configs.COUNT,
    "hidden_sizes": configs.list_of(configs.COUNT),
    "depths": configs.list_of(configs.DEPTH),
    "layer_type": configs.one_of(["basic", "bottleneck"]),
    "downsample_in_first_stage": configs.FLAG,
    "downsample_in_bottleneck": configs.FLAG,
}


class Checkpoint(NamedTuple):
    """A checkpoint as it was read.

    Attributes:
      tensors: by the names of `table`, which says where they belong; `others` are not used.
    """

    path: Path
    config: ResNetConfig
    preprocessing: Preprocessing
    tensors: dict[str, np.ndarray]
    others: dict[str, np.ndarray]
    table: checkpoints.Map


def read_config(folder: Path) -> ResNetConfig:
    """Reads and checks a Hugging Face `config.json`.

    Raises:
      ValueError: if it is not a ResNet that this file implements; all reasons at once.
    """
    path = folder / "config.json"
    raw = configs.read(path, "resnet", "a ResNet")
    values, problems = configs.check(raw, ResNetConfig, CONFIG_RULES)
    if raw.get("hidden_act", "relu") != "relu":
        problems.append(f"hidden_act must be 'relu', got {raw['hidden_act']!r}")
    if not problems:
        if len(values["hidden_sizes"]) != len(values["depths"]):
            problems.append(f"hidden_sizes has {len(values['hidden_sizes'])} entries, depths {len(values['depths'])}")
        if values["layer_type"] == "bottleneck" and (odd := [n for n in values["hidden_sizes"] if n % REDUCTION]):
            problems.append(f"the hidden_sizes of bottleneck blocks must be multiples of {REDUCTION}, got {odd[0]}")
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    values |= {"hidden_sizes": tuple(values["hidden_sizes"]), "depths": tuple(values["depths"])}
    values |= {"stem": "imagenet", "shortcut": "projection"}
    return ResNetConfig(**values)


def infer_config(tensors: Mapping[str, np.ndarray], where: str) -> ResNetConfig:
    """The architecture of tensors with PyTorch's names.

    Raises:
      ValueError: if they are not those of a ResNet that this file implements.
    """
    kernels = {name: np.shape(tensor) for name, tensor in tensors.items() if np.ndim(tensor) == 4}
    found = (re.fullmatch(r"layer(\d+)\.\d+\.conv1\.weight", name) for name in kernels)
    stages = [int(match[1]) for match in found if match]
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
    return ResNetConfig(
        channels,
        features,
        widths,
        depths,
        "bottleneck" if num_convolutions == 3 else "basic",
        stem="cifar" if size == 3 else "imagenet",
        shortcut="projection" if any(".downsample." in name for name in kernels) else "padding",
    )


def read_preprocessing(folder: Path, config: ResNetConfig) -> Preprocessing:
    """What a Hugging Face `preprocessor_config.json` says, or the family's way if there is none.

    Raises:
      ValueError: if it asks for something that is not implemented; all reasons at once.
    """
    default, path = default_preprocessing(config), folder / checkpoints.PREPROCESSOR_FILE
    if not path.exists():
        return default
    try:
        raw = files.parse_json(path.read_text(encoding="utf-8"))
        size, crop = _size_and_crop(raw, default.size)
        mean, std = (0.0,) * config.num_channels, (1.0,) * config.num_channels
        if raw.get("do_normalize", True):
            mean, std = (tuple(map(float, raw[name])) for name in ("image_mean", "image_std"))
        resample = raw.get("resample", BICUBIC)
        scale = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1
        are_right = {
            f"size must be a positive integer, got {size!r}": configs.COUNT[1](size),
            f"the share of an image that is kept must be above 0 and at most 1, got {crop}": crop is None or 0 < crop <= 1,
            f"resample must be one of pillow's 0 to 5, got {resample!r}": resample in range(6),
            f"image_mean must be {config.num_channels} numbers, got {mean}": len(mean) == config.num_channels,
            f"image_std must be {config.num_channels} positive numbers, got {std}": len(std) == config.num_channels
            and min(std) > 0,
            f"rescale_factor must be 1 / 255, got {scale}": abs(scale * 255 - 1) < 1e-3,
        }
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: not the config of an image processor: {error!r}") from None
    if problems := [problem for problem, is_right in are_right.items() if not is_right]:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return Preprocessing(size, crop, resample, mean, std)


def _size_and_crop(raw: Mapping[str, Any], default: int) -> tuple[int, float | None]:
    """Hugging Face's image processors cut out the middle in two ways; their ConvNext's, which ResNets have, by a share."""

    def side(size: Any) -> int:
        return size.get("shortest_edge") or size["height"] if isinstance(size, dict) else size

    wanted = raw.get("size", default)
    size = side(wanted)
    if raw.get("do_center_crop"):
        return side(raw["crop_size"]), side(raw["crop_size"]) / size
    if isinstance(wanted, dict) and "shortest_edge" not in wanted:
        return size, None
    kind = str(raw.get("image_processor_type", raw.get("feature_extractor_type")))
    if "crop_pct" in raw or kind.startswith("ConvNext"):
        return size, None if size >= SQUASHED_FROM else float(raw.get("crop_pct") or 224 / 256)
    return size, 1.0


def load_resnet(path: Path) -> Checkpoint:
    """Reads a folder in the Hugging Face layout, or a safetensors file with PyTorch's names (or a folder with one).

    Raises:
      ValueError, FileNotFoundError: if it is damaged, or not a ResNet that this file implements.
    """
    tensors = checkpoints.read_tensors(path) if path.is_dir() else checkpoints.read_file(path)
    if (path / "config.json").exists():
        config, table = read_config(path), HUGGING_FACE_MAP
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    else:
        config, table = infer_config(tensors, str(path)), PYTORCH_MAPS["linear" if "linear.bias" in tensors else "fc"]
    others = {name: tensor for name, tensor in tensors.items() if re.fullmatch(NOT_USED, name)}
    used = {name: tensor for name, tensor in tensors.items() if name not in others}
    return Checkpoint(path, config, read_preprocessing(path, config), used, others, table)


def make_params(checkpoint: Checkpoint, key: Array | None = None, num_classes: int | None = None) -> dict:
    """The parameters {block name: float32 arrays, "head": ...} of a checkpoint.

    Args:
      key, num_classes: of a fresh classifier; None = the checkpoint has one and it is taken.

    Raises:
      ValueError: if anything is missing, left over or of another shape; all at once.
    """
    config, tensors, table, where = checkpoint.config, checkpoint.tensors, checkpoint.table, str(checkpoint.path)
    fresh = () if key is None else ("head/kernel", "head/bias")
    if num_classes is None:
        (name,) = (name for name, leaf, _ in table if leaf == "head/bias")
        if name not in tensors:
            raise ValueError(f"{where}: the checkpoint has no classifier ({name})")
        num_classes = tensors[name].size
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config, num_classes))
    params = checkpoints.to_tree(tensors, table, shapes, fresh=fresh, where=where)
    if key is not None:
        params["head"] = jax.tree.map(np.asarray, init_head(key, config, num_classes))
    return params


def tensor_names(checkpoint: Checkpoint, params: dict) -> dict[str, str]:
    """Names of the leaves in the checkpoint, by path."""
    return {leaf: _full_name(name, checkpoint.table) for leaf, name in checkpoints.names(params, checkpoint.table).items()}


def _full_name(name: str, table: checkpoints.Map) -> str:
    return f"{PREFIX}{name}" if table is HUGGING_FACE_MAP and not name.startswith("classifier.") else name


def save_resnet(folder: Path, checkpoint: Checkpoint, params: dict, label_names: tuple[str, ...]) -> None:
    """Writes a model in the layout that it came in: `model.safetensors` and, if there were any, configs.

    What came from Hugging Face is loaded by `AutoModelForImageClassification.from_pretrained`, the rest by the
    `load_state_dict` of the PyTorch module that it came from.

    Args:
      checkpoint: what it was loaded from.
      params: the whole tree.
      label_names: the C classes, in the order of the logits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, table = checkpoint.path, checkpoint.table
    if table is HUGGING_FACE_MAP:
        configs.write(folder, source, architectures=["ResNetForImageClassification"], **configs.labels(label_names))
    if (source / checkpoints.PREPROCESSOR_FILE).exists():
        shutil.copyfile(source / checkpoints.PREPROCESSOR_FILE, folder / checkpoints.PREPROCESSOR_FILE)
    tensors = checkpoint.others | checkpoints.from_tree(params, table)
    checkpoints.write_tensors(folder, {_full_name(name, table): tensor for name, tensor in tensors.items()})


def write_new(folder: Path, config: ResNetConfig, size: int, params: dict) -> None:
    """Writes a network of our own as a folder that `load_resnet` reads, with PyTorch's names.

    Args:
      size: height and width of its images.
    """
    wanted = default_preprocessing(config)
    sizes = {"height": size, "width": size}
    raw = {"size": sizes, "resample": wanted.resample, "image_mean": wanted.mean, "image_std": wanted.std}
    (folder / checkpoints.PREPROCESSOR_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    checkpoints.write_tensors(folder, checkpoints.from_tree(params, PYTORCH_MAPS["linear"]))
