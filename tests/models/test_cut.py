"""Functions are cut into blocks that compute what they did."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import ZOO

from gafreeze_jax import cut, explain, frozen_prefix, make_genes, masking, value_and_grad
from gafreeze_jax.engine import backprop, passes
from gafreeze_jax.engine.cache import Budget
from gafreeze_jax.engine.network import INPUTS, STATISTICS, Step
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import from_function

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def cut_animal(name):
    animal = ZOO[name]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = from_function.cut(animal.apply, animal.params, animal.genes, animal.inputs)
    return animal, network, [text for warning in caught if "not cut" in (text := str(warning.message))]


def run(network, params, inputs):
    """The network in inference mode, block by block."""
    x = inputs
    for block in network.blocks:
        if block.apply is not None:
            x = block.apply(params[block.name], x, {INPUTS: inputs}, frozen=True, key=None)
    shared = {name: {"params": params[name]["params"]} for name in network.shared}
    return network.head(params["head"] | shared, x, {INPUTS: inputs}, frozen=True, key=None)


def infer(animal, inputs):
    takes_key = animal.apply.__code__.co_argcount > 2
    return animal.apply(animal.params, inputs, None) if takes_key else animal.apply(animal.params, inputs)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_are_found(name):
    animal, network, messages = cut_animal(name)
    parts = [block.apply for block in network.blocks if block.apply is not None]
    assert (len(parts), len(set(parts))) == (animal.num_blocks, animal.num_programs), messages
    assert [re.search(animal.message, message) is not None for message in messages] == [True] * (animal.message is not None)
    assert network.names == animal.genes.names


@pytest.mark.parametrize("name", ZOO)
def test_outputs_and_gradients_are_those_of_the_function(name):
    """Also for a batch of another size."""
    animal, network, _ = cut_animal(name)
    inputs = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[::-1], leaf]), animal.inputs)
    params = from_function.split(animal.params, animal.genes)
    targets = np.arange(len(jax.tree.leaves(inputs)[0])) % 3

    @jax.jit
    def ours(params, inputs):
        step = Step(inputs, targets, jnp.ones(len(targets)), {INPUTS: inputs})
        gradients = backprop.value_and_grad(network, cross_entropy, [False] * len(network.blocks))(params, step).gradients
        return run(network, params, inputs), gradients

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def theirs(params, inputs):
        outputs = infer(animal._replace(params=params), inputs)
        return cross_entropy(outputs, targets).mean(), outputs

    outputs, gradients = ours(params, inputs)
    (_, expected), of_tree = theirs(animal.params, inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    of_genes = from_function.split(of_tree, animal.genes)
    for tree in of_genes.values():
        tree.pop(STATISTICS, None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradients, of_genes)


@pytest.mark.parametrize("name", ZOO)
def test_a_mask_leaves_out_the_gradients_of_what_it_freezes(name):
    """Others are as with everything trained, also below frozen blocks."""
    animal, network, _ = cut_animal(name)
    num, params = len(network.blocks), from_function.split(animal.params, animal.genes)
    targets = np.arange(len(jax.tree.leaves(animal.inputs)[0])) % 3
    step = Step(animal.inputs, targets, jnp.ones(len(targets)), {INPUTS: animal.inputs})
    masks = [[place % 2 == parity for place in range(num)] for parity in (0, 1)]

    @jax.jit
    def gradients_of_masks(params):
        run = [backprop.value_and_grad(network, cross_entropy, mask) for mask in ([False] * num, *masks)]
        return [gradients_for(params, step).gradients for gradients_for in run]

    everything, *of_masks = gradients_of_masks(params)
    for mask, gradients in zip(masks, of_masks, strict=True):
        trained = {name for name, frozen in zip(network.names, mask, strict=True) if not frozen} | {"head"}
        assert trained - set(network.shared) <= gradients.keys() <= trained | set(network.shared)
        for name in trained & gradients.keys():
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradients[name], everything[name])


@pytest.mark.parametrize("name", [name for name in ZOO if name != "time-major"])  # whose loop is one operation
def test_outputs_are_bit_identical_op_by_op(name):
    animal, network, _ = cut_animal(name)
    params, inputs = jax.tree.map(jnp.asarray, (animal.params, animal.inputs))  # NumPy would add up in another order
    of_genes = from_function.split(params, animal.genes)
    run(network, of_genes, inputs)  # traces it
    with jax.disable_jit():
        np.testing.assert_array_equal(run(network, of_genes, inputs), infer(animal._replace(params=params), inputs))


def test_equal_layers_share_compiled_code_and_so_do_masks():
    animal, network, _ = cut_animal("post-norm")
    params = from_function.split(animal.params, animal.genes)
    step = Step(animal.inputs, np.array([0, 1]), jnp.ones(2), {INPUTS: animal.inputs})
    before, programs = passes.forward._cache_size(), []
    for mask in ([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]):
        backprop.value_and_grad(network, cross_entropy, [bool(gene) for gene in mask])(params, step)
        programs.append(passes.forward._cache_size() - before)
    # Embeddings, the first two layers and the last; gradients of parameters alone; of the input alone, twice.
    assert programs == [3, 4, 4, 6]


def test_a_frozen_block_has_no_dropout():
    animal, network, _ = cut_animal("dropout")
    params = from_function.split(animal.params, animal.genes)
    block = network.blocks[2]
    x = (np.ones((2, 5, 4), np.float32),)
    run = functools.partial(block.apply, params[block.name], x, {INPUTS: animal.inputs})
    first, second = jax.random.split(jax.random.key(0))
    inferred, *others = (run(frozen=frozen, key=first)[0] for frozen in (True, jnp.array(True), False, jnp.array(False)))
    np.testing.assert_allclose(inferred, run(frozen=False, key=None)[0])
    np.testing.assert_allclose(inferred, others[0], rtol=1e-6)
    np.testing.assert_allclose(others[1], others[2], rtol=1e-6)
    assert not np.allclose(inferred, others[1])
    assert not np.allclose(others[1], run(frozen=False, key=second)[0])


def test_running_statistics_are_the_functions():
    animal, network, _ = cut_animal("batch norm")
    params = from_function.split(animal.params, animal.genes)
    x, found = animal.inputs, {}
    for block in network.blocks:
        x, found[block.name] = block.apply(params[block.name], x, {}, frozen=False, key=jax.random.key(0))
    outputs, new = animal.apply(animal.params, animal.inputs, jax.random.key(0))
    np.testing.assert_allclose(network.head(params["head"], x, {}, frozen=False, key=None), outputs, rtol=1e-5, atol=1e-6)
    expected = from_function.split(animal.params | new, animal.genes)
    for name, statistics in found.items():
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), statistics, expected[name][STATISTICS])
        assert not np.array_equal(statistics[0], params[name][STATISTICS][0])
    y = network.blocks[0].apply(params["layer_0"], animal.inputs, {}, frozen=True, key=jax.random.key(0))
    assert isinstance(y[0], jax.Array)


def test_gradients_through_a_batchs_statistics():
    """In training mode, in which a frozen block normalises by its running ones."""
    animal, network, _ = cut_animal("batch norm")
    params, key = from_function.split(animal.params, animal.genes), jax.random.key(0)
    targets = np.arange(len(animal.inputs)) % 3
    step = Step(animal.inputs, targets, jnp.ones(len(targets)), {INPUTS: animal.inputs})
    found = backprop.value_and_grad(network, cross_entropy, [False] * 3)(params, step, key).gradients

    @jax.grad
    def expected(trained):
        outputs, _ = animal.apply(animal.params | {"params": trained}, animal.inputs, key)
        return cross_entropy(outputs, targets).mean()

    gradients = animal.params | {"params": expected(animal.params["params"])}
    for name, tree in from_function.split(gradients, animal.genes).items():
        tree.pop(STATISTICS, None)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found[name], tree)
    frozen = backprop.value_and_grad(network, cross_entropy, [True] * 3)(params, step, key).gradients
    inferred = backprop.value_and_grad(network, cross_entropy, [True] * 3)(params, step, None).gradients
    jax.tree.map(np.testing.assert_array_equal, frozen, inferred)


def test_running_statistics_need_a_gene():
    animal = ZOO["batch norm"]()
    rules = {r"(?:params|batch_stats)/(?:conv|norm)_([01])/.*": r"layer_\1", ".*(_2|head)/.*": None}
    with pytest.raises(ValueError, match="running statistics cannot be among what always trains: give each"):
        from_function.cut(animal.apply, animal.params, masking.make_genes(animal.params, rules), animal.inputs)
    with pytest.raises(ValueError, match=r"must return \(outputs, new batch_stats\), 6 arrays as in params; got 0"):
        from_function.cut(lambda params, x, key: animal.apply(params, x, None), animal.params, animal.genes, animal.inputs)


def test_running_statistics_of_values_above_their_gene():
    kernel = np.eye(4, dtype=np.float32)
    variables = {"params": {"lower": kernel, "upper": kernel}, "batch_stats": {"lower": np.zeros(4, np.float32)}}

    def apply(variables, x, key):
        x = jnp.tanh(x @ variables["params"]["lower"] - variables["batch_stats"]["lower"][None])
        x = jnp.tanh(x @ variables["params"]["upper"])
        return x if key is None else (x, {"lower": x.mean(0)})

    genes = make_genes(variables, {r"\w+/(lower|upper)": r"\1"})
    message = "statistics of lower need a block of their own, but the running statistics of 'lower' depend on genes above it"
    with pytest.warns(UserWarning, match="lower, upper: not cut"), pytest.raises(ValueError, match=message):
        cut(apply, variables, genes, np.ones((2, 4), np.float32))


def test_a_gene_that_is_not_used_below_one_that_is():
    def apply(params, x):
        return jnp.tanh(x @ params["layers"][1]) @ params["out"]

    with pytest.warns(UserWarning, match="layer_0, layer_1: not cut .* the function does not use the genes in their order"):
        network, params = cut_two_layers(apply)
    x = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(run(network, params, x), apply(TWO_LAYERS, x), rtol=1e-6)


def test_genes_in_another_order():
    """They keep the order that they are given, as far as it can be cut."""
    animal = ZOO["mlp"]()
    genes = animal.genes.in_order(["layer_2", "layer_0", "layer_1"])
    with pytest.warns(UserWarning, match="zoo.py:[0-9]+.* reads 'layer_2' above 'layer_1'"):
        network = from_function.cut(animal.apply, animal.params, genes, animal.inputs)
    assert network.names == ("layer_2", "layer_0", "layer_1")
    in_order = from_function.in_order_of_use(animal.apply, animal.params, genes, animal.inputs)
    assert in_order == animal.genes
    np.testing.assert_array_equal(masking.frozen_tree([1, 0, 0], genes)["layers"][2]["bias"], True)
    with pytest.raises(ValueError, match="expected the names layer_2, layer_0, layer_1 in another order, got layer_0"):
        genes.in_order(["layer_0"])


def test_random_numbers_of_several_genes():
    """A dropout mask for two layers keeps them in one piece."""
    animal = ZOO["mlp"]()

    def apply(params, x, key):
        drop = 1.0 if key is None else jax.random.bernoulli(key, 0.5, x.shape) * 2.0
        for layer in params["layers"]:
            x = jnp.tanh(x @ layer["kernel"]) * drop
        return x @ params["head"]["kernel"]

    with pytest.warns(UserWarning, match="layer_0, layer_1, layer_2: not cut.*random_bits.*draws random numbers for several"):
        network = from_function.cut(apply, animal.params, animal.genes, animal.inputs)
    assert not any(block.apply for block in network.blocks)


def test_the_table():
    _, network, _ = cut_animal("tied")
    title, *lines = explain(network).splitlines()
    assert title.split() == ["block", "equations", "parameters", "FLOPs", "bytes", "up", "code"]
    names, equations, parameters, *_, flops, crossing = zip(*(line.split()[:5] for line in lines), strict=True)
    assert names == ("embeddings", "layer_0", "layer_1", "layer_2", "head")
    assert equations[1:4] == (equations[1],) * 3
    assert parameters == ("64", "108", "108", "108", "64")
    assert crossing == ("80", "80", "80", "80", "44")
    assert [line.split(maxsplit=5)[-1] for line in lines] == [
        "its own",
        "its own",
        "as layer_0",
        "as layer_0",
        "reads embeddings",
    ]
    assert all(int(number.replace(",", "")) > 100 for number in flops[1:])
    with pytest.raises(ValueError, match="takes a network from cut"):
        explain(network._replace(head=print))


@pytest.mark.parametrize("budget", [None, Budget(0, 10**6), Budget(0, 0)], ids=["device", "host", "disk"])
def test_a_loop_from_the_frozen_prefix(budget, tmp_path):
    animal, network, _ = cut_animal("post-norm")
    inputs, targets = np.concatenate([animal.inputs] * 60), np.arange(120) % 3
    params = from_function.split(animal.params, animal.genes)
    mask = dict(zip(network.names, [True, True, False, True], strict=True))
    prefix = frozen_prefix(network, params, mask)
    rows = prefix.cache(inputs, budget, tmp_path)
    kind = {None: jax.Array}.get(budget, np.memmap if budget == Budget(0, 0) else np.ndarray)
    assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(rows.x))
    assert prefix.depth == 2
    batch = jax.tree.map(lambda leaf: leaf[50:90], rows)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), batch, prefix(inputs[50:90]))
    assert prefix.trained(params).keys() == {"layer_1", "head"}
    gradients_for = value_and_grad(network, mask, cross_entropy)
    found = gradients_for(params, batch, targets[50:90])

    def loss(params):
        return cross_entropy(animal.apply(params, inputs[50:90]), targets[50:90]).mean()

    expected = from_function.split(jax.jit(jax.grad(loss))(animal.params), animal.genes)
    assert found.gradients.keys() == {"layer_1", "head"}
    without_prefix = gradients_for(params, inputs[50:90], targets[50:90]).gradients
    for name, of_block in found.gradients.items():
        for other in (expected[name], without_prefix[name]):
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), of_block, other)
    with pytest.raises(ValueError, match="mask: expected 4 genes, embeddings, layer_0, layer_1, layer_2; got 3"):
        value_and_grad(network, [1, 0, 1], cross_entropy)
    with pytest.raises(ValueError, match="Block 'layer_0' is not frozen, so x must enter there or below, not at block 2"):
        value_and_grad(network, [1, 0, 1, 1], cross_entropy)(params, batch, targets[50:90])


def test_a_loop_with_running_statistics():
    """Those of trained blocks move, those of frozen ones do not; no optimizer sees them."""
    animal, network, _ = cut_animal("batch norm")
    start = parts = from_function.split(animal.params, animal.genes)
    prefix, tx = frozen_prefix(network, parts, [1, 0, 1]), optax.adamw(0.1)
    gradients_for, state = value_and_grad(network, [1, 0, 1], cross_entropy), tx.init(prefix.trained(parts))
    rows, targets = prefix.cache(animal.inputs), np.arange(len(animal.inputs))
    losses = []
    for i in range(3):
        loss, gradients, _, statistics = gradients_for(parts, rows, targets, jax.random.key(i))
        updates, state = tx.update(gradients, state, trained := prefix.trained(parts))
        parts = prefix.merge(parts, optax.apply_updates(trained, updates), statistics)
        losses.append(loss)
    assert losses[0] > losses[1] > losses[2]
    assert jax.tree.structure(parts) == jax.tree.structure(jax.tree.map(jnp.asarray, start))
    moved = {name: not np.array_equal(parts[name][STATISTICS][0], start[name][STATISTICS][0]) for name in network.names}
    assert moved == {"layer_0": False, "layer_1": True, "layer_2": False}


TWO_LAYERS = {"layers": [np.eye(4, dtype=np.float32)] * 2, "out": np.ones((4, 2), np.float32)}
RULES = {r"layers/(\d)": r"layer_\1", "out": None, "other": None}


def two_layers(params, x):
    for kernel in params["layers"]:
        x = jnp.tanh(x @ kernel)
    return x @ params["out"]


def cut_two_layers(apply, params=TWO_LAYERS):
    genes = make_genes(params, {pattern: gene for pattern, gene in RULES.items() if pattern in params or gene})
    return cut(apply, params, genes, np.ones((2, 4), np.float32)), from_function.split(params, genes)


@pytest.mark.parametrize(
    ("apply", "params", "message"),
    [
        (lambda params, x: {"a": x, "b": two_layers(params, x)}, {}, r"one array of outputs, got \['a'\], \['b'\]"),
        (lambda params, x: (two_layers(params, x), x), {}, r"one array of outputs, got \[0\], \[1\]"),
        (two_layers, {"other": np.arange(3, dtype=np.int32)}, "other: int32 cannot be trained"),
    ],
)
def test_what_cannot_be_cut_is_told(apply, params, message):
    with pytest.raises(ValueError, match=message):
        cut_two_layers(apply, TWO_LAYERS | params)


@pytest.mark.parametrize(
    "apply",
    [
        lambda params, x, scale=2.0: scale * two_layers(params, x),
        lambda params, x, train=False: (1 if train else 2) * two_layers(params, x),
        lambda params, *inputs: 2 * two_layers(params, *inputs),
    ],
)
def test_a_third_argument_with_a_default_is_no_key(apply):
    network, params = cut_two_layers(apply)
    x = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(run(network, params, x), 2 * two_layers(TWO_LAYERS, x), rtol=1e-6)


def other_equations_for_small_batches(params, x):
    return two_layers(params, x if len(x) > 5 else jnp.sin(x))


def a_skip_in_training_mode(params, x, key):
    first = jnp.tanh(x @ params["layers"][0])
    x = jnp.tanh(jnp.tanh(first @ params["layers"][1]) @ params["layers"][2])
    return (x if key is None else x + first) @ params["out"]


@pytest.mark.parametrize(
    ("apply", "num_blocks", "message"),
    [
        (other_equations_for_small_batches, 0, r"batches of 4 and of 6 rows differ from sin at .*test_cut.py:\d+.* on;"),
        (
            a_skip_in_training_mode,
            1,
            r"different values leave 'layer_1' in inference mode, tanh at .*, and in training mode, tanh",
        ),
    ],
)
def test_what_is_left_in_one_piece_is_named(apply, num_blocks, message):
    params = TWO_LAYERS | {"layers": TWO_LAYERS["layers"] + TWO_LAYERS["layers"][:1]}
    with pytest.warns(UserWarning, match=message):
        network, parts = cut_two_layers(apply, params)
    assert sum(block.apply is not None for block in network.blocks) == num_blocks
    for size in (3, 9):
        x = np.random.default_rng(size).normal(size=(size, 4)).astype(np.float32)
        expected = apply(params, x, None) if apply is a_skip_in_training_mode else apply(params, x)
        np.testing.assert_allclose(run(network, parts, x), expected, rtol=1e-5)


def test_a_function_that_depends_on_the_size_of_batches():
    network, params = cut_two_layers(lambda params, x: two_layers(params, x if len(x) > 1 else jnp.sin(x)))
    run(network, params, np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="batches of 1 rows take other operations than those of 4"):
        run(network, params, np.ones((1, 4), np.float32))


@pytest.mark.parametrize("make", [list, np.array, jnp.array, lambda mask: list(jnp.array(mask, bool))])
def test_masks_are_sequences_or_arrays(make):
    network, params = cut_two_layers(two_layers)
    assert frozen_prefix(network, params, make([1, 0])).depth == 1
    for mask in ([1], [], [[1, 0]]):
        with pytest.raises(ValueError, match="mask: expected 2 genes, layer_0, layer_1; got"):
            frozen_prefix(network, params, make(mask))


@pytest.mark.parametrize("mask", ["10", [2, 0], [0.0, 1.0], jnp.array([0.0, 1.0]), {"layer_0": 0.0, "layer_1": 1.0}], ids=str)
def test_rates_are_not_taken_for_masks(mask):
    network, _ = cut_two_layers(two_layers)
    with pytest.raises(ValueError, match="mask: expected 1 for each frozen gene and 0 for the others; got"):
        value_and_grad(network, mask, cross_entropy)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_parameters_train_as_float32(dtype):
    """They enter the function as they were."""
    narrow = TWO_LAYERS | {"layers": [jnp.asarray(kernel, dtype) for kernel in TWO_LAYERS["layers"]]}

    def apply(params, x):
        assert all(kernel.dtype == dtype for kernel in params["layers"])
        return two_layers(params, x)

    network, params = cut_two_layers(apply, narrow)
    mask, x, targets = [1, 0], np.ones((3, 4), np.float32), np.zeros(3, int)
    trained = frozen_prefix(network, params, mask).trained(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    loss, gradients, *_ = value_and_grad(network, mask, cross_entropy)(params | trained, x, targets)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(loss, cross_entropy(apply(narrow, x), targets).mean(), rtol=1e-2)
