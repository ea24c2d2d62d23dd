"""Checkpoints in bfloat16 or float16: frozen parameters stay as they are, and what trains is float32."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import test_population as tasks
from safetensors.numpy import load_file

from gafreeze_jax.engine import costs, passes
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.prefix import frozen_prefix
from gafreeze_jax.models import base, configs, pretrained, vocabulary
from gafreeze_jax.models.layers import Dense, as_block
from gafreeze_jax.runs.fingerprint import fingerprint

pytestmark = pytest.mark.usefixtures("quick_compilation")

MOVES = ("convert_element_type", "gather", "reshape", "transpose", "slice", "squeeze", "broadcast_in_dim", "copy", "rev")

CONFIGS = parity.CONFIGS | {
    "bert": [parity.BERT],
    "gpt2": [{"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}],
    "resnet": [{"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}],
}


def narrowed(tree, dtype=jnp.bfloat16):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), tree)


def narrow_results(jaxpr):
    """Names of the equations with narrow results, but for those that only move numbers; in functions that are called, too."""
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(tuple(equation.params.values()))]
        called = [jaxpr for jaxpr in inner if hasattr(jaxpr, "eqns")]
        for of_call in called:
            yield from narrow_results(of_call)
        if not called and equation.primitive.name not in MOVES:
            yield from (equation.primitive.name for var in equation.outvars if getattr(var.aval, "dtype", None) == jnp.bfloat16)


@pytest.mark.parametrize("family", pretrained.FAMILIES, ids=lambda family: family.model_type)
def test_narrow_parameters_are_widened_before_anything_is_computed(family):
    values, problems = configs.check({"model_type": family.model_type, **CONFIGS[family.model_type][-1]}, family.config)
    assert not problems
    head = "lm" if "lm" in family.heads else "classify"
    model = base.Model(family, family.config(**values), head=head, num_classes=2 if head == "classify" else None)
    x, context = model._smallest_input()
    network = model.make_network()

    def run(params, x):
        for block in network.blocks:
            if block.apply is not None:
                read = passes.with_shared(block.shared, params[block.name], [params[name] for name in block.shared])
                x = block.apply(read, x, context, frozen=True, key=None)
        read = passes.with_shared(network.shared, params["head"], [params[name] for name in network.shared])
        return network.head(read, x, context, frozen=True, key=None)

    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    traced = jax.make_jaxpr(run)(narrow, jnp.zeros(x.shape, jnp.uint8) if model.pixels else x)
    assert set(narrow_results(traced.jaxpr)) == set()
    assert [aval.dtype for aval in traced.out_avals] == [jnp.float32]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_frozen_block_keeps_no_copy_of_narrow_weights(dtype):
    class Layer(base.nn.Module):
        @base.nn.compact
        def __call__(self, x, context, frozen):
            return jnp.tanh(Dense(11, dtype)(x))

    params = narrowed({"Dense_0": {"kernel": np.full((7, 11), 0.3), "bias": np.zeros(11)}})
    x = jnp.ones((5, 7))
    y, pullback, _ = passes.forward(
        apply=as_block(Layer()), wrt=passes.Wrt(params=False, input=True), axes=(None, None, None), params=params, x=x,
        frozen=None, context={}, key=None, index=0,
    )  # fmt: skip
    assert {array.shape for array in pullback.arrays if array.ndim} == {y.shape}
    (gradients,) = pullback.complete((params, x))(jnp.ones_like(y))
    expected = (1 - y**2) @ jnp.asarray(params["Dense_0"]["kernel"], jnp.float32).T
    np.testing.assert_allclose(gradients["x"], expected, rtol=1e-2)


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def folder(request, tmp_path_factory):
    """A Llama of two blocks whose parameters are narrow."""
    path = tmp_path_factory.mktemp("llama")
    raw = {"model_type": "llama", **parity.CONFIGS["llama"][0], "initializer_range": 0.3, "torch_dtype": request.param}
    (path / "config.json").write_text(json.dumps(raw))
    model = base.Model(*pretrained.read_config(path), num_classes=tasks.NUM_CLASSES)
    model.save(path, narrowed(model.init_params(jax.random.key(0)), request.param), source=path, label_names=("a", "b", "c"))
    return path


def test_frozen_parameters_are_saved_as_they_were_read_and_masters_are_float32(folder, tmp_path):
    loaded, original = pretrained.load(folder), load_file(folder / "model.safetensors")
    narrow = next(iter(original.values())).dtype
    assert narrow.itemsize == 2
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {narrow}
    network = loaded.model.make_network()
    _, _, source, steps = tasks.TASKS["bert"]
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), loaded.params)
    assert fingerprint(loaded.params) == fingerprint(wide)

    # A cohort of two, the second of which freezes the lowest two blocks.
    genomes = np.zeros((2, len(network.names)), bool)
    genomes[:, 0], genomes[1, 1] = True, True
    members = {}
    for params in (loaded.params, wide):
        task = network, params, source, steps
        population = tasks.make_population(task, tasks.RECIPES["sgd"], plan=Plan(2))
        assert costs.optimizer_bytes(population, tasks.make_run(task))["block_0"] == 4 * sum(
            leaf.size for leaf in jax.tree.leaves(params["block_0"])
        )
        for member in population.evaluate(genomes, tasks.make_run(task)):
            members.setdefault(member.genome, []).append(member)
    for genome, (of_narrow, of_wide) in members.items():
        for name, is_frozen in zip(network.names, genome, strict=True):
            trees = (of_narrow.params[name], loaded.params[name] if is_frozen else of_wide.params[name])
            assert {leaf.dtype for leaf in jax.tree.leaves(trees[0])} == {narrow if is_frozen else np.dtype(np.float32)}
            tolerance = {"rtol": 0, "atol": 0} if is_frozen else {"rtol": 1e-5, "atol": 1e-6}
            jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), *trees)

        loaded.save(tmp_path / "saved", dict(of_narrow.params), label_names=("a", "b", "c"))
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        owners = {names[0]: path.split("/")[0] for path, names in loaded.torch_names.items()}
        frozen = {name for name, held in zip(network.names, genome, strict=True) if held}
        for name, tensor in original.items():
            same = saved[name].dtype == tensor.dtype and saved[name].tobytes() == tensor.tobytes()
            assert same == (owners[name] in frozen), name
        again = pretrained.load(tmp_path / "saved")
        jax.tree.map(np.testing.assert_array_equal, again.params, dict(of_narrow.params))
        assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "float32"


def test_word_vectors_that_were_left_out_are_wide_where_the_others_are():
    word = narrowed(np.arange(8.0).reshape(4, 2))
    given = {"embeddings": {"word": np.asarray(word)}}
    trained = {"embeddings": {"word": np.full((1, 2), 1 / 3, np.float32)}}
    restored = vocabulary.restore(trained, np.array([2]), given)["embeddings"]["word"]
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored[[2, 3]], [[np.float32(1 / 3)] * 2, [6, 7]])


def test_a_frozen_prefix_trains_in_float32(folder):
    loaded = pretrained.load(folder)
    network = loaded.model.make_network()
    prefix = frozen_prefix(network, loaded.params, [1] + [0] * (len(network.names) - 1))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(prefix.trained(loaded.params))}
    assert dtypes == {np.dtype(np.float32)}
    assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(prefix._params)} == {2}
