"""What the tests of families share: small configs of each, networks of PyTorch with random weights, and ours beside them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from make_bert_golden import LENGTHS
from safetensors.numpy import load_file

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import passes
from gafreeze_jax.models import checkpoints

NUM_CLASSES = 3
TOGETHER = np.arange(len(LENGTHS))[None]  # all texts in one batch
BATCHES, ROW_LENGTH = np.array([[1, 0, 2, 4], [3, 5, -1, -1]]), 16

BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
ROBERTA = BERT | {"max_position_embeddings": 18, "type_vocab_size": 1}
DISTILBERT = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 20, "max_position_embeddings": 16}
DEBERTA = BERT | {
    "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "position_biased_input": False,
}  # fmt: skip
MODERNBERT = BERT | {"num_hidden_layers": 4, "pad_token_id": 0, "local_attention": 4}

LLAMA = BERT | {"num_key_value_heads": 1, "pad_token_id": 0, "tie_word_embeddings": False}
LLAMA3 = {
    "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
}  # fmt: skip
GPT_NEOX = BERT | {"pad_token_id": 0, "tie_word_embeddings": False}

VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
VIT = VISION | {"intermediate_size": 20}
DINOV2 = VISION | {"mlp_ratio": 2}
CONVNEXT = {"hidden_sizes": [6, 8], "depths": [2, 1], "num_stages": 2, "patch_size": 2, "image_size": 12}

# The first config of each family also goes through gradients and saving.
CONFIGS = {
    "roberta": [
        ROBERTA,
        ROBERTA | {"hidden_act": "relu", "layer_norm_eps": 0.1, "pad_token_id": 4, "max_position_embeddings": 40},
        ROBERTA | {"num_attention_heads": 4, "num_hidden_layers": 1, "hidden_act": "gelu_new"},
    ],
    "xlm-roberta": [ROBERTA],
    "camembert": [ROBERTA],
    "distilbert": [
        DISTILBERT,
        DISTILBERT | {"activation": "relu", "dim": 24, "n_heads": 3, "sinusoidal_pos_embds": True},
        DISTILBERT | {"n_layers": 1, "hidden_dim": 9, "n_heads": 1},
    ],
    "electra": [
        BERT | {"embedding_size": 12},
        BERT | {"embedding_size": 16, "hidden_act": "relu", "type_vocab_size": 3},
        BERT | {"embedding_size": 24, "num_attention_heads": 1, "layer_norm_eps": 0.1, "num_hidden_layers": 1},
    ],
    "albert": [
        BERT | {"embedding_size": 12, "num_hidden_layers": 3},
        BERT | {"embedding_size": 16, "num_hidden_layers": 5, "num_hidden_groups": 2, "hidden_act": "gelu"},
        BERT | {"embedding_size": 8, "inner_group_num": 2, "num_attention_heads": 4, "type_vocab_size": 1},
    ],
    "modernbert": [
        MODERNBERT,
        MODERNBERT | {"classifier_pooling": "mean", "norm_bias": True, "mlp_bias": True, "global_rope_theta": 100.0},
        MODERNBERT | {"attention_bias": True, "classifier_bias": True, "hidden_activation": "silu", "local_rope_theta": 50.0,
                      "classifier_activation": "relu", "global_attn_every_n_layers": 2, "local_attention": 6},
    ],
    "mpnet": [
        BERT | {"max_position_embeddings": 18},
        BERT | {"max_position_embeddings": 20, "num_attention_heads": 4, "hidden_act": "relu", "layer_norm_eps": 0.1},
        BERT | {"max_position_embeddings": 30, "relative_attention_num_buckets": 40, "num_hidden_layers": 1},
    ],
    "deberta-v2": [
        DEBERTA,
        DEBERTA | {"share_att_key": False, "pos_att_type": ["c2p"], "max_relative_positions": 5, "position_buckets": -1,
                   "type_vocab_size": 3, "norm_rel_ebd": "none", "embedding_size": 12, "pooler_hidden_act": "tanh"},
        DEBERTA | {"share_att_key": False, "pos_att_type": ["p2c", "c2p"], "position_biased_input": True, "hidden_act": "relu",
                   "position_buckets": 6, "max_relative_positions": 9, "num_attention_heads": 4},
        DEBERTA | {"relative_attention": False, "position_biased_input": True, "layer_norm_eps": 0.1, "num_hidden_layers": 1,
                   "norm_rel_ebd": "none"},
        DEBERTA | {"pos_att_type": "p2c", "position_buckets": 8, "num_attention_heads": 1, "num_hidden_layers": 1},
    ],
    "llama": [
        LLAMA,
        LLAMA | {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_scaling": LLAMA3,
                 "rope_theta": 50.0, "attention_bias": True, "rms_norm_eps": 0.1},
        LLAMA | {"head_dim": 6, "mlp_bias": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0},
                 "hidden_act": "gelu", "num_key_value_heads": None},
    ],
    "mistral": [
        LLAMA | {"sliding_window": 3},
        LLAMA | {"sliding_window": None, "tie_word_embeddings": True},
        LLAMA | {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
                 "rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
    ],
    "qwen2": [
        LLAMA,
        LLAMA | {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1, "tie_word_embeddings": True},
        LLAMA | {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ],
    "qwen3": [
        LLAMA | {"head_dim": 8},
        LLAMA | {"head_dim": 10, "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 2},
        LLAMA | {"head_dim": 4, "num_attention_heads": 4, "num_hidden_layers": 1, "rms_norm_eps": 0.1},
    ],
    "gpt_neox": [
        GPT_NEOX,
        GPT_NEOX | {"use_parallel_residual": False, "rotary_pct": 0.5, "tie_word_embeddings": True, "hidden_act": "relu"},
        GPT_NEOX | {"attention_bias": False, "rotary_pct": 1.0, "rotary_emb_base": 30, "num_hidden_layers": 1,
                    "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30, "partial_rotary_factor": 1.0}},
    ],
    "vit": [
        VIT,
        VIT | {"qkv_bias": False, "hidden_act": "relu", "num_channels": 1},
        VIT | {"patch_size": 3, "image_size": 18, "num_attention_heads": 4, "num_hidden_layers": 1, "layer_norm_eps": 0.1},
    ],
    "deit": [
        VIT,
        VIT | {"qkv_bias": False, "image_size": 9},
        VIT | {"num_attention_heads": 1, "patch_size": 6, "hidden_act": "gelu_new"},
    ],
    "dinov2": [
        DINOV2,
        DINOV2 | {"use_swiglu_ffn": True, "image_size": 20, "layerscale_value": 0.1},
        DINOV2 | {"mlp_ratio": 3, "image_size": 8, "num_hidden_layers": 1, "layerscale_value": 0.0},
    ],
    "dinov2_with_registers": [
        DINOV2,
        DINOV2 | {"num_register_tokens": 2, "image_size": 20},
        DINOV2 | {"use_swiglu_ffn": True, "image_size": 8},
    ],
    "convnext": [
        CONVNEXT | {"layer_scale_init_value": 1.5},
        CONVNEXT | {"layer_scale_init_value": 0.0, "hidden_act": "relu", "num_channels": 1},
        CONVNEXT | {"depths": [1, 1, 2], "hidden_sizes": [4, 4, 6], "num_stages": 3, "layer_norm_eps": 0.1, "patch_size": 1},
    ],
}  # fmt: skip


def write_torch_model(folder, auto, model_type, raw, *, plain=False):
    """A network of PyTorch with random weights, saved in a folder.

    Args:
      auto: the class of `transformers` that makes it.
      plain: write the config as it is given, and not as PyTorch completes it.
    """
    import torch
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, num_labels=NUM_CLASSES, **raw)
    if model_type == "deit":  # of which there are two for images
        config.architectures = ["DeiTForImageClassification"]
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim < 2 or "embed" in name else 1.2 / parameter[0].numel() ** 0.5
            mean = 1 if parameter.ndim < 2 and name.endswith("weight") else 0
            parameter.copy_(mean + scale * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if plain:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, **raw}))
    return model


def make_texts(raw, *, first_id=5):
    """Random texts whose tokens are no padding; types if the family has several."""
    rng = np.random.RandomState(1)
    lengths, total = np.array(LENGTHS), sum(LENGTHS)
    inputs = {
        "ids": rng.randint(first_id, raw["vocab_size"], size=total),
        "positions": np.concatenate([np.arange(n) for n in lengths]),
        "types": rng.randint(raw.get("type_vocab_size", 1), size=total),
    }
    return tokens.Tokens({name: column.astype(np.int32) for name, column in inputs.items()}, starts(lengths), lengths)


def starts(lengths):
    return np.cumsum(lengths) - lengths


def pack(texts, head, examples):
    batches = tokens.pack_batches(texts, examples, ROW_LENGTH)
    return batches if head == "classify" else batches._replace(examples=batches.elements)


def compute(model, params, texts, examples=BATCHES):
    """Logits of all texts [N, C], or of all tokens [T, C] or [T, V]."""
    network, batches = model.make_network(), pack(texts, model.head, examples)
    logits = {}
    for step in range(len(batches.examples)):
        batch = jax.tree.map(lambda leaf, step=step: np.asarray(leaf[step]), batches)
        x = run(
            network, params, {name: np.asarray(column)[batch.elements] for name, column in texts.inputs.items()}, batch.context
        )
        logits |= {example: row for example, row in zip(batch.examples.tolist(), x, strict=True) if example >= 0}
    return jnp.stack([logits[example] for example in sorted(logits)])


def run(network, params, x, context):
    for block in network.blocks:
        if block.apply is not None:
            borrowed = passes.Borrowed.of(block.shared, params)
            x = passes.infer(block.apply, (None, None), params[block.name], x, context, borrowed)
    shared = {name: params[name] for name in network.shared}
    return network.head(params["head"] | shared, x, context, frozen=True, key=None)


def run_torch(model, texts, *, per_token=False, types=False):
    """Logits of PyTorch for texts padded to one length: [N, C], or with a row for each token."""
    import torch

    lengths = texts.lengths
    padded = np.zeros((3, len(lengths), max(lengths)), np.int64)
    padded[0] = model.config.pad_token_id or 0
    for i, (start, length) in enumerate(zip(texts.starts, lengths, strict=True)):
        span = slice(start, start + length)
        padded[:, i, :length] = texts.inputs["ids"][span], texts.inputs["types"][span], np.ones(length)
    ids, kinds, mask = torch.tensor(padded)
    logits = model(input_ids=ids, attention_mask=mask, **({"token_type_ids": kinds} if types else {})).logits
    return torch.cat([rows[:length] for rows, length in zip(logits, lengths, strict=True)]) if per_token else logits


def assert_equal_gradients(loaded, network, outputs, logits, folder):
    """That a loss has the same gradients.

    Args:
      loaded: our network.
      network: PyTorch's.
      outputs: our logits as a function of parameters.
      logits: PyTorch's.
      folder: to write to.
    """
    import torch

    cotangent = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    logits.backward(torch.tensor(cotangent))
    params = jax.tree.map(jnp.asarray, loaded.params)
    found = jax.jit(jax.grad(lambda params: jnp.vdot(outputs(params), cotangent)))(params)
    layout = loaded.model.family.layout
    ours = {layout.full_name(name): leaf for name, leaf in checkpoints.from_tree(found, layout.table).items()}
    # PyTorch has other names in memory than in files, so its gradients are saved as if they were parameters.
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    network.load_state_dict({name: gradients.get(name, torch.zeros_like(old)) for name, old in network.state_dict().items()})
    network.save_pretrained(folder)
    theirs = load_file(folder / "model.safetensors")
    assert {name for name, gradient in theirs.items() if gradient.any()} <= ours.keys() <= theirs.keys()
    for name, gradient in ours.items():
        tolerance = 1e-4 * max(1, np.abs(theirs[name]).max())
        np.testing.assert_allclose(gradient, theirs[name], rtol=0, atol=tolerance, err_msg=name)
