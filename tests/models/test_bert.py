"""BERT against PyTorch's, from stored logits everywhere and live where torch is installed; saving, loading, dropout."""

import dataclasses
import functools
import itertools
import json
import re

import jax
import jax.numpy as jnp
import make_bert_golden as golden
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import passes
from gafreeze_jax.models import base, bert, checkpoints, configs, layers, pretrained, vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
LABELS = ("bad", "fair", "good")
TWO_LAYERS = golden.CASES["large epsilon, silu, no pooler"]._replace(pooler=True)


def compute_logits(config, params, texts, batches):
    """Of all texts, by their number: [N, C]."""
    network = make_model(config, golden.NUM_CLASSES).make_network()
    logits = np.full((len(texts.lengths), golden.NUM_CLASSES), np.nan, np.float32)
    for step in range(len(batches.examples)):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], batches)
        x = {name: column[batch.elements] for name, column in texts.inputs.items()}
        for block in network.blocks:
            x = passes.infer(block.apply, (None, None), params[block.name], x, batch.context)
        x = passes.infer(network.head, (None, None), params["head"], x, batch.context)
        real = batch.examples >= 0
        logits[batch.examples[real]] = x[real]
    return logits


def packed(texts):
    return tokens.pack_batches(texts, golden.BATCHES, golden.ROW_LENGTH)


def make_model(config, num_classes):
    return base.Model(bert.FAMILY, config, num_classes=num_classes)


def load(folder, num_classes=None):
    loaded = pretrained.load(folder, families=[bert.FAMILY], num_classes=num_classes, key=KEY)
    return loaded.config, loaded.params


def read_config(folder):
    return pretrained.read_config(folder, [bert.FAMILY])[1]


def write(folder, *, config=None, tensors=None):
    """A checkpoint of `TWO_LAYERS`, with changes. A tensor of None is left out."""
    golden.write_checkpoint(folder, TWO_LAYERS)
    changed = load_file(folder / "model.safetensors") | (tensors or {})
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TWO_LAYERS.config | (config or {})))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An unchanged checkpoint."""
    return write(tmp_path_factory.mktemp("bert"), config={"torch_dtype": "float16", "num_labels": 7})


# Logits


@pytest.fixture(scope="module")
def our_logits(tmp_path_factory):
    """A function of a case's name."""

    @functools.cache
    def compute(name):
        case = golden.CASES[name]
        config, params = load(golden.write_checkpoint(tmp_path_factory.mktemp("case"), case))
        if not case.pooler:
            weights = golden.make_tensors(case.config)
            pooler = {"kernel": weights["bert.pooler.dense.weight"].T, "bias": weights["bert.pooler.dense.bias"]}
            params = params | {"head": params["head"] | {"pooler": pooler}}
        texts = golden.make_tokens(case.config)
        return compute_logits(config, params, texts, packed(texts))

    return compute


@pytest.fixture(scope="module")
def our_minilm_logits():
    folder = checkpoints.find_model("minilm")
    config, params = load(folder, golden.NUM_CLASSES)
    weight, bias = golden.make_minilm_classifier(config.hidden_size)
    params["head"]["classifier"] = {"kernel": weight.T, "bias": bias}
    tokenizer = tokens.load_tokenizer(folder)

    @functools.cache
    def compute(name):
        limits = {"max_tokens": 64, "vocabulary": config.vocab_size, "types": config.type_vocab_size}
        texts = tokens.tokenize(tokenizer, golden.MINILM_TEXTS[name], **limits)
        return compute_logits(config, params, texts, tokens.pack_batches(texts, np.arange(3)[None], golden.MINILM_ROW_LENGTH))

    return compute


def test_texts_of_the_cases_share_rows():
    rows = packed(golden.make_tokens(TWO_LAYERS.config)).context["segments"]
    assert [[set(row.tolist()) for row in step] for step in rows] == [[{0, 1}, {2, 3, -1}], [{0, 1, -1}, {-1}]]


