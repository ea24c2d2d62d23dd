"""ResNets against PyTorch's, scoring and training; masks; reading and writing checkpoints; bad ones."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_population as tasks
from safetensors.numpy import load_file, save_file

from gafreeze_jax.data.batches import balanced_batches, in_order, make_batches
from gafreeze_jax.engine import backprop
from gafreeze_jax.engine.network import Dataset, Source, Step
from gafreeze_jax.masking import leaf_paths
from gafreeze_jax.metrics import cross_entropy
from gafreeze_jax.models import base, preprocessing, pretrained, resnet

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHARED = Path(__file__).parents[2] / "../shared/data"
KEY = jax.random.key(0)
LABELS = ("ant", "bee", "cat")
NUM_CLASSES = len(LABELS)
WEIGHTS = np.array([1, 1, 0, 1, 1], np.float32)  # the third row only fills the batch up


def make_model(config, num_classes=NUM_CLASSES):
    return base.Model(resnet.CIFAR_FAMILY, config, num_classes=num_classes)


def read_config(folder):
    return pretrained.read_config(folder, [resnet.FAMILY])[1]


def random_images(size, channels=3, num=5):
    return np.random.default_rng(0).integers(0, 256, (num, size, size, channels), np.uint8)


def run(network, params, x, *, frozen):
    """Logits, and the new running statistics of all stages."""

    @jax.jit
    def of(params, x):
        context, statistics = {"weights": jnp.array(WEIGHTS)}, {}
        for block in network.blocks:
            x = block.apply(params[block.name], x, context, frozen=frozen, key=None)
            if frozen is not True:
                x, statistics[block.name] = x
        return network.head(params["head"], x, context, frozen=frozen, key=None), statistics

    return of(params, x)


# The networks that PyTorch has


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    module.manual_seed(0)
    return module


def randomise(torch, module):
    """Norms and running statistics like those of a trained network."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low in ((layer.weight, 0.5), (layer.bias, -0.5), (layer.running_mean, -0.5), (layer.running_var, 0.5)):
                torch.nn.init.uniform_(tensor, low, low + 1)
    return module


HUGGING_FACE = {
    "basic": {"layer_type": "basic"},
    "bottleneck": {"layer_type": "bottleneck"},
    "downsampling in the bottleneck": {"layer_type": "bottleneck", "downsample_in_bottleneck": True},
    "downsampling in the first stage, equal widths, gray": {
        "layer_type": "basic", "downsample_in_first_stage": True, "hidden_sizes": [8, 8], "num_channels": 1
    },
}  # fmt: skip
SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}


