"""Checkpoints in the Hugging Face layout <-> parameter trees. Which tensor goes where is data: a table for each family."""

import functools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gafreeze_jax.data import files, hub, tokens
from gafreeze_jax.extras import needs
from gafreeze_jax.listing import listed
from gafreeze_jax.masking import leaf_paths
from gafreeze_jax.models import formats, minilm

with needs("text"):
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

# (name of the tensor, path in the tree, axes permutation from tensor to leaf or None); {} stands for a number, and in the
# tensor's name {-1} for one less than the path's.
Table = tuple[tuple[str, str, tuple[int, ...] | None], ...]
OIHW = (2, 3, 1, 0)  # PyTorch's axes of a convolution's kernel, in the order of ours


def dense(name: str, path: str) -> Table:
    """Rows of a table for PyTorch's linear layer, whose kernel is the transpose of ours."""
    return ((f"{name}.weight", f"{path}/kernel", (1, 0)), (f"{name}.bias", f"{path}/bias", None))


def norm(name: str, path: str) -> Table:
    """Rows of a table for a layer norm."""
    return ((f"{name}.weight", f"{path}/scale", None), (f"{name}.bias", f"{path}/bias", None))


SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    SPECIAL_TOKENS_FILE,
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
PREPROCESSOR_FILE = "preprocessor_config.json"  # how a model wants its images
# What wrappers put before all names (DataParallel, Lightning, Opacus, sentence-transformers), and within them (compiled or
# sharded parts).
WRAPPERS = ("module", "_module", "model", "net", "network", "backbone", "0", "auto_model")
INNER_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
LEFTOVERS = r"(loss\w*|criterion|class_weights?)(\..*)?"  # of trainings: tensors that no network needs
NARROW = (jnp.bfloat16, jnp.float16)  # dtypes in which parameters are kept, as blocks take them
PROBLEMS = 300  # characters of a list of what is wrong


def find_model(name: str, embedded: str = "minilm") -> Path:
    """Folder of a model: "minilm" (all-MiniLM-L6-v2, fetched on first use), a local folder, or a hub name.

    Args:
      embedded: the name of a model that needs no network, for errors.

    Raises:
      ValueError, FileNotFoundError: if there is none, with the alternatives.
    """
    if name == "minilm":
        return minilm.find()
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for users that do not exist
    if path.is_dir():
        return path
    if path.exists():
        hint = f"; {formats.refusal(path)}" if path.suffix in formats.PICKLES else ""
        raise ValueError(f"{name}: expected a folder with config.json, model.safetensors and tokenizer files, got a file{hint}")
    return _download(name, embedded)


