"""Reading and writing safetensors, damaged files, and where models are looked for."""

import json
import re
import socket

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from gafreeze_jax.models import checkpoints

TABLE = (
    ("embed.weight", "embeddings/word", None),
    ("block.{}.dense.weight", "layer_{}/dense/kernel", (1, 0)),
    ("block.{}.conv.weight", "layer_{}/conv", (2, 3, 1, 0)),  # OIHW -> HWIO
    ("scale", "head/scale", None),
)


def make_tensors():
    shapes = {"embed.weight": (5, 2), "scale": ()}
    for i in (0, 10):
        shapes |= {f"block.{i}.dense.weight": (3, 2), f"block.{i}.conv.weight": (4, 3, 2, 1)}
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


def make_tree(tensors):
    """What they are in our tree, by hand."""
    layers = {
        f"layer_{i}": {
            "dense": {"kernel": tensors[f"block.{i}.dense.weight"].T},
            "conv": np.moveaxis(tensors[f"block.{i}.conv.weight"], (0, 1), (3, 2)),
        }
        for i in (0, 10)
    }
    return {"embeddings": {"word": tensors["embed.weight"]}, **layers, "head": {"scale": tensors["scale"]}}


def assert_equal(found, expected):
    """Of nested dicts of arrays."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[name], value)
        else:
            np.testing.assert_array_equal(found[name], value, strict=True)


def write_shards(folder, tensors, num_shards=2, weight_map=None):
    names = sorted(tensors)
    files = {name: f"model-{i % num_shards + 1:05}-of-{num_shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files | (weight_map or {})}))


# Names


def test_tensors_to_tree_and_back():
    tensors = make_tensors()
    tree = checkpoints.to_tree(tensors, TABLE, make_tree(tensors))
    assert_equal(tree, make_tree(tensors))
    assert_equal(checkpoints.from_tree(tree, TABLE), tensors)


def test_fresh_leaves_are_left_out_and_ignored_tensors_not_used():
    tensors = make_tensors() | {"cls.bias": np.zeros(3)}
    shapes = make_tree(tensors)
    del tensors["scale"]
    tree = checkpoints.to_tree(tensors, TABLE, shapes, fresh=["head/scale", "embeddings/word"], ignore=r"cls\..*")
    assert_equal(tree, {name: shapes[name] for name in ("layer_0", "layer_10")})


def test_several_culprits_are_named_at_once_and_the_rest_counted():
    tensors = make_tensors()
    shapes = make_tree(tensors)
    del tensors["block.10.dense.weight"], tensors["scale"]
    tensors |= {
        "block.1.dense.weight": np.zeros((3, 2)),
        "block.x.dense.weight": np.zeros((3, 2)),
        "my.embed.weight": np.zeros(1),
    }
    tensors |= {"block.0.dense.weight": np.zeros((2, 3)), "block.0.conv.weight": np.zeros(7), "embed.weight": np.zeros((5, 3))}
    with pytest.raises(ValueError, match=r"^here: the tensors do not fit the network") as error:
        checkpoints.to_tree(tensors, TABLE, shapes, where="here")
    assert str(error.value).partition("network: ")[2].split("; ") == [
        "block.1.dense.weight is not a tensor of this network",
        "block.x.dense.weight is not a tensor of this network",
        "my.embed.weight is not a tensor of this network",
        "embed.weight has shape [5, 3], the config needs [5, 2]",
        "scale is missing",
        "block.0.conv.weight has shape [7], the config needs [4, 3, 2, 1]",
        "and 2 more",
    ]


# Files


def test_shards_are_read_like_the_single_file(tmp_path):
    tensors = make_tensors()
    write_shards(tmp_path, tensors)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert_equal(checkpoints.read_tensors(tmp_path), tensors)
    save_file({"scale": np.ones(2)}, tmp_path / "model.safetensors")  # where both are, it counts
    assert_equal(checkpoints.read_tensors(tmp_path), {"scale": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("dtype", "read"),
    [(np.float16, np.float16), (ml_dtypes.bfloat16, ml_dtypes.bfloat16), (np.float32, np.float32), (np.float64, np.float32)],
)
def test_narrow_floats_and_integers_are_read_as_they_are(dtype, read, tmp_path):
    values = np.array([1 / 3, -2.5, 1e-3, 40000]).astype(dtype)
    save_file({"values": values, "ids": np.arange(3)}, tmp_path / "model.safetensors")
    assert_equal(checkpoints.read_tensors(tmp_path), {"values": values.astype(read), "ids": np.arange(3)})


def test_dtype_that_numpy_lacks(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*float8_e4m3"):
        checkpoints.read_tensors(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4],
        lambda data: data[:100],  # within the header
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes(len(data)),
        lambda data: b"\xff" * 8 + data[8:],  # length of the header
        lambda data: data.replace(b'"dtype"', b'"dtyqe"'),
        lambda data: data.replace(b"{", b"[", 1),
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=[
        "empty", "4 bytes", "100 bytes", "half", "a byte short", "a byte more", "zeros", "length", "key", "bracket", "git lfs",
    ],
)  # fmt: skip
def test_damaged_file(damage, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.write_tensors(tmp_path, make_tensors())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: not a whole safetensors file"):
        checkpoints.read_tensors(tmp_path)


def test_folder_without_tensors(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"{re.escape(str(tmp_path))}: no model\.safetensors and no .*\.json; expected a"
    ):
        checkpoints.read_tensors(tmp_path)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle.*not read\. To convert it: python -c "):
        checkpoints.read_tensors(tmp_path)


def test_index_that_lies(tmp_path):
    tensors = make_tensors()
    write_shards(tmp_path, tensors, weight_map={"nowhere": "model-00001-of-00002.safetensors", "lost": "lost.safetensors"})
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: ") as error:
        checkpoints.read_tensors(tmp_path)
    assert "model-00001-of-00002.safetensors lacks nowhere" in str(error.value)
    assert "shard 'lost.safetensors' is missing" in str(error.value)


def test_tensor_that_the_index_does_not_list(tmp_path):
    write_shards(tmp_path, make_tensors(), weight_map={"scale": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"00001.* lacks scale; .*00002.* has scale, which is not listed"):
        checkpoints.read_tensors(tmp_path)


def test_damaged_shard(tmp_path):
    write_shards(tmp_path, make_tensors())
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: not a whole safetensors file"):
        checkpoints.read_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 5, ""])
def test_index_may_name_files_of_its_folder_only(shard, tmp_path):
    (tmp_path / "inside").mkdir()
    checkpoints.write_tensors(tmp_path, make_tensors())
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"scale": shard}}))
    with pytest.raises(ValueError, match=rf"index\.json: shard {re.escape(repr(shard))} is missing"):
        checkpoints.read_tensors(tmp_path / "inside")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": "b", "c": 5}}']
)
def test_index_that_is_none(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: not an index of safetensors shards"):
        checkpoints.read_tensors(tmp_path)


def test_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoints.write_tensors(tmp_path, make_tensors())

    def fail_half_way(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_file", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write_tensors(tmp_path, {})
    assert_equal(load_file(tmp_path / "model.safetensors"), make_tensors())


def test_tokenizer_files_that_there_are_get_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("vocab.txt", "tokenizer.json", "README.md"):
        (source / name).write_text(name)
    checkpoints.copy_tokenizer(source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        name: name for name in ("vocab.txt", "tokenizer.json")
    }


# Finding models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""

    def connect(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "create_connection", connect)
    for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def online(cache, monkeypatch):
    """The same, with downloads that fail in a way that only the hub's own HTTP client knows."""

    def snapshot_download(name, *, allow_patterns, local_files_only=False):
        raise LocalEntryNotFoundError("not there") if local_files_only else RuntimeError("404 Client Error\nmore")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def write_snapshot(cache, *names):
    folder = cache / "models--me--model"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