def write_hugging_face(torch, folder, name):
    """A random checkpoint, and the model."""
    from transformers import ResNetConfig, ResNetForImageClassification

    model = randomise(torch, ResNetForImageClassification(ResNetConfig(**SMALL | HUGGING_FACE[name], num_labels=NUM_CLASSES)))
    model.save_pretrained(folder)
    channels = model.config.num_channels
    preprocessor = {
        "size": {"shortest_edge": 40},
        "crop_pct": 0.9,
        "resample": 3,
        "image_processor_type": "ConvNextImageProcessor",
    }
    preprocessor |= {"image_mean": [0.4, 0.5, 0.6][:channels], "image_std": [0.2, 0.3, 0.4][:channels]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def make_module(torch, blocks, widths, *, bottleneck=False, cifar=False):
    """A ResNet with torchvision's names, or with those of the CIFAR family."""
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            inner = width // 4 if bottleneck else width
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, width, 1, 1)]
            shapes = shapes if bottleneck else [(inputs, width, 3, stride), (width, width, 3, 1)]
            self.number = len(shapes)
            for number, (before, after, size, step) in enumerate(shapes, start=1):
                setattr(self, f"conv{number}", nn.Conv2d(before, after, size, step, size // 2, bias=False))
                setattr(self, f"bn{number}", nn.BatchNorm2d(after))
            self.stride, self.missing = stride, width - inputs
            if not cifar and (stride > 1 or self.missing):
                self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

        def forward(self, x):
            h = x
            for number in range(1, self.number + 1):
                h = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(h))
                h = functional.relu(h) if number < self.number else h
            if hasattr(self, "downsample"):
                x = self.downsample(x)
            elif cifar:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing // 2, self.missing // 2))
            return functional.relu(h + x)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            size, stride = (3, 1) if cifar else (7, 2)
            self.conv1 = nn.Conv2d(3, widths[0], size, stride, size // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(widths[0])
            inputs = widths[0]
            for stage, width in enumerate(widths, start=1):
                layers = [Block(width if i else inputs, width, 2 if stage > 1 and not i else 1) for i in range(blocks)]
                setattr(self, f"layer{stage}", nn.Sequential(*layers))
                inputs = width
            setattr(self, "linear" if cifar else "fc", nn.Linear(inputs, NUM_CLASSES))

        def forward(self, x):
            x = functional.relu(self.bn1(self.conv1(x)))
            x = x if cifar else functional.max_pool2d(x, 3, 2, 1)
            for stage in range(1, len(widths) + 1):
                x = getattr(self, f"layer{stage}")(x)
            return (self.linear if cifar else self.fc)(x.mean((2, 3)))

    return randomise(torch, ResNet())


PYTORCH = {
    "torchvision, basic": {"blocks": 1, "widths": (8, 16)},
    "torchvision, bottleneck": {"blocks": 1, "widths": (16, 32), "bottleneck": True},
    "cifar": {"blocks": 2, "widths": (8, 16), "cifar": True},
}
CASES = [*HUGGING_FACE, *PYTORCH]
TRAINED = ("bottleneck", "torchvision, basic", "cifar")  # which is enough, and takes longer


def write(torch, folder, name):
    """Writes a checkpoint: its path, and a function of PyTorch's from images [B, C, H, W] to logits, with its module."""
    folder.mkdir(exist_ok=True)
    if name in HUGGING_FACE:
        model = write_hugging_face(torch, folder, name)
        return folder, model, lambda x: model(x).logits
    model = make_module(torch, **PYTORCH[name])
    path = folder / "resnet.safetensors"
    save_file({key: tensor.numpy() for key, tensor in model.state_dict().items()}, path)
    return path, model, model


def scaled(torch, x, preprocessing):
    """What PyTorch's model is given: [B, C, H, W]."""
    pixels = (x / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    return torch.tensor(np.moveaxis(pixels, -1, 1), dtype=torch.float32)


@pytest.fixture(scope="module")
def load(torch, tmp_path_factory):
    """A function of a case's name."""

    @functools.cache
    def of(name):
        path, module, forward = write(torch, tmp_path_factory.mktemp("case"), name)
        loaded = pretrained.load(path)
        return loaded, loaded.model.make_network(), loaded.params, module, forward

    return of


def close(ours, theirs):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_pytorch(name, load, torch):
    loaded, network, params, module, forward = load(name)
    x = random_images(37, loaded.config.num_channels)
    module.eval()
    with torch.no_grad():
        theirs = forward(scaled(torch, x, loaded.model.pixels))
    close(run(network, params, x, frozen=True)[0], theirs)


@pytest.mark.parametrize("name", TRAINED)
def test_training_equals_pytorch(name, load, torch):
    """Loss, gradients and running statistics; a row that only fills the batch up does not count."""
    loaded, network, params, module, forward = load(name)
    x, labels = random_images(32, loaded.config.num_channels), np.arange(len(WEIGHTS)) % NUM_CLASSES
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    real = WEIGHTS > 0
    module.train()
    logits = forward(scaled(torch, x[real], loaded.model.pixels))
    module.zero_grad()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[real]))
    loss.backward()
    after = {name: tensor.clone().numpy() for name, tensor in module.state_dict().items()}
    slopes = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    module.load_state_dict(state)

    step = Step(x, jnp.array(labels), jnp.array(WEIGHTS), {"weights": jnp.array(WEIGHTS)})
    result = backprop.value_and_grad(network, cross_entropy, [False] * len(network.blocks))(params, step)
    close(result.loss, loss.item())
    trained = {name: tree | {"batch_stats": result.statistics.get(name, {})} for name, tree in result.gradients.items()}
    trained["head"] = result.gradients["head"]
    names = {path: names[0] for path, names in loaded.model.torch_names(params).items()}
    assert set(names.values()) == {name for name in after if "num_batches" not in name}
    for path, leaf in zip(leaf_paths(trained), jax.tree.leaves(trained), strict=True):
        theirs = after[names[path]] if "batch_stats" in path else slopes[names[path]]
        close(leaf, theirs.T if theirs.ndim == 2 else np.moveaxis(theirs, (0, 1), (-1, -2)) if theirs.ndim == 4 else theirs)


def test_resnet_20_scores_on_cifar_10_what_its_authors_say():
    path, test = SHARED / "weights/resnet20-cifar10.safetensors", SHARED / "images/cifar10/test.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    loaded = pretrained.load(path)
    assert loaded.config == resnet.cifar_config(20)
    with np.load(test) as file:
        data = Dataset(file["images"], file["labels"].astype(np.int32))
    source = Source(data, make_batches(in_order(len(data.targets), 200)))
    accuracy, _ = tasks.accuracy_and_loss(loaded.model.make_network(), loaded.params, source)
    assert accuracy >= 0.91


# Network and parameters


def small_config(**changes):
    return dataclasses.replace(resnet.ResNetConfig(3, 8, (8, 16), (2, 2), "basic"), **changes)


def test_stages():
    network = make_model(small_config(depths=(3, 3))).make_network()
    assert network.names == ("stem", "layer1_0", "layer1_1", "layer1_2", "layer2_0", "layer2_1", "layer2_2")
    functions = [block.apply for block in network.blocks]
    assert functions[1] is functions[2] is functions[3]  # so they share compiled code
    assert functions[5] is functions[6] is not functions[4]
    assert network == make_model(small_config(depths=(3, 3))).make_network()


def test_bad_depth_of_the_cifar_family():
    with pytest.raises(ValueError, match=r"6n \+ 2 layers \(8, 14, 20, ...\), got 18"):
        resnet.cifar_config(18)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_bfloat16_computes_nearly_the_same(backend, monkeypatch):
    config = small_config(hidden_sizes=(16,), depths=(1,), stem="cifar")
    model, x = make_model(config), random_images(8)
    params = model.init_params(KEY)
    exact = run(model.make_network(), params, x, frozen=False)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rounded = run(model.make_network(dtype=jnp.bfloat16), params, x, frozen=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.05, atol=0.05), rounded, exact)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 0, 0)])
