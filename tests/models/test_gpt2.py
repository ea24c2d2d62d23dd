"""GPT-2 against PyTorch's, from stored logits everywhere and live where torch is installed; masks; saving, loading, dropout."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import make_gpt2_golden as golden
import numpy as np
import pytest
import test_population as tasks
import transformers
from make_bert_golden import BATCHES, NUM_CLASSES, ROW_LENGTH
from safetensors.numpy import load_file, save_file

from gafreeze_jax.data import lm, tokens
from gafreeze_jax.data.batches import balanced_batches
from gafreeze_jax.engine import backprop, passes
from gafreeze_jax.engine.network import Source, Step
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import base, configs, gpt2, pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
LABELS = ("bad", "fair", "good")
TWO_BLOCKS = golden.CASES["relu, narrow MLP, no prefix"]._replace(prefix="transformer.")


def pack(texts, task, examples=BATCHES):
    batches = tokens.pack_batches(texts, examples, ROW_LENGTH)
    return batches._replace(examples=batches.elements) if task == "lm" else batches


def compute_logits(config, params, task, texts, batches):
    """Of all tokens [T, V], or texts [N, C]."""
    network = make_model(config, task).make_network()
    logits = {}
    for step in range(len(batches.examples)):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], batches)
        x = {name: column[batch.elements] for name, column in texts.inputs.items()}
        for block in network.blocks:
            x = passes.infer(block.apply, (None, None), params[block.name], x, batch.context)
        x = network.head(read_by_head(network, params), x, batch.context, frozen=True, key=None)
        logits |= {example: row for example, row in zip(batch.examples.tolist(), np.asarray(x), strict=True) if example >= 0}
    return np.stack([logits[example] for example in sorted(logits)])


def read_by_head(network, params):
    return params["head"] | {name: params[name] for name in network.shared}


def make_model(config, task, num_classes=NUM_CLASSES):
    return base.Model(gpt2.FAMILY, config, head=task, num_classes=None if task == "lm" else num_classes)


def load(folder, task="classify", num_classes=None):
    loaded = pretrained.load(folder, task, num_classes=num_classes, key=KEY)
    return loaded.config, loaded.params


def read_config(folder):
    return pretrained.read_config(folder, [gpt2.FAMILY])[1]


def write(folder, *, config=None, tensors=None):
    """A checkpoint of `TWO_BLOCKS`, with changes. A tensor of None is left out."""
    golden.write_checkpoint(folder, TWO_BLOCKS)
    changed = load_file(folder / "model.safetensors") | (tensors or {})
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TWO_BLOCKS.config | (config or {})))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An unchanged checkpoint."""
    return write(tmp_path_factory.mktemp("gpt2"), config={"torch_dtype": "float16", "num_labels": 7})


# Logits


@pytest.fixture(scope="module")
def our_logits(tmp_path_factory):
    """A function of a task's and a case's name."""

    @functools.cache
    def compute(task, name):
        case = golden.CASES[name]
        config, params = load(golden.write_checkpoint(tmp_path_factory.mktemp("case"), case), task)
        texts = golden.make_tokens(case.config)
        return compute_logits(config, params, task, texts, pack(texts, task))

    return compute


