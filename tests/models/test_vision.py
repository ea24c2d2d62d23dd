"""Networks for images against PyTorch's: logits, also of images of another size, gradients, saved models; refused configs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from PIL import Image
from safetensors.numpy import load_file

from gafreeze_jax.data.images import load_unlabelled
from gafreeze_jax.models import base, preprocessing, pretrained
from gafreeze_jax.tasks.images import make_frame

pytestmark = pytest.mark.usefixtures("quick_compilation")

NETWORKS = ["vit", "deit", "dinov2", "dinov2_with_registers", "convnext"]
CASES = [(name, number) for name in NETWORKS for number in range(len(parity.CONFIGS[name]))]
SIZE = 12  # of the images; some of the configs have another


def write(folder, name, number):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    raw = parity.CONFIGS[name][number]
    return parity.write_torch_model(folder, transformers.AutoModelForImageClassification, name, raw, plain=number > 0)


def make_images(config):
    shape = (3, SIZE, SIZE, config.num_channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def compute(model, params, images):
    return parity.run(model.make_network(), params, jnp.asarray(images), {"weights": jnp.ones(len(images))})


def run_torch(network, images, wanted):
    import torch

    pixels = (images / np.float32(255) - np.float32(wanted.mean)) / np.float32(wanted.std)
    resizes = {"interpolate_pos_encoding": True} if network.config.model_type in ("vit", "deit") else {}
    return network(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), **resizes).logits


@pytest.mark.parametrize(("name", "number"), CASES)
def test_logits_equal_pytorch(name, number, tmp_path):
    network = write(tmp_path, name, number)
    loaded = pretrained.load(tmp_path)
    images = make_images(loaded.config)
    expected = run_torch(network, images, loaded.model.pixels).detach().numpy()
    np.testing.assert_allclose(compute(loaded.model, loaded.params, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_pytorch_and_it_loads_what_is_saved(name, tmp_path):
    network = write(tmp_path / "model", name, 0)
    loaded = pretrained.load(tmp_path / "model")
    images, wanted = make_images(loaded.config), loaded.model.pixels
    ours = functools.partial(compute, loaded.model, images=images)
    parity.assert_equal_gradients(loaded, network, ours, run_torch(network, images, wanted), tmp_path / "gradients")

    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, loaded.params)
    loaded.save(tmp_path / "saved", moved, label_names=("a", "b", "c"))
    names = load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert names == load_file(tmp_path / "model" / "model.safetensors").keys()
    auto = pytest.importorskip("transformers").AutoModelForImageClassification
    again, info = auto.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
    expected = run_torch(again.eval(), images, wanted).detach().numpy()
    np.testing.assert_allclose(compute(loaded.model, moved, images), expected, rtol=1e-3, atol=1e-4)


def make(name, **changes):
    known = next(family for family in pretrained.FAMILIES if family.model_type == name)
    values, problems = pretrained.configs.check(parity.CONFIGS[name][0] | changes, known.config)
    assert not problems
    return base.Model(known, known.config(**values), num_classes=3)


@pytest.mark.parametrize("name", ["dinov2", "convnext"])
def test_stochastic_depth_leaves_out_what_blocks_add(name):
    model = make(name, drop_path_rate=0.5)
    params = model.init_params(jax.random.key(0))
    block = model.make_network().blocks[2]
    width = {"dinov2": (10, 16), "convnext": (6, 6, 6)}[name]
    x = jax.random.normal(jax.random.key(1), (64, *width))
    tree = jax.tree.map(lambda leaf: leaf + 1.0, params[block.name])
    context = {"weights": jnp.ones(64)}
    clean = block.apply(tree, x, context, frozen=True, key=jax.random.key(2))
    noisy = block.apply(tree, x, context, frozen=False, key=jax.random.key(2))
    same = np.asarray((noisy == x).reshape(64, -1).all(1))
    assert not np.asarray((clean == x).reshape(64, -1).all(1)).any()
    assert 4 < same.sum() < 32  # about a quarter


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        (
            "vit",
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2,
             "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            preprocessing.Preprocessing(8, 1.0, 2, (0.5,) * 3, (0.5,) * 3, True),
        ),
        (
            "vit",
            {"size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            preprocessing.Preprocessing(8, 1.0, 2, (0.5,) * 3, (0.5,) * 3, True),
        ),
        (
            "deit",
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 16, "do_center_crop": True, "crop_size": 14,
             "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
            preprocessing.Preprocessing(14, 0.875, 3, (0.4,) * 3, (0.2,) * 3, True),
        ),
        (
            "vit",
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 9, "height": None}, "resample": 3,
             "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
            preprocessing.Preprocessing(9, 1.0, 3, (0.4,) * 3, (0.2,) * 3),
        ),
        (
            "dinov2",
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 16}, "do_center_crop": True, "resample": 3,
             "crop_size": {"height": 14, "width": 14}, "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
            preprocessing.Preprocessing(14, 0.875, 3, (0.4,) * 3, (0.2,) * 3),
        ),
        (
            "convnext",
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 8}, "crop_pct": 0.5, "resample": 3,
             "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
            preprocessing.Preprocessing(8, 0.5, 3, (0.4,) * 3, (0.2,) * 3),
        ),
        ("deit", None, preprocessing.imagenet(12, 0.875, preprocessing.BICUBIC, 3)),
    ],
)  # fmt: skip
def test_preprocessing(name, raw, expected, tmp_path):
    if raw:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    model = make(name)
    assert preprocessing.read(tmp_path, model.pixels) == expected


@pytest.mark.parametrize(
    ("name", "processor", "size"),
    [
        ("vit", "ViTImageProcessorPil", {"size": {"height": 24, "width": 24}}),
        ("deit", "DeiTImageProcessorPil", {"size": {"height": 28, "width": 28}, "crop_size": {"height": 24, "width": 24}}),
        ("dinov2", "BitImageProcessorPil", {"size": {"shortest_edge": 37}, "crop_size": {"height": 24, "width": 24}}),
        ("convnext", "ConvNextImageProcessorPil", {"size": {"shortest_edge": 24}, "crop_pct": 0.95}),
    ],
)
@pytest.mark.parametrize("shape", [(40, 61, 3), (50, 33, 3)])
@pytest.mark.parametrize("image_size", [None, 30, 390])
def test_images_are_prepared_as_by_hugging_face(name, processor, size, image_size, shape, tmp_path):
    """Also those of another size than the model's, as its saved processor then tells."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, processor):
        pytest.skip("this transformers has no processor that needs pillow alone")
    theirs = getattr(transformers, processor)(**size)
    theirs.save_pretrained(tmp_path)
    wanted = preprocessing.read(tmp_path, make(name).pixels, image_size)
    if image_size:
        assert wanted.size == image_size
        (saved := tmp_path / "saved").mkdir()
        preprocessing.take_over(tmp_path, saved, make(name).pixels, image_size)
        assert preprocessing.read(saved, make(name).pixels) == wanted
        theirs = getattr(transformers, processor).from_pretrained(saved)
    assert_prepared_alike(wanted, theirs, shape, tmp_path)


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "convnext"])
@pytest.mark.parametrize("shape", [(40, 61, 3), (50, 33, 3)])
@pytest.mark.parametrize("image_size", [30, 390])
def test_another_size_is_saved_where_the_model_has_no_processor(name, image_size, shape, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    default = make(name).pixels
    wanted = preprocessing.read(tmp_path, default, image_size)
    (saved := tmp_path / "saved").mkdir()
    preprocessing.take_over(tmp_path, saved, default, default.size)
    assert not list(saved.iterdir())
    preprocessing.take_over(tmp_path, saved, default, image_size)
    kind = json.loads((saved / "preprocessor_config.json").read_text())["image_processor_type"]
    if not hasattr(transformers, f"{kind}Pil"):
        pytest.skip("this transformers has no processor that needs pillow alone")
    theirs = getattr(transformers, f"{kind}Pil").from_pretrained(saved)
    assert_prepared_alike(wanted, theirs, shape, tmp_path)
    assert_prepared_alike(preprocessing.read(saved, default), theirs, shape, tmp_path)


def assert_prepared_alike(wanted, theirs, shape, tmp_path):
    """An image of a shape, as by one of Hugging Face's processors."""
    frame = make_frame(dataclasses.replace(make("vit"), preprocessing=wanted))
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=image[None])
    (ours,) = load_unlabelled(tmp_path / "set.npz", frame).images
    pixels = (ours / np.float32(255) - np.float32(wanted.mean)) / np.float32(wanted.std)
    expected = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(np.moveaxis(pixels, -1, 0), expected, atol=2 / 255 / min(wanted.std))


