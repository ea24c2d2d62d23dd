"""Small models of the families with tokenizers of their kinds: a run begins, and what it saves is read as before."""

import family_folders
import jax
import numpy as np
import pytest

from gafreeze_jax.data import tokens
from gafreeze_jax.models import pretrained
from gafreeze_jax.tasks import language_model, text

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {"train_examples": 8, "validation_examples": 8, "batch_size": 4, "max_tokens": 32}


@pytest.mark.parametrize("model_type", family_folders.TOKENIZERS)
def test_a_run_begins_and_saves_a_model_with_its_tokenizer(model_type, tmp_path):
    source = family_folders.write_texts_model(tmp_path, model_type)
    module = text if model_type in family_folders.ENCODERS else language_model
    more = {"task": "classify"} if module is language_model else {}
    setup = module.prepare(module.Options(**SMALL, **more, model=str(source), data="reviews"))
    assert setup.problem.head == "kept"
    params = setup.restore(setup.problem.params)
    setup.save(tmp_path / "saved", params)

    before, after = (pretrained.load(folder) for folder in (source, tmp_path / "saved"))
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    ids = [
        tokens.load_tokenizer(folder)("A plain, honest film.", "No.")["input_ids"] for folder in (source, tmp_path / "saved")
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) > 5