@pytest.mark.parametrize("name", golden.CASES)
@pytest.mark.parametrize("task", golden.TASKS)
def test_logits_equal_stored_ones_of_pytorch(task, name, our_logits):
    np.testing.assert_allclose(our_logits(task, name), np.load(golden.GOLDEN)[f"{task}, {name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", golden.CASES)
@pytest.mark.parametrize("task", golden.TASKS)
def test_logits_equal_pytorch(task, name, our_logits):
    pytest.importorskip("torch")
    np.testing.assert_allclose(our_logits(task, name), golden.torch_logits(golden.CASES[name], task), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", golden.TASKS)
def test_a_text_has_the_same_logits_in_a_row_of_its_own(task, folder, our_logits):
    config, params = load(folder, task)
    texts = golden.make_tokens(TWO_BLOCKS.config)
    alone = compute_logits(config, params, task, texts, pack(texts, task, np.arange(len(texts.lengths))[:, None]))
    np.testing.assert_allclose(alone, our_logits(task, "relu, narrow MLP, no prefix"), rtol=0, atol=1e-5)


def test_a_token_does_not_see_later_ones(folder):
    config, params = load(folder, "lm")
    texts = golden.make_tokens(TWO_BLOCKS.config)
    changed = texts._replace(inputs=texts.inputs | {"ids": texts.inputs["ids"].copy()})
    place = texts.starts[1] + 4
    changed.inputs["ids"][place] = (changed.inputs["ids"][place] + 1) % 50
    before, after = (compute_logits(config, params, "lm", t, pack(t, "lm")) for t in (texts, changed))
    differ = np.flatnonzero((before != after).any(1))
    assert differ.tolist() == list(range(place, texts.starts[1] + texts.lengths[1]))


def test_sharded_checkpoint_of_pytorch(folder, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TWO_BLOCKS.config))
    model.save_pretrained(tmp_path, max_shard_size="10kB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, params = load(tmp_path, "lm")
    texts = golden.make_tokens(TWO_BLOCKS.config)
    ours = compute_logits(config, params, "lm", texts, pack(texts, "lm"))
    np.testing.assert_allclose(ours, golden.run_torch(model, texts), rtol=0, atol=1e-4)


# Network and parameters


def test_blocks(folder):
    config = dataclasses.replace(read_config(folder), n_layer=3)
    for task, per_example in (("lm", [False] * 5), ("classify", [False, False, False, True, True])):
        network = make_model(config, task).make_network()
        assert network.names == ("embeddings", "block_0", "block_1", "block_2", "final_norm")
        assert [block.per_example for block in network.blocks] == per_example
        assert network.blocks[1].apply is network.blocks[2].apply  # so they share compiled code
        assert network == make_model(config, task).make_network()


@pytest.mark.parametrize("task", golden.TASKS)
def test_initial_parameters_have_the_shapes_of_loaded_ones(task, folder):
    config, params = load(folder, task)
    initial = jax.eval_shape(make_model(config, task).init_params, KEY)
    assert jax.tree.map(lambda leaf: leaf.shape, initial) == jax.tree.map(np.shape, params)


def test_initial_parameters_are_scaled_as_in_pytorch():
    config = gpt2.GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=2)
    params = make_model(config, "classify").init_params(KEY)
    block = params["block_1"]
    kernels = [block["attention"]["qkv"], block["mlp"]["up"], block["attention"]["out"], block["mlp"]["down"]]
    stddevs = [float(kernel["kernel"].std()) for kernel in kernels]
    np.testing.assert_allclose(stddevs, [0.02, 0.02, 0.01, 0.01], rtol=0.1)
    assert float(params["embeddings"]["word"].std()) == pytest.approx(0.02, rel=0.1)


def test_half_layers_compute_the_same_and_are_joined_again():
    network, params, source, _ = TASKS["classify"]
    halves = make_model(CONFIG, "classify").make_network(granularity="sublayer")
    split = base.split_layers(params, halves.names)
    assert halves.names == ("embeddings", "block_0/attention", "block_0/mlp", "final_norm")
    assert tasks.accuracy_and_loss(halves, split, source) == pytest.approx(tasks.accuracy_and_loss(network, params, source))
    assert base.join_layers(split) == params


@pytest.mark.parametrize("task", golden.TASKS)
def test_bfloat16_computes_nearly_the_same(task):
    network, params, source, _ = TASKS[task]
    _, loss = tasks.accuracy_and_loss(make_model(CONFIG, task).make_network(dtype=jnp.bfloat16), params, source)
    _, expected = tasks.accuracy_and_loss(network, params, source)
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss != expected


@pytest.mark.parametrize(("num_classes", "fresh"), [(None, []), (5, ["head/score/kernel"])])
def test_a_fresh_classifier_comes_from_the_key(num_classes, fresh, folder):
    loaded = pretrained.load(folder, num_classes=num_classes, key=KEY)
    assert list(loaded.fresh) == fresh
    head = make_model(loaded.config, "classify", num_classes or NUM_CLASSES).init_head(KEY)
    assert np.array_equal(loaded.params["head"]["score"]["kernel"], head["score"]["kernel"]) == bool(fresh)


# Training

CONFIG = gpt2.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, initializer_range=0.3)


