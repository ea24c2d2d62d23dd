"""What the tests of families share: small configs of each, networks of PyTorch with random weights, and ours beside them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from make_bert_golden import LENGTHS

from gafreeze_jax.data import tokens
from gafreeze_jax.engine import passes
from gafreeze_jax.models import checkpoints

NUM_CLASSES = 3
BATCHES, ROW_LENGTH = np.array([[1, 0, 2, 4], [3, 5, -1, -1]]), 16

BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
ROBERTA = BERT | {"max_position_embeddings": 18, "type_vocab_size": 1}
DISTILBERT = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 20, "max_position_embeddings": 16}
MODERNBERT = BERT | {"num_hidden_layers": 4, "pad_token_id": 0, "local_attention": 4}

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
    model = auto.from_config(AutoConfig.for_model(model_type, num_labels=NUM_CLASSES, **raw)).eval()
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


def pack(texts, head):
    batches = tokens.pack_batches(texts, BATCHES, ROW_LENGTH)
    return batches._replace(examples=batches.elements) if head == "lm" else batches


def compute(model, params, texts, dtype=jnp.float32):
    """Logits of all texts [N, C], or of all tokens [T, V]."""
    network, batches = model.make_network(dtype=dtype), pack(texts, model.head)
    logits = {}
    for step in range(len(batches.examples)):
        batch = jax.tree.map(lambda leaf, step=step: jnp.asarray(leaf[step]), batches)
        x = run(network, params, {name: column[batch.elements] for name, column in texts.inputs.items()}, batch.context)
        logits |= {example: row for example, row in zip(batch.examples.tolist(), x, strict=True) if example >= 0}
    return jnp.stack([logits[example] for example in sorted(logits)])


def run(network, params, x, context):
    for block in network.blocks:
        x = passes.infer(block.apply, (None, None), params[block.name], x, context)
    shared = {name: params[name] for name in network.shared}
    return network.head(params["head"] | shared, x, context, frozen=True, key=None)


def run_torch(model, texts, *, per_token=False, types=False):
    """Logits of PyTorch for texts padded to one length: [N, C], or [T, V]."""
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


def gradients(loaded, outputs, cotangent):
    """Of a loss whose gradient of the logits is `cotangent`, by PyTorch's names of the tensors."""
    params = jax.tree.map(jnp.asarray, loaded.params)
    found = jax.grad(lambda params: jnp.vdot(outputs(params), cotangent))(params)
    layout = loaded.model.family.layout
    return {layout.full_name(name): leaf for name, leaf in checkpoints.from_tree(found, layout.table).items()}