def test_gradients_of_batch_normalisation_are_those_of_its_formula(weights, frozen):
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.array(rng.normal(2, 3, (4, 3, 2, 5)), jnp.float32) for _ in range(2))
    mean, var, scale, bias = (jnp.array(rng.uniform(0.5, 2, 5), jnp.float32) for _ in range(4))
    weights = jnp.array(weights, jnp.float32)

    def ours(x, scale, bias):
        return resnet.normalise_by_batch(x, weights, jnp.array(frozen), mean, var, scale, bias)[0]

    def formula(x, scale, bias):
        examples = jnp.concatenate([row[None] for row, weight in zip(x, weights, strict=True) if weight] or [0 * x])
        used = (mean, var) if frozen else (examples.mean((0, 1, 2)), examples.var((0, 1, 2)))
        return resnet.normalise(x, *used, scale, bias)

    if not weights.any():
        cotangent = jnp.zeros_like(cotangent)  # as the loss of a batch without examples has it
    for one, other in zip(*(jax.vjp(function, x, scale, bias)[1](cotangent) for function in (ours, formula)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 8), (1, 2)])
def test_pooling_equals_that_of_xla(size):
    def reduce_window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)])

    x = jnp.array(np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32))
    (ours, of_ours), (theirs, of_theirs) = (jax.vjp(pool, x) for pool in (resnet.max_pool, reduce_window))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(of_ours(theirs)[0], of_theirs(theirs)[0], rtol=1e-6)


