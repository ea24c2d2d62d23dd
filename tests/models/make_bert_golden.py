"""Makes bert_golden.npz, logits of PyTorch's BERT that test_bert.py compares ours with.

    python tests/models/make_bert_golden.py

needs torch. The cases stand here too and need none: their weights and tokens come from seeds, so only logits are stored.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from gafreeze_jax.data.tokens import Tokens
from gafreeze_jax.models import checkpoints

GOLDEN = Path(__file__).with_name("bert_golden.npz")
NUM_CLASSES = 3


class Case(NamedTuple):
    """A config, and the form in which the checkpoint is written; PyTorch gets the plain weights."""

    config: dict[str, Any]
    prefix: str = "bert."
    gamma_beta: bool = False  # old names of the norms' parameters
    pooler: bool = True


def _config(depth: int, width: int, heads: int, act: str, vocabulary: int = 50, types: int = 2, **more: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": depth, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 2 * width + 4}
    embeddings = {"vocab_size": vocabulary, "type_vocab_size": types, "max_position_embeddings": 16}
    return {"model_type": "bert", **sizes, **embeddings, "hidden_act": act, **more}


CASES = {
    "one layer, gelu": Case(_config(1, 16, 2, "gelu")),
    "one type, relu, no prefix": Case(_config(2, 24, 3, "relu", types=1), prefix=""),
    "three types, gelu_new, gamma and beta": Case(_config(3, 32, 4, "gelu_new", types=3), gamma_beta=True),
    "large epsilon, silu, no pooler": Case(_config(2, 16, 4, "silu", layer_norm_eps=0.1), pooler=False),
    "one head, old names, no prefix": Case(_config(2, 20, 1, "gelu", vocabulary=97), prefix="", gamma_beta=True),
}

# Texts by their lengths, and batches of them: the texts of a batch share rows, and the second batch is not full.
LENGTHS = (5, 11, 2, 8, 3, 7)
BATCHES = np.array([[1, 0, 2, 4], [3, 5, -1, -1]])
ROW_LENGTH = 16

MINILM_TEXTS: dict[str, list[tuple[str, ...]]] = {
    "minilm, texts": [
        ("a masterpiece",),
        ("It is too long by an hour, and the plot makes no sense at all.",),
        ("Really?",),
    ],
    "minilm, pairs": [
        ("Is it raining?", "Take an umbrella with you."),
        ("No.", "Yes, there is: we saw it there in 1999."),
        ("Yes", "Yes!"),
    ],
}
MINILM_ROW_LENGTH = 40  # one row for all


def make_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights by the names of BertForSequenceClassification, large enough that every part of the network matters."""
    rng = np.random.RandomState(0)  # the old generator's stream never changes
    width, hidden = config["hidden_size"], config["intermediate_size"]
    tensors = {}

    def add(name: str, *shape: int, mean: float = 0.0, std: float = 0.3) -> None:
        tensors[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def add_dense(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs, std=1.5 / np.sqrt(inputs))
        add(f"{name}.bias", outputs)

    def add_norm(name: str) -> None:
        add(f"{name}.weight", width, mean=1.0)
        add(f"{name}.bias", width)

    add("bert.embeddings.word_embeddings.weight", config["vocab_size"], width)
    add("bert.embeddings.position_embeddings.weight", config["max_position_embeddings"], width)
    add("bert.embeddings.token_type_embeddings.weight", config["type_vocab_size"], width)
    add_norm("bert.embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            add_dense(f"{layer}.attention.self.{name}", width, width)
        add_dense(f"{layer}.attention.output.dense", width, width)
        add_norm(f"{layer}.attention.output.LayerNorm")
        add_dense(f"{layer}.intermediate.dense", width, hidden)
        add_dense(f"{layer}.output.dense", hidden, width)
        add_norm(f"{layer}.output.LayerNorm")
    add_dense("bert.pooler.dense", width, width)
    add_dense("classifier", width, NUM_CLASSES)
    return tensors


def make_tokens(config: dict[str, Any]) -> Tokens:
    rng = np.random.RandomState(1)
    lengths, total = np.array(LENGTHS), sum(LENGTHS)
    inputs = {
        "ids": rng.randint(config["vocab_size"], size=total),
        "positions": np.concatenate([np.arange(n) for n in lengths]),
        "types": rng.randint(config["type_vocab_size"], size=total),
    }
    return Tokens(inputs, np.cumsum(lengths) - lengths, lengths)


def write_checkpoint(folder: Path, case: Case) -> Path:
    tensors = {}
    for name, tensor in make_tensors(case.config).items():
        if case.gamma_beta and "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        if case.pooler or "pooler" not in name:
            tensors[name.replace("bert.", case.prefix)] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.config))
    return folder


def make_minilm_classifier(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight [C, D] and bias [C]."""
    rng = np.random.RandomState(2)
    return rng.standard_normal((NUM_CLASSES, width)).astype(np.float32), rng.standard_normal(NUM_CLASSES).astype(np.float32)


def torch_logits(case: Case) -> np.ndarray:
    """Of all texts, padded to one length: [N, C]."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**case.config, num_labels=NUM_CLASSES))
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in make_tensors(case.config).items()})
    return run_torch(model, make_tokens(case.config))


def run_torch(model: Any, tokens: Tokens) -> np.ndarray:
    import torch

    padded = np.zeros((3, len(tokens.lengths), max(tokens.lengths)), np.int64)
    for i, (start, length) in enumerate(zip(tokens.starts, tokens.lengths, strict=True)):
        span = slice(start, start + length)
        padded[:, i, :length] = tokens.inputs["ids"][span], tokens.inputs["types"][span], np.ones(length)
    ids, types, mask = torch.tensor(padded)
    with torch.no_grad():
        return model.eval()(input_ids=ids, token_type_ids=types, attention_mask=mask).logits.numpy()


def minilm_logits(name: str) -> np.ndarray:
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    folder = checkpoints.find_model("minilm")
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=NUM_CLASSES).eval()
    weight, bias = make_minilm_classifier(model.config.hidden_size)
    model.classifier.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    columns = [list(column) for column in zip(*MINILM_TEXTS[name], strict=True)]
    inputs = AutoTokenizer.from_pretrained(folder)(*columns, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def main() -> None:
    logits = {name: torch_logits(case) for name, case in CASES.items()} | {name: minilm_logits(name) for name in MINILM_TEXTS}
    np.savez_compressed(GOLDEN, **logits)
    for name, values in logits.items():
        print(name, values, sep="\n")


if __name__ == "__main__":
    main()