def language_task():
    """Windows of 16 random tokens, the last one shorter."""
    rng = np.random.default_rng(0)
    windows = lm.make_windows(rng.integers(0, 40, 150), 16)
    steps = lm.make_batches(windows, balanced_batches(rng, windows.tokens.lengths, 4, num_epochs=2))
    source = Source(windows.dataset, lm.scoring_batches(windows))
    model = make_model(CONFIG, "lm")
    return model.make_network(), model.init_params(KEY), source, steps


def classification_task():
    """The texts of BERT's task."""
    _, _, source, steps = tasks.TASKS["bert"]
    model = make_model(CONFIG, "classify", tasks.NUM_CLASSES)
    return model.make_network(), model.init_params(KEY), source, steps


TASKS = {"lm": language_task(), "classify": classification_task()}
PLANS = [
    ("lm", "block by block"),
    ("lm", "stacked"),
    ("lm", "traced, all members, in one"),
    ("classify", "block by block"),
    ("classify", "traced, all members, in one"),
]


@functools.cache
def plain_runs(name):
    """The reference parameters for all masks."""
    return {tuple(genome): tasks.plain_run(TASKS[name], tasks.RECIPES["sgd"], genome) for genome in tasks.ALL_MASKS}


@pytest.mark.parametrize(("name", "plan"), PLANS, ids=["-".join(case) for case in PLANS])
def test_every_mask_trains_like_the_plain_static_run(name, plan):
    task, expected = TASKS[name], plain_runs(name)
    population = tasks.make_population(task, tasks.RECIPES["sgd"], **tasks.PLANS[plan])
    members = list(population.evaluate(tasks.ALL_MASKS, tasks.make_run(task)))
    assert {tuple(member.genome) for member in members} == set(expected)
    for member in members:
        tasks.assert_same_training(task, member, expected[tuple(member.genome)])


@pytest.mark.parametrize("frozen", [[False] * 3, [False, True, True], [True, False, True], [True] * 3], ids=str)
def test_gradients_of_tied_word_vectors_are_those_of_the_plain_function(frozen):
    network, params, source, steps = TASKS["lm"]
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), steps)
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[batch.elements], source.data.inputs)
    targets = jnp.asarray(source.data.targets)[batch.examples]

    def loss(params):
        losses = cross_entropy(tasks.apply_network(network, params, x, batch, frozen, KEY), targets)
        return losses @ batch.weights / batch.weights.sum()

    expected_loss, expected = jax.jit(jax.value_and_grad(loss))(params)
    step = Step(x, targets, batch.weights, batch.context)
    got = backprop.value_and_grad(network, cross_entropy, frozen)(params, step, KEY)
    assert got.loss == pytest.approx(float(expected_loss), rel=1e-5)
    trained = [name for name, gene in zip(network.names, frozen, strict=True) if not gene]
    assert set(got.gradients) == {*trained, "head"}
    for name in trained:
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got.gradients[name], expected[name])


def test_a_token_is_scored_once_and_right():
    network, params, source, _ = TASKS["lm"]
    windows = lm.make_windows(np.random.default_rng(0).integers(0, 40, 150), 16)
    logits = compute_logits(CONFIG, params, "lm", windows.tokens, lm.scoring_batches(windows)).astype(np.float64)
    assert len(logits) == len(windows.targets) == 149
    right = logits[np.arange(149), windows.targets]
    expected = (logits.argmax(1) == windows.targets).mean(), np.mean(np.log(np.exp(logits).sum(1)) - right)
    assert tasks.accuracy_and_loss(network, params, source) == pytest.approx(expected, rel=1e-5)


