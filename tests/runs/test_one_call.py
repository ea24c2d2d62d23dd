"""A whole run in one call."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gafreeze_jax
from gafreeze_jax import masking
from gafreeze_jax.metrics import label_sets
from gafreeze_jax.runs import reuse

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(60, 4)).astype(np.float32)
TARGETS = (INPUTS[:, 0] > 0).astype(np.int32)
PARAMS = {"body": [np.eye(4, dtype=np.float32)] * 2, "head": np.ones((4, 2), np.float32)}
RULES = {"body/0": "upper", "body/1": "lower", "head": None}
OPTIONS = {
    "gens": 1,
    "population": 2,
    "epochs": 1,
    "batch_size": 8,
    "finalist_seeds": 1,
    "quiet": True,
}


def apply(params, x):
    """The second matrix comes first."""
    return jnp.tanh(jnp.tanh(x @ params["body"][1]) @ params["body"][0]) @ params["head"]


def parts(*bounds):
    return [(INPUTS[first:last], TARGETS[first:last]) for first, last in itertools.pairwise(bounds)]


@pytest.mark.usefixtures("quick_compilation", "saved_charts")
def test_a_run_in_one_call(tmp_path):
    (train,) = parts(0, 20)
    options = OPTIONS | {"out": tmp_path / "run", "plan": "members=8,steps=3,freezing=traced"}
    found = gafreeze_jax.search(apply, PARAMS, RULES, train, iter(parts(20, 30, 40, 60)), options=options)
    assert found.folder == tmp_path / "run"
    assert list(found.rates) == ["lower", "upper"]
    assert list(masking.read_rates(found.folder / "mask.json").values()) == list(found.rates.values())
    for path, rate in (("lower", found.rates["lower"]), ("upper", found.rates["upper"])):
        place = {"upper": 0, "lower": 1}[path]
        assert np.array_equal(found.model["body"][place], PARAMS["body"][place]) == (rate == 0)
    assert not np.array_equal(found.model["head"], PARAMS["head"])
    assert found.verdict == json.loads((found.folder / "result.json").read_text())["verdict"]
    page = (found.folder / "report.html").read_text()
    assert "gafreeze_jax.search" in page
    assert "3 blocks; lower has most operations" in page
    assert (found.folder / "plots" / "blocks.svg").exists()
    again = gafreeze_jax.search(apply, PARAMS, RULES, train, parts(20, 30, 40, 60), options=options)
    np.testing.assert_array_equal(again.model["head"], found.model["head"])
    with pytest.raises(ValueError, match=r"is a run of gafreeze_jax\.search, and only its caller knows its network and data"):
        reuse.predict(found.folder, "other.csv")
    others = {"the model": (PARAMS | {"head": -PARAMS["head"]}, train), "the data": (PARAMS, parts(1, 21)[0])}
    for what, (params, data) in others.items():
        with pytest.raises(ValueError, match=f"{what} .* changed since this run started; choose a new folder"):
            gafreeze_jax.search(apply, params, RULES, data, parts(20, 30, 40, 60), options=options)


@pytest.mark.usefixtures("quick_compilation")
def test_a_head_that_is_a_gene_like_others(tmp_path):
    """What trains nothing is the model as it is, and no head trains beside the genes."""
    rules = {"body/0": "upper", "body/1": "lower", "head": "top"}
    options = OPTIONS | {"out": tmp_path / "run", "plan": "members=8,steps=3,freezing=traced", "baselines": "all"}
    found = gafreeze_jax.search(apply, PARAMS, rules, *parts(0, 20, 60), options=options)
    result = json.loads((found.folder / "result.json").read_text())
    assert (list(found.rates), result["head"]) == (["lower", "upper", "top"], "none")
    assert result["results"]["train nothing"]["trainable_parameters"] == 0
    assert not {"head only", "LP-FT"} & result["results"].keys()
    assert masking.read_head(found.folder / "mask.json") is None
    assert np.array_equal(found.model["head"], PARAMS["head"]) == (found.rates["top"] == 0)


def search(out):
    """What it finds, in a line."""
    options = OPTIONS | {"population": 4, "out": out}
    found = gafreeze_jax.search(apply, PARAMS, RULES, *parts(0, 20, 40, 60), options=options)
    return f"{found.rates} {[round(float(value), 3) for value in found.model['head'].ravel()]}"


SEARCH = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, test_one_call
print(jax.device_count(), test_one_call.search(sys.argv[2]))
"""