def _download(name: str, embedded: str) -> Path:
    with needs("text"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", PREPROCESSOR_FILE, *TOKENIZER_FILES]
    alternatives = f"give a local folder in the Hugging Face layout, or --model {embedded}, which needs no network"
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if any(cached.glob("*.safetensors")):  # somebody may have downloaded the tokenizer only
            return cached
    except HFValidationError:
        raise FileNotFoundError(f"{name}: no such folder, and not a name that the hub can have: {alternatives}") from None
    except LocalEntryNotFoundError:
        pass
    try:
        hub.check_network()
    except OSError as error:
        raise FileNotFoundError(f"{name}: no such folder, not in the local cache, and {error}: {alternatives}") from None
    try:
        downloaded = Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # whatever the HTTP client of the hub's version raises
        raise FileNotFoundError(f"{name}: cannot be downloaded: {hub.first_line(error)}; {alternatives}") from None
    if not any(downloaded.glob("*.safetensors")):
        raise FileNotFoundError(f"{name}: {formats.refusal_of_hub(name)}")
    return downloaded


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of `model.safetensors`, or of the shards that its index lists; see `read_file`.

    Raises:
      ValueError, FileNotFoundError: if files are missing, damaged or disagree with the index.
    """
    single, index = folder / formats.WEIGHTS, folder / formats.INDEX
    if single.is_file():
        return read_file(single)
    if not index.is_file():
        what = f"{formats.WEIGHTS} is a broken link" if single.is_symlink() else f"no {formats.WEIGHTS} and no {formats.INDEX}"
        usual = f"{folder}: {what}; expected a folder in the Hugging Face layout"
        raise FileNotFoundError(formats.missing(folder, formats.WEIGHTS) or usual)
    try:
        weight_map = files.parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors shards: {error!r}") from None
    tensors: dict[str, np.ndarray] = {}
    problems = []
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
            problems.append(f"shard {shard!r} is missing")
            continue
        in_shard = read_file(folder / shard)
        expected = {name for name, file in weight_map.items() if file == shard}
        problems += [f"{shard} lacks {name}" for name in sorted(expected - in_shard.keys())]
        problems += [f"{shard} has {name}, which is not listed there" for name in sorted(in_shard.keys() - expected)]
        tensors |= in_shard
    if problems:
        raise ValueError(f"{index}: {listed(problems, '; ', most=PROBLEMS)}")
    return tensors


def read_file(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file; floats that are neither bfloat16 nor float16 as float32.

    Raises:
      ValueError: if it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file")
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}{files.hint_at_pointer(path)}") from None
    except AttributeError as error:
        raise ValueError(f"{path}: a dtype that NumPy does not support; convert it to float32: {error}") from None
    return {name: tensor if tensor.dtype.kind in "biu" else _as_kept(tensor) for name, tensor in tensors.items()}


def _as_kept(array: Any) -> np.ndarray:
    """Floats in a dtype that files and frozen blocks keep."""
    array = np.asarray(array)
    return array if array.dtype in NARROW else array.astype(np.float32, copy=False)


def read_label_names(path: Path) -> tuple[str, ...]:
    """The names of classes that a safetensors file, or that of a folder, has in its header; () if there are none."""
    path = path / formats.WEIGHTS if path.is_dir() else path
    if not path.is_file():
        return ()
    with safe_open(path, "numpy") as file:
        return label_names((file.metadata() or {}).get("id2label"))


def label_names(id2label: Any) -> tuple[str, ...]:
    """Names of classes in the order of their numbers; () unless it is such a table, or the text of one.

    >>> label_names({"1": "yes", "0": "no"}), label_names('{"0": "a"}'), label_names({"0": "a", "2": "b"}), label_names(None)
    (('no', 'yes'), ('a',), (), ())
    """
    try:
        table = json.loads(id2label) if isinstance(id2label, str) else id2label
        names = {int(number): str(name) for number, name in table.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(names[number] for number in range(len(names))) if set(names) == set(range(len(names))) else ()


def unwrapped(name: str, own: Collection[str] = ()) -> str:
    """A tensor's name without what wrappers of a network have added to it; `own` are first parts of the network's own names.

    >>> unwrapped("module._orig_mod.bert.embeddings.word_embeddings.weight")
    'bert.embeddings.word_embeddings.weight'
    """
    first, _, rest = INNER_WRAPPERS.sub("", name).partition(".")
    while rest and first in WRAPPERS and first not in own:
        first, _, rest = rest.partition(".")
    return f"{first}.{rest}" if rest else first


def renamed(tensors: Mapping[str, np.ndarray], rename: Callable[[str], str], where: Path) -> dict[str, np.ndarray]:
    """Tensors by their standard names.

    Raises:
      ValueError: if two get the same one.
    """
    if twice := sorted(name for name, count in Counter(map(rename, tensors)).items() if count > 1):
        raise ValueError(f"{where}: there twice, under an old and a new name or with and without prefix: {listed(twice)}")
    return {rename(name): tensor for name, tensor in tensors.items()}


def to_tree(
    tensors: Mapping[str, np.ndarray],
    table: Table,
    shapes: Any,
    *,
    fresh: Collection[str] = (),
    ignore: str = "",
    where: str = "checkpoint",
) -> dict[str, Any]:
    """Arranges named tensors as a tree of nested dicts.

    Args:
      shapes: the tree expected, with `.shape` leaves.
      fresh: paths of leaves that are not taken from the tensors and are left out of the tree.
      ignore: regular expression of tensors that are not used.
      where: for errors.

    Raises:
      ValueError: unless every tensor that is not ignored has one place in the tree, of its shape, and no place stays
        empty, with the first few culprits.
    """
    places = _places(shapes, table)
    unknown = sorted(name for name in tensors.keys() - places.keys() if not re.fullmatch(ignore, name))
    problems = [f"{name} is not a tensor of this network" for name in unknown]
    tree: dict[str, Any] = {}
    for name, (path, leaf, axes) in places.items():
        if path in fresh:
            continue
        need = tuple(leaf.shape[i] for i in np.argsort(axes))
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != need:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, the config needs {list(need)}")
        elif not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            problems.append(f"{name} has numbers of kind {tensors[name].dtype}, expected floats")
        elif not np.isfinite(tensors[name]).all():
            problems.append(f"{name} has NaN or infinite numbers")
        else:
            *parents, last = path.split("/")
            node = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)
            node[last] = np.asarray(tensors[name].transpose(axes), order="C")
    if problems:
        hint = "; remove what belongs to another task" if len(problems) == len(unknown) else ""
        raise ValueError(f"{where}: the tensors do not fit the network: {listed(problems, '; ', most=PROBLEMS)}{hint}")
    return tree


def from_tree(tree: Any, table: Table) -> dict[str, np.ndarray]:
    """The reverse of `to_tree`: tensors by their names in the checkpoint, with dtypes as `read_file` returns them."""
    return {
        name: np.asarray(_as_kept(leaf).transpose(np.argsort(axes)), order="C")
        for name, (_, leaf, axes) in _places(tree, table).items()
    }


def names(tree: Any, table: Table) -> dict[str, str]:
    """Names of the leaves of a tree in the checkpoint, by path."""
    return {path: name for name, (path, _, _) in _places(tree, table).items()}


def _places(tree: Any, table: Table) -> dict[str, tuple[str, Any, tuple[int, ...]]]:
    """What each tensor of a checkpoint becomes: path in the tree, leaf, axes permutation."""
    rules = [(re.compile(re.escape(path).replace(r"\{\}", r"(\d+)")), name, axes) for name, path, axes in table]
    places = {}
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        ((match, name, axes),) = [(m, name, axes) for rule, name, axes in rules if (m := rule.fullmatch(path))]
        numbers = map(int, match.groups())
        filled = re.sub(r"\{(-1)?\}", lambda slot, numbers=numbers: str(next(numbers) + int(slot[1] or 0)), name)
        places[filled] = (path, leaf, axes or tuple(range(len(leaf.shape))))
    return places


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], label_names: Sequence[str] = ()) -> None:
    """Writes `model.safetensors`, whole or not at all; names of classes go into its header."""
    target = folder / formats.WEIGHTS
    partial = target.with_suffix(".partial")
    labels = {"id2label": json.dumps(dict(enumerate(map(str, label_names))))} if label_names else {}
    save_file(dict(tensors), partial, metadata={"format": "pt", **labels})
    partial.replace(target)


def write_tree(folder: Path, params: Any) -> None:
    """Writes a parameter tree as `model.safetensors`; tensors are named by their paths, such as `dense_0/kernel`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, dict(zip(leaf_paths(params), map(np.asarray, jax.tree.leaves(params)), strict=True)))


