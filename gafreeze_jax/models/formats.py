"""Formats of weights that are not read: what a folder holds instead of safetensors, and the command that converts it."""

import glob
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from gafreeze_jax.listing import listed, shorten

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LEFTOVERS = re.compile(
    r".*(optim|scheduler|scaler|rng_state|random_states|training_args|sampler|custom_checkpoint|openvino_).*"
)
LONGEST_BASE = 100  # characters of the name of an adapter's model
SHARD = re.compile(r"(.+-)\d+(-of-\d+\.\w+)")
# weights_only has PyTorch refuse code. Trainers keep the tensors in an entry, such as "state_dict" or "model": the largest one.
FROM_PICKLES = (
    "import sys, os, glob, torch, safetensors.torch as s; _, p, g, o = sys.argv; os.chdir(p); "
    "s.save_file({n: t.clone().contiguous() for f in glob.glob(g) for d in [torch.load(f, 'cpu', weights_only=True)] "
    "for n, t in max([v for v in [d, *d.values()] if hasattr(v, 'items')], key=len).items() if torch.is_tensor(t)}, o)"
)
FROM_FLAX = (
    "import sys, re, os, glob, safetensors.numpy as s; from flax import serialization as z, traverse_util as u; "
    "_, p, g, o = sys.argv; os.chdir(p); s.save_file({re.sub('(kernel|scale|embedding)$', 'weight', n): "
    "(x.T if 'kernel' in n else x).astype('f4').copy('C') for f in glob.glob(g) "
    "for n, x in u.flatten_dict(z.msgpack_restore(open(f, 'rb').read()), sep='.').items()}, o)"
)
FROM_HUB = (
    "import sys, transformers as t; "
    "[c.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for c in (t.AutoModel, t.AutoProcessor)]"
)
FROM_PEFT = (  # a classifier of another size than the base's is left out
    "import sys, peft; peft.AutoPeftModel{}.from_pretrained(sys.argv[1], ignore_mismatched_sizes=True)"
    ".merge_and_unload().save_pretrained(sys.argv[2])"
)
PEFT_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}
MERGED = ("LORA", "ADALORA", "DORA", "LOHA", "LOKR", "OFT", "IA3", "VERA", "BOFT", "HRA")  # of peft's kinds of adapters
NOT_TRAINABLE = {".gguf": "GGUF", ".onnx": "ONNX", ".ot": "of rust-bert", ".tflite": "of LiteRT", ".xml": "OpenVINO"}
NOT_READ = {".index": "TensorFlow", ".pb": "TensorFlow", ".keras": "Keras"}


def refusal(pickle: Path, target: str = WEIGHTS) -> str:
    """Why a checkpoint of PyTorch's is not read, and the command that converts it, with all shards if it is one of several."""
    pattern = _all_shards(pickle.name)
    command = _command(FROM_PICKLES, pickle.parent, pattern, target)
    return f"{pattern} is a pickle, which can run code and is not read. To convert it: {command}"


def _all_shards(name: str) -> str:
    """A pattern for a file, and for the others if it is one of several shards."""
    return SHARD.sub(r"\1*\2", glob.escape(name))


def refusal_of_hub(name: str) -> str:
    """Why a model of the hub without safetensors is not read, and the command that converts it."""
    command = _command(FROM_HUB, name, name.split("/")[-1])
    return f"the hub has no safetensors of it. To convert it to a folder, with PyTorch and transformers: {command}"


def missing(folder: Path, name: str) -> str:
    """An error for a folder that lacks a file, with what it holds instead; "" if that is nothing known."""
    hint = explain(folder)
    where = "" if str(folder) in hint else f"{folder}: "  # once is enough, as paths may be long
    return f"{where}no {name}; {hint}" if hint else ""


def explain(folder: Path) -> str:
    """What a folder without safetensors in the usual place holds instead, and how to use it; "" for nothing that is known."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if WEIGHTS in names or INDEX in names:
        return ""
    if "adapter_config.json" in names:
        return _explain_adapter(folder)
    if own := [name for name in names if name.startswith("consolidated.")]:
        return f"{own[0]} has its maker's own names for tensors; give the model in the Hugging Face layout, with {WEIGHTS}"
    if others := [name for name in names if name.endswith((".safetensors", ".json")) and ".safetensors" in name]:
        return _explain_safetensors(folder, others)
    if parts := min((path.parent for path in folder.glob("**/*.distcp") if "optim" not in path.parent.name), default=None):
        merge = shlex.join(["accelerate", "merge-weights", str(parts), str(folder)])
        return f"it holds the parts of PyTorch's FSDP. To merge them, with accelerate and PyTorch: {merge}"
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if weights := [name for name in pickles if not LEFTOVERS.fullmatch(name)]:
        return refusal(folder / ("pytorch_model.bin" if "pytorch_model.bin" in weights else weights[0]))
    for name in names:
        suffix = Path(name).suffix
        if suffix == ".msgpack":
            return f"{_all_shards(name)} is of Flax. To convert it: {_command(FROM_FLAX, folder, _all_shards(name), WEIGHTS)}"
        if suffix == ".h5":
            return (
                f"{name} is of TensorFlow. Where TensorFlow, PyTorch and transformers below 4.50 are installed, "
                f"from_pretrained(..., from_tf=True) reads it, and save_pretrained writes {WEIGHTS}"
            )
        if suffix in NOT_TRAINABLE:
            return f"{name} ({NOT_TRAINABLE[suffix]}) cannot be trained; give the model that it was made from"
        if suffix in NOT_READ:
            return f"{name} is of {NOT_READ[suffix]} and is not read; give the same model as {WEIGHTS} or in PyTorch's format"
    if "zero_to_fp32.py" in names:
        return "it holds the parts of DeepSpeed's training; the program zero_to_fp32.py in it writes whole weights"
    inside = [path.parent for pattern in ("*", "snapshots/*") for path in sorted(folder.glob(f"{pattern}/config.json"))]
    if inside:
        return f"models are in its folders {listed(str(path.relative_to(folder)) for path in inside)}; give one of them"
    return f"it contains only training state ({listed(pickles)}); give the folder with the weights" if pickles else ""


def _explain_adapter(folder: Path) -> str:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base, task = str(config.get("base_model_name_or_path")), PEFT_TASKS.get(config.get("task_type"), "")
        kind = config.get("peft_type", MERGED[0])
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        base, task, kind = "another model", "", MERGED[0]
    base = shorten(base, LONGEST_BASE)
    if kind not in MERGED:
        return f"it holds an adapter for {base}, not a whole model, and {kind} cannot be merged into it; give that model"
    merged = folder.absolute().with_name(f"{folder.absolute().name}-merged")
    return (
        f"it holds an adapter for {base}, not a whole model. To merge the two, with peft and PyTorch: "
        f"{_command(FROM_PEFT.format(task), folder, merged)}"
    )


def _explain_safetensors(folder: Path, names: Sequence[str]) -> str:
    """Of variants, such as model.fp16.safetensors, and of shards whose index is missing."""
    index = next((name for name in names if name.endswith(".json")), None)
    if index is None and SHARD.fullmatch(names[0]):
        return (
            f"{names[0]} is one of several shards, and their index {INDEX} is missing; copy it from where the model came from"
        )
    source, target = (index, INDEX) if index else (names[0], WEIGHTS)
    command = shlex.join(["cp", str(folder / source), str(folder / target)])
    return f"{source} is a variant, such as fp16, or has another name. To use it: {command}"


def _command(code: str, *arguments: Path | str) -> str:
    return f'python -c "{code}" {shlex.join(map(str, arguments))}'