# Saving


@pytest.fixture(scope="module", params=golden.TASKS)
def saved(request, folder, tmp_path_factory):
    """A task, parameters that training has moved, and the folder they were saved to."""
    target = tmp_path_factory.mktemp("saved") / "new" / "model"
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    loaded = pretrained.load(folder, request.param)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, loaded.params)
    extra = {"label_names": LABELS, "padding": (1, "b")} if request.param == "classify" else {}
    loaded.save(target, params, **extra)
    return request.param, params, target


def test_loading_what_was_saved_is_exact(saved, folder):
    task, params, target = saved
    loaded = pretrained.load(target, task)
    assert loaded.config == read_config(folder)
    assert loaded.fresh == ()
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}


def test_saved_folder_is_whole(saved):
    task, params, target = saved
    config = json.loads((target / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    names = ["config.json", "model.safetensors", "vocab.json"]
    if task == "lm":
        assert config["architectures"] == ["GPT2LMHeadModel"]
    else:
        assert config["architectures"] == ["GPT2ForSequenceClassification"]
        assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
        assert config["pad_token_id"] == 1
        assert json.loads((target / "tokenizer_config.json").read_text()) == {"pad_token": "b"}
        names.insert(2, "tokenizer_config.json")
    assert sorted(path.name for path in target.iterdir()) == names
    names = pretrained.load(target, task).model.torch_names(params).values()
    assert load_file(target / "model.safetensors").keys() == {name for name, *_ in names}


def test_the_round_trip_through_pytorch_is_exact(saved, tmp_path):
    pytest.importorskip("torch")
    task, params, target = saved
    kind = transformers.AutoModelForCausalLM if task == "lm" else transformers.AutoModelForSequenceClassification
    model, info = kind.from_pretrained(target, output_loading_info=True)
    assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= info.keys()
    assert str(model.dtype) == "torch.float32"
    theirs = model.state_dict()
    for name, tensor in load_file(target / "model.safetensors").items():
        np.testing.assert_array_equal(theirs[name].numpy(), tensor)
    texts = golden.make_tokens(TWO_BLOCKS.config)
    ours = compute_logits(read_config(target), params, task, texts, pack(texts, task))
    np.testing.assert_allclose(ours, golden.run_torch(model, texts), rtol=0, atol=1e-4)
    model.save_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path, task)[1], params)


# Errors


def test_all_tensors_that_do_not_fit_are_named_at_once(tmp_path):
    write(
        tmp_path,
        tensors={
            "transformer.h.0.ln_1.weight": None,
            "transformer.h.1.mlp.c_proj.bias": None,
            "transformer.h.2.mlp.c_proj.bias": np.zeros(24, np.float32),
            "transformer.h.1.crossattention.q_attn.bias": np.zeros(24, np.float32),
            "transformer.wte.weight": np.zeros((49, 24), np.float32),
        },
    )
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as error:
        load(tmp_path)
    assert sorted(str(error.value).partition("network: ")[2].split("; ")) == [
        "h.0.ln_1.weight is missing",
        "h.1.crossattention.q_attn.bias is not a tensor of this network",
        "h.1.mlp.c_proj.bias is missing",
        "h.2.mlp.c_proj.bias is not a tensor of this network",
        "wte.weight has shape [49, 24], the config needs [50, 24]",
    ]


def test_tensor_with_and_without_prefix_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"there twice.*: ln_f\.bias"):
        load(write(tmp_path, tensors={"ln_f.bias": np.zeros(24, np.float32)}))


def test_checkpoint_without_the_classifier_that_is_asked_for(tmp_path):
    write(tmp_path, tensors={"score.weight": None})
    load(tmp_path, "lm")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: the checkpoint has no classifier"):
        load(tmp_path, "classify")


