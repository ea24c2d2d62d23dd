"""Small models of many kinds, as functions of their parameters, for `from_function.cut`."""

import importlib.util
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from gafreeze_jax.masking import Stacked, make_genes

WIDTH, NUM_CLASSES, BATCH, LENGTH, VOCABULARY = 4, 3, 2, 5, 11
IMAGE = (6, 6, 3)
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, VOCABULARY, (BATCH, LENGTH)).astype(np.int32) * (np.arange(LENGTH) < [[LENGTH], [3]])
ROWS, IMAGES = RNG.normal(size=(BATCH, WIDTH)).astype(np.float32), RNG.normal(size=(BATCH, *IMAGE)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32) / 2


class Animal(NamedTuple):
    """A model.

    Attributes:
      apply: `apply(params, inputs)` or `apply(params, inputs, key)`.
      rules: for `make_genes`.
      num_blocks: that can be cut off; the other genes stay in the head.
      num_programs: of the blocks: equal layers share one. What the head reads of the last layer may be less than all.
      message: why genes stay in the head; a regular expression.
    """

    apply: Any
    params: Any
    rules: Any
    inputs: Any
    num_blocks: int
    num_programs: int
    message: str | None = None

    @property
    def genes(self):
        return make_genes(self.params, self.rules)


def dense(params, x):
    return x @ params["kernel"] + params["bias"][None]


def make_dense(first=WIDTH, last=WIDTH):
    return {"kernel": normal(first, last), "bias": normal(last)}


LAYERS = {r"layers/(\d)/.*": r"layer_\1"}
PLAIN = {"layers": [make_dense() for _ in range(3)], "head": make_dense(WIDTH, NUM_CLASSES)}
RULES = {**LAYERS, "head/.*": None}


def mlp():
    def apply(params, x):
        for layer in params["layers"]:
            x = jax.nn.relu(dense(layer, x))
        return dense(params["head"], x)

    return Animal(apply, PLAIN, RULES, ROWS, 3, 2)


def residual():
    def apply(params, x):
        for layer in params["layers"]:
            x = x + jnp.tanh(dense(layer, x / jnp.sqrt(1 + jnp.square(x).mean(-1, keepdims=True))))
        return dense(params["head"], x)

    return Animal(apply, PLAIN, RULES, ROWS, 3, 2)


def skips():
    """Like a U-Net: what leaves a lower layer enters a higher one."""

    def apply(params, x):
        first, second, third = params["layers"]
        low = jnp.tanh(dense(first, x))
        middle = jnp.tanh(dense(second, low[:, ::2].repeat(2, 1)))
        high = jnp.tanh(dense(third, middle + low)) + x
        return dense(params["head"], high + low)

    return Animal(apply, PLAIN, RULES, ROWS, 3, 3)


def stacked():
    params = {"layers": {"kernel": normal(WIDTH, 3, WIDTH), "bias": normal(WIDTH, 3)}, "head": PLAIN["head"]}

    def apply(params, x):
        for i in range(3):
            x = jnp.tanh(x @ params["layers"]["kernel"][:, i] + params["layers"]["bias"][:, i][None])
        return dense(params["head"], x)

    return Animal(apply, params, {"layers/.*": Stacked("layer_{}", axis=1), "head/.*": None}, ROWS, 3, 2)


def scanned():
    params = {"layers": {"kernel": normal(3, WIDTH, WIDTH), "bias": normal(3, WIDTH)}, "head": PLAIN["head"]}

    def apply(params, x):
        x, _ = lax.scan(lambda x, layer: (jnp.tanh(dense(layer, x)), None), x, params["layers"], reverse=True)
        return dense(params["head"], x)

    rules = {"layers/.*": Stacked("layer_{}"), "head/.*": None}
    return Animal(apply, params, rules, ROWS, 0, 0, "reads 'layer_1' above 'layer_2'")


def mixture_of_experts():
    params = {
        "layers": [{"router": normal(WIDTH, 3), "experts": normal(3, WIDTH, WIDTH)} for _ in range(2)],
        "head": PLAIN["head"],
    }

    def apply(params, x):
        for layer in params["layers"]:
            weights, chosen = lax.top_k(jax.nn.softmax(x @ layer["router"]), 2)
            outputs = jnp.einsum("bi,bkij->bkj", x, layer["experts"][chosen])
            x = x + jnp.einsum("bk,bkj->bj", weights, jnp.tanh(outputs))
        return dense(params["head"], x)

    return Animal(apply, params, RULES, ROWS, 2, 2)


def time_major():
    """A recurrent network whose batch is the second axis of what goes from layer to layer."""
    params = {"layers": [{"in": normal(WIDTH, WIDTH), "again": normal(WIDTH, WIDTH)} for _ in range(3)], "head": PLAIN["head"]}

    def apply(params, x):
        x = jnp.stack([x, 2 * x, -x])
        for layer in params["layers"]:

            def step(h, row, layer=layer):
                h = jnp.tanh(row @ layer["in"] + h @ layer["again"])
                return h, h

            _, x = lax.scan(step, jnp.zeros_like(x[0]), x)
        return dense(params["head"], x[-1])

    return Animal(apply, params, RULES, ROWS, 3, 3)


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defvjp(lambda x: (clipped(x), None), lambda _, cotangent: (cotangent,))  # straight through


