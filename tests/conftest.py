"""Tests run offline, on the CPU, and forbid silent rank promotion."""

import csv
import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

from gafreeze_jax.data import tokens
from gafreeze_jax.data.text import load_text
from gafreeze_jax.models import bert, checkpoints, gpt2, resnet
from gafreeze_jax.tasks import gpt2 as gpt2_task

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Each takes several of the memory mappings that a process may have, 65,530 on Linux; all tests together need more."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation():
    """For small programs, whose optimization takes ten times as long as running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory):
    """A random BERT of 2 layers with MiniLM's vocabulary."""
    folder, source = tmp_path_factory.mktemp("bert") / "small", checkpoints.find_model("minilm")
    raw = json.loads((source / "config.json").read_text())
    raw |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    written = tmp_path_factory.mktemp("source")
    (written / "config.json").write_text(json.dumps(raw))
    checkpoints.copy_tokenizer(source, written)
    params = bert.init_params(jax.random.key(0), bert.read_config(written), 2)
    bert.save_bert(folder, written, params, ("negative", "positive"))
    return folder


@pytest.fixture(scope="session")
def small_gpt2(tmp_path_factory):
    """A random GPT-2 of 2 blocks for bytes, with a tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    raw = gpt2_task.SMALL | {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
    (folder / "config.json").write_text(json.dumps(raw))
    tokens.make_byte_tokenizer().save_pretrained(folder)
    gpt2.save_gpt2(folder, folder, gpt2.init_params(jax.random.key(0), gpt2.read_config(folder), None))
    return folder


@pytest.fixture(scope="session")
def small_resnet(tmp_path_factory):
    """A random ResNet of three genes for images of 8 x 8 pixels, with PyTorch's names."""
    folder, config = tmp_path_factory.mktemp("resnet"), resnet.ResNetConfig(3, 4, (4, 8), (1, 1), "basic", stem="cifar")
    resnet.write_new(folder, config, 8, resnet.init_params(jax.random.key(0), config, 4))
    return folder


@pytest.fixture
def reviews(tmp_path):
    """A small CSV of the user's own."""
    path = tmp_path / "reviews.csv"
    split = load_text("reviews", max_train=60).train
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Review", "Sentiment"])
        writer.writerows((text, "good" if label else "bad") for (text,), label in zip(split.texts, split.labels, strict=True))
    return path