def test_local_folder(tmp_path, monkeypatch):
    (tmp_path / "bert").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoints.find_model(str(tmp_path / "bert")) == checkpoints.find_model("~/bert") == tmp_path / "bert"


def test_file_instead_of_a_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: expected a folder .*, got a file"):
        checkpoints.find_model(str(path))


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b/c", "/no/such/folder", "./x", "~nobody-of-this-name/x", "a b", "a--b", "a..b", "x.git", "a" * 97, "mö/x"],
)
def test_name_that_is_neither_a_folder_nor_one_of_the_hub(name, cache):
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(name)}: no such folder, .*local folder .*minilm"):
        checkpoints.find_model(name)


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased"])
def test_hub_name_when_offline_fails_without_trying(name, cache):
    message = rf"^{name}: no such folder, not in the local cache, .*\(HF_HUB_OFFLINE is set\): .*local folder .*minilm"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoints.find_model(name)


def test_hub_name_in_the_cache(cache):
    snapshot = write_snapshot(cache, "config.json", "model.safetensors")
    assert checkpoints.find_model("me/model") == snapshot


def test_cache_that_has_the_tokenizer_only(cache):
    write_snapshot(cache, "config.json", "tokenizer.json")
    with pytest.raises(FileNotFoundError, match=r"me/model: no such folder, not in the local cache"):
        checkpoints.find_model("me/model")


def test_hub_that_cannot_be_reached(online, monkeypatch):
    def connect(address, timeout):
        raise OSError(f"no route to {address}")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8443/path")
    message = r"me/model: .*hub\.example cannot be reached \(no route to \('hub\.example', 8443\)\): .*minilm"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoints.find_model("me/model")


def test_download_that_fails_behind_a_proxy(online, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    with pytest.raises(FileNotFoundError, match=r"^me/model: cannot be downloaded: 404 Client Error; .*minilm"):
        checkpoints.find_model("me/model")
