"""Files of models, masks and arrays, damaged at random as files for texts are (test_fuzzed_texts.py)."""

import shutil

import numpy as np
import pytest
from test_fuzzed_texts import check

from gafreeze_jax import masking
from gafreeze_jax.data.images import Frame, load_images
from gafreeze_jax.models import pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODELS = {"model.safetensors": "small_bert", "config.json": "small_bert", "preprocessor_config.json": "small_resnet"}


@pytest.mark.parametrize("name", MODELS)
def test_damaged_models(name, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(MODELS[name]), tmp_path / "model-folder")
    families = pretrained.families_of("images") if name.startswith("preprocessor") else pretrained.FAMILIES
    check(folder / name, (folder / name).read_bytes(), lambda _: pretrained.load(folder, families=families))


def test_damaged_masks(tmp_path):
    genes = masking.make_genes({f"layer_{i}": np.ones(2) for i in range(3)}, {"(.*)": r"\1"})
    masking.write_mask(tmp_path / "mask.json", genes, rates=[0, 0.5, 1], head="kept")
    check(tmp_path / "mask.json", (tmp_path / "mask.json").read_bytes(), masking.read_rates)


def test_damaged_arrays(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 2)
    check(tmp_path / "a.npz", (tmp_path / "a.npz").read_bytes(), lambda path: load_images(str(path), Frame(8)))


@pytest.mark.parametrize("content", ["[" * 10**5, '{"format": "gafreeze_jax mask", "version": 2}', "\0"])
def test_files_that_are_no_masks(content, tmp_path):
    (tmp_path / "mask.json").write_text(content)
    with pytest.raises(ValueError, match=r"mask\.json: expected a mask file of version 1 or 2"):
        masking.read_mask(tmp_path / "mask.json")
    with pytest.raises(ValueError, match=r"expected a mask file, got a folder; give the mask\.json in it"):
        masking.read_mask(tmp_path)