def copy_tokenizer(
    source: Path, target: Path, *, as_words: bool = False, pad_token: str | None = None, input_names: Sequence[str] = ()
) -> None:
    """Copies a tokenizer's files, if there are any.

    Args:
      as_words: it is for texts that come as words, as in `tokens.load_tokenizer`.
      pad_token: what fills up batches of texts, if not what the files say.
      input_names: what it returns, if not that.
    """
    existing = [name for name in TOKENIZER_FILES if (source / name).exists()]
    for name in existing if source != target else ():
        shutil.copyfile(source / name, target / name)
    padding = {} if pad_token is None else {"pad_token": pad_token}
    has_spaces = existing and as_words and _put_spaces_before_words(target)
    settings = padding | ({"add_prefix_space": True} if has_spaces else {})
    settings |= {"model_input_names": list(input_names)} if input_names else {}
    if existing and settings:
        _change_json(target / "tokenizer_config.json", settings)
    if padding and (target / SPECIAL_TOKENS_FILE).exists():  # transformers may take them from there
        _change_json(target / SPECIAL_TOKENS_FILE, padding)


def _change_json(path: Path, entries: dict[str, Any]) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | entries, indent=2) + "\n", encoding="utf-8")


def _put_spaces_before_words(folder: Path) -> bool:
    """Has a folder's tokenizer put a space before each word, if it is of bytes; whether it is.

    Transformers makes some tokenizers anew, as their class has them, and others as `tokenizer.json` says.
    """
    if not tokens.is_of_bytes(tokens.load_tokenizer(folder)):
        return False
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "add_prefix_space" in (before := raw.get("pre_tokenizer") or {}):
        before["add_prefix_space"] = True
        path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    return True
