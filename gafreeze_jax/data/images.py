"""Labelled images with fixed train, validation and test splits, from arrays, folders, TFDS or the embedded digits.

They come out as bytes, all of one size; what scales them to a network's numbers belongs to its stem.
"""

import itertools
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.data import arrays, digits, folders, metadata, splits, targets
from gafreeze_jax.data.splits import Labelled, Rows
from gafreeze_jax.extras import needs
from gafreeze_jax.listing import listed

with needs("images"):
    from PIL import ExifTags, Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")  # pillow goes by content; for others it runs a program, or libtiff prints
MOST_PIXELS = 4096  # of a side of the images that a network takes
MOST_ELONGATED = 100
GRAY_MODES, COLOR_MODES = ("1", "L", "LA"), ("P", "RGB", "RGBA", "CMYK", "YCbCr")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation
SHIFT = 8  # random crops move an image by up to its size divided by this: 4 of 32 pixels

Picture = Path | np.ndarray  # a file, or bytes [H, W] or [H, W, C]


class Frame(NamedTuple):
    """The form that a network takes images in.

    Attributes:
      size: height and width.
      channels: 1 (gray) or 3.
      crop: share of the shorter side that is kept, from the middle. Images that have the right size are left as they are.
      resample: pillow's filter for resizing.
      squashes: whether images become squares first, by another ratio of their sides.
    """

    size: int
    channels: int = 3
    crop: float = 1.0
    resample: int = Image.Resampling.BILINEAR
    squashes: bool = False


class ImageSplit(NamedTuple):
    """One split.

    Attributes:
      images: [N, size, size, channels] uint8.
      labels: [N] int32, indices into the set's `label_names`; several labels [N, C] float32 of 0 and 1, numbers [N] float64.
    """

    images: np.ndarray
    labels: np.ndarray


