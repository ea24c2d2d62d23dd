"""Masks in the forms of other libraries, tested with these libraries."""

import inspect
import json
import re
import textwrap
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gafreeze_jax import export, masking
from gafreeze_jax.models import base, bert, checkpoints, pretrained, resnet

GENOME = np.array([True, False, True])
BERT_RULES = {"embeddings/.*": "embeddings", r"layer_(\d)/.*": r"layer_\1", "head/.*": None}


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


def test_nnx_trains_what_is_not_frozen():
    model = Model(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    genes = masking.make_genes(before, {r"layers/(\d)/.*": r"layer_\1", "head/.*": None})
    trainable = export.nnx_filter(GENOME, genes)
    with jax.numpy_rank_promotion("allow"):
        optimizer = nnx.Optimizer(model, optax.adamw(0.1), wrt=trainable)
        loss = lambda model: (model(jnp.ones((3, 4))) ** 2).mean()  # noqa: E731
        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, trainable))(model))
    frozen = masking.frozen_tree(GENOME, genes)
    after = nnx.state(model, nnx.Param)
    for start, end, held in zip(*map(jax.tree.leaves, (before, after, frozen)), strict=True):
        assert np.array_equal(start, end) == held
    moments = jax.tree.leaves(nnx.state(optimizer, nnx.OptState))
    assert sum(leaf.size for leaf in moments if leaf.ndim) == 2 * masking.count_trainable(before, genes, GENOME)


def test_equinox_parts_a_module_as_the_mask_says():
    model = eqx.nn.MLP(4, 2, width_size=3, depth=3, key=jax.random.key(0))
    genes = masking.make_genes(eqx.filter(model, eqx.is_array), {r"layers/([0-2])/.*": r"layer_\1", "layers/3/.*": None})
    trainable, frozen = eqx.partition(model, export.filter_spec(model, GENOME, genes))
    assert [layer.weight is None for layer in trainable.layers] == [True, False, True, False]
    assert [layer.weight is None for layer in frozen.layers] == [False, True, False, True]
    gradients = jax.grad(lambda part: jnp.sum(eqx.combine(part, frozen)(jnp.ones(4))))(trainable)
    assert gradients.layers[0].weight is None
    assert gradients.layers[1].weight.shape == (3, 3)


def test_a_stacked_leaf_cannot_be_split_there():
    params = {"layers": {"kernel": np.ones((3, 2))}}
    genes = masking.make_genes(params, {"layers/.*": masking.Stacked("layer_{}")})
    for convert in (export.nnx_filter, lambda genome, genes: export.filter_spec(params, genome, genes)):
        with pytest.raises(ValueError, match="layers/kernel"):
            convert(GENOME, genes)
    assert export.filter_spec(params, [False] * 3, genes) == {"layers": {"kernel": True}}


@pytest.fixture(scope="module")
def bert_model(tmp_path_factory):
    """The folder of a random BERT of 2 layers, and its mask: embeddings and the upper layer frozen."""
    folder = tmp_path_factory.mktemp("bert")
    config = bert.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    source = tmp_path_factory.mktemp("source")
    (source / "config.json").write_text(
        '{"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, '
        '"intermediate_size": 16}'
    )
    model = base.Model(bert.FAMILY, config, num_classes=2)
    params = model.init_params(jax.random.key(0))
    model.save(folder, params, source=source, label_names=("no", "yes"))
    mask = folder / "mask.json"
    masking.write_mask(mask, masking.make_genes(params, BERT_RULES), GENOME, model.torch_names(params))
    return folder, mask


def test_the_names_in_a_mask_are_those_of_the_checkpoint(bert_model):
    folder, mask = bert_model
    trainable = export.requires_grad(mask)
    assert set(trainable) == set(checkpoints.read_tensors(folder))
    assert not trainable["bert.embeddings.LayerNorm.weight"]
    assert not trainable["bert.encoder.layer.1.output.dense.bias"]
    assert trainable["bert.encoder.layer.0.output.dense.bias"]
    assert trainable["classifier.weight"]


def test_pytorch_parameters_by_the_mask(bert_model):
    pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    folder, mask = bert_model
    trainable = export.requires_grad(mask)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trainable.pop(name)
    assert not trainable
    trained = {name.split(".layer.")[1][0] for name, p in model.named_parameters() if p.requires_grad and ".layer." in name}
    assert trained == {"0"}


