"""Trained finalists on disk: found as they were, or trained again."""

import warnings

import jax
import numpy as np
import pytest
from etils import epath

from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.runs.finalist_store import FinalistStore
from gafreeze_jax.space import Space

PARAMS = {"low": {"kernel": np.ones((3, 4), np.float32)}, "high": (np.zeros(2), np.zeros((0, 3))), "head": {"bias": np.ones(2)}}

SPACE = Space("ab")


def make_member(genome, value=2.0):
    frozen = dict(zip(PARAMS, genome, strict=False))
    params = {
        name: tree if frozen.get(name) else jax.tree.map(lambda leaf: np.full_like(leaf, value), tree)
        for name, tree in PARAMS.items()
    }
    return Member(tuple(genome), params, 0.1, 0.2, np.nan, 6, 7.5, values=np.array([1.0, 0.0]))


def same(one, other):
    assert repr(one._replace(params=None)) == repr(other._replace(params=None))
    assert list(one.params) == list(other.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def keep(folder):
    store = FinalistStore(folder, SPACE)
    store.keep("mask-1", [make_member([0, 1]), make_member([1, 1], 3)])
    store.keep("mask-2", [make_member([0, 1], 4)])
    store.close()


def test_finalists_are_found_as_they_were(tmp_path):
    folder = tmp_path / "members"
    keep(epath.Path(folder))
    store = FinalistStore(epath.Path(folder), SPACE)
    same(store.find("mask-1", np.array([False, True]), PARAMS), make_member([0, 1]))
    same(store.find("mask-1", np.array([True, True]), PARAMS), make_member([1, 1], 3))
    same(store.find("mask-2", np.array([False, True]), PARAMS), make_member([0, 1], 4))
    assert store.find("mask-2", np.array([True, True]), PARAMS) is None
    store.keep("mask-2", [make_member([1, 1])])
    store.close()
    assert FinalistStore(epath.Path(folder), SPACE).find("mask-2", np.array([True, True]), PARAMS) is not None
    store.remove()
    assert not folder.exists()


def test_a_damaged_finalist_is_trained_again(tmp_path):
    """Of every file some bytes are changed, or it is cut: what is found is what was kept, or nothing."""
    folder = tmp_path / "members"
    keep(epath.Path(folder))
    expected = {"mask-1": [[0, 1], 2], "mask-2": [[0, 1], 4]}
    num_missing = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], *(flip(content, i) for i in range(0, len(content), 61))):
            file.write_bytes(damaged)
            with warnings.catch_warnings(action="ignore"):
                store = FinalistStore(epath.Path(folder), SPACE)
            for name, (genome, value) in expected.items():
                found = store.find(name, np.array(genome, bool), PARAMS)
                num_missing += found is None
                if found is not None:
                    same(found, make_member(genome, value))
        file.write_bytes(content)
    assert num_missing > 0


def flip(content, i):
    return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]


def test_what_cannot_be_written_stops_the_run(tmp_path):
    (tmp_path / "run").write_text("a file")
    store = FinalistStore(epath.Path(tmp_path) / "run" / "members", SPACE)
    store.keep("mask-1", [make_member([0, 1])])
    with pytest.raises(OSError, match="cannot be written"):
        store.close()