class ImageData(NamedTuple):
    """A labelled set of images.

    Attributes:
      label_names: the C classes or labels; of numbers, the name of their column.
      notes: what was decided on the way and is reported (splits cut, files left out), a sentence each.
      test_files: names of the test images, if they come from files.
      kind: what the labels are.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    label_names: tuple[str, ...]
    notes: tuple[str, ...]
    test_files: tuple[str, ...] = ()
    kind: targets.Kind = "label"


def load_images(
    source: str,
    frame: Frame,
    *,
    label_column: str | None = None,
    kind: targets.Kind | None = None,
    max_train: int | None = None,
    max_validation: int | None = None,
    known: splits.Known = tuple,
    skip_broken: bool = False,
) -> ImageData:
    """Loads labelled images, with splits that are always the same for the same source.

    Args:
      source: "digits" (embedded: scikit-learn's) or some of them (`digits.read`); "tfds:NAME"; a .npz file with
        `images` uint8 [N, H, W] or [N, H, W, C] and `labels` [N] or [N, 1], or [N, C] of 0 and 1; a folder with a train.npz
        and, where there are any, validation and test files; or a folder of class folders, or of such folders for each split
        (`folders.read_folders`), with JPEG, PNG, WebP, GIF or BMP files; or a folder of these with a table of their labels, or
        of such folders for each split (`metadata`). Splits that are missing are cut from the training images, stratified by
        label.
      label_column: of a table of labels; found by convention if None.
      kind: what the labels are; recognised from a table or a .npz file if None; elsewhere they are classes.
      max_train, max_validation: use at most this many images of a split, drawn stratified by label.
      known: gives the classes that the model tells apart already, as for `splits.complete`.
      skip_broken: leave out files that cannot be read; else they are an error.

    Raises:
      ValueError, FileNotFoundError: if the source cannot be used, with the file and what to do.
    """
    if frame.channels not in (1, 3):
        raise ValueError(f"{source}: images have 1 or 3 channels, the model takes {frame.channels}")
    if frame.size > MOST_PIXELS:
        raise ValueError(f"{source}: images cannot be larger than {MOST_PIXELS} x {MOST_PIXELS} pixels, got {frame.size}")
    notes: list[str] = []
    raw, column = _read(source, label_column, kind, skip_broken, notes)
    kind = kind or ("label" if column is None else targets.recognise(raw["train"], column))
    if kind == "label":
        for rows in raw.values() if column else ():
            targets.check_classes(rows, column or "")
        whole = splits.complete(source, raw, notes, known=known, unit="images")
        *parts, label_names = splits.limit(source, whole, notes, max_train, max_validation, known=known)
    elif column is None:
        raise ValueError(
            f"{source}: its labels are classes; for --task {kind} give a .npz file with such labels, or a folder with a table, "
            f"{metadata.EXPECTED}"
        )
    else:
        limits = {"max_train": max_train, "max_validation": max_validation}
        pictures, values, label_names = targets.load(source, kind, raw, column, notes, **limits)
        parts = [Labelled(pictures[split], values[split]) for split in splits.SPLIT_NAMES]
    (train, _), (validation, _), (test, pictures) = (_fit_all(source, split, frame, skip_broken, notes) for split in parts)
    if kind == "label" and (absent := splits.without_examples(train.labels, label_names, known)):
        raise ValueError(f"{source}: no training image of class {absent[0]!r} can be read")
    if unread := [name for name, split in (("validation", validation), ("test", test)) if not len(split.labels)]:
        raise ValueError(f"{source}: no {unread[0]} image can be read; repair them, or remove that split")
    test_files = tuple(_name(picture, Path(source)) for picture in pictures if isinstance(picture, Path))
    return ImageData(train, validation, test, label_names, tuple(notes), test_files, kind)


class UnlabelledImages(NamedTuple):
    """Images without labels.

    Attributes:
      images: [N, size, size, channels] uint8.
      columns: what tells them apart, {title: [N]}: "file", or for an array "row", their numbers in it, from 1.
      notes: what was decided on the way and is reported, a sentence each.
    """

    images: np.ndarray
    columns: dict[str, Sequence[Any]]
    notes: tuple[str, ...]


def load_unlabelled(path: Path, frame: Frame, *, skip_broken: bool = False) -> UnlabelledImages:
    """Loads the images of a .npz file, an image file, or all such files in a folder and below; labels are not read.

    Args:
      skip_broken: leave out files that cannot be read; else they are an error.

    Raises:
      ValueError, FileNotFoundError: if the source cannot be used, with the file and what to do.
    """
    notes: list[str] = []
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected a .npz file, or {', '.join(folders.SUFFIXES)} files")
    if path.suffix.lower() == ".npz":
        pictures: list[Picture] = [*arrays.read_images(path)]
        title, names = "row", list(range(1, len(pictures) + 1))
    else:
        pictures = [*(folders.images_below(path) if path.is_dir() else filter(folders.is_image, [path]))]
        title, names = "file", [_name(picture, path) for picture in pictures]
    numbers = np.arange(len(pictures), dtype=np.int32)  # in place of labels, to know which could be read
    (images, numbers), _ = _fit_all(str(path), Labelled(pictures, numbers), frame, skip_broken, notes)
    if not len(images):
        raise ValueError(f"{path}: no images; expected a .npz file, or {', '.join(folders.SUFFIXES)} files")
    return UnlabelledImages(images, {title: [names[number] for number in numbers]}, tuple(notes))


def augment(key: Array, images: Array) -> Array:
    """Moves each image by a random number of pixels, black moving in, and mirrors half of them: [B, H, W, C] uint8."""
    key_shift, key_flip = jax.random.split(key)
    batch, height, width, _ = images.shape
    margins = height // SHIFT, width // SHIFT
    most = 2 * jnp.array(margins) + 1
    starts = jax.random.randint(key_shift, (batch, 2), 0, most[None])
    flips = jax.random.bernoulli(key_flip, 0.5, (batch,))
    padded = jnp.pad(images, ((0, 0), *((margin, margin) for margin in margins), (0, 0)))

    def move_and_mirror(image, start, flip):
        moved = jax.lax.dynamic_slice(image, (start[0], start[1], 0), (height, width, image.shape[-1]))
        return jnp.where(flip, moved[:, ::-1], moved)

    return jax.vmap(move_and_mirror)(padded, starts, flips)


def _read(
    source: str, label_column: str | None, kind: targets.Kind | None, skip_broken: bool, notes: list[str]
) -> tuple[dict[str, Rows[Picture]], str | None]:
    """The images of each split, and the column or array of their labels; None where these are sure to be classes."""
    path, is_file = Path(source), not (digits.is_digits(source) or source.startswith("tfds:"))
    if is_file and path.is_dir() and (found := metadata.find_tables(path)):
        return cast(tuple[dict[str, Rows[Picture]], str], metadata.read_tables(found, label_column, notes))
    if label_column is not None:
        raise ValueError(f"{source}: --label-column is for a folder with a table, {metadata.EXPECTED}")
    if found := arrays.find(path) if is_file else {}:
        return cast(dict[str, Rows[Picture]], arrays.read(found, kind)), arrays.LABELS
    return _read_classes(source, skip_broken, notes), None


def _read_classes(source: str, skip_broken: bool, notes: list[str]) -> dict[str, Rows[Picture]]:
    if digits.is_digits(source):
        return digits.read(source)
    if source.startswith("tfds:"):
        return _read_tfds(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; expected a .npz file, a folder of .npz files or of class folders, tfds:NAME, "
            f"or {digits.EXPECTED}"
        )
    if not path.is_dir():
        raise ValueError(f"{path}: unknown kind of file; expected .npz, or a folder of class folders with images")
    by_split, broken = folders.read_folders(path, notes)
    _check_broken(path, broken, skip_broken, notes)
    return cast(dict[str, Rows[Picture]], by_split)


def _read_tfds(source: str) -> dict[str, Rows[Picture]]:
    from gafreeze_jax.data.tfds import read_tfds

    records = read_tfds(source.removeprefix("tfds:"), "images")
    by_split = {}
    for split, name in splits.choose_splits(source, list(records)).items():
        rows: Rows[Picture] = Rows([], [])
        for _, record in records[name]:
            if missing := [column for column in ("image", "label") if column not in record]:
                raise ValueError(f"{source}: no {missing[0]!r} in its records; they have {listed(record)}")
            rows.examples.append(record["image"])
            rows.labels.append(record["label"])
        by_split[split] = rows
    return by_split


def _check_broken(where: str | Path, broken: list[str], skip_broken: bool, notes: list[str]) -> None:
    """Raises a ValueError that names what cannot be read, or notes that it is left out."""
    if broken and not skip_broken:
        raise ValueError(f"{where}: cannot be read as images: {listed(broken)}; --skip-broken leaves such files out")
    if broken:
        images = "1 unreadable image" if len(broken) == 1 else f"{len(broken):,} unreadable images"
        notes.append(f"{where}: skipped {images}: {listed(broken)}.")


def _fit_all(
    source: str, split: Labelled[Picture], frame: Frame, skip_broken: bool, notes: list[str]
) -> tuple[ImageSplit, list[Picture]]:
    """A split in the form of a frame, and which of its pictures could be read."""

    def read(picture: Picture) -> np.ndarray | str:
        """The image, or what is wrong with its file."""
        try:
            image = _open(picture)
            if frame.channels == 3 or _is_gray(image):
                return _fit(image, frame)
        except Exception as error:  # whatever damaged bytes make pillow raise
            told = getattr(error, "strerror", None) or " ".join(str(error).split()).replace(f" {str(picture)!r}", "")
            reason = told or type(error).__name__
            return f"{_name(picture, Path(source))} ({reason})"
        name = _name(picture, Path(source))
        raise ValueError(f"{source}: {name} has colours (3 channels), the model takes gray images (1 channel)")

    with ThreadPoolExecutor() as pool, warnings.catch_warnings():  # pillow works without holding Python's lock
        warnings.simplefilter("ignore")  # pillow's, which do not name the file
        results = list(pool.map(read, split.examples))
    _check_broken(source, [result for result in results if isinstance(result, str)], skip_broken, notes)
    images = [result for result in results if not isinstance(result, str)]
    kept = np.array([not isinstance(result, str) for result in results], bool)
    images = np.array(images, np.uint8).reshape(-1, frame.size, frame.size, frame.channels)
    return ImageSplit(images, split.labels[kept]), list(itertools.compress(split.examples, kept))


def _name(picture: Picture, top: Path) -> str:
    """A file's name, with the folders below `top`."""
    if isinstance(picture, np.ndarray):
        return "an image"
    is_below = picture != top and picture.is_relative_to(top)
    return folders.readable(str(picture.relative_to(top)) if is_below else picture.name)


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
        _check_size(image)
        return image
    with Image.open(picture, formats=FORMATS) as image:
        if image.mode not in GRAY_MODES + COLOR_MODES:
            raise ValueError(f"pixels of kind {image.mode}; convert it to 8 bits a channel")
        _check_size(image)
        image.load()
        turn = _turn(image)
        return image.copy() if turn is None else image.transpose(turn)


def _check_size(image: Image.Image) -> None:
    if max(image.size) > MOST_ELONGATED * min(image.size):  # resized, it could take all memory
        raise ValueError(f"{image.width} x {image.height} pixels; one side is more than {MOST_ELONGATED} times the other")


def _is_gray(image: Image.Image) -> bool:
    """Whether an image has no colours, or a palette of which it uses grays alone."""
    if image.mode != "P":
        return image.mode in GRAY_MODES
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright, by its EXIF entries; pillow's own function fails where one of the others is damaged."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))  # 1 = upright
    except Exception:  # whatever damaged entries make pillow raise; the pixels are whole
        return None


def _fit(image: Image.Image, frame: Frame) -> np.ndarray:
    """[size, size, channels] uint8."""
    image = image.convert("L" if frame.channels == 1 else "RGB")
    size, resample = frame.size, Image.Resampling(frame.resample)
    if image.size != (size, size):
        short = int(size / frame.crop + 1e-6)  # a share of two whole numbers may be a little too large
        sides = (1, 1) if frame.squashes else image.size
        width, height = (int(short * side / min(sides)) for side in sides)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), resample).crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, frame.channels)
