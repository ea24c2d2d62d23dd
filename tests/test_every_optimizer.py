"""Every public optimizer of optax and optax.contrib, and chains of them, with a frozen leaf and a stack frozen in part.

Trained leaves move as if the frozen ones did not exist, and nothing frozen moves. The reference is the optimizer itself on a
tree without them.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from gafreeze_jax import masking

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_STEPS = 4
ROWS = np.array([0, 2])  # of the stack, which train


def make_params():
    rng = np.random.default_rng(0)
    shapes = {"body": (3, 2), "head": (2, 2), "stack": (3, 2, 4)}
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))
    # Large, so that whatever counts them is far off.
    return params | {"body": 30 * params["body"], "stack": params["stack"].at[1].mul(30)}


PARAMS = make_params()
GENES = masking.make_genes(PARAMS, {"body": "body", "head": None, "stack": masking.Stacked("layer_{}")})
GENOME = np.array([True, False, True, False])


def cut(params):
    """By hand, what trains."""
    return {"head": params["head"], "stack": params["stack"][ROWS]}


def join(part):
    """The reverse, with the rest as it was at the start."""
    return {"body": PARAMS["body"], "head": part["head"], "stack": PARAMS["stack"].at[ROWS].set(part["stack"])}


def loss(params):
    total = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params))
    return total**2 / 10 + sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(params)) + 30


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers

sgd = functools.partial(optax.sgd, 0.1)
TREE_MASK = functools.partial(jax.tree.map, lambda leaf: jnp.ndim(leaf) > 2)
BY_NDIM = {2: optax.sgd(0.1), 3: optax.adam(0.1)}
SKIP = functools.partial(optax.skip_large_updates, max_squared_norm=100.0)
MATRICES = functools.partial(jax.tree.map, lambda leaf: contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1))


def norm(updates, *_, **__):
    return optax.tree.norm(updates)


def decay_by_hand(updates, params):
    return jax.tree.map(lambda update, param: update + 0.1 * param, updates, params)


# Those that need more than a learning rate.
OWN = {
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.01),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, seed=0),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "clip": lambda: optax.clip(0.1),
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.1),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
    "conditionally_mask": lambda: optax.conditionally_mask(sgd(), lambda step: step % 2 == 0),
    "conditionally_transform": lambda: optax.conditionally_transform(optax.adam(0.1), lambda step: step % 2 == 0),
    "differentially_private_aggregate": lambda: contrib.differentially_private_aggregate(1.0, 0.1, seed=0),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(0.1, estim_lr0=0.1, weight_decay=0.1),
    "dog": lambda: contrib.dog(1.0, ("distance", 1e-2)),
    "dowg": lambda: contrib.dowg(1.0, init_estim_sq_dist=0.1, weight_decay=0.1),
    "dpsgd": lambda: contrib.dpsgd(0.1, l2_norm_clip=1.0, noise_multiplier=0.1, seed=0),
    "ema": lambda: optax.ema(0.5),
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
    "freeze": lambda: optax.freeze(False),
    "galore": lambda: contrib.galore(0.1, rank=1),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adamw)(learning_rate=0.1),
    "lookahead": lambda: optax.lookahead(sgd(), 2, 0.5),
    "masked": lambda: optax.masked(optax.adam(0.1), TREE_MASK),
    "mechanize": lambda: contrib.mechanize(optax.adamw(0.1, weight_decay=0.1), s_init=0.1),
    "multi_transform": lambda: optax.multi_transform(BY_NDIM, functools.partial(jax.tree.map, jnp.ndim)),
    "prodigy": lambda: contrib.prodigy(0.1, estim_lr0=0.1, weight_decay=0.1),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip_by_global_norm(0.1)), ("sgd", sgd())),
    "partition": lambda: optax.partition(BY_NDIM, functools.partial(jax.tree.map, jnp.ndim)),
    "sam": lambda: contrib.sam(sgd(), optax.chain(contrib.normalize(), sgd()), sync_period=2),
    "scale": lambda: optax.scale(0.1),
    "scale_by_backtracking_linesearch": lambda: optax.chain(optax.scale(-1.0), optax.scale_by_backtracking_linesearch(4)),
    "scale_by_distance_over_gradients": lambda: optax.scale_by_distance_over_gradients(reps_rel=0.1),
    "scale_by_galore": lambda: contrib.scale_by_galore(rank=1),
    "scale_by_muon": lambda: contrib.scale_by_muon(weight_dimension_numbers=MATRICES),
    "scale_by_schedule": lambda: optax.scale_by_schedule(lambda step: 0.1 / (1 + step)),
    "scale_by_zoom_linesearch": lambda: optax.chain(optax.scale(-1.0), optax.scale_by_zoom_linesearch(4)),
    "schedule_free": lambda: contrib.schedule_free(sgd(), 0.1),
    "selective_transform": lambda: optax.selective_transform(optax.adam(0.1), freeze_mask=False),
    "snapshot": lambda: optax.snapshot("norm", norm),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(0.1)),
    "stateless": lambda: optax.stateless(decay_by_hand),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda update, param: update + 0.1 * param),
    "trace": lambda: optax.trace(0.9),
    "with_extra_args_support": lambda: optax.with_extra_args_support(sgd()),
}


def public_optimizers():
    """{name: function} of all that return a gradient transformation."""
    found = {}
    for module in (contrib, optax):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith("_") and not hasattr(function, "__deprecated__"):
                returned = inspect.signature(function).return_annotation
                if "GradientTransformation" in str(returned) or (returned is inspect.Signature.empty and makes_one(function)):
                    found.setdefault(name, function)
    return found


def makes_one(function):
    """Whether a function that does not say what it returns gives a gradient transformation."""
    try:
        return isinstance(with_defaults(function)(), optax.GradientTransformation)
    except (TypeError, ValueError):  # it needs arguments
        return False


def with_defaults(function):
    needs_rate = "learning_rate" in inspect.signature(function).parameters
    return functools.partial(function, 0.1) if needs_rate else function


CHAINS = {
    "decay, clip, sgd": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.clip_by_global_norm(1.0), sgd()),
    "clip, decay, sgd": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), sgd()),
    "decay, adam": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1)),
    "decay, momentum": lambda: optax.chain(optax.add_decayed_weights(0.1), sgd(momentum=0.9, nesterov=True)),
    "decay, norm": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.normalize_by_update_norm(), sgd()),
    "adam, clip": lambda: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.clip_by_global_norm(0.1)),
    "adam, trust ratio": lambda: optax.chain(optax.adam(0.1), optax.scale_by_trust_ratio()),
    "masked decay": lambda: optax.adamw(0.1, weight_decay=0.1, mask=TREE_MASK),
    "adaptive clip, decay": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adaptive_grad_clip(0.01), sgd()),
    "decay, centralize": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.centralize(), sgd()),
    "MultiSteps": lambda: optax.MultiSteps(optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1)), 2),
    "MultiSteps, skipped": lambda: optax.MultiSteps(sgd(), 2, should_skip_update_fn=SKIP),
    "schedule-free, decay": lambda: contrib.schedule_free_adamw(0.1, weight_decay=0.1),
    "schedule-free, clip": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), contrib.schedule_free_sgd(0.1, weight_decay=0.1)
    ),
    "dog, first rate": lambda: contrib.dog(1.0, ("learning_rate", 1e-2)),
    "prodigy, decay": lambda: optax.chain(optax.clip_by_global_norm(0.1), contrib.prodigy(estim_lr0=0.1, weight_decay=0.1)),
    "opaque SAM": lambda: contrib.sam(sgd(), optax.chain(contrib.normalize(), sgd()), opaque_mode=True),
    "SAM with decay": lambda: contrib.sam(optax.adamw(0.1, weight_decay=0.1), optax.chain(contrib.normalize(), sgd())),
    "lookahead, adamw": lambda: optax.lookahead(optax.adamw(0.1, weight_decay=0.1), 2, 0.5, reset_state=True),
    "dog, heuristic": lambda: contrib.dog(1.0, ("heuristic", 1e-2)),
}

NO_OPTIMIZERS = ("chain", "measure_with_ema", "monitor")  # chains are above; the others return or hold measurements
FOUND = public_optimizers()
PLAIN = {name: OWN.get(name) or with_defaults(function) for name, function in FOUND.items() if name not in NO_OPTIMIZERS}
OPTIMIZERS = {name: make for name, make in PLAIN.items() if make} | CHAINS

# What a traced genome cannot allow, as the docstring of `freezable` says. `freeze` is exact for all.
RANDOM = {"add_noise", "noisy_sgd", "dpsgd", "differentially_private_aggregate", "sophia", "hutchinson_estimator_diag_hessian"}
MEANS = {"adafactor", "clip_by_block_rms", "scale_by_param_block_rms"}
INITIAL = {"dog, heuristic", "scale_by_distance_over_gradients"}

LINE_SEARCH = ("value", "grad", "value_fn")
KEYWORDS = {
    **dict.fromkeys(("momo", "momo_adam", "polyak_sgd", "scale_by_polyak", "reduce_on_plateau"), ("value",)),
    **dict.fromkeys(("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"), LINE_SEARCH),
    **dict.fromkeys(("sophia", "hutchinson_estimator_diag_hessian"), ("obj_fn",)),
    "opaque SAM": ("grad_fn",),
}
PER_EXAMPLE = {"dpsgd", "differentially_private_aggregate"}


# ---------------------------------------------------------------------------------------------------------------------


value_and_slopes = jax.jit(jax.value_and_grad(loss))
identity = lambda tree: tree  # noqa: E731


def make_step(name, tx, whole, part):
    """A step of an optimizer on parameters of which `whole` gives the complete tree, and the reverse."""

    def update(params, state, value, slopes, **extra):
        everything = {
            "value": value,
            "grad": slopes,
            "value_fn": lambda params: loss(whole(params)),
            "obj_fn": lambda params: loss(whole(params)),
            "grad_fn": lambda params, _: jax.grad(lambda params: loss(whole(params)))(params),
        }
        gradients = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), slopes) if name in PER_EXAMPLE else slopes
        extra |= {keyword: everything[keyword] for keyword in KEYWORDS.get(name, ())}
        updates, state = tx.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return lambda params, state, value, slopes, **extra: update(params, state, value, part(slopes), **extra)


def start(name):
    return optax.LookaheadParams.init_synced if name.startswith("lookahead") else identity


@functools.cache
def trained(name):
    """Parameters and states of the reference, of `freeze` and of `freezable` after some steps: one compiled program."""
    fast = (lambda params: params.fast) if name.startswith("lookahead") else identity
    make = OPTIMIZERS[name]
    reference = make().gradient_transformation() if name.startswith("MultiSteps") else make()
    txs = (optax.with_extra_args_support(reference), masking.freeze(make(), GENES, GENOME), masking.freezable(make(), GENES))
    wholes, parts = (join, identity, identity), (cut, identity, identity)
    steps = [make_step(name, tx, whole, part) for tx, whole, part in zip(txs, wholes, parts, strict=True)]

    @jax.jit
    def step(carry, slopes, genome):
        extras = ({}, {}, {"genome": genome})
        return [step(*pair, *slope, **extra) for step, pair, slope, extra in zip(steps, carry, slopes, extras, strict=True)]

    params = [start(name)(part(PARAMS)) for part in parts]
    carry = [(part, tx.init(part)) for part, tx in zip(params, txs, strict=True)]
    for _ in range(NUM_STEPS):
        slopes = [value_and_slopes(whole(fast(params))) for whole, (params, _) in zip(wholes, carry, strict=True)]
        with jax.numpy_rank_promotion("allow"):  # optax needs it here and there
            carry = step(carry, slopes, jnp.asarray(GENOME))
    return carry


close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def trees_of(params):
    return [params.fast, params.slow] if isinstance(params, optax.LookaheadParams) else [params]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_if_the_frozen_ones_did_not_exist(name):
    (expected, reference_state), (static, static_state), (traced, traced_state) = trained(name)
    for wanted, by_freeze, by_freezable in zip(*map(trees_of, (expected, static, traced)), strict=True):
        for params in (by_freeze, by_freezable):
            np.testing.assert_array_equal(params["body"], PARAMS["body"])
            np.testing.assert_array_equal(params["stack"][1], PARAMS["stack"][1])
        jax.tree.map(close, cut(by_freeze), wanted)
        if name not in RANDOM | MEANS | INITIAL:
            jax.tree.map(close, cut(by_freezable), wanted)
        moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), wanted, cut(PARAMS))
        assert name in ("set_to_zero", "snapshot") or min(jax.tree.leaves(moved)) > 1e-4  # else nothing is tested
    assert [leaf.shape for leaf in jax.tree.leaves(static_state)] == [leaf.shape for leaf in jax.tree.leaves(reference_state)]
    fresh = masking.freezable(OPTIMIZERS[name](), GENES).init(start(name)(PARAMS))
    for node, before in zip(*(jax.tree.leaves(tree, is_leaf=GENES.fits) for tree in (traced_state, fresh)), strict=True):
        if GENES.fits(node):  # a copy of the parameters, moments ...
            np.testing.assert_array_equal(node["body"], before["body"])


@pytest.mark.parametrize("name", sorted(MEANS | INITIAL))
def test_what_a_traced_genome_cannot_allow_is_real(name):
    """Else the docstring of `freezable` would be wrong."""
    (expected, _), _, (traced, _) = trained(name)
    distances = jax.tree.map(lambda a, b: np.abs(a - b).max(), cut(traced), expected)
    assert max(jax.tree.leaves(distances)) > 1e-3


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule-free, decay"])
def test_parameters_for_evaluation(name):
    (expected, reference_state), (static, static_state), (traced, traced_state) = trained(name)
    wanted = contrib.schedule_free_eval_params(reference_state, expected)
    part = contrib.schedule_free_eval_params(static_state, masking.take_trained(static, GENES, GENOME))
    whole = contrib.schedule_free_eval_params(traced_state, traced)
    for rebuilt, params, genome in ((part, static, GENOME), (whole, traced, GENOME), (whole, traced, jnp.asarray(GENOME))):
        params = masking.put_trained(rebuilt, params, GENES, genome)
        np.testing.assert_array_equal(params["body"], PARAMS["body"])
        np.testing.assert_array_equal(params["stack"][1], PARAMS["stack"][1])
        jax.tree.map(close, cut(params), wanted)


def test_an_optimizer_that_thaws_a_layer_finds_its_state_there():
    tx = masking.freezable(contrib.schedule_free_sgd(0.1), GENES)
    state, params, gradients = tx.init(PARAMS), PARAMS, jax.tree.map(jnp.ones_like, PARAMS)
    for genome in (GENOME, np.zeros(4, bool)):
        updates, state = tx.update(gradients, state, params, genome=jnp.asarray(genome))
        params = optax.apply_updates(params, updates)
    assert 0 < np.abs(params["body"] - PARAMS["body"]).max() < 0.2


@pytest.mark.parametrize(("make", "share"), [(contrib.muon, (2 / 3) ** 0.5), (functools.partial(contrib.galore, rank=2), None)])
def test_a_stack_that_is_one_matrix_has_its_full_shape_when_the_genome_is_traced(make, share):
    """Two of four biases train: muon's factor is sqrt(3 / 2) for [2, 3] and 1 for [4, 3]."""
    rng = np.random.default_rng(0)
    params, slopes = ({"layers": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)} for _ in range(2))
    genes, genome = masking.make_genes(params, {"layers": masking.Stacked("layer_{}")}), [True, False, True, False]
    static, traced = masking.freeze(make(0.1), genes, genome), masking.freezable(make(0.1), genes)
    exact, _ = static.update(slopes, static.init(params), params)
    update, _ = traced.update(slopes, traced.init(params), params, genome=jnp.asarray(genome))
    assert not update["layers"][0].any()
    assert not np.allclose(update["layers"], exact["layers"], rtol=0.1)
    if share is not None:
        close(update["layers"], share * exact["layers"])


