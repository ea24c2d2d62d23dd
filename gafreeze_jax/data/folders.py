"""Folders of images: which of their folders are splits, which are classes, and which files are images."""

import os
from pathlib import Path

from gafreeze_jax.data import splits
from gafreeze_jax.data.splits import Rows
from gafreeze_jax.listing import listed

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp")
LEFTOVERS = ("__macosx", "@eadir", "_ds_store", "thumbs.db", "desktop.ini")  # which systems leave in folders and archives
EXPECTED = "class folders with images, or such folders under train, validation and test"


def is_image(path: Path) -> bool:
    """Whether a file, or a broken link, has the name of an image."""
    return path.suffix.lower() in SUFFIXES and (path.is_file() or (path.is_symlink() and not path.exists()))


def readable(name: str) -> str:
    r"""The name of a file as text that can be written anywhere: of bytes that are not UTF-8 each becomes such as \xe9.

    >>> print(readable("caf\udce9"))
    caf\xe9
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what is hidden and what systems leave there."""
    return [entry for entry in sorted(folder.iterdir()) if entry.name[0] != "." and entry.name.lower() not in LEFTOVERS]


def images_below(folder: Path) -> list[Path]:
    """All visible images in a folder and below it, sorted; links to folders are not followed."""
    found = []
    for entry in visible(folder):
        if entry.is_dir():
            found += [] if entry.is_symlink() else images_below(entry)
        elif is_image(entry):
            found.append(entry)
    return found


def read_folders(path: Path, notes: list[str]) -> tuple[dict[str, Rows[Path]], list[str]]:
    """The images of a folder by split, labelled by the names of their class folders.

    Splits are folders that are called like them (`splits.named`), if class folders lie in one of them or there are no others;
    otherwise all folders are classes. There may be one folder too many around everything, a split's or a class's content.

    Args:
      notes: what was decided is added, a sentence each.

    Returns:
      The splits, at least "train", and what lies among the images and is none, each with the reason.

    Raises:
      ValueError: if the folder does not have this form, with what it has.
    """
    inner = _unwrap(path)
    if inner != path:
        notes.append(f"Reads {inner}, which is all that {path} has.")
    broken: list[str] = []
    folders = {folder.name: folder for folder in _folders(inner)}
    named = splits.named(list(folders))
    if not _are_splits(folders, named):
        return {"train": _read_classes(inner, path, broken, notes)}, broken
    chosen = splits.choose_splits(str(inner), list(folders))
    if others := folders.keys() - chosen.values():
        notes.append(f"Not used: {listed(sorted(others))} in {inner}, as the names are not those of splits.")
    rows = {"train": _read_classes(_unwrap(folders[chosen.pop("train")]), path, broken, notes)}
    for split, name in chosen.items():
        folder = _unwrap(folders[name])
        classes = [readable(entry.name) for entry in _folders(folder)]
        if not classes or (len(classes) == 1 and classes[0] not in rows["train"].labels):
            notes.append(
                f"The {split} split has no labels and is not used: {len(images_below(folder)):,} images in {folder}, not in "
                "folders of the classes of train; gafreeze predict labels them."
            )
        else:
            rows[split] = _read_classes(folder, path, broken, notes)
    return rows, broken


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in visible(folder) if entry.is_dir()]


def _unwrap(folder: Path) -> Path:
    """The folder itself, or the one in it that is all it has, and has folders in turn."""
    while len(inner := _folders(folder)) == 1 and _folders(inner[0]) and not any(map(is_image, visible(folder))):
        if splits.named([inner[0].name]).keys() - splits.named([folder.name]).keys() - {"train"}:
            break  # a test split alone
        folder = inner[0]
    return folder


def _are_splits(folders: dict[str, Path], named: dict[str, list[str]]) -> bool:
    """Whether folders with names of splits are splits, rather than classes of such names."""
    names = [name for names in named.values() for name in names]
    have_classes = any(len(_folders(_unwrap(folders[name]))) > 1 for name in names)
    return have_classes or (bool(names) and len(names) == len(folders))


def _read_classes(path: Path, top: Path, broken: list[str], notes: list[str]) -> Rows[Path]:
    """Images in the folders of a folder."""
    classes, loose = _folders(path), [entry for entry in visible(path) if is_image(entry)]
    if not classes:
        has = f"images lie there without any ({len(loose):,})" if loose else "no images"
        raise ValueError(f"{path}: no class folders in it, and {has}; expected {EXPECTED}")
    if loose:
        notes.append(f"Not used: {len(loose):,} images beside the class folders of {path}.")
    rows: Rows[Path] = Rows([], [])
    empty: list[str] = []
    for folder in classes:
        inner = _folders(folder)
        entries = visible(inner[0] if len(inner) == 1 and visible(folder) == inner else folder)
        pictures = [entry for entry in entries if is_image(entry)]
        broken += [f"{readable(str(entry.relative_to(top)))} ({_why_not(entry)})" for entry in entries if not is_image(entry)]
        empty += [] if pictures else [folder.name]
        rows.examples.extend(pictures)
        rows.labels.extend([readable(folder.name)] * len(pictures))
        if inner and not pictures:
            raise ValueError(
                f"{path}: no images in {folder.name}, but folders ({listed(entry.name for entry in inner)}); expected "
                f"{EXPECTED}; give the folder that has these"
            )
        if entries and not pictures:
            raise ValueError(
                f"{path}: no images in {folder.name}, but other files ({listed(entry.name for entry in entries)}); convert "
                f"them to {', '.join(SUFFIXES)}"
            )
    if empty:
        raise ValueError(f"{path}: no images in {listed(empty)}; remove empty class folders")
    return rows


def _why_not(entry: Path) -> str:
    return "a folder" if entry.is_dir() else "unknown suffix"
