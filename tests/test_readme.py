import importlib
import re
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(code, names)
    assert names["genes"].names == ("embed", "layer_0", "layer_1")
    assert float(abs(names["updates"]["embed"]).max()) == 0
    assert float(abs(names["updates"]["head"]).max()) > 0


def test_the_commands_have_options_that_exist():
    commands = re.findall(r"experiments/run_(\w+)\.py (--.*)", README)
    assert {name for name, _ in commands} == {"bert", "gpt2", "resnet"}
    for name, words in commands:
        tyro.cli(importlib.import_module(f"run_{name}").Options, args=words.split())


def test_every_file_of_the_layout_exists():
    layout = re.search(r"```\n(gafreeze_jax/\n.*?)```", README, re.S)
    assert layout is not None
    for name in re.findall(r"^  (\w+\.py) ", layout[1], re.M):
        assert (ROOT / "gafreeze_jax" / name).exists()
    for name in re.findall(r"run_\w+\.py", layout[1]):
        assert (ROOT / "experiments" / name).exists()
