import re
from pathlib import Path

import run_bert
import tyro

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(code, names)
    assert names["genes"].names == ("embed", "layer_0", "layer_1")
    assert float(abs(names["updates"]["embed"]).max()) == 0
    assert float(abs(names["updates"]["head"]).max()) > 0


def test_the_commands_have_options_that_exist():
    commands = re.findall(r"experiments/run_bert\.py (--.*)", README)
    assert len(commands) == 2
    for command in commands:
        tyro.cli(run_bert.Options, args=command.split())


def test_every_file_of_the_layout_exists():
    layout = re.search(r"```\n(gafreeze_jax/\n.*?)```", README, re.S)
    assert layout is not None
    for name in re.findall(r"^  (\w+\.py) ", layout[1], re.M):
        assert (Path(__file__).parent.parent / ("experiments" if name.startswith("run") else "gafreeze_jax") / name).exists()
