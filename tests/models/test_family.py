"""The family of docs/families.md, as a user would add it: read, trained with a mask, saved and read again."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import test_population as tasks
from safetensors.numpy import load_file, save_file

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.cache import Source
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import base, bert, configs, gpt2, pretrained, resnet, vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
CONFIG = {"model_type": "dan", "vocab_size": 11, "hidden_size": 4, "num_layers": 2, "dropout": 0.0}
LENGTHS = np.array([3, 5, 2, 4])
LABELS = ("no", "perhaps", "yes")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def family():
    """What the document's code makes, and nothing else knows."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    names = {"__name__": "dan"}
    exec(code, names)
    return names["FAMILY"]


@pytest.fixture(scope="module")
def families(family):
    return [*pretrained.FAMILIES, family]


@pytest.fixture
def folder(tmp_path):
    """A tiny checkpoint in the layout of PyTorch."""
    rng = np.random.default_rng(0)
    shapes = {"dan.embeddings.weight": (11, 4), "classifier.weight": (3, 4), "classifier.bias": (3,)}
    for i in range(2):
        shapes |= {f"dan.layers.{i}.weight": (4, 4), f"dan.layers.{i}.bias": (4,)}
    write(tmp_path, CONFIG)
    save_file(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors"
    )
    return tmp_path


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def make_texts():
    ids = np.random.default_rng(1).integers(0, 11, LENGTHS.sum()).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in LENGTHS]).astype(np.int32)
    inputs = {"ids": ids, "positions": positions, "types": np.zeros_like(ids)}
    return tokens.Tokens(inputs, np.cumsum(LENGTHS) - LENGTHS, LENGTHS)


def compute_logits(network, params, texts):
    batch = jax.tree.map(lambda leaf: leaf[0], tokens.pack_batches(texts, np.arange(len(LENGTHS))[None], 8))
    x = {name: column[batch.elements] for name, column in texts.inputs.items()}
    for block in network.blocks:
        x = backprop.infer(block.apply, (None, None), params[block.name], x, batch.context)
    return backprop.infer(network.head, (None, None), params["head"], x, batch.context)


def test_it_computes_what_it_should(folder, families):
    model = pretrained.load(folder, families=families)
    assert model.model.num_classes == 3
    texts, tensors = make_texts(), load_file(folder / "model.safetensors")
    starts = np.cumsum(LENGTHS)[:-1]
    h = np.stack([part.mean(0) for part in np.split(tensors["dan.embeddings.weight"][texts.inputs["ids"]], starts)])
    for i in range(2):
        h = np.tanh(h @ tensors[f"dan.layers.{i}.weight"].T + tensors[f"dan.layers.{i}.bias"])
    expected = h @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    np.testing.assert_allclose(compute_logits(model.model.make_network(), model.params, texts), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_trains_and_the_model_is_saved_and_read_again(folder, families, tmp_path):
    loaded = pretrained.load(folder, families=families)
    network, texts, labels = loaded.model.make_network(), make_texts(), np.array([0, 1, 2, 1], np.int32)
    assert network.names == ("embeddings", "layer_0", "layer_1")
    steps = tokens.pack_batches(texts, np.arange(4)[None], 8)
    source = Source(Dataset(texts.inputs, labels), tokens.scoring_batches(texts))
    task = network, loaded.params, source, steps
    (member,) = tasks.make_population(task, tasks.RECIPES["sgd"]).evaluate(
        np.array([[True, False, True]]), tasks.make_run(task)
    )

    loaded.save(tmp_path / "saved", member.params, label_names=LABELS)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not np.array_equal(tensor, after[name])}
    assert changed == {"dan.layers.0.weight", "dan.layers.0.bias", "classifier.weight", "classifier.bias"}
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["DANForTextClassification"]
    assert config["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}
    again = pretrained.load(tmp_path / "saved", families=families)
    jax.tree.map(np.testing.assert_array_equal, again.params, member.params)


def test_a_fresh_head_reads_no_file_again(folder, families):
    loaded = pretrained.load(folder, families=families, num_classes=5, key=KEY)
    (folder / "model.safetensors").unlink()
    assert loaded.fresh == ("head/bias", "head/kernel")
    first, again, other = (loaded.make_head(jax.random.key(seed))["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, loaded.params["head"]["kernel"])
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 5)
    assert not np.array_equal(first, other)


def test_initial_parameters_tensor_names_and_words_left_out(folder, families):
    loaded = pretrained.load(folder, families=families)
    initial = jax.eval_shape(loaded.model.init_params, KEY)
    assert jax.tree.map(np.shape, initial) == jax.tree.map(np.shape, loaded.params)
    assert {name for name, *_ in loaded.torch_names.values()} == load_file(folder / "model.safetensors").keys()
    texts = make_texts()
    small, params, used = vocabulary.trim(loaded.model, loaded.params, texts.inputs["ids"])
    renumbered = texts._replace(inputs=tokens.renumber(texts, used))
    ours = compute_logits(small.make_network(), params, renumbered)
    np.testing.assert_allclose(ours, compute_logits(loaded.model.make_network(), loaded.params, texts), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive integer below 2**31, got 0"),
        ({"pooling": "max", "num_layers": 0}, "num_layers must be an integer from 1 to 1000, got 0; pooling must be 'mean'"),
    ],
)
def test_bad_configs(changes, message, folder, families):
    write(folder, CONFIG | changes)
    with pytest.raises(ValueError, match=re.escape(f"config.json: {message}")):
        pretrained.load(folder, families=families)


def test_a_head_that_it_lacks(folder, families):
    with pytest.raises(ValueError, match=r"a deep averaging network has no head for 'lm'; it has: classify"):
        pretrained.load(folder, "lm", families=families)


def test_an_unknown_family(folder):
    with pytest.raises(
        ValueError, match=r"config\.json: unknown model_type 'dan', expected .*; for other networks see examples/"
    ) as error:
        pretrained.load(folder)
    assert all(f" {family.model_type}" in str(error.value) for family in pretrained.FAMILIES)
    assert "\n" not in str(error.value)
    assert len(str(error.value).removeprefix(str(folder))) < 500


SMALL = {
    "bert": bert.BertConfig(20, 8, 2, 2, 16),
    "gpt2": gpt2.GPT2Config(20, 8, 2, 2, n_positions=16),
    "resnet": resnet.ResNetConfig(3, 4, (4, 8), (1, 1), "basic", stem="cifar"),
}


@pytest.mark.parametrize("known", pretrained.FAMILIES, ids=lambda known: known.model_type)
def test_every_tensor_has_one_place(known):
    config = SMALL.get(known.model_type)
    if config is None:
        values, problems = configs.check(parity.CONFIGS[known.model_type][0], known.config)
        assert not problems
        config = known.config(**values)
    for name in known.heads:
        model = base.Model(known, config, head=name, num_classes=3)
        shapes = jax.eval_shape(model.init_params, KEY)
        names = [name for name, *_ in model.torch_names(shapes).values()]
        assert len(set(names)) == len(names) == len(jax.tree.leaves(shapes))
        assert shapes.keys() == {*model.make_network().names, "head"}
        assert jax.tree.leaves(shapes)[0].dtype == jnp.float32
