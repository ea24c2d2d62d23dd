"""The documents: every command in them is run, on a tiny model and few examples, and all code as it stands there."""

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
import real_results
import tyro
from PIL import Image
from sklearn.datasets import load_digits

from gafreeze_jax import cli, masking
from gafreeze_jax.data import reviews

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
DOCUMENTS += [f"docs/{name}.md" for name in ("guide", "other_tools", "design", "families", "gpu", "cloud_tpu", "cloud")]
RUN_HERE = ["README.md", "docs/guide.md"]  # the others' commands want several machines: their options are read
SMALL = "--gens 1 --population 2 --train-examples 16 --validation-examples 16 --epochs 1 --batch-size 8 --finalist-seeds 1 "
SMALL += "--plan steps=0"
# Done by .ci/run (which is itself one of them), or, like the first, before each commit.
OF_CI = (".venv/bin/pre-commit", "python3 -m venv .venv", ".ci/run")
OF_CI += tuple(f".venv/bin/{program}" for program in ("pip", "pytest", "ruff", "pyright"))
OF_CLOUDS = ("gcloud", "cd", "python3.11", "sky jobs", "kubectl", "docker")
PYTHON = ".venv/bin/python"


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.S)


def commands(document):
    """Each command's words; of one that starts another one on other machines, that one's."""
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"(^|\s)#.*|[\"']", "", line).split(" && "):
                words = command.split()
                if words:
                    yield words[words.index(PYTHON) :] if PYTHON in words[:-1] else words


def test_no_document_is_forgotten():
    found = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
    assert found - {"CHANGELOG.md", "docs/decisions.md"} == set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_known(document):
    """Programs exist; so do scripts, and their options."""
    for block in blocks(document, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for words in commands(document):
        if words[0] != PYTHON:
            line = " ".join(words)
            assert words[0].endswith("gafreeze") or line.startswith(OF_CI + OF_CLOUDS), line
        elif words[1].startswith("experiments/"):
            parsed(words[1], words[2:])
        else:  # test_run_custom.py and test_ask_tell_examples.py run the examples
            assert words[1].startswith(("examples/", "benchmarks/"))
            assert (ROOT / words[1]).exists()


def parsed(script, words):
    module = importlib.import_module(Path(script).stem)
    return module, tyro.cli(module.Options, args=words)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that the documents call the user's own."""
    monkeypatch.chdir(tmp_path)
    rows = list(csv.reader(Path(reviews.__file__).with_name("reviews.tsv").open(encoding="utf-8"), delimiter="\t"))[1:80]
    for name in ("reviews", "messages", "other", "new"):
        with open(f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((row[0], row[1]) for row in rows)])
    Path("shakespeare.txt").write_text((ROOT / "docs" / "decisions.md").read_text(encoding="utf-8"), encoding="utf-8")
    for index, (image, label) in enumerate(zip(*load_digits(n_class=2, return_X_y=True), strict=True)):
        if index < 60:
            for name, contrast in (("photos", 15), ("dim-photos", 3)):
                folder = Path(name) / ("ring", "stroke")[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray((image.reshape(8, 8) * contrast).astype("uint8")).convert("RGB").save(folder / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("document", RUN_HERE)
def test_the_commands_and_the_code_run(
    document, files, quick_compilation, small_bert, small_gpt2, small_resnet, monkeypatch, capsys
):
    models = {"run_bert": small_bert, "run_gpt2": small_gpt2, "run_resnet": small_resnet}
    for words in commands(document):
        if words[0] == PYTHON and words[1].startswith("experiments/"):
            name = Path(words[1]).stem
            own = "--model" in words and words[words.index("--model") + 1].startswith("runs/")  # of an earlier command
            small = SMALL.split() + (["--model", str(models[name])] if name in models and not own else [])
            small += ["--max-tokens", "32"] if name == "run_gpt2" else []
            module, options = parsed(words[1], words[2:] + small)
            module.main(options)
            assert "=== Generation 1 ===" in capsys.readouterr().out
        elif words[0].endswith("gafreeze"):
            monkeypatch.setattr(sys, "argv", ["gafreeze", *words[1:]])
            cli.main()
            assert capsys.readouterr().out or Path("labels.csv").exists()
    names = {}
    for block in blocks(document, "python"):
        exec(block, names)


def test_the_library_example_freezes():
    names = {}
    exec(blocks("README.md", "python")[0], names)
    assert names["genes"].names == ("embed", "layer_0", "layer_1")
    assert float(abs(names["updates"]["embed"]).max()) == 0
    assert float(abs(names["updates"]["head"]).max()) > 0


def test_the_flax_examples_freeze():
    names = {"jax": jax, "jnp": jnp, "optax": optax, "masking": masking}
    for block in blocks("docs/guide.md", "python"):
        if "TrainState" in block or "nnx.Optimizer" in block:
            exec(block, names)
    start = names["net_params"]
    trained = [(state.params["body"]["kernel"], state.params["head"]["kernel"]) for state in (names["static"], names["traced"])]
    for body, head in trained:
        assert (body == start["body"]["kernel"]).all()
        assert (head != start["head"]["kernel"]).any()
    start = names["Module"](names["nnx"].Rngs(0))
    for module in names["modules"]:
        assert (module.body.kernel[...] == start.body.kernel[...]).all()
        assert (module.head.kernel[...] != start.head.kernel[...]).any()


def test_the_table_of_results_is_what_was_measured():
    measured = json.loads((ROOT / "benchmarks" / "results" / "real_results.json").read_text(encoding="utf-8"))
    assert real_results.table(measured["searches"]) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            assert "://" in link or (ROOT / document).parent.joinpath(link).exists(), (document, link)


def test_the_layout_names_every_module():
    (layout,) = [block for block in blocks("docs/design.md", "") if block.startswith("gafreeze_jax/\n")]
    named = set(re.findall(r"\b(\w+)\.py\b", layout))
    there = {path.stem for place in ("gafreeze_jax", "experiments") for path in (ROOT / place).glob("*.py")} - {"__init__"}
    assert named == there
    listed = dict(re.findall(r"^  (\w+)/ .*\n((?: {8,}.*\n)+)", layout, re.M))
    packages = [path.parent for path in ROOT.glob("gafreeze_jax/*/__init__.py")]
    modules = {package.name: {path.stem for path in package.glob("*.py")} - {"__init__"} for package in packages}
    assert {name: set(re.findall(r"\w+", text)) for name, text in listed.items()} == modules