# ---------------------------------------------------------------------------------------------------------------------
# Rates

RATES = np.array([0, 0.5, 0, 2.0], np.float32)  # of body and stack; the head's is 1

# Line searches, and optimizers that know where parameters are to go: `sam` brings them back from where its own last update
# took them, a schedule-free evaluation subtracts what the training added.
NOT_SCALED = {
    **dict.fromkeys(("cocob", "scale_by_cocob"), "cocob"),
    **dict.fromkeys(("madgrad", "scale_by_madgrad"), "madgrad"),
    "mechanize": "mechanize",
    **dict.fromkeys(("sam", "SAM with decay"), "sam"),
    **dict.fromkeys(("schedule_free", "schedule_free_adamw", "schedule_free_sgd"), "schedule_free"),
    **dict.fromkeys(("schedule-free, decay", "schedule-free, clip"), "schedule_free"),
    **dict.fromkeys(("lookahead", "lookahead, adamw"), "lookahead"),
    **dict.fromkeys(("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"), "a line search"),
}
# These hold a copy of parameters as well: they only measure how far they went.
MEASURED = {"dog", "dog, first rate", "dog, heuristic", "scale_by_distance_over_gradients", "prodigy", "prodigy, decay"}
MEASURED |= {"dowg", "scale_by_lbfgs"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_multiplied_by_rates(name):
    """Static and traced, as by hand; or the optimizer is refused by its name."""
    if name in NOT_SCALED:
        check_refusal(name)
        return
    params, gradients, genome = start(name)(PARAMS), value_and_slopes(PARAMS), jnp.asarray(RATES == 0)
    wrapped = masking.freezable(OPTIMIZERS[name](), GENES)
    static = masking.freeze(OPTIMIZERS[name](), GENES, rates=RATES)

    @jax.jit
    def updates(genome, rates):
        ways = ((wrapped, {"genome": genome}), (wrapped, {"rates": rates}), (static, {}))
        steps = [(make_step(name, tx, identity, identity), tx.init(params), extra) for tx, extra in ways]
        moved = [step(params, state, *gradients, **extra)[0] for step, state, extra in steps]
        return [jax.tree.map(jnp.subtract, to, params) for to in moved]

    with jax.numpy_rank_promotion("allow"):
        whole, traced, cut_out = updates(genome, jnp.asarray(RATES))
    expected = jax.tree.map(jnp.multiply, whole, masking.rates_tree(RATES, GENES))
    jax.tree.map(close, traced, expected)
    if name not in RANDOM | MEANS | INITIAL:
        jax.tree.map(close, cut_out, expected)


def check_refusal(name):
    static = masking.freeze(OPTIMIZERS[name](), GENES, rates=RATES)
    traced = masking.freezable(OPTIMIZERS[name](), GENES)
    params = start(name)(PARAMS)
    for tx, extra in ((static, {}), (traced, {"rates": jnp.asarray(RATES)})):
        with pytest.raises(ValueError, match=f"but {NOT_SCALED[name]} .*rates_labels") as error:
            tx.update(PARAMS, tx.init(params), params, **extra)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_with_a_copy_of_the_parameters_are_known(name):
    """A new one must be looked at: if its updates lead to where its state says, rates do not scale its learning rate."""
    make = OPTIMIZERS[name]
    state = (make().gradient_transformation() if name.startswith("MultiSteps") else make()).init(start(name)(PARAMS))
    copies = [leaf for leaf in jax.tree.leaves(state) if np.array_equal(leaf, PARAMS["head"])]
    assert not copies or name in NOT_SCALED or name in MEASURED


@pytest.mark.parametrize("name", ["schedule_free", "sam"])
def test_what_is_refused_trains_with_an_optimizer_for_each_level(name):
    """As the error says."""
    normalized = optax.chain(contrib.normalize(), sgd())
    make = {"schedule_free": contrib.schedule_free_sgd, "sam": lambda rate: contrib.sam(optax.sgd(rate), normalized)}[name]
    genes = masking.make_genes(PARAMS, {"(body|stack)": r"\1", "head": None})
    levels = {"frozen": optax.set_to_zero(), "rate 0.5": make(0.05), "trainable": make(0.1)}
    tx = optax.multi_transform(levels, masking.rates_labels([0, 0.5], genes))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(value_and_slopes(params)[1], state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["body"], PARAMS["body"])
    assert np.abs(params["stack"] - PARAMS["stack"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "scaled", "slower"),
    [("schedule_free", -0.654, 0.365), ("sam", -0.167, 0.395), ("mechanize", 0.020, 0.287), ("cocob", 2.508, None)],
)
def test_scaled_updates_of_what_is_refused_train_wrongly(name, scaled, slower, monkeypatch):
    """A way of 3 to the minimum of a parabola, with a rate of a twentieth, and with a twentieth of the learning rate."""
    normalized = optax.chain(contrib.normalize(), optax.sgd(0.5))
    make, evaluate = {
        "schedule_free": (contrib.schedule_free_sgd, contrib.schedule_free_eval_params),
        "sam": (lambda rate: contrib.sam(optax.sgd(rate), normalized), lambda _, params: params),
        "mechanize": (lambda rate: contrib.mechanize(optax.sgd(rate)), lambda _, params: params),
        "cocob": (lambda rate: contrib.cocob(), lambda _, params: params),
    }[name]

    def place(tx, **extra):
        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.tree.map(lambda leaf: leaf - 3, params), state, params, **extra)
            return optax.apply_updates(params, updates), state

        params = {"body": jnp.zeros(1), "head": jnp.zeros(1)}
        state = tx.init(params)
        for _ in range(50):
            params, state = step(params, state)
        return float(evaluate(state, params)["body"][0])

    monkeypatch.setattr(masking.optimizers, "WHOLE_STEPS", {})
    genes = masking.make_genes({"body": np.zeros(1), "head": np.zeros(1)}, {"body": "body", "head": None})
    assert place(masking.freezable(make(0.1), genes), rates=jnp.array([0.05])) == pytest.approx(scaled, abs=1e-2)
    if slower is not None:  # cocob has no learning rate
        assert place(make(0.005)) == pytest.approx(slower, abs=1e-2)