# Masks


def image_task(config):
    model = make_model(config, tasks.NUM_CLASSES)
    rng = np.random.default_rng(0)
    x = random_images(8, config.num_channels, tasks.NUM_EXAMPLES)
    targets = rng.integers(0, tasks.NUM_CLASSES, len(x)).astype(np.int32)
    source = Source(Dataset(x, targets), make_batches(in_order(len(x), 8)))
    steps = make_batches(balanced_batches(rng, np.ones(len(x)), 8, num_epochs=2))
    return model.make_network(), model.init_params(KEY), source, steps


def small_task():
    """Of three genes."""
    return image_task(small_config(num_channels=1, hidden_sizes=(8, 16), depths=(1, 1), stem="cifar"))


@pytest.fixture(scope="module")
def trained():
    """A task of three genes and the reference parameters for all masks."""
    task = small_task()
    return task, {tuple(genome): tasks.plain_run(task, tasks.RECIPES["sgd"], genome) for genome in tasks.ALL_MASKS}


PLANS = ("block by block", "stacked", "traced, all members, in one")


@pytest.mark.parametrize("plan", PLANS)
def test_every_mask_trains_like_the_plain_static_run(trained, plan):
    """And what is frozen, running statistics included, stays as it was to the bit."""
    task, expected = trained
    population = tasks.make_population(task, tasks.RECIPES["sgd"], **tasks.PLANS[plan])
    for member in population.evaluate(tasks.ALL_MASKS, tasks.make_run(task)):
        tasks.assert_same_training(task, member, expected[tuple(member.genome)])


# Reading and writing


@pytest.mark.parametrize("name", CASES)
def test_loading_in_pytorch_what_was_saved_is_exact(name, load, torch, tmp_path):
    loaded, _, params, module, _ = load(name)
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, params)
    loaded.save(tmp_path / "new" / "model", moved, label_names=LABELS)
    again = pretrained.load(tmp_path / "new" / "model")
    assert (again.config, again.model.pixels) == (loaded.config, loaded.model.pixels)
    jax.tree.map(np.testing.assert_array_equal, again.params, moved)

    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if (loaded.source / "config.json").exists():
        from transformers import AutoModelForImageClassification

        theirs, info = AutoModelForImageClassification.from_pretrained(tmp_path / "new/model", output_loading_info=True)
        assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
        assert theirs.config.id2label == dict(enumerate(LABELS))
        assert (tmp_path / "new/model/preprocessor_config.json").exists()
        found = theirs.state_dict()
    else:
        found = {name: torch.tensor(tensor) for name, tensor in load_file(tmp_path / "new/model/model.safetensors").items()}
        module.load_state_dict(found)
        module.load_state_dict(state)
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        expected = tensor if "num_batches" in key else jnp.asarray(tensor.numpy()) * 0.9
        np.testing.assert_array_equal(found[key].numpy(), expected)


@pytest.fixture(scope="module")
def cifar_folder(tmp_path_factory):
    """A random checkpoint of the CIFAR family."""
    model = make_model(resnet.cifar_config(8))
    folder = tmp_path_factory.mktemp("cifar")
    preprocessing.write(folder, model.pixels._replace(size=24))
    model.save(folder, model.init_params(KEY), source=folder)
    return folder


@pytest.fixture
def cifar_file(cifar_folder, tmp_path):
    """A copy of it, and its tensors."""
    path = shutil.copytree(cifar_folder, tmp_path / "cifar") / "model.safetensors"
    return path, load_file(path)


