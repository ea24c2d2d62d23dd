"""The architecture: imports go down, files and functions stay small, and no two types share a name."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gafreeze_jax"
LAYERS = (
    ("extras", "intervals", "listing", "masking", "metrics", "space", "user_cache"),
    ("export", "search"),
    ("engine",),
    ("data",),
    ("models",),
    ("options",),
    ("report",),
    ("tasks",),
    ("runs",),
    ("cli",),
    ("__init__", "__main__"),
)  # from the lowest to the highest
LEVELS = {name: level for level, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES_OF_FILE, MAX_LINES_OF_FUNCTION = 400, 60


def room(path):
    """The top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports, with the lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gafreeze_jax":
            parts = node.module.split(".")
            for name in parts[1:2] or [alias.name for alias in node.names]:
                yield name if name in LEVELS else "__init__", node.lineno


def test_every_room_has_a_level():
    assert {room(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own_level = LEVELS[room(path)]
    upwards = [
        f"line {line}: {name}"
        for name, line in imported_rooms(path)
        if LEVELS[name] > own_level or (LEVELS[name] == own_level and name != room(path) and own_level > 0)
    ]
    assert not upwards


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES_OF_FILE
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_LINES_OF_FUNCTION
    }
    assert not long


def test_no_two_types_share_a_name():
    names = Counter(node.name for path in FILES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} <= {"Options"}  # an experiment's own ones


def test_slow_packages_are_imported_where_they_are_used():
    modules = "gafreeze_jax.cli, gafreeze_jax.runs.main, gafreeze_jax.tasks.text, gafreeze_jax.tasks.images"
    slow = {"matplotlib", "orbax", "scipy.stats", "sklearn", "tensorboardX", "tensorflow_datasets", "transformers"}
    program = f"import sys, {modules}; print(*{slow} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
