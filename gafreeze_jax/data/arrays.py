"""Labelled images in .npz files of arrays: `images`, and `labels` of each."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gafreeze_jax.data import files, folders, splits, targets
from gafreeze_jax.data.splits import Rows
from gafreeze_jax.listing import listed, reason

IMAGES, LABELS = "images", "labels"  # the arrays of a file
SUFFIX = ".npz"


def find(path: Path) -> dict[str, Path]:
    """A .npz file, as that of "train", or those of a folder by their splits; {} if there are none."""
    if not path.is_dir():
        return {"train": path} if path.exists() and path.suffix.lower() == SUFFIX else {}
    by_name = {entry.stem: entry for entry in folders.visible(path) if entry.suffix.lower() == SUFFIX}
    return {split: by_name[name] for split, name in splits.choose_splits(str(path), list(by_name)).items()} if by_name else {}


def read(paths: Mapping[str, Path], kind: targets.Kind | None) -> dict[str, Rows[np.ndarray]]:
    """The images of each split and their labels.

    Args:
      kind: what the labels are, if that is known. Those that are not numbers on request must not be negative.

    Raises:
      ValueError: if a file cannot be used, with all that is wrong with it.
    """
    found = {split: _read_file(path) for split, path in paths.items()}
    given = {split: _labels_of(arrays) for split, arrays in found.items()}
    for split, path in paths.items():
        _refuse(path, _problems_of_images(found[split][IMAGES]) + _problems_of_labels(given[split], found[split][IMAGES], kind))
    are_one_hot = all((labels.sum(1) == 1).all() for labels in given.values() if labels.ndim == 2)
    return {
        split: Rows(
            list(found[split][IMAGES]),
            _as_list(labels, are_one_hot),
            (IMAGES,),
            [f"{paths[split]}: row {row}" for row in range(len(labels))],
        )
        for split, labels in given.items()
    }


def read_images(path: Path) -> list[np.ndarray]:
    """The images of a file, whether it has labels or not.

    Raises:
      ValueError: as `read`.
    """
    images = _read_file(path, labelled=False)[IMAGES]
    _refuse(path, _problems_of_images(images))
    return list(images)


def _read_file(path: Path, labelled: bool = True) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path}: expected a file")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > files.most_unpacked(path.stat().st_size):
                raise ValueError(files.BOMB)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file}
    except Exception as error:  # whatever damaged bytes make zipfile, zlib and NumPy raise
        raise ValueError(f"{path}: not a whole .npz file of plain arrays: {reason(error)}") from None
    expected = (IMAGES, LABELS) if labelled else (IMAGES,)
    if missing := [name for name in expected if name not in arrays]:
        wanted = " and ".join(expected)
        raise ValueError(f"{path}: no array {missing[0]!r}; expected {wanted}, it has {listed(arrays)}")
    return arrays


def _labels_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N] or [N, C]; of [N, 1], as Keras has classes, [N]."""
    labels = arrays[LABELS]
    return labels[:, 0] if labels.shape[1:] == (1,) else labels


def _refuse(path: Path, problems: list[str]) -> None:
    """Raises a ValueError if there are any."""
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))


def _problems_of_images(images: np.ndarray) -> list[str]:
    problems = []
    if images.dtype != np.uint8:
        problems.append(f"images must be uint8, from 0 to 255, got {images.dtype}")
    if images.ndim not in (3, 4) or 0 in images.shape:
        problems.append(f"images must be [N, H, W] or [N, H, W, C], got {list(images.shape)}")
    elif images.ndim == 4 and images.shape[-1] not in (1, 3):
        problems.append(f"images must have 1 or 3 channels, as the last axis, got shape {list(images.shape)}")
    return problems


def _problems_of_labels(labels: np.ndarray, images: np.ndarray, kind: targets.Kind | None) -> list[str]:
    problems = []
    if labels.dtype.kind not in "iuUfb":
        problems.append(f"labels must be numbers or strings, got {labels.dtype}")
    if labels.shape[:1] != images.shape[:1] or labels.ndim > 2:
        num = len(images) if images.ndim else "N"
        problems.append(f"labels must be [{num}], one for each image, or [{num}, C] of 0 and 1, got {list(labels.shape)}")
    elif labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        problems.append(f"labels [N, C] must be 0 or 1 for each of C classes, got {np.setdiff1d(labels, (0, 1))[0]}")
    elif kind != "number" and labels.dtype.kind == "i" and (labels < 0).any() and not (labels == -1).all():
        row = int(np.argmax(labels < 0))
        problems.append(f"labels must not be negative, got {labels[row]} in row {row}")
    return problems


def _as_list(labels: np.ndarray, are_one_hot: bool) -> list[Any]:
    """From [N], classes or numbers; from [N, C] of 0 and 1, the class of each row, or lists where not all rows have one.

    Args:
      are_one_hot: whether all rows have one class, in every split.
    """
    if labels.ndim == 2:
        return labels.argmax(1).tolist() if are_one_hot else [list(map(str, np.flatnonzero(row))) for row in labels]
    is_whole = labels.dtype.kind in "fb" and np.array_equal(labels, np.floor(labels))
    return labels.astype(int).tolist() if is_whole else labels.tolist()