def test_a_network_of_our_own_is_read_again(cifar_file):
    path, tensors = cifar_file
    params = make_model(resnet.cifar_config(8)).init_params(KEY)
    for where, size in ((path.parent, 24), (path, 32)):  # the size is written beside the file
        loaded = pretrained.load(where)
        assert loaded.config == resnet.cifar_config(8)
        assert loaded.model.pixels.size == size
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert {"conv1.weight", "layer3.0.bn2.running_var", "linear.bias"} < tensors.keys()


def test_a_fresh_classifier_comes_from_the_key(cifar_file):
    checkpoint = pretrained.read(cifar_file[0])
    params = checkpoint.load(num_classes=7, key=KEY).params
    jax.tree.map(np.testing.assert_array_equal, params["head"], make_model(checkpoint.model.config, 7).init_head(KEY))
    jax.tree.map(np.testing.assert_array_equal, params["stem"], checkpoint.load().params["stem"])


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_all_tensors_that_do_not_fit_are_named_at_once(cifar_file):
    path, tensors = cifar_file
    del tensors["layer1.0.bn2.running_var"], tensors["bn1.bias"]
    tensors |= {"layer2.0.se.weight": zeros(3), "layer3.0.conv2.weight": zeros(64, 64, 5, 5), "linear.weight": zeros(3, 9)}
    tensors |= {"bn1.num_batches_tracked": np.array(7)}
    save_file(tensors, path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        pretrained.load(path)
    assert sorted(str(error.value).partition("network: ")[2].split("; ")) == [
        "bn1.bias is missing",
        "layer1.0.bn2.running_var is missing",
        "layer2.0.se.weight is not a tensor of this network",
        "layer3.0.conv2.weight has shape [64, 64, 5, 5], the config needs [64, 64, 3, 3]",
        "linear.weight has shape [3, 9], the config needs [3, 64]",
    ]


ANOTHER = "not a ResNet with PyTorch's names: no convolution "
BAD_TENSORS = {
    "BERT": ({"bert.embeddings.word_embeddings.weight": zeros(3, 3)}, ANOTHER + "conv1.weight; its tensors are bert."),
    "VGG": ({"features.0.weight": zeros(8, 3, 3, 3), "classifier.0.weight": zeros(3, 8)}, ANOTHER + "conv1.weight"),
    "stem alone": ({"conv1.weight": zeros(8, 3, 3, 3)}, ANOTHER + "layer1.0.conv1.weight"),
    "no second convolution": (
        {"conv1.weight": zeros(8, 3, 3, 3), "layer1.0.conv1.weight": zeros(8, 8, 3, 3)}, ANOTHER + "layer1.0.conv2.weight"
    ),
    "stem of 5 x 5": (
        {"conv1.weight": zeros(8, 3, 5, 5)} | {f"layer1.0.conv{i}.weight": zeros(8, 8, 3, 3) for i in (1, 2)},
        "conv1.weight must be 3 x 3 (for CIFAR) or 7 x 7 (for ImageNet), got 5 x 5",
    ),
    "grouped": (
        {
            "conv1.weight": zeros(8, 3, 7, 7),
            "layer1.0.conv1.weight": zeros(8, 8, 1, 1),
            "layer1.0.conv2.weight": zeros(8, 2, 3, 3),
            "layer1.0.conv3.weight": zeros(16, 8, 1, 1),
        },
        "wide or grouped bottleneck blocks (wide ResNet, ResNeXt) are not implemented",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_checkpoint_of_another_architecture(name, tmp_path):
    tensors, message = BAD_TENSORS[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pretrained.read(tmp_path / "model.safetensors")
    assert "\n" not in str(error.value)


def test_checkpoint_without_the_classifier_that_is_asked_for(cifar_file):
    path, tensors = cifar_file
    save_file({name: tensor for name, tensor in tensors.items() if "linear" not in name}, path)
    with pytest.raises(ValueError, match="no classifier"):
        pretrained.load(path)


CONFIG = {"model_type": "resnet", "num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "regnet"}, r"unknown model_type 'regnet', expected resnet;"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'relu', got 'gelu'"),
        ({"layer_type": "wide"}, "layer_type must be one of basic, bottleneck, got 'wide'"),
        ({"depths": [1]}, "hidden_sizes has 2 entries, depths 1"),
        ({"depths": "11"}, "depths must be a list, each an integer from 1 to 1000, got '11'"),
        ({"hidden_sizes": [8, 0]}, r"hidden_sizes must be a list, each a positive integer below .*, got \[8, 0\]"),
        ({"hidden_sizes": [8, 18]}, "multiples of 4, got 18"),
        ({"num_channels": 0, "embedding_size": None}, "num_channels must be .*; embedding_size must be"),
        ({"downsample_in_bottleneck": 1}, "downsample_in_bottleneck must be true or false, got 1"),
    ],
)
def test_config_with_a_wrong_value(changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(ValueError, match=rf"config\.json: .*{reason}"):
        read_config(tmp_path)


MEAN_STD = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
PREPROCESSORS = {
    "ConvNext, old": ({"size": 224, "crop_pct": 0.875, "resample": 3}, (224, 0.875, 3, False)),
    "ConvNext": ({"size": {"shortest_edge": 288}, "image_processor_type": "ConvNextImageProcessor"}, (288, 0.875, 3, False)),
    "ConvNext, large": ({"size": {"shortest_edge": 384}, "crop_pct": 0.9}, (384, 1.0, 3, True)),
    "ViT": ({"size": {"height": 160, "width": 160}, "resample": 2}, (160, 1.0, 2, True)),
    "Bit": (
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 192, "width": 192}},
        (192, 0.75, 3, False),
    ),
    "no crop": ({"size": {"shortest_edge": 100}}, (100, 1.0, 3, False)),
}


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_preprocessor_config(name, tmp_path):
    raw, expected = PREPROCESSORS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(MEAN_STD | raw))
    found = preprocessing.read(tmp_path, resnet.default_preprocessing(small_config()))
    assert (found.size, found.crop, found.resample, found.squashes) == expected
    assert (found.mean, found.std) == tuple(map(tuple, MEAN_STD.values()))