@pytest.mark.parametrize("name", golden.CASES)
def test_logits_equal_stored_ones_of_pytorch(name, our_logits):
    np.testing.assert_allclose(our_logits(name), np.load(golden.GOLDEN)[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", golden.CASES)
def test_logits_equal_pytorch(name, our_logits):
    pytest.importorskip("torch")
    np.testing.assert_allclose(our_logits(name), golden.torch_logits(golden.CASES[name]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", golden.MINILM_TEXTS)
def test_minilm_logits_equal_stored_ones_of_pytorch(name, our_minilm_logits):
    np.testing.assert_allclose(our_minilm_logits(name), np.load(golden.GOLDEN)[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", golden.MINILM_TEXTS)
def test_minilm_logits_equal_pytorch(name, our_minilm_logits):
    pytest.importorskip("torch")
    np.testing.assert_allclose(our_minilm_logits(name), golden.minilm_logits(name), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activation_equals_pytorch(name):
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(layers.ACTIVATIONS[name](x), ACT2FN[name](torch.tensor(x)).numpy(), rtol=0, atol=1e-6)


# Network and parameters


def test_blocks(folder):
    config = dataclasses.replace(read_config(folder), num_hidden_layers=3)
    network = make_model(config, 2).make_network()
    assert network.names == ("embeddings", "layer_0", "layer_1", "layer_2")
    assert [block.per_example for block in network.blocks] == [False, False, False, True]
    assert network.blocks[1].apply is network.blocks[2].apply  # so they share compiled code
    assert network == make_model(config, 2).make_network()


def test_initial_parameters_have_the_shapes_of_loaded_ones(folder):
    config, params = load(folder)
    initial = jax.eval_shape(make_model(config, golden.NUM_CLASSES).init_params, KEY)
    assert jax.tree.map(lambda leaf: leaf.shape, initial) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize(
    ("num_classes", "pooler", "fresh"),
    [
        (None, True, set()),
        (None, False, {"head/pooler/kernel", "head/pooler/bias"}),
        (5, True, {"head/classifier/kernel", "head/classifier/bias"}),
        (5, False, {"head/pooler/kernel", "head/pooler/bias", "head/classifier/kernel", "head/classifier/bias"}),
    ],
)
def test_what_is_fresh_comes_from_the_key_alone(num_classes, pooler, fresh, tmp_path):
    golden.write_checkpoint(tmp_path, TWO_LAYERS._replace(pooler=pooler))
    loaded = pretrained.load(tmp_path, num_classes=num_classes, key=KEY)
    params = loaded.params
    assert set(loaded.fresh) == fresh
    head = make_model(loaded.config, num_classes or golden.NUM_CLASSES).init_head(KEY)
    assert jax.tree.map(np.shape, params["head"]) == jax.tree.map(np.shape, head)
    another = jax.random.key(1)
    drawn = make_model(loaded.config, num_classes or golden.NUM_CLASSES).init_head(another)
    for path in ("head/pooler/kernel", "head/classifier/kernel"):
        _, layer, leaf = path.split("/")
        assert np.array_equal(params["head"][layer][leaf], head[layer][leaf]) == (path in fresh)
        expected = drawn if path in fresh else params["head"]
        np.testing.assert_array_equal(loaded.make_head(another)[layer][leaf], expected[layer][leaf])


def test_heads_of_pretraining_and_buffers_are_not_used(tmp_path, folder):
    extra = {"cls.predictions.bias": np.ones(50), "bert.embeddings.position_ids": np.arange(16)}
    jax.tree.map(np.testing.assert_array_equal, load(write(tmp_path, tensors=extra))[1], load(folder)[1])


def test_trimmed_vocabulary_gives_the_same_logits(folder):
    config, params = load(folder)
    texts = golden.make_tokens(config.__dict__)
    model = make_model(config, golden.NUM_CLASSES)
    small, trimmed, used = vocabulary.trim(model, params, texts.inputs["ids"][:20], texts.inputs["ids"][10:])
    assert small.config.vocab_size == len(used) == len(trimmed["embeddings"]["word"]) < config.vocab_size
    renumbered = texts._replace(inputs=tokens.renumber(texts, used))
    batches = packed(texts)
    expected = compute_logits(config, params, texts, batches)
    np.testing.assert_array_equal(compute_logits(small.config, trimmed, renumbered, batches), expected)


def test_restored_vocabulary_has_trained_rows_and_pretrained_ones(folder):
    config, params = load(folder)
    _, trimmed, used = vocabulary.trim(make_model(config, golden.NUM_CLASSES), params, np.array([7, 3]), np.array([3, 40]))
    np.testing.assert_array_equal(used, [3, 7, 40])
    jax.tree.map(np.testing.assert_array_equal, vocabulary.restore(trimmed, used, params), params)

    trained = jax.tree.map(lambda leaf: leaf + 1, trimmed)
    restored = vocabulary.restore(trained, used, params)
    difference = restored["embeddings"]["word"] - params["embeddings"]["word"]
    np.testing.assert_allclose(difference[used], 1, atol=1e-5)
    assert not np.delete(difference, used, axis=0).any()
    np.testing.assert_array_equal(restored["embeddings"]["type"], trained["embeddings"]["type"])
    np.testing.assert_array_equal(restored["layer_1"]["mlp"]["up"]["bias"], trained["layer_1"]["mlp"]["up"]["bias"])


# Saving


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    """Parameters that training has moved, and the folder they were saved to."""
    target = tmp_path_factory.mktemp("saved") / "new" / "model"
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, load(folder)[1])
    pretrained.load(folder).save(target, params, label_names=LABELS)
    return target, params


def test_loading_what_was_saved_is_exact(saved, folder):
    target, params = saved
    loaded = pretrained.load(target)
    assert loaded.config == read_config(folder)
    assert loaded.fresh == ()
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}


def test_saved_folder_is_whole(saved):
    target, _ = saved
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    assert config["torch_dtype"] == "float32"


def test_saved_names_are_those_of_pytorch(saved):
    assert load_file(saved[0] / "model.safetensors").keys() == golden.make_tensors(TWO_LAYERS.config).keys()


def test_pytorch_loads_what_was_saved(saved):
    pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    target, params = saved
    model, info = AutoModelForSequenceClassification.from_pretrained(target, output_loading_info=True)
    assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= info.keys()
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert str(model.dtype) == "torch.float32"
    texts = golden.make_tokens(TWO_LAYERS.config)
    ours = compute_logits(read_config(target), params, texts, packed(texts))
    np.testing.assert_allclose(ours, golden.run_torch(model, texts), rtol=0, atol=1e-4)


# Errors


def test_all_tensors_that_do_not_fit_are_named_at_once(tmp_path):
    write(
        tmp_path,
        tensors={
            "bert.embeddings.LayerNorm.weight": None,
            "bert.encoder.layer.1.output.dense.bias": None,
            "bert.encoder.layer.2.output.dense.bias": np.zeros(16, np.float32),
            "bert.embeddings.word_embeddings.weight": np.zeros((49, 16), np.float32),
            "bert.pooler.dense.bias": np.zeros((), np.float32),
        },
    )
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as error:
        load(tmp_path)
    assert sorted(str(error.value).partition("network: ")[2].split("; ")) == [
        "embeddings.LayerNorm.weight is missing",
        "embeddings.word_embeddings.weight has shape [49, 16], the config needs [50, 16]",
        "encoder.layer.1.output.dense.bias is missing",
        "encoder.layer.2.output.dense.bias is not a tensor of this network",
        "pooler.dense.bias has shape [], the config needs [16]",
    ]


def test_half_a_pooler_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"pooler\.dense\.weight is missing"):
        load(write(tmp_path, tensors={"bert.pooler.dense.weight": None}))


@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"])
def test_tensor_under_two_names_is_an_error(name, tmp_path):
    message = f"{re.escape(str(tmp_path))}: .*encoder.layer.0.output.LayerNorm.bias"
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, tensors={name: np.zeros(16, np.float32)}))


def test_checkpoint_without_the_classifier_that_is_asked_for(tmp_path):
    write(tmp_path, tensors={"classifier.weight": None, "classifier.bias": None})
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: .*no classifier"):
        load(tmp_path)


def test_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file; expected a folder in the Hugging Face layout"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{'model_type': 'bert'}", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", r"unknown model_type \[\], expected bert;"),
        (b"{}", "unknown model_type None, expected bert;"),
        (b'{"model_type": "gpt2"}', "unknown model_type 'gpt2', expected bert;"),
        (b'{"model_type": ["bert"]}', r"unknown model_type \['bert'\], expected bert;"),
    ],
)
def test_file_that_is_no_config_of_a_bert(text, reason, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"config\.json: {reason}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_attention_heads": 5}, "5 attention heads do not divide hidden_size 16"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu, .*, got 'mish'"),
        ({"hidden_act": ["gelu"]}, r"hidden_act must be one of .*, got \['gelu'\]"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute', got 'relative_key'"),
        ({"is_decoder": True}, "it is a decoder"),
        ({"add_cross_attention": True}, "it is a decoder"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer below .*, got '32'"),
        ({"hidden_size": 16.0}, r"hidden_size must be a positive integer below .*, got 16\.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer from 1 to 1000, got True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1 to 1000, got 0"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer below .*, got 0"),
        ({"vocab_size": -1}, "vocab_size must be a positive integer below .*, got -1"),
        ({"intermediate_size": None}, "intermediate_size must be a positive integer below .*, got None"),
        ({"type_vocab_size": [2]}, r"type_vocab_size must be a positive integer below .*, got \[2\]"),
        ({"max_position_embeddings": -5}, "max_position_embeddings must be a positive integer below .*, got -5"),
        ({"layer_norm_eps": -1}, "layer_norm_eps must be a positive number, got -1"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a positive number, got '1e-12'"),
        ({"layer_norm_eps": float("inf")}, "not JSON: Infinity is not a finite number"),
        ({"initializer_range": float("nan")}, "not JSON: NaN is not a finite number"),
        ({"hidden_dropout_prob": 2.0}, r"hidden_dropout_prob must be a number from 0 to below 1, got 2\.0"),
        ({"hidden_dropout_prob": True}, "hidden_dropout_prob must be a number from 0 to below 1, got True"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob must be a number from 0 to below 1, got None"),
        ({"attention_probs_dropout_prob": -0.1}, r"attention_probs_dropout_prob must be a number .*, got -0\.1"),
        ({"classifier_dropout": 1}, "classifier_dropout must be null or a number from 0 to below 1, got 1"),
    ],
)
def test_config_with_a_wrong_value(changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TWO_LAYERS.config | changes))
    with pytest.raises(ValueError, match=rf"config\.json: {reason}"):
        read_config(tmp_path)


def test_all_wrong_values_of_a_config_are_named_at_once(tmp_path):
    changed = TWO_LAYERS.config | {"hidden_act": "mish", "layer_norm_eps": 0, "is_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in changed.items() if k != "vocab_size"}))
    with pytest.raises(ValueError, match=r"vocab_size is missing; hidden_act .*; layer_norm_eps .*; it is a decoder"):
        read_config(tmp_path)


def test_every_field_of_the_config_has_a_rule():
    assert list(configs.rules(bert.BertConfig)) == [field.name for field in dataclasses.fields(bert.BertConfig)]


def test_config_that_says_little_has_the_defaults_of_hugging_face(tmp_path):
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = {"model_type": "bert", "classifier_dropout": None} | {name: TWO_LAYERS.config[name] for name in sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, theirs = read_config(tmp_path), transformers.BertConfig(**config)
    assert dataclasses.asdict(ours) == {name: getattr(theirs, name) for name in configs.rules(bert.BertConfig)}
    assert ours.head_dropout == 0.1


# Dropout

PARTS = ("embeddings", "layer_0", "layer_1", "head")


@pytest.fixture(scope="module")
def run_part(folder):
    """A function that runs a block or the head, with changes to the config, on 100 rows of 16 tokens."""
    config, params = load(folder)
    positions = np.tile(np.arange(16), 100)
    context = {"segments": np.zeros((100, 16), np.int32), "firsts": np.arange(100) * 16}
    x = {"ids": np.arange(1600) % 50, "positions": positions, "types": positions % 2}
    inputs = {}

    def apply(name, frozen, key, **rates):
        network = make_model(dataclasses.replace(config, **rates), golden.NUM_CLASSES).make_network()
        functions = {block.name: block.apply for block in network.blocks} | {"head": network.head}
        return functions[name](params[name], inputs[name], context, frozen=frozen, key=key)

    for name in PARTS:
        inputs[name] = x
        x = apply(name, True, None)
    return lambda *args, **rates: np.asarray(apply(*args, **rates))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("frozen", "key"), [(True, KEY), (True, None), (False, None), (jnp.array(True), KEY)])
def test_no_dropout_in_frozen_parts_or_without_a_key(name, frozen, key, run_part):
    clean = run_part(name, False, KEY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    np.testing.assert_array_equal(run_part(name, frozen, key), clean)


@pytest.mark.parametrize("name", PARTS)
def test_traced_gene_of_a_trainable_part_gives_the_same_dropout(name, run_part):
    np.testing.assert_array_equal(run_part(name, jnp.array(False), KEY), run_part(name, False, KEY))


@pytest.mark.parametrize(
    ("rates", "changed"),
    [
        ({"hidden_dropout_prob": 0.5}, {"embeddings", "layer_0", "layer_1", "head"}),
        ({"hidden_dropout_prob": 0.5, "classifier_dropout": 0.0}, {"embeddings", "layer_0", "layer_1"}),
        ({"attention_probs_dropout_prob": 0.5}, {"layer_0", "layer_1"}),
        ({"classifier_dropout": 0.5}, {"head"}),
        ({"hidden_dropout_prob": 1e-6}, set()),  # below what a random byte can decide
    ],
)
def test_where_each_rate_drops(rates, changed, run_part):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | rates
    differ = {name for name in PARTS if not np.array_equal(run_part(name, False, KEY, **rates), run_part(name, True, None))}
    assert differ == changed


@pytest.mark.parametrize("rate", [26 / 256, 0.5, 0.9999])
def test_dropout_drops_its_share_and_keeps_the_mean(rate, run_part):
    clean = run_part("embeddings", True, None)
    noisy = run_part("embeddings", False, KEY, hidden_dropout_prob=rate)
    rate = min(rate, 255 / 256)  # a random byte keeps one of its values at least
    dropped = noisy == 0
    np.testing.assert_allclose(noisy[~dropped], clean[~dropped] / (1 - rate), rtol=1e-6)

    def deviations(events, probability):  # of a binomial distribution
        return (events.mean() - probability) / np.sqrt(probability * (1 - probability) / events.size)

    bytes_of_words = [dropped[:, i::4] for i in range(4)]
    assert max(abs(deviations(events, rate)) for events in bytes_of_words) < 4
    pairs = itertools.combinations(bytes_of_words, 2)
    assert max(abs(deviations(one & other, rate**2)) for one, other in pairs) < 4
    kept_share = (noisy * clean).sum() / (clean**2).sum()
    assert abs(kept_share - 1) < 4 * np.sqrt((clean**4).sum() * rate / (1 - rate)) / (clean**2).sum()


def test_dropout_differs_between_keys(run_part):
    first, again, other = (run_part("embeddings", False, jax.random.key(seed)) == 0 for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() == pytest.approx(2 * 0.1 * 0.9, rel=0.1)
