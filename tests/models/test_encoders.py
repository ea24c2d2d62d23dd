"""Encoders of texts against PyTorch's: logits, gradients, saved models; and configs that are refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from gafreeze_jax.models import deberta, mpnet, pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

ENCODERS = [
    "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "mpnet", "deberta-v2",
]  # fmt: skip
CASES = [(name, number) for name in ENCODERS for number in range(len(parity.CONFIGS[name]))]
LABELS = ("bad", "fair", "good")


def write(folder, name, number, of_what="Sequence"):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    raw = parity.CONFIGS[name][number]
    auto = getattr(transformers, f"AutoModelFor{of_what}Classification")
    return parity.write_torch_model(folder, auto, name, raw, plain=number > 0), parity.make_texts(raw)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_logits_equal_pytorch(name, number, tmp_path):
    model, texts = write(tmp_path, name, number)
    loaded = pretrained.load(tmp_path)
    assert loaded.fresh == ()
    expected = parity.run_torch(model, texts, types=texts.inputs["types"].any()).detach().numpy()
    np.testing.assert_allclose(parity.compute(loaded.model, loaded.params, texts), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_equal_pytorch_and_it_loads_what_is_saved(name, tmp_path):
    model, texts = write(tmp_path / "model", name, 0)
    loaded = pretrained.load(tmp_path / "model")
    types = texts.inputs["types"].any()
    logits = parity.run_torch(model, texts, types=types)
    ours = functools.partial(parity.compute, loaded.model, texts=texts, examples=parity.TOGETHER)
    parity.assert_equal_gradients(loaded, model, ours, logits, tmp_path / "gradients")

    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, loaded.params)
    again = save_for_torch(loaded, moved, model, tmp_path / "saved")
    expected = parity.run_torch(again, texts, types=types).detach().numpy()
    np.testing.assert_allclose(parity.compute(loaded.model, moved, texts), expected, rtol=0, atol=1e-4)


def save_for_torch(loaded, params, model, folder, names=LABELS, **given):
    """The saved network as PyTorch reads it, which must be of the same class as `model`, with a place for every tensor."""
    loaded.save(folder, params, label_names=names, **given)
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert again.config.id2label == dict(enumerate(names))
    return again.eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_labels_of_tokens_equal_pytorch_before_and_after_saving(name, tmp_path):
    model, texts = write(tmp_path / "model", name, 0, "Token")
    types = texts.inputs["types"].any()
    checkpoint = pretrained.read(tmp_path / "model")
    assert checkpoint.num_classes("tokens") == parity.NUM_CLASSES
    loaded = checkpoint.load("tokens")
    assert loaded.fresh == ()
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.9, loaded.params)
    again = save_for_torch(loaded, moved, model, tmp_path / "saved", problem_type=None)
    for network, params in ((model, loaded.params), (again, moved)):
        expected = parity.run_torch(network, texts, per_token=True, types=types).detach().numpy()
        np.testing.assert_allclose(parity.compute(loaded.model, params, texts), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_a_classifier_of_texts_is_not_taken_for_one_of_tokens(name, tmp_path):
    for of_what, other in (("Sequence", "tokens"), ("Token", "classify")):
        write(tmp_path / of_what, name, 0, of_what)
        checkpoint = pretrained.read(tmp_path / of_what)
        assert checkpoint.num_classes(other) is None
        fresh = checkpoint.load(other, num_classes=2)
        assert any("classifier" in path for path in fresh.fresh)


def test_layers_that_share_parameters_are_one_gene(tmp_path):
    config = {"model_type": "albert", **parity.CONFIGS["albert"][1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = pretrained.Model(*pretrained.read_config(tmp_path), num_classes=2)
    assert model.make_network().names == ("embeddings", "shared_layers_0", "shared_layers_1")
    assert model.make_network(granularity="sublayer").names == model.make_network().names


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute', got"),
        ("roberta", {"pad_token_id": 17}, "max_position_embeddings must be above pad_token_id \\+ 1, got 18"),
        ("xlm-roberta", {"is_decoder": True}, "it is a decoder; expected an encoder"),
        ("distilbert", {"n_heads": 3}, "3 attention heads do not divide dim 16"),
        ("mpnet", {"relative_attention_num_buckets": 31}, "relative_attention_num_buckets must be at least 32, got 31"),
        ("mpnet", {"max_position_embeddings": 2}, "max_position_embeddings must be above 2, got 2"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size must be 0, as convolutions are not implemented, got 3"),
        ("deberta-v2", {"z_steps": 2}, "z_steps must be 0, as repeating the last layer is not implemented, got 2"),
        ("deberta-v2", {"pos_att_type": "p2p"}, "pos_att_type must be null, or a list of c2p and p2c, got 'p2p'"),
        ("deberta-v2", {"norm_rel_ebd": "spectral"}, "norm_rel_ebd must be one of none, layer_norm, got 'spectral'"),
        ("deberta-v2", {"relative_attention": False}, "norm_rel_ebd must be none where relative_attention is false"),
        ("deberta-v2", {"attention_head_size": 4}, "attention_head_size must be 8, got 4"),
        ("deberta-v2", {"pooler_hidden_size": 4}, "pooler_hidden_size must be 16, got 4"),
        ("deberta-v2", {"position_buckets": 64}, "position_buckets must be from 2 to 29, or -1, got 64"),
        ("electra", {"embedding_size": 0}, "embedding_size must be a positive integer"),
        ("albert", {"num_hidden_groups": 4}, "num_hidden_groups 4 must be at most num_hidden_layers 3"),
        ("modernbert", {"num_attention_heads": 16}, "hidden_size 16 must be 16 attention heads of an even width"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling must be one of cls, mean, got 'max'"),
        ("modernbert", {"rope_scaling": {"type": "yarn"}}, "rope_scaling must be null, got {'type': 'yarn'}"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, expected num_hidden_layers 4"),
        ("modernbert", {"layer_types": ["linear"]}, "layer_types must be null or a list, each one of full_attention, sliding"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type must be one of default, linear, llama3, got 'yarn'",
        ),
        (
            "modernbert",
            {"rope_parameters": {"sliding_attention": "linear"}},
            "rope_parameters must be null or an object with one for each type of layers, or null, got",
        ),
    ],
)
def test_configs_that_are_refused(name, changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **parity.CONFIGS[name][0], **changes}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{reason}"):
        pretrained.read_config(tmp_path)


def test_relative_positions_are_a_gene_of_their_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpnet", **parity.CONFIGS["mpnet"][0]}))
    model = pretrained.Model(*pretrained.read_config(tmp_path), num_classes=2)
    network = model.make_network(granularity="sublayer")
    assert network.names[:4] == ("embeddings", "relative_positions", "layer_0/attention", "layer_0/mlp")
    assert [block.shared for block in network.blocks[:4]] == [(), (), ("relative_positions",), ()]


def test_rows_of_relative_positions_equal_pytorch_at_all_distances():
    torch = pytest.importorskip("torch")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    far = np.arange(-600, 601)
    theirs = MPNetEncoder.relative_position_bucket(torch.tensor(-far))
    np.testing.assert_array_equal(mpnet.bucket(far), theirs)
    config = deberta.DebertaConfig(50, 16, 2, 2, 20, relative_attention=True, position_buckets=256)
    theirs = make_log_bucket_position(torch.tensor(far), 256, 512).long() + 256
    np.testing.assert_array_equal(config.rows(far), theirs.clamp(0, 511))