def test_preprocessing_of_the_family(tmp_path):
    assert preprocessing.read(tmp_path, resnet.default_preprocessing(small_config()))[:3] == (224, 0.875, 2)
    gray = preprocessing.read(tmp_path, resnet.default_preprocessing(resnet.cifar_config(8, num_channels=1)))
    assert gray[:3] == (32, 1.0, 2)
    np.testing.assert_allclose((*gray.mean, *gray.std), (0.449, 0.226))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, "do_normalize": False}))
    assert preprocessing.read(tmp_path, resnet.default_preprocessing(small_config())).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_mean": [0.5]}, r"image_mean must be 3 numbers, got \(0\.5,\)"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std must be 3 positive numbers"),
        ({"image_std": "no"}, "not the config of an image processor"),
        ({"size": {"longest_edge": 3}}, "not the config of an image processor"),
        ({"size": {"height": 8, "width": 9}}, "images must be squares, got 8 x 9"),
        ({"size": "224"}, "size must be a positive integer, got '224'"),
        ({"crop_pct": 2}, "share of an image that is kept must be above 0 and at most 1"),
        ({"resample": 9}, "resample must be one of pillow's 0 to 5, got 9"),
        ({"do_rescale": False}, "rescale_factor must be 1 / 255, got 1"),
    ],
)
def test_preprocessor_config_with_a_wrong_value(changes, reason, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 224} | MEAN_STD | changes))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{reason}"):
        preprocessing.read(tmp_path, resnet.default_preprocessing(small_config()))
