"""What `import gafreeze_jax` offers, and what it loads."""

import re
import subprocess
import sys

import pytest

import gafreeze_jax


def test_importing_the_package_loads_jax_optax_and_numpy_alone():
    """Beyond what these three load themselves, which scipy and etils may be among."""
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = []
    for imports in ("import jax, jax.numpy, optax, numpy", "import gafreeze_jax"):
        done = subprocess.run([sys.executable, "-c", f"{imports}\n{show}"], capture_output=True, text=True, check=True)
        loaded.append({name for name in done.stdout.split() if name not in sys.stdlib_module_names})
    assert loaded[1] - loaded[0] == {"gafreeze_jax"}


@pytest.mark.parametrize("name", gafreeze_jax.__all__)
def test_every_public_name_is_there_and_described(name):
    assert getattr(gafreeze_jax, name).__doc__
    assert name in dir(gafreeze_jax)


def test_the_docstring_lists_the_public_names():
    lines = re.findall(r"^  (\w+(?:, \w+)*)  +\w", gafreeze_jax.__doc__ or "", re.M)
    assert [name for names in lines for name in names.split(", ")] == gafreeze_jax.__all__


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'gafreeze_jax' has no attribute 'serach'"):
        gafreeze_jax.serach  # noqa: B018
