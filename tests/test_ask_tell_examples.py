"""The examples in which the two halves of a search stand alone: the genetic algorithm, and what evaluates masks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.datasets import load_breast_cancer

from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLES = Path(__file__).parents[1] / "examples"
SPACE = Space([f"layer_{i}" for i in range(6)])


def run(name, cwd, **environment):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=cwd, env=os.environ | environment, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_genetic_algorithm_alone(tmp_path):
    code, printed, errors = run("ga_alone.py", tmp_path)
    assert code == 0, errors
    (everything, start), (chosen, best) = re.findall(r"^(.*): accuracy (0\.\d+)$", printed, re.M)
    assert everything == "all measurements"
    measurements = load_breast_cancer().feature_names.tolist()
    assert 0 < len(chosen.split(", ")) < 30
    assert [name for name in measurements if name in chosen.split(", ")] == chosen.split(", ")
    assert float(best) > max(float(start), 0.95)


@pytest.mark.parametrize("package", ["optuna", "nevergrad"])
def test_another_optimizer_drives_the_evaluator(tmp_path, package):
    pytest.importorskip(package)
    code, printed, errors = run(f"{package}_search.py", tmp_path)
    assert code == 0, errors
    counted, result = printed.splitlines()
    (num,) = re.findall(r"^(\d+) of 64 masks trained$", counted)
    assert 8 < int(num) <= 32
    words, accuracy = re.findall(r"^(.*): accuracy (0\.\d+)$", result)[0]
    assert words in {SPACE.describe(genome) for genome in SPACE.all_genomes()}
    assert float(accuracy) > 0.75  # one in ten by chance


@pytest.mark.parametrize("words", ["optuna", "--no-deps nevergrad"])
def test_without_it_the_example_says_what_to_install(tmp_path, words):
    package = words.split()[-1]
    (tmp_path / f"{package}.py").write_text("raise ImportError")
    code, printed, errors = run(f"{package}_search.py", tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert (printed, errors) == ("", f"This example needs {package.capitalize()}: pip install {words}\n")