def derivatives_of_its_own():
    def apply(params, x):
        for layer in params["layers"]:
            x = lax.cond(layer["bias"][0] > 0, clipped, jnp.tanh, clipped(dense(layer, x)))
        return dense(params["head"], x)

    return Animal(apply, PLAIN, RULES, ROWS, 3, 2)


def remat_of_all():
    """One `jax.checkpoint` around all layers is taken apart."""

    def apply(params, x):
        @jax.checkpoint
        def body(layers, x):
            for layer in layers:
                x = jnp.tanh(dense(layer, x))
            return x

        return dense(params["head"], body(params["layers"], x))

    return Animal(apply, PLAIN, RULES, ROWS, 3, 2)


def shared_layer():
    """A layer that is used twice."""

    def apply(params, x):
        first, second, third = params["layers"]
        x = jnp.tanh(dense(second, jnp.tanh(dense(first, x))))
        return dense(params["head"], jnp.tanh(dense(third, jnp.tanh(dense(first, x)))))

    return Animal(apply, PLAIN, RULES, ROWS, 2, 2, r"layer_2: not cut .*zoo.py:\d+.* reads 'layer_0' above 'layer_1'")


def head_below():
    """What always trains is below the genes."""

    def apply(params, x):
        x = dense(params["layers"][0], x)
        for layer in params["layers"][1:]:
            x = jnp.tanh(dense(layer, x))
        return dense(params["head"], x)

    rules = {"layers/0/.*": None, r"layers/([12])/.*": r"layer_\1", "head/.*": None}
    return Animal(apply, PLAIN, rules, ROWS, 0, 0, "layer_1, layer_2: not cut .* reads parameters that always train")


def flat_tokens():
    """What goes from layer to layer has a row per token: all tokens of an example, then those of the next."""

    def apply(params, x):
        x = (x[:, None] * np.arange(1.0, 4.0, dtype=np.float32)[None, :, None]).reshape(-1, WIDTH)
        for layer in params["layers"]:
            x = jnp.tanh(dense(layer, x))
        return dense(params["head"], x).reshape(-1, 3, NUM_CLASSES).mean(1)

    return Animal(apply, PLAIN, RULES, ROWS, 3, 2)


def flat_tokens_by_position():
    """A row per token, too, but all first tokens come first."""

    def apply(params, x):
        x = jnp.stack([x, 2 * x]).reshape(-1, WIDTH)
        for layer in params["layers"]:
            x = jnp.tanh(dense(layer, x))
        return dense(params["head"], x).reshape(2, -1, NUM_CLASSES).mean(0)

    return Animal(apply, PLAIN, RULES, ROWS, 0, 0, "only floats with a row per example can go from block to block")


def nothing_per_example():
    def apply(params, x):
        total = jnp.tanh(dense(params["layers"][0], x)).sum(0)
        for layer in params["layers"][1:]:
            total = jnp.tanh(dense(layer, total[None]))[0]
        return dense(params["head"], x * total[None])

    return Animal(apply, PLAIN, RULES, ROWS, 1, 1, r"reduce_sum at .*zoo.py:\d+.* makes the examples of a batch depend on")


def batch_statistics():
    """A batch normalisation without running statistics: what it gives for an example depends on the others."""

    def apply(params, x):
        first, *others = params["layers"]
        x = jnp.tanh(dense(first, x))
        for layer in others:
            x = dense(layer, x)
            x = jnp.tanh((x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + 0.1))
        return dense(params["head"], x)

    message = r"layer_2: not cut .* reduce_sum at .*zoo.py:\d+.* depend on each other, as batch normalisation does in training"
    return Animal(apply, PLAIN, RULES, ROWS, 2, 2, message)


def last_token():
    """One token of each example is picked by an index."""

    def apply(params, x):
        x = x[:, None] * np.arange(1.0, 4.0, dtype=np.float32)[None, :, None]
        for layer in params["layers"]:
            x = jnp.tanh(dense(layer, x.reshape(-1, WIDTH))).reshape(x.shape)
        return dense(params["head"], x[jnp.arange(len(x)), jnp.argmax(x[..., 0], 1)])

    return Animal(apply, PLAIN, RULES, ROWS, 3, 3)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for i in range(3):
            x = nn.Conv(4, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.5, name=f"norm_{i}")(x))
        return nn.Dense(NUM_CLASSES, name="head")(x.mean((1, 2)))


def batch_norm():
    module = CNN()
    params = module.init(jax.random.key(0), IMAGES, False)

    def apply(variables, x, key):
        if key is None:
            return module.apply(variables, x, False)
        return module.apply(variables, x, True, mutable=["batch_stats"])

    rules = {r"(?:params|batch_stats)/(?:conv|norm)_(\d)/.*": r"layer_\1", "params/head/.*": None}
    return Animal(apply, params, rules, IMAGES, 3, 3)