@pytest.mark.usefixtures("quick_compilation")
def test_a_search_over_several_devices(tmp_path):
    """The function is traced for a mesh of devices, too."""
    command = [sys.executable, "-c", SEARCH, str(Path(__file__).parent), str(tmp_path / "two")]
    devices = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2", "PJRT_NPROC": "4"}
    done = subprocess.run(command, env=os.environ | devices, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"2 {search(tmp_path / 'one')}"


@pytest.mark.usefixtures("quick_compilation")
def test_narrow_parameters_in_one_call(tmp_path):
    params = PARAMS | {"body": [jnp.asarray(kernel, jnp.bfloat16) for kernel in PARAMS["body"]]}
    options = OPTIONS | {
        "out": tmp_path / "run",
        "plan": "members=8,steps=3,freezing=traced",
        "epochs": 3,
        "learning_rate": 0.1,
    }
    found = gafreeze_jax.search(apply, params, RULES, *parts(0, 20, 40, 60), options=options)
    for kernel, old, rate in zip(found.model["body"][::-1], params["body"], found.rates.values(), strict=True):
        assert kernel.dtype == jnp.bfloat16
        assert np.array_equal(kernel, old) == (rate == 0)


@pytest.mark.usefixtures("quick_compilation")
def test_several_labels_in_one_call(tmp_path):
    """Their metric has a threshold, which is chosen on validation."""
    data = [(inputs, np.eye(2)[targets]) for inputs, targets in parts(0, 20, 40, 60)]
    loss = lambda outputs, targets: optax.sigmoid_binary_cross_entropy(outputs, targets).mean(-1)  # noqa: E731
    options = OPTIONS | {"out": tmp_path / "run", "plan": "members=8,steps=3,freezing=traced"}
    found = gafreeze_jax.search(apply, PARAMS, RULES, *data, loss=loss, metric=label_sets.MACRO_F1, options=options)
    result = json.loads((found.folder / "result.json").read_text())
    assert 0 <= result["learned"]["threshold"] <= 1
    assert 0 <= result["results"]["found"]["test_macro-F1"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 3}, r"train: expected \(inputs, targets\), or an iterable of such batches; got int"),
        ({"validation": iter([])}, "validation: expected .* got list_iterator"),
        ({"train": (INPUTS, TARGETS[1:])}, "train: expected a row of inputs for each of 59 targets, got 60"),
        ({"options": OPTIONS | {"gens": 0}}, "gens must be at least 1, got 0"),
        ({"options": {"epoch": 3}}, "no option epoch; did you mean epochs?"),
        ({"params": None}, "a function needs its parameters"),
        (
            {"train": [{"image": INPUTS, "label": TARGETS}]},
            r"train: expected batches \(inputs, targets\); got dicts with image, label",
        ),
        ({"train": list(zip(INPUTS, TARGETS, strict=True))}, r"train: expected batches of several examples each, \[B, ...\]"),
        ({"train": (INPUTS.tolist(), TARGETS.tolist())}, r"train: expected arrays \[N, ...\] of inputs and targets"),
        ({"train": (INPUTS, TARGETS + 1)}, "a target is class 2, and the function gives 2 outputs; classes start at 0"),
        ({"validation": (INPUTS, TARGETS * 2 - 1)}, "a target is class -1; classes start at 0"),
        ({"options": {"out": "gs://bucket/run"}}, "a search reads its model back from a local folder, got gs://bucket/run"),
        ({"test": (INPUTS, TARGETS[:5])}, f"test: expected a row of inputs for each of 5 targets, got {len(INPUTS)}"),
        ({"validation": (INPUTS[:0], TARGETS[:0])}, "validation: there are no examples"),
        (
            {"validation": (INPUTS[:3], TARGETS[:3])},
            "validation: 3 examples are too few to test on half of them; give more, or",
        ),
        ({"test": (INPUTS[:1], TARGETS[:1])}, "the test split has 1 example, and a verdict needs two or more"),
        (
            {"train": (INPUTS, TARGETS[:, None])},
            "targets have 2 axes, and outputs 2; the default loss takes one class for each",
        ),
        ({"train": [1, 2]}, "train: expected .* got list"),
        ({"train": ((INPUTS, TARGETS), (INPUTS, TARGETS + 1))}, "a target is class 2, and the function gives 2 outputs"),
        ({"train": (INPUTS, TARGETS * 1.0)}, "targets are float64, and the default loss takes numbers of classes"),
        ({"train": (INPUTS, TARGETS.astype(str))}, "targets are <U.*, and the default loss takes numbers of classes"),
    ],
)
def test_what_is_wrong_is_told(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, validation = parts(0, 20, 40)
    given = {"params": PARAMS, "genes": RULES, "train": train, "validation": validation, "options": OPTIONS} | changes
    with pytest.raises(ValueError, match=message):
        gafreeze_jax.search(apply, **given)
    assert not (tmp_path / "runs").exists()