def test_images_smaller_than_a_patch():
    model = make("vit")
    with pytest.raises(ValueError, match="images of 3 x 3 pixels are smaller than a patch of 4"):
        jax.eval_shape(
            lambda params: compute(model, params, jnp.zeros((1, 3, 3, 3), jnp.uint8)), model.init_params(jax.random.key(0))
        )


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("vit", {"num_attention_heads": 3}, "3 attention heads do not divide hidden_size 16"),
        ("vit", {"image_size": [12, 8]}, r"image_size must be a positive integer below 2\*\*31, got \[12, 8\]"),
        ("deit", {"patch_size": 13}, "patch_size 13 must be at most image_size 12"),
        ("dinov2", {"layerscale_value": "one"}, "layerscale_value must be a number that is not negative, got 'one'"),
        ("convnext", {"layer_scale_init_value": -1}, "layer_scale_init_value must be a number that is not negative, got -1"),
        ("dinov2_with_registers", {"num_register_tokens": -1}, "num_register_tokens must be .*, got -1"),
        ("convnext", {"depths": [1]}, "hidden_sizes has 2 entries, depths 1; num_stages is 2, but depths has 1 entries"),
    ],
)
def test_configs_that_are_refused(name, changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **parity.CONFIGS[name][0], **changes}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{reason}"):
        pretrained.read_config(tmp_path)
