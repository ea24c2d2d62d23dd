"""Each package that the core does without belongs to an extra, and where it is missing the error names that extra."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gafreeze_jax.extras import needs

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"jax", "numpy", "optax"}
OF_CORE = {"absl", "scipy"}  # jax and optax bring them
MODULES = {
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
OF_EXTRAS = {"tokenizers": "transformers"}  # which brings them
FILES = sorted((ROOT / "gafreeze_jax").rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))


def name_of(requirement):
    return requirement.partition(">")[0].partition("=")[0].partition("[")[0]


def brought_by(extra):
    """The packages of an extra and of those that it includes."""
    packages = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if requirement.startswith("gafreeze-jax["):
            packages |= set().union(*map(brought_by, requirement.split("[")[1].rstrip("]").split(",")))
        else:
            packages.add(name_of(requirement))
    return packages


def imports_of(node, extra):
    """Pairs of an imported package and the extra that is named around the import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], extra) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module.partition(".")[0], extra
        else:
            named = isinstance(child, ast.With) and ast.unparse(child.items[0].context_expr)
            yield from imports_of(child, child.items[0].context_expr.args[0].value if named and "needs('" in named else extra)


def test_the_core_is_small():
    assert set(map(name_of, PROJECT["dependencies"])) == CORE


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_of_the_core_or_names_its_extra(path):
    of_reports = path.parent.name in ("report", "runs")  # report/__init__.py names its extra for all of them
    for module, extra in imports_of(ast.parse(path.read_text(encoding="utf-8")), "report" if of_reports else None):
        if module not in sys.stdlib_module_names | CORE | OF_CORE | {"gafreeze_jax"}:
            package = OF_EXTRAS.get(module) or MODULES.get(module, module)
            assert package in (brought_by(extra) if extra else ()), (
                f"{module} needs an extra that brings it, named around its import"
            )


def test_every_extra_is_in_all_but_devices_and_tools():
    others = {"cuda12", "cuda13", "tpu", "torch", "optuna", "nevergrad", "dev"}
    for extra in PROJECT["optional-dependencies"].keys() - others:
        assert brought_by(extra) <= brought_by("all")


def run(code, *words):
    """Python in which only the core can be imported."""
    hidden = sorted(MODULES.get(name, name) for name in brought_by("all"))
    modules = {package: module for module, package in MODULES.items()}
    names = [modules.get(name, name) for name in hidden]
    line = [sys.executable, "-c", f"import sys; sys.modules.update(dict.fromkeys({names}))\n{code}", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)


def test_what_is_missing_is_named_with_its_extra():
    done = run(
        "import importlib\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(f'gafreeze_jax.{name}')\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(name, error)\n"
        "    else:\n"
        "        print(name, 'works')\n"
        "from gafreeze_jax.data import tfds, tokens\n"
        "for call in (tokens.make_byte_tokenizer, lambda: tfds.read_tfds('glue/sst2')):\n"
        "    try:\n"
        "        call()\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error)\n",
        *(
            "masking",
            "search.genetic",
            "search.history",
            "engine.population",
            "models.bert",
            "models.layers",
            "data.images",
            "report.page",
        ),
    )
    assert done.stdout.splitlines() == [
        "masking works",
        "search.genetic works",
        "search.history works",
        "engine.population works",
        'models.bert needs safetensors: pip install "gafreeze_jax[text]"',
        'models.layers needs flax: pip install "gafreeze_jax[text]"',
        'data.images needs PIL: pip install "gafreeze_jax[images]"',
        'report.page needs etils: pip install "gafreeze_jax[report]"',
        'needs transformers: pip install "gafreeze_jax[text]"',
        'needs tensorflow_datasets: pip install "gafreeze_jax[tfds]"',
    ], done.stderr


def test_the_command_says_what_it_needs():
    done = run("import runpy; runpy.run_module('gafreeze_jax', run_name='__main__')", "show", "no-run")
    assert (done.returncode, done.stderr) == (1, 'error: needs tyro: pip install "gafreeze_jax[report]"\n')


@pytest.mark.parametrize(("script", "extra"), [("bert", "text"), ("gpt2", "text"), ("resnet", "images"), ("custom", "images")])
def test_scripts_say_what_they_need(script, extra):
    done = run(f"import runpy; runpy.run_path('experiments/run_{script}.py', run_name='__main__')")
    assert (done.returncode, done.stderr) == (1, f'error: needs tyro: pip install "gafreeze_jax[{extra}]"\n')


def test_what_an_option_needs_is_one_line(monkeypatch, capsys, tmp_path):
    """As --data tfds:NAME, which another extra brings."""
    import run_custom

    def prepare(given):
        with needs("tfds"):
            import no_such_package  # noqa: F401

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_custom.run("custom", prepare, run_custom.Options())
    assert capsys.readouterr().err == 'error: needs no_such_package: pip install "gafreeze_jax[tfds]"\n'
    assert not list(tmp_path.iterdir())


def test_every_folder_is_a_package():
    """Others are not installed."""
    for path in FILES:
        assert (path.parent / "__init__.py").exists(), path.parent


def test_everything_pinned_is_pinned_once():
    lines = [line for name in ("requirements.txt", "requirements-dev.txt") for line in (ROOT / name).read_text().splitlines()]
    pinned = [name_of(line).lower().replace("_", "-") for line in lines if "==" in line and not line.startswith("#")]
    assert len(pinned) == len(set(pinned))
    assert {name.lower().replace("_", "-") for name in CORE | brought_by("all") | brought_by("dev")} <= set(pinned)
