"""Which files of a folder are which split: a file for each, its shards, or all that lies in a folder of its name.

Data sets on the Hugging Face hub have train-00000-of-00002.parquet, maybe in data/, or train/0000.parquet.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from gafreeze_jax.data import splits
from gafreeze_jax.data.files import kind
from gafreeze_jax.listing import listed

DEFAULT = "default"  # the set of files that lie in no folder of a name of their own
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<num>\d+)(-[0-9a-f]+)?")


def find_splits(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files of a folder by split, and of a split in their order; there is one for train.

    Files in data/ and in folders that are called like splits count if none lie in the folder itself.

    Raises:
      ValueError: if a split has several files that are not its shards, or shards are missing.
      FileNotFoundError: if train has no file.
    """
    sets: dict[str, list[str]] = {}
    for pattern in ("*", "*/*", "*/*/*"):
        if DEFAULT not in sets:
            sets |= configurations(str(path.relative_to(folder)) for path in folder.glob(pattern) if kind(path, suffixes))
    found = by_split(str(folder), sets.pop(DEFAULT, []))
    if "train" not in found:
        expected = f"one of train{{{','.join(suffixes)}}}" if len(suffixes) > 1 else f"train{suffixes[0]}"
        others = f"; or give one of the folders in it: {listed(sorted(sets))}" if sets else ""
        raise FileNotFoundError(f"{folder}: no train file; expected {expected}, plain or .gz{others}")
    return {split: [folder / name for name in names] for split, names in found.items()}


def configurations(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of files by the set that they belong to, which is named after the folders that they lie in.

    >>> configurations(["data/train.csv", "cola/train/0.csv", "cola/test/0.csv"])
    {'default': ['data/train.csv'], 'cola': ['cola/train/0.csv', 'cola/test/0.csv']}
    """
    sets: dict[str, list[str]] = {}
    for name in names:
        folders = [part for part in PurePosixPath(name).parts[:-1] if part != "data" and not splits.named([part])]
        sets.setdefault("/".join(folders) or DEFAULT, []).append(name)
    return sets


def by_split(where: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of the files of a set by split, train first, and of a split in their order.

    Args:
      where: for errors.

    Raises:
      ValueError: if a split has several files that are not its shards, or shards are missing.

    >>> by_split("", ["test.csv", "train-1-of-2.csv", "train-0-of-2.csv"])
    {'train': ['train-0-of-2.csv', 'train-1-of-2.csv'], 'test': ['test.csv']}
    >>> by_split("", ["train/part-10.parquet", "train/part-9.parquet"])
    {'train': ['train/part-9.parquet', 'train/part-10.parquet']}
    """
    names = sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    stems = {name: PurePosixPath(name).name.split(".")[0] for name in names}
    shards = {name: SHARD.fullmatch(stem) for name, stem in stems.items()}
    found = _named({name: match["stem"] if (match := shards[name]) else stem for name, stem in stems.items()})
    for split, of_split in found.items():
        _check_shards(where, split, {name: shards[name] for name in of_split})
    taken = {name for of_split in found.values() for name in of_split}
    found = _named({name: PurePosixPath(name).parent.name for name in names if name not in taken}) | found
    return {split: found[split] for split in splits.SPLIT_NAMES if split in found}


def _named(words: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by the split that their words name."""
    of_split = splits.named(list(words.values()))
    return {split: [name for name, word in words.items() if word in called] for split, called in of_split.items()}


def _check_shards(where: str, split: str, shards: Mapping[str, re.Match[str] | None]) -> None:
    """Raises a ValueError unless these are one file, or all shards of one."""
    first = next(iter(shards.values()))
    numbers = sorted(int(match["number"]) for match in shards.values() if match)
    sets = {(PurePosixPath(name).parent, match and match["stem"], match and match["num"]) for name, match in shards.items()}
    if first is None and len(shards) == 1:
        return
    if first is None or len(sets) > 1:
        raise ValueError(f"{where}: more than one {split} file: {listed(shards)}; keep one, or all shards of one")
    num, digits = int(first["num"]), len(first["number"])
    if numbers != list(range(len(shards))) or num != len(shards):
        ends = [f"{first['stem']}-{number:0{digits}}-of-{first['num']}" for number in (0, num - 1)]
        expected = " to ".join(dict.fromkeys(ends))
        raise ValueError(f"{where}: expected the {split} shards {expected}, got {listed(shards)}; complete them")
