"""Makes gpt2_golden.npz, logits of PyTorch's GPT-2 that test_gpt2.py compares ours with.

    python tests/models/make_gpt2_golden.py

needs torch. The cases stand here too and need none: their weights and tokens come from seeds, so only logits are stored.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from make_bert_golden import LENGTHS, NUM_CLASSES
from safetensors.numpy import save_file

from gafreeze_jax.data.tokens import Tokens

GOLDEN = Path(__file__).with_name("gpt2_golden.npz")
TASKS = ("lm", "classify")


class Case(NamedTuple):
    """A config, and the form in which the checkpoint is written; PyTorch gets the plain weights."""

    config: dict[str, Any]
    prefix: str = "transformer."
    old: bool = False  # with the attention's buffers and an output layer of its own, which is the word vectors


def _config(depth: int, width: int, heads: int, act: str, vocabulary: int = 50, **more: Any) -> dict[str, Any]:
    sizes = {"n_layer": depth, "n_embd": width, "n_head": heads, "vocab_size": vocabulary, "n_positions": 16}
    return {"model_type": "gpt2", **sizes, "activation_function": act, "bos_token_id": None, "eos_token_id": None, **more}


CASES = {
    "one block": Case(_config(1, 16, 2, "gelu_new")),
    "relu, narrow MLP, no prefix": Case(_config(2, 24, 3, "relu", n_inner=20), prefix=""),
    "scaled by depth, old form": Case(_config(3, 32, 4, "gelu_new", scale_attn_by_inverse_layer_idx=True), old=True),
    "not scaled, large epsilon, one head": Case(
        _config(2, 20, 1, "silu", 97, scale_attn_weights=False, layer_norm_epsilon=0.1)
    ),
    "upcast, old form, no prefix": Case(_config(2, 16, 4, "gelu", reorder_and_upcast_attn=True), prefix="", old=True),
}


def make_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights by the names of GPT-2 without prefix, large enough that every part of the network matters."""
    rng = np.random.RandomState(0)  # the old generator's stream never changes
    width = config["n_embd"]
    hidden = config.get("n_inner", 4 * width)
    tensors = {}

    def add(name: str, *shape: int, mean: float = 0.0, std: float = 0.3) -> None:
        tensors[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def add_dense(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", inputs, outputs, std=1.5 / np.sqrt(inputs))
        add(f"{name}.bias", outputs)

    def add_norm(name: str) -> None:
        add(f"{name}.weight", width, mean=1.0)
        add(f"{name}.bias", width)

    add("wte.weight", config["vocab_size"], width)
    add("wpe.weight", config["n_positions"], width)
    for i in range(config["n_layer"]):
        add_norm(f"h.{i}.ln_1")
        add_dense(f"h.{i}.attn.c_attn", width, 3 * width)
        add_dense(f"h.{i}.attn.c_proj", width, width)
        add_norm(f"h.{i}.ln_2")
        add_dense(f"h.{i}.mlp.c_fc", width, hidden)
        add_dense(f"h.{i}.mlp.c_proj", hidden, width)
    add_norm("ln_f")
    add("score.weight", NUM_CLASSES, width)
    return tensors


def make_tokens(config: dict[str, Any]) -> Tokens:
    lengths, total = np.array(LENGTHS), sum(LENGTHS)
    ids = np.random.RandomState(1).randint(config["vocab_size"], size=total)
    inputs = {"ids": ids, "positions": np.concatenate([np.arange(n) for n in lengths])}
    return Tokens(inputs, np.cumsum(lengths) - lengths, lengths)


def write_checkpoint(folder: Path, case: Case) -> Path:
    tensors = make_tensors(case.config)
    written = {name if name == "score.weight" else case.prefix + name: tensor for name, tensor in tensors.items()}
    if case.old:
        for i in range(case.config["n_layer"]):
            written[f"{case.prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), bool))
            written[f"{case.prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
        written["lm_head.weight"] = tensors["wte.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(written, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.config))
    return folder


def torch_logits(case: Case, task: str) -> np.ndarray:
    """For "lm" of all tokens: [T, V]. For "classify" of all texts: [N, C]."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    config = GPT2Config(**case.config, num_labels=NUM_CLASSES)
    tensors = {name: torch.tensor(tensor) for name, tensor in make_tensors(case.config).items()}
    score = tensors.pop("score.weight")
    weights = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    if task == "lm":
        model = GPT2LMHeadModel(config)
        weights |= {"lm_head.weight": tensors["wte.weight"]}
    else:
        model = GPT2ForSequenceClassification(config)
        weights |= {"score.weight": score}
    model.load_state_dict(weights)
    return run_torch(model, make_tokens(case.config))


def run_torch(model: Any, tokens: Tokens) -> np.ndarray:
    """Text by text, so that there is no padding."""
    import torch

    texts = [tokens.inputs["ids"][start : start + num] for start, num in zip(tokens.starts, tokens.lengths, strict=True)]
    with torch.no_grad():
        logits = [model.eval()(input_ids=torch.tensor(text, dtype=torch.long)[None]).logits.numpy() for text in texts]
    return np.concatenate([one.reshape(-1, one.shape[-1]) for one in logits])


def main() -> None:
    logits = {f"{task}, {name}": torch_logits(case, task) for task in TASKS for name, case in CASES.items()}
    np.savez_compressed(GOLDEN, **logits)
    for name, values in logits.items():
        print(name, values.shape, values[0, :5])


if __name__ == "__main__":
    main()