class Encoder(nn.Module):
    pre_norm: bool
    dropout: float

    @nn.compact
    def __call__(self, x, mask, deterministic):
        norm = nn.LayerNorm(name="norm")
        attend = nn.MultiHeadDotProductAttention(2, dropout_rate=self.dropout, deterministic=deterministic, name="attention")
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        mlp = nn.Dense(WIDTH, name="mlp")
        if self.pre_norm:
            return x + drop(nn.gelu(mlp(x + attend(norm(x), mask=mask))))
        return norm(x + drop(nn.gelu(mlp(attend(x, mask=mask)))))


class Transformer(nn.Module):
    pre_norm: bool = False
    tied: bool = False
    dropout: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, ids, deterministic=True):
        words = nn.Embed(VOCABULARY, WIDTH, name="words")
        mask = nn.make_attention_mask(ids > 0, ids > 0)
        x = words(ids) + nn.Embed(LENGTH, WIDTH, name="positions")(jnp.arange(LENGTH))[None]
        layer = nn.remat(Encoder, static_argnums=(3,)) if self.remat else Encoder
        for i in range(3):
            x = layer(self.pre_norm, self.dropout, name=f"layer_{i}")(x, mask, deterministic)
        return words.attend(x)[:, 0] if self.tied else nn.Dense(NUM_CLASSES, name="head")(x[:, 0])


def transformer(num_programs=3, **kwargs):
    module = Transformer(**kwargs)
    params = module.init(jax.random.key(0), IDS)["params"]

    def apply(params, ids, key=None):
        rngs = {} if key is None else {"dropout": key}
        return module.apply({"params": params}, ids, key is None, rngs=rngs)

    rules = {"(words|positions)/.*": "embeddings", r"layer_(\d)/.*": r"layer_\1"} | (
        {} if kwargs.get("tied") else {"head/.*": None}
    )
    return Animal(apply, params, rules, IDS, 4, num_programs)


class ScannedLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(WIDTH)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(nn.remat(ScannedLayer), variable_axes={"params": 1}, split_rngs={"params": True}, length=3)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(NUM_CLASSES, name="head")(x)


def scanned_linen():
    module = Scanned()
    params = module.init(jax.random.key(0), ROWS)["params"]
    rules = {"layers/.*": Stacked("layer_{}", axis=1), "head/.*": None}
    return Animal(lambda params, x: module.apply({"params": params}, x), params, rules, ROWS, 3, 2)


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Conv(i, 4, (3, 3), rngs=rngs) for i in (3, 4, 4)])
        self.head = nnx.Linear(4, NUM_CLASSES, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


def nnx_convolutions():
    graph, params, rest = nnx.split(Convolutional(nnx.Rngs(0)), nnx.Param, ...)
    return Animal(lambda params, x: nnx.merge(graph, params, rest)(x), params, RULES, IMAGES, 3, 3)


def equinox_mlp():
    module = eqx.nn.MLP(WIDTH, NUM_CLASSES, WIDTH, 3, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_inexact_array)
    rules = {r"layers/([0-2])/.*": r"layer_\1", "layers/3/.*": None}
    return Animal(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, rules, ROWS, 3, 2)


def haiku_mlp():
    import haiku as hk

    def network(x):
        for i in range(3):
            x = jax.nn.relu(hk.Linear(WIDTH, name=f"layer_{i}")(x))
        return hk.Linear(NUM_CLASSES, name="head")(x)

    module = hk.without_apply_rng(hk.transform(network))
    params = module.init(jax.random.key(0), ROWS)
    return Animal(lambda params, x: module.apply(params, x), params, {r"(layer_\d)/.*": r"\1", "head/.*": None}, ROWS, 3, 2)


ZOO = {
    "mlp": mlp,
    "residual": residual,
    "skips": skips,
    "stacked": stacked,
    "scanned, upside down": scanned,
    "mixture of experts": mixture_of_experts,
    "time-major": time_major,
    "custom_vjp and cond": derivatives_of_its_own,
    "remat of all": remat_of_all,
    "shared layer": shared_layer,
    "head below": head_below,
    "flat tokens": flat_tokens,
    "flat tokens by position": flat_tokens_by_position,
    "nothing per example": nothing_per_example,
    "batch statistics": batch_statistics,
    "last token": last_token,
    "batch norm": batch_norm,
    "post-norm": transformer,
    "pre-norm, remat": lambda: transformer(pre_norm=True, remat=True),
    "tied": lambda: transformer(num_programs=2, pre_norm=True, tied=True),
    "dropout": lambda: transformer(dropout=0.5),
    "scanned Linen": scanned_linen,
    "NNX": nnx_convolutions,
    "Equinox": equinox_mlp,
} | ({"Haiku": haiku_mlp} if importlib.util.find_spec("haiku") else {})