def test_peft_adapts_the_trainable_layers(bert_model):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    folder, mask = bert_model
    layers = export.layers_to_transform(masking.read_mask(mask))
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], layers_to_transform=layers, layers_pattern="layer")
    model = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder), config)
    adapted = {name.split(".layer.")[1][0] for name, parameter in model.named_parameters() if "lora_" in name}
    assert adapted == {"0"}


RATES = [0, 0.3, 1]  # of the embeddings, the lower and the upper layer


@pytest.fixture(scope="module")
def bert_rates(bert_model, tmp_path_factory):
    """The folder of the same model, and a file of rates."""
    folder, _ = bert_model
    path = tmp_path_factory.mktemp("rates") / "mask.json"
    loaded = pretrained.load(folder)
    genes = masking.make_genes(loaded.params, BERT_RULES)
    masking.write_mask(path, genes, tensors=loaded.torch_names, rates=RATES, head="kept")
    return folder, path


def test_groups_of_parameters(bert_rates):
    folder, path = bert_rates
    groups = export.parameter_groups(path, 2e-5)
    assert [group["lr"] for group in groups] == pytest.approx([0, 6e-6, 2e-5])
    assert [group["frozen"] for group in groups] == [True, False, False]
    assert {name for group in groups for name in group["names"]} == set(checkpoints.read_tensors(folder))
    (frozen, lower, upper) = (group["names"] for group in groups)
    assert all(name.startswith("bert.embeddings.") for name in frozen)
    assert all(".layer.0." in name for name in lower)
    assert {name.split(".")[0] for name in upper if ".layer.1." not in name} == {"bert", "classifier"}  # the pooler, the head
    assert {name for name, trains in export.requires_grad(path).items() if not trains} == set(frozen)


def test_groups_of_a_mask_are_frozen_and_trainable(bert_model, tmp_path):
    _, path = bert_model
    frozen, trainable = export.parameter_groups(path, 1.0)
    wanted = export.requires_grad(path)
    assert (frozen["lr"], frozen["frozen"], trainable["lr"], trainable["frozen"]) == (0, True, 1, False)
    assert dict.fromkeys(frozen["names"], False) | dict.fromkeys(trainable["names"], True) == wanted
    mask = json.loads(path.read_text())  # as version 1 had it
    (tmp_path / "mask.json").write_text(
        json.dumps({"format": mask["format"], "version": 1, "frozen": mask["frozen"], "tensors": mask["tensors"]})
    )
    assert export.parameter_groups(tmp_path / "mask.json", 1.0) == [frozen, trainable]


def test_files_that_are_no_masks_have_no_groups(tmp_path):
    (tmp_path / "mask.json").write_text('["embeddings"]')
    for use in (export.requires_grad, lambda path: export.parameter_groups(path, 0.1)):
        with pytest.raises(ValueError, match=r"mask\.json: expected a mask file"):
            use(tmp_path / "mask.json")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (None, 'its entry "tensors" must have the names of tensors'),
        (["w"], 'its entry "tensors" must have the names of tensors'),
        ({"frozen": ["w"]}, 'its entry "tensors" must have the names of tensors'),
        ({"frozen": ["w"], "trainable": "v"}, 'its entry "tensors" must have the names of tensors'),
        ({"frozen": [["w"]], "trainable": []}, 'its entry "tensors" must have the names of tensors'),
        ({"frozen": [], "trainable": ["w"], "rates": ["w"]}, 'the "rates" of its "tensors" must be finite numbers'),
        ({"frozen": [], "trainable": ["w"], "rates": {"w": "fast"}}, 'the "rates" of its "tensors" must be finite numbers'),
        ({"frozen": [], "trainable": ["w"], "rates": {"w": -1}}, 'the "rates" of its "tensors" must be finite numbers'),
        ({"frozen": [], "trainable": ["w"], "rates": {"w": float("nan")}}, 'the "rates" of its "tensors" must be finite'),
    ],
    ids=str,
)
def test_damaged_names_of_tensors(tensors, said, tmp_path):
    mask = {"format": "gafreeze_jax mask", "version": 1, "frozen": {"a": True}, "tensors": tensors}
    (tmp_path / "mask.json").write_text(json.dumps(mask))
    for use in (export.requires_grad, lambda path: export.parameter_groups(path, 0.1)):
        with pytest.raises(ValueError, match=rf"mask\.json: expected a mask file of version 1 or 2, .*{said}"):
            use(tmp_path / "mask.json")


