"""How a network wants its images: Hugging Face's `preprocessor_config.json`."""

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from gafreeze_jax.data import files
from gafreeze_jax.models import checkpoints, configs, products

BILINEAR, BICUBIC = 2, 3  # as pillow counts them
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT, DEIT, CONVNEXT = "ViT", "DeiT", "ConvNext"  # how the names begin of Hugging Face's image processors that differ
SQUASHED_FROM = 384  # size from which Hugging Face's preprocessing for ConvNext crops no more


class Preprocessing(NamedTuple):
    """How a network wants its images.

    Attributes:
      size: height and width.
      crop: share of the shorter side that is kept, from the middle.
      resample: pillow's filter for resizing.
      mean, std: of each channel, for pixels from 0 to 1.
      squashes: whether images become squares first, by another ratio of their sides; then all of them is kept, but for `crop`.
    """

    size: int
    crop: float
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squashes: bool = False


def imagenet(size: int, crop: float, resample: int, num_channels: int) -> Preprocessing:
    """With ImageNet's averages and deviations; other numbers of channels use their average."""
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if num_channels != len(mean):
        mean, std = ((sum(values) / len(values),) * num_channels for values in (mean, std))
    return Preprocessing(size, crop, resample, mean, std)


@functools.cache  # so that equal networks are equal
def on_pixels(apply: Callable[..., Any], wanted: Preprocessing, dtype: Any) -> Callable[..., Any]:
    """The lowest block of a network with images [B, H, W, C] uint8 in place of the numbers that it was trained with."""

    def scaled(params, x, context, *, frozen, key):
        mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in (wanted.mean, wanted.std))
        x = ((x.astype(jnp.float32) / 255 - mean) / std).astype(products.activation_dtype(dtype))
        return apply(params, x, context, frozen=frozen, key=key)

    return scaled


def read(folder: Path, default: Preprocessing, size: int | None = None) -> Preprocessing:
    """What a Hugging Face `preprocessor_config.json` says, or `default` if there is none.

    Args:
      size: of the images, in place of that in the file or the default.

    Raises:
      ValueError: if it asks for something that is not implemented; all reasons at once.
    """
    path, num_channels = folder / checkpoints.PREPROCESSOR_FILE, len(default.mean)
    if not path.exists():
        return default._replace(size=size or default.size)
    try:
        raw = _at_size(files.parse_json(path.read_text(encoding="utf-8-sig")), default, size)
        size, crop, squashes = _size_and_crop(raw, default)
        mean, std = (0.0,) * num_channels, (1.0,) * num_channels
        if raw.get("do_normalize", True):
            mean, std = (tuple(map(float, raw[name])) for name in ("image_mean", "image_std"))
        resample = raw.get("resample", BILINEAR if _kind(raw, default) == VIT else BICUBIC)
        scale = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1
        are_right = {
            f"size must be a positive integer, got {size!r}": configs.COUNT.is_right(size),
            f"the share of an image that is kept must be above 0 and at most 1, got {crop}": 0 < crop <= 1,
            f"resample must be one of pillow's 0 to 5, got {resample!r}": resample in range(6),
            f"image_mean must be {num_channels} numbers, got {mean}": len(mean) == num_channels,
            f"image_std must be {num_channels} positive numbers, got {std}": len(std) == num_channels and min(std) > 0,
            f"rescale_factor must be 1 / 255, got {scale}": abs(scale * 255 - 1) < 1e-3,
        }
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: not the config of an image processor: {error!r}") from None
    if problems := [problem for problem, is_right in are_right.items() if not is_right]:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return Preprocessing(size, crop, resample, mean, std, squashes)


def _at_size(raw: Mapping[str, Any], default: Preprocessing, size: int | None) -> Mapping[str, Any]:
    """A config for images of another size: all of its sizes in proportion."""
    if size is None:
        return raw
    factor = size / _size_and_crop(raw, default)[0]

    def scaled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: scaled(side) for name, side in value.items()}
        return None if value is None else round(value * factor)

    return {"size": scaled(default.size), **raw, **{name: scaled(raw[name]) for name in raw.keys() & {"size", "crop_size"}}}


def _kind(raw: Mapping[str, Any], default: Preprocessing) -> str:
    """The beginning of the name of Hugging Face's image processor; where none is given, it is that of the family."""
    name = raw.get("image_processor_type", raw.get("feature_extractor_type"))
    return VIT if name is None and default.squashes else next(filter(str(name).startswith, (VIT, DEIT, CONVNEXT)), "")


def _size_and_crop(raw: Mapping[str, Any], default: Preprocessing) -> tuple[int, float, bool]:
    """Hugging Face's image processors cut out the middle in two ways; their ConvNext's, which ResNets have, by a share."""
    wanted, kind = raw.get("size", default.size), _kind(raw, default)
    size, squashes = _side(wanted, kind in (VIT, DEIT))
    if raw.get("do_center_crop"):
        kept, _ = _side(raw["crop_size"], True)
        return kept, kept / size, squashes
    if not squashes and ("crop_pct" in raw or kind == CONVNEXT):
        squashes = size >= SQUASHED_FROM
        return size, 1.0 if squashes else float(raw.get("crop_pct") or 224 / 256), squashes
    return size, 1.0, squashes


def _side(size: Any, is_square: bool) -> tuple[Any, bool]:
    """The length that a size gives, and whether both sides get it, and not the shorter one; a number says `is_square`."""
    if not isinstance(size, Mapping):
        return size, is_square
    if side := size.get("shortest_edge"):
        return side, False
    if size["height"] != size["width"]:
        raise ValueError(f"images must be squares, got {size['height']} x {size['width']}")
    return size["height"], True


def take_over(source: Path, folder: Path, default: Preprocessing, size: int) -> None:
    """Copies a `preprocessor_config.json` for images of a size; if there is none, writes one if that is not the default's."""
    if source == folder:
        return
    path = source / checkpoints.PREPROCESSOR_FILE
    if not path.exists():
        if size != default.size:
            _write(folder, _config_of(default._replace(size=size)))
        return
    raw = files.parse_json(path.read_text(encoding="utf-8-sig"))
    if _size_and_crop(raw, default)[0] == size:
        shutil.copyfile(path, folder / checkpoints.PREPROCESSOR_FILE)
    else:
        _write(folder, _at_size(raw, default, size))


def write(folder: Path, wanted: Preprocessing) -> None:
    """Writes a `preprocessor_config.json` for images that have the right size."""
    _write(folder, _square_config(wanted))


def _config_of(wanted: Preprocessing) -> dict[str, Any]:
    """The config of one of Hugging Face's image processors that prepares images so."""
    config = _square_config(wanted)
    if wanted.squashes:
        return {"image_processor_type": "ViTImageProcessor", **config}
    edge = {"shortest_edge": int(wanted.size / wanted.crop + 1e-6)}  # rounded as images are
    cropped = {"size": edge, "do_center_crop": True, "crop_size": config["size"]}
    return {"image_processor_type": "BitImageProcessor", **config, **cropped}


def _square_config(wanted: Preprocessing) -> dict[str, Any]:
    """What the configs of all image processors have in common, for images that become squares."""
    size = {"height": wanted.size, "width": wanted.size}
    return {"size": size, "resample": wanted.resample, "image_mean": wanted.mean, "image_std": wanted.std}


def _write(folder: Path, raw: Mapping[str, Any]) -> None:
    (folder / checkpoints.PREPROCESSOR_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