@pytest.mark.parametrize(
    ("config", "tensors"),
    [({"tie_word_embeddings": False}, {}), ({}, {"lm_head.weight": np.zeros((50, 24), np.float32)})],
    ids=["by config", "by weights"],
)
def test_an_output_layer_of_its_own_is_refused_for_language_modelling_alone(config, tensors, tmp_path):
    write(tmp_path, config=config, tensors=tensors)
    load(tmp_path, "classify")
    with pytest.raises(ValueError, match="its output layer is not its word vectors"):
        load(tmp_path, "lm")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gptj"}, "unknown model_type 'gptj', expected gpt2;"),
        ({"n_head": 5}, "5 attention heads do not divide n_embd 24"),
        ({"activation_function": "mish"}, "activation_function must be one of gelu, .*, got 'mish'"),
        ({"add_cross_attention": True}, "it has cross-attention to an encoder"),
        ({"n_embd": "32"}, "n_embd must be a positive integer below .*, got '32'"),
        ({"n_inner": 0}, "n_inner must be null or a positive integer below .*, got 0"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be true or false, got 1"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a positive number, got 0"),
        ({"attn_pdrop": 1.0}, r"attn_pdrop must be a number from 0 to below 1, got 1\.0"),
        ({"n_layer": 0, "n_positions": None}, "n_layer must be .*; n_positions must be a positive integer below .*, got None"),
    ],
)
def test_config_with_a_wrong_value(changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TWO_BLOCKS.config | changes))
    with pytest.raises(ValueError, match=rf"config\.json: {reason}"):
        read_config(tmp_path)


def test_every_field_of_the_config_has_a_rule():
    assert list(configs.rules(gpt2.GPT2Config)) == [field.name for field in dataclasses.fields(gpt2.GPT2Config)]


def test_config_that_says_little_has_the_defaults_of_hugging_face(tmp_path):
    config = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.GPT2Config(**config)
    known = {name: getattr(theirs, name, None) for name in configs.rules(gpt2.GPT2Config)}  # they have no classifier_dropout
    assert dataclasses.asdict(read_config(tmp_path)) == known


# Dropout

PARTS = ("embeddings", "block_0", "block_1", "final_norm", "head")


@pytest.fixture(scope="module")
def run_part(folder):
    """A function that runs a block or the head, with changes to the config, on 50 rows of 16 tokens."""
    config, params = load(folder)
    context = {"segments": np.zeros((50, 16), np.int32), "lasts": np.arange(50) * 16 + 15}
    x = {"ids": np.arange(800) % 50, "positions": np.tile(np.arange(16), 50)}
    inputs = {}

    def apply(name, frozen, key, **rates):
        network = make_model(dataclasses.replace(config, **rates), "classify").make_network()
        functions = {block.name: block.apply for block in network.blocks} | {"head": network.head}
        return functions[name](params[name], inputs[name], context, frozen=frozen, key=key)

    for name in PARTS:
        inputs[name] = x
        x = apply(name, True, None)
    return lambda *args, **rates: np.asarray(apply(*args, **rates))


@pytest.mark.parametrize(
    ("rates", "changed"),
    [
        ({"embd_pdrop": 0.5}, {"embeddings"}),
        ({"resid_pdrop": 0.5}, {"block_0", "block_1"}),
        ({"attn_pdrop": 0.5}, {"block_0", "block_1"}),
        ({}, set()),
    ],
)
def test_where_each_rate_drops(rates, changed, run_part):
    rates = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} | rates
    clean = {name: run_part(name, True, None) for name in PARTS}
    assert {name for name in PARTS if not np.array_equal(run_part(name, False, KEY, **rates), clean[name])} == changed
    for name in PARTS:
        np.testing.assert_array_equal(run_part(name, True, KEY, **rates), clean[name])
        np.testing.assert_array_equal(run_part(name, jnp.array(True), KEY, **rates), clean[name])
        traced = run_part(name, jnp.array(False), KEY, **rates)
        np.testing.assert_array_equal(traced, run_part(name, False, KEY, **rates))
