"""Decoders against PyTorch's: logits of language models and classifiers, gradients, saved models; configs that are refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from safetensors.numpy import load_file

from gafreeze_jax.models import base, pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

DECODERS = ["llama", "mistral", "qwen2", "qwen3", "gpt_neox"]
CASES = [(name, number) for name in DECODERS for number in range(len(parity.CONFIGS[name]))]
AUTO = {
    "lm": "AutoModelForCausalLM",
    "classify": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
}


def write(folder, name, number, head):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    raw = parity.CONFIGS[name][number]
    model = parity.write_torch_model(folder, getattr(transformers, AUTO[head]), name, raw, plain=number > 0)
    return model, parity.make_texts(raw)


def run_torch(model, texts, head):
    return parity.run_torch(model, texts, per_token=head != "classify")


@pytest.mark.parametrize(("name", "number"), CASES)
def test_logits_equal_pytorch(name, number, tmp_path):
    head = "lm" if number < 2 else "classify"
    model, texts = write(tmp_path, name, number, head)
    loaded = pretrained.load(tmp_path, head)
    assert ("output" in loaded.params) == (head == "lm" and not parity.CONFIGS[name][number]["tie_word_embeddings"])
    ours = parity.compute(loaded.model, loaded.params, texts)
    np.testing.assert_allclose(ours, run_torch(model, texts, head).detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("llama", "classify"),
        ("mistral", "lm"),
        ("qwen3", "lm"),
        ("gpt_neox", "lm"),
        ("qwen2", "tokens"),
        ("gpt_neox", "tokens"),
    ],
)
def test_gradients_equal_pytorch_and_it_loads_what_is_saved(name, head, tmp_path):
    model, texts = write(tmp_path / "model", name, 0, head)
    loaded = pretrained.load(tmp_path / "model", head)
    ours = functools.partial(parity.compute, loaded.model, texts=texts, examples=parity.TOGETHER)
    parity.assert_equal_gradients(loaded, model, ours, run_torch(model, texts, head), tmp_path / "gradients")

    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, loaded.params)
    loaded.save(tmp_path / "saved", moved, padding=(0, "<pad>"))
    auto = getattr(pytest.importorskip("transformers"), AUTO[head])
    again, info = auto.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
    expected = run_torch(again.eval(), texts, head).detach().numpy()
    np.testing.assert_allclose(parity.compute(loaded.model, moved, texts), expected, rtol=0, atol=1e-4)


def make(name, number, head):
    known = next(family for family in pretrained.FAMILIES if family.model_type == name)
    values, problems = pretrained.configs.check(parity.CONFIGS[name][number], known.config)
    assert not problems
    return base.Model(known, known.config(**values), head=head, num_classes=None if head == "lm" else 3)


def test_an_output_layer_is_a_gene_unless_it_is_the_word_vectors():
    names = ("embeddings", "block_0", "block_1", "final_norm")
    assert make("llama", 0, "lm").make_network().names == (*names, "output")
    assert make("llama", 1, "lm").make_network().names == names
    assert make("llama", 1, "lm").make_network().shared == ("embeddings",)
    assert make("llama", 0, "classify").make_network().names == names


def test_blocks_whose_parts_are_side_by_side_are_one_gene():
    assert make("gpt_neox", 0, "classify").make_network(granularity="sublayer").names[1] == "block_0"
    assert make("gpt_neox", 1, "classify").make_network(granularity="sublayer").names[1] == "block_0/attention"


def test_bfloat16_checkpoints_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    model, texts = write(tmp_path, "llama", 0, "lm")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path, "lm")
    exact = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = parity.compute(loaded.model, loaded.params, texts)
    np.testing.assert_allclose(ours, run_torch(exact, texts, "lm").detach().numpy(), rtol=0, atol=1e-4)
    loaded.save(tmp_path / "saved", loaded.params)
    saved, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", tmp_path))
    assert {name: (tensor.dtype, tensor.tobytes()) for name, tensor in saved.items()} == {
        name: (tensor.dtype, tensor.tobytes()) for name, tensor in original.items()
    }
    theirs = type(model).from_pretrained(tmp_path / "saved").eval()
    np.testing.assert_allclose(ours, run_torch(theirs, texts, "lm").detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "rope_type must be one of default, linear, llama3, got 'yarn'",
        ),
        ("llama", {"rope_scaling": {"type": "yarn"}, "rope_parameters": {"rope_type": "default"}}, "rope_type must be one of"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor must be a positive number, got None"),
        (
            "llama",
            {"rope_scaling": parity.LLAMA3 | {"low_freq_factor": 5.0}},
            "high_freq_factor must be above low_freq_factor 5.0",
        ),
        (
            "gpt_neox",
            {"rope_parameters": {"partial_rotary_factor": "x"}},
            "partial_rotary_factor must be a positive number, got",
        ),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling must be null or an object, got 'linear'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1, got 0.5"),
        ("llama", {"num_attention_heads": 3}, "3 attention heads do not divide hidden_size 16"),
        ("mistral", {"num_key_value_heads": 3}, "num_key_value_heads 3 must divide num_attention_heads 2"),
        ("mistral", {"head_dim": 3}, "heads must have an even width, got 3"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, expected num_hidden_layers 2"),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "layer_types must be null or a list, each one of full_attention"),
        ("gpt_neox", {"rotary_pct": 0.2}, "the rotary width must be even, and from 2 to the head width 8, got 1"),
    ],
)
def test_configs_that_are_refused(name, changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **parity.CONFIGS[name][0], **changes}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{reason}"):
        pretrained.read_config(tmp_path)
