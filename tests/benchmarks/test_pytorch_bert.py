"""The PyTorch competitor computes and trains what we do; the benchmarks that use it run."""

import itertools
import json
import re

import jax
import numpy as np
import pytest
from test_population import assert_same_params

from gafreeze_jax.data import tokens
from gafreeze_jax.data.batches import NONE, balanced_batches
from gafreeze_jax.engine import passes
from gafreeze_jax.engine.cohort import Replicate
from gafreeze_jax.engine.network import Dataset, Source
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.metrics import ACCURACY, cross_entropy
from gafreeze_jax.models import base, bert, checkpoints, pretrained

torch = pytest.importorskip("torch")
pytorch_bert = pytest.importorskip("pytorch_bert")

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_EXAMPLES, NUM_CLASSES, BATCH_SIZE = 22, 2, 8
RATES = (1e-3, 3e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT of 6 narrow layers without dropout, with MiniLM's vocabulary."""
    source, written, folder = checkpoints.find_model("minilm"), *(tmp_path_factory.mktemp(name) for name in ("config", "bert"))
    raw = json.loads((source / "config.json").read_text())
    raw |= {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.3}
    raw |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (written / "config.json").write_text(json.dumps(raw))
    checkpoints.copy_tokenizer(source, written)
    model = base.Model(*pretrained.read_config(written), num_classes=NUM_CLASSES)
    model.save(folder, model.init_params(jax.random.key(0)), source=written, label_names=("no", "yes"))
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    """Network and parameters, with a fresh head."""
    loaded = pretrained.load(folder, num_classes=NUM_CLASSES, key=jax.random.key(1))
    return loaded.model.make_network(), loaded.params


@pytest.fixture
def finetuner(folder, ours):
    return pytorch_bert.Finetuner(folder, ours[1]["head"], *RATES)


@pytest.fixture(scope="module")
def task():
    """Texts and labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, NUM_EXAMPLES)
    inputs = {
        "ids": rng.integers(0, 30_000, lengths.sum()).astype(np.int32),
        "positions": np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        "types": rng.integers(0, 2, lengths.sum()).astype(np.int32),
    }
    labels = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32)
    return tokens.Tokens(inputs, np.cumsum(lengths) - lengths, lengths), labels


def test_logits_equal_ours(finetuner, ours, task):
    (network, params), (texts, labels) = ours, task
    batch = jax.tree.map(lambda leaf: leaf[0], tokens.scoring_batches(texts))
    x = {name: column[batch.elements] for name, column in texts.inputs.items()}
    for block in network.blocks:
        x = passes.infer(block.apply, (None, None), params[block.name], x, batch.context)
    x = passes.infer(network.head, (None, None), params["head"], x, batch.context)
    (padded,) = pytorch_bert.pad_batches(texts, labels, batch.examples[None])
    with torch.inference_mode():
        np.testing.assert_allclose(x, finetuner.model.eval()(**padded).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("genome", ["0000000", "1011001"])
def test_training_equals_ours(genome, finetuner, ours, task):
    (network, params), (texts, labels) = ours, task
    genome = np.array([gene == "1" for gene in genome])
    examples = balanced_batches(np.random.default_rng(0), texts.lengths, BATCH_SIZE, num_epochs=4)
    source = Source(Dataset(texts.inputs, labels), tokens.scoring_batches(texts))
    recipe = adamw_recipe(learning_rate=RATES[0], head_learning_rate=RATES[1], num_steps=len(examples))
    population = Population(network, params, recipe, source, source, loss=cross_entropy, metric=ACCURACY)
    run = Replicate(params["head"], tokens.pack_batches(texts, examples), jax.random.key(0))
    (member,) = population.evaluate(genome[None], run)

    train_loss = finetuner.fit(genome, pytorch_bert.pad_batches(texts, labels, examples))
    scores = finetuner.score(pytorch_bert.scoring_batches(texts, labels))
    assert train_loss == pytest.approx(member.train_loss, rel=1e-4)
    assert scores == pytest.approx((member.score, member.loss), rel=1e-3)

    tensors = {name.removeprefix("bert."): tensor.numpy() for name, tensor in finetuner.model.state_dict().items()}
    theirs = checkpoints.to_tree(tensors, bert.LAYOUT.table, params, ignore=bert.LAYOUT.ignored)
    assert_same_params(network.names, genome, theirs, member.params, params, rtol=1e-3, atol=1e-4)


def test_bucketed_batches_hold_each_example_once_an_epoch():
    lengths = np.random.default_rng(1).integers(3, 20, NUM_EXAMPLES)
    batches = pytorch_bert.bucketed_batches(np.random.default_rng(0), lengths, BATCH_SIZE, num_epochs=2)
    assert batches.shape == balanced_batches(np.random.default_rng(0), lengths, BATCH_SIZE, num_epochs=2).shape
    for epoch in np.split(batches, 2):
        assert sorted(epoch[epoch != NONE]) == list(range(NUM_EXAMPLES))
        spans = sorted((lengths[batch[batch != NONE]].min(), lengths[batch[batch != NONE]].max()) for batch in epoch)
        assert all(below[1] <= above[0] for below, above in itertools.pairwise(spans))


def test_padding_hides_other_texts(task):
    texts, labels = task
    (batch,) = pytorch_bert.pad_batches(texts, labels, np.array([[3, 5, NONE]]))
    assert batch["labels"].tolist() == labels[[3, 5]].tolist()
    assert batch["attention_mask"].sum(1).tolist() == texts.lengths[[3, 5]].tolist()
    for row, example in enumerate((3, 5)):
        real = slice(texts.starts[example], texts.starts[example] + texts.lengths[example])
        for name, column in (("input_ids", "ids"), ("token_type_ids", "types")):
            values = batch[name][row]
            assert values[: texts.lengths[example]].tolist() == texts.inputs[column][real].tolist()
            assert not values[texts.lengths[example] :].any()


# The scripts


def test_search(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pygad")
    import vs_pytorch

    monkeypatch.setattr(checkpoints, "find_model", lambda name: folder)
    sizes = {"generations": 3, "population": 4, "train_examples": 20, "validation_examples": 16, "epochs": 1}
    vs_pytorch.main(vs_pytorch.Options(**sizes, dtype="bfloat16", out=tmp_path / "result.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    every, first, ours = result["arms"].values()
    assert every["evaluations"] == 12
    assert first["evaluations"] == ours["evaluations"] == result["unique_genomes"] < 12  # the elite comes again
    assert every["seconds"] > first["seconds"]
    assert {e["genome"] for e in result["evaluations"]["PyTorch"]} == {
        e["genome"] for e in result["evaluations"]["gafreeze_jax"]
    }
    printed = capsys.readouterr().out
    assert len(re.findall(r"^Generation \d: PyTorch [\d.]+ s for 4 members, gafreeze_jax", printed, re.M)) == 3
    for name, best in result["best"].items():
        scores = f"{best['validation_accuracy']:.4f} +{best['test_accuracy']:.4f}"
        assert re.search(rf"^{name} +{best['genome']} +{scores}$", printed, re.M)


def test_cost_of_a_mask(folder, tmp_path, monkeypatch, capsys):
    import cost_of_a_mask
    import steps

    monkeypatch.setattr(checkpoints, "find_model", lambda name: folder)
    monkeypatch.setattr(steps, "BLOCKS", (1,))
    few = {name: genome for name, genome in cost_of_a_mask.MASKS.items() if genome in ("0000000", "1000111", "1111111")}
    monkeypatch.setattr(cost_of_a_mask, "MASKS", few)
    cost_of_a_mask.main(cost_of_a_mask.Options(rounds=1, out=tmp_path / "result.json"))
    masks = json.loads((tmp_path / "result.json").read_text())["masks"]
    assert masks.keys() == few.keys() == {"train all", "embeddings, layers 3-5 frozen", "head only"}
    printed = capsys.readouterr().out
    for name, row in masks.items():
        assert re.search(rf"^{name} +{row['genome']} ", printed, re.M)
        assert row["flops"]["ours"] < row["flops"]["pytorch"]

    width, hidden, num_texts, num_tokens = 16, 32, 32, 32 * 32
    last_layer = 3 * (num_tokens - num_texts) * (2 * (2 * width**2 + 2 * width * hidden) + 4 * 32 * width)
    all_trained = masks["train all"]["flops"]
    assert all_trained["ours"] == all_trained["pytorch"] - last_layer  # which we compute for the first tokens only
    assert masks["head only"]["flops"]["ours"] == 2 * num_texts * (2 * width**2 + 3 * width * NUM_CLASSES)