def test_pytorch_trains_in_groups_as_freeze_does(bert_rates):
    """The lines of the docstring; gradients of both are made up."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    folder, path = bert_rates
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    lines = textwrap.dedent(re.search(r"\n\n((?: {4}.*\n)+)", inspect.getdoc(export.parameter_groups))[1])
    names = {"model": model, "path": path, "torch": torch, "parameter_groups": export.parameter_groups}
    exec(lines.replace('"mask.json"', "path").replace("2e-5", "0.01"), names)
    optimizer = names["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0.003, 0.01])

    loaded = pretrained.load(folder)
    of_leaf = {path: names[0] for path, names in loaded.torch_names.items()}
    genes = masking.make_genes(loaded.params, BERT_RULES)
    tx = masking.freeze(optax.adamw(0.01, weight_decay=0.01), genes, rates=list(masking.read_rates(path, genes).values()))
    params, state = loaded.params, tx.init(loaded.params)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 0.1) + parameter.detach()
        optimizer.step()
        updates, state = tx.update(jax.tree.map(lambda leaf: 0.1 + leaf, params), state, params)
        params = optax.apply_updates(params, updates)
    ours = {of_leaf[leaf]: value for leaf, value in zip(masking.leaf_paths(params), jax.tree.leaves(params), strict=True)}
    for name, parameter in model.named_parameters():
        theirs = parameter.detach().numpy()
        np.testing.assert_allclose(np.sort(theirs.ravel()), np.sort(np.asarray(ours[name]).ravel()), rtol=1e-4, atol=1e-6)
        assert np.array_equal(theirs, start[name].numpy()) == ("embeddings" in name), name


def test_multipliers_of_an_nnx_model():
    model = Model(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    genes = masking.make_genes(params, {r"layers/(\d)/.*": r"layer_\1", "head/.*": None})
    tree = masking.rates_tree(RATES, genes)
    assert isinstance(tree, nnx.State)
    scaled = jax.tree.map(jnp.multiply, params, tree)
    for index, rate in enumerate(RATES):
        np.testing.assert_allclose(scaled.layers[index].kernel[...], rate * params.layers[index].kernel[...], rtol=1e-6)
    before = jax.tree.map(jnp.copy, params)
    with jax.numpy_rank_promotion("allow"):
        gradients = nnx.grad(lambda model: (model(jnp.ones((3, 4))) ** 2).mean())(model)
        optimizer = nnx.Optimizer(model, masking.freeze(optax.sgd(1.0), genes, rates=RATES), wrt=nnx.Param)
        optimizer.update(model, gradients)
    expected = jax.tree.map(lambda leaf, gradient, rate: leaf - rate * gradient, before, gradients, tree)
    after = nnx.state(model, nnx.Param)
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-6, atol=1e-7), after, expected)


def test_multipliers_of_an_equinox_module():
    model = eqx.nn.MLP(4, 2, width_size=3, depth=3, key=jax.random.key(0))
    genes = masking.make_genes(eqx.filter(model, eqx.is_array), {r"layers/([0-2])/.*": r"layer_\1", "layers/3/.*": None})
    tree = masking.rates_tree(RATES, genes)
    assert isinstance(tree, eqx.nn.MLP)
    gradients = eqx.filter_grad(lambda model: jnp.sum(model(jnp.ones(4))))(model)
    scaled = jax.tree.map(jnp.multiply, gradients, tree)
    for layer, gradient, rate in zip(scaled.layers, gradients.layers, (*RATES, 1), strict=True):
        np.testing.assert_allclose(layer.weight, rate * gradient.weight, rtol=1e-6)
    trainable = export.filter_spec(model, np.equal(RATES, 0), genes)
    assert [layer.weight for layer in trainable.layers] == [False, True, True, True]


def test_layers_by_number():
    halves = {
        "embeddings": False,
        "block_0/attention": True,
        "block_0/mlp": True,
        "block_11/attention": True,
        "block_11/mlp": False,
    }
    assert export.layers_to_transform(halves) == [11]
    assert export.layers_to_transform({"layer_0": True}) == []
    with pytest.raises(ValueError, match="the genes are stem, dense"):
        export.layers_to_transform({"stem": True, "dense": False})


def test_a_mask_without_names_in_pytorch(tmp_path):
    masking.write_mask(tmp_path / "mask.json", masking.make_genes({"a": np.ones(2)}, {"a": "a"}), [True])
    with pytest.raises(ValueError, match="no names of tensors"):
        export.requires_grad(tmp_path / "mask.json")


# Running statistics and dropout of frozen layers


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Layer(rngs) for _ in range(3)])


def test_nnx_modules_that_are_frozen_infer():
    model = Layers(nnx.Rngs(0))
    genes = masking.make_genes(nnx.state(model, nnx.Param), {r"layers/(\d)/.*": r"layer_\1"})
    model.train()
    frozen = export.nnx_frozen_modules(GENOME, genes)
    model.set_attributes(frozen, use_running_average=True, deterministic=True, raise_if_not_found=False)
    assert [layer.norm.use_running_average for layer in model.layers] == GENOME.tolist()
    assert [layer.dropout.deterministic for layer in model.layers] == GENOME.tolist()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    with jax.numpy_rank_promotion("allow"):
        for layer in model.layers:
            layer(jnp.arange(12.0).reshape(3, 4))
    after = nnx.state(model, nnx.BatchStat)
    for path, old, new in zip(masking.leaf_paths(before), *map(jax.tree.leaves, (before, after)), strict=True):
        assert np.array_equal(old, new) == GENOME[int(path.split("/")[1])], path


def test_equinox_modules_that_are_frozen_infer():
    def layer(key):
        norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        return eqx.nn.Sequential([eqx.nn.Linear(4, 4, key=key), norm, eqx.nn.Dropout(0.5)])

    model = [layer(key) for key in jax.random.split(jax.random.key(0), 3)]
    genes = masking.make_genes(eqx.filter(model, eqx.is_inexact_array), {r"(\d)/.*": r"layer_\1"})
    model = export.inference_in_frozen(model, GENOME, genes)
    assert [layer.layers[1].inference for layer in model] == GENOME.tolist()
    assert [layer.layers[2].inference for layer in model] == GENOME.tolist()


def test_a_mask_file_says_what_it_leaves_out(bert_model):
    _, mask = bert_model
    assert ".eval() on frozen modules" in json.loads(mask.read_text())["note"]
    for function in (export.requires_grad, export.parameter_groups, export.layers_to_transform):
        assert ".eval()" in function.__doc__


def test_pytorch_keeps_frozen_statistics_as_our_engine_does():
    """The lines of the guide, beside a frozen and a trained block of the engine's ResNet."""
    torch = pytest.importorskip("torch")
    names = {}
    (snippet,) = re.findall(
        r"```py\n(.*?)```", (Path(__file__).parents[1] / "docs" / "guide.md").read_text(encoding="utf-8"), re.S
    )
    exec(snippet, names)
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    for frozen in (True, False):
        norm = torch.nn.BatchNorm2d(3)
        with torch.no_grad():
            for index, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
                tensor.copy_(torch.tensor([0.5, 1.0, 2.0]) + index)
        model = torch.nn.Sequential(torch.nn.Sequential(norm, torch.nn.Dropout(0.0)), torch.nn.Conv2d(3, 1, 1))
        leaves = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
        tree = {name: jnp.asarray(leaf.detach().numpy().copy()) for name, leaf in leaves.items()}
        model[0].requires_grad_(not frozen)
        names["train"](model)
        assert (model.training, model[1].training, norm.training, model[0][1].training) == (True, True, not frozen, not frozen)
        theirs = norm(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
        variables = {"params": {name: tree[name] for name in ("scale", "bias")}}
        variables["batch_stats"] = {name: tree[name] for name in ("mean", "var")}
        ours, after = resnet.BatchNorm().apply(variables, jnp.asarray(x), jnp.ones(len(x)), frozen, mutable=["batch_stats"])
        np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, rtol=1e-4, atol=1e-5)
        for name in ("mean", "var"):
            np.testing.assert_allclose(after["batch_stats"][name], leaves[name].detach().numpy(), rtol=1e-5)
