"""Checkpoints as people have them: tied and wrapped tensors, heads of other tasks, old configs, other formats."""

import json
import os
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
import test_bert
import test_gpt2
from flax import serialization, traverse_util
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from gafreeze_jax.models import checkpoints, formats, pretrained, resnet
from gafreeze_jax.report import summary

WORDS, HEAD = "transformer.wte.weight", "lm_head.weight"
BERT_WORDS, BERT_HEAD = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


def write(folder, change=None, *, of=test_bert, config=None):
    """A small BERT or GPT-2 whose tensors `change(tensors)` has changed."""
    folder.mkdir(exist_ok=True)
    of.write(folder)
    tensors = load_file(folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    save_file(change(tensors) if change else tensors, folder / "model.safetensors")
    return folder


def load(folder, head="classify"):
    return pretrained.load(folder, head, num_classes=None if head == "lm" else 3).params


def renaming(rename):
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The parameters of both networks, as the usual form has them."""
    bert = load(write(tmp_path_factory.mktemp("bert")))
    gpt2 = write(tmp_path_factory.mktemp("gpt2"), of=test_gpt2)
    return {"bert": bert, "gpt2": load(gpt2), "lm": load(gpt2, "lm")}


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# Tied tensors


@pytest.mark.parametrize("head", ["lm", "classify"])
def test_word_vectors_stored_as_the_output_layer(head, plain, tmp_path):
    folder = write(tmp_path, renaming(lambda name: HEAD if name == WORDS else name), of=test_gpt2)
    assert_same(load(folder, head), plain["lm" if head == "lm" else "gpt2"])


def test_word_vectors_of_a_bert_stored_as_the_output_layer(plain, tmp_path):
    assert_same(load(write(tmp_path, renaming(lambda name: BERT_HEAD if name == BERT_WORDS else name))), plain["bert"])


def test_an_output_layer_that_is_not_tied_is_not_taken_for_word_vectors(tmp_path):
    config = {"tie_word_embeddings": False}
    folder = write(tmp_path, renaming(lambda name: HEAD if name == WORDS else name), of=test_gpt2, config=config)
    with pytest.raises(ValueError, match=r"wte\.weight is missing"):
        load(folder)


def test_what_safetensors_writes_of_tied_tensors(plain, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.torch import save_model

    folder = write(tmp_path, of=test_gpt2)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    save_model(model, str(folder / "model.safetensors"))
    assert WORDS not in load_file(folder / "model.safetensors")
    assert_same(load(folder, "lm"), plain["lm"])


# Wrappers


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "net.",
        "0.auto_model.",
        "encoder.",
        "base_model.model.",
        "model.text_encoder.",
    ],
)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_wrapped_networks(prefix, kind, plain, tmp_path):
    folder = write(tmp_path, renaming(lambda name: prefix + name), of={"bert": test_bert, "gpt2": test_gpt2}[kind])
    assert_same(load(folder), plain[kind])


def test_a_network_in_a_module_of_the_user_s_own(plain, tmp_path):
    """Beside it are a head that nobody else knows, and the number of averaged steps."""

    def change(tensors):
        inside = {f"encoder.{name.removeprefix('bert.')}": tensors[name] for name in tensors if name.startswith("bert.")}
        return inside | {"fc.weight": np.ones((3, 16), np.float32), "n_averaged": np.ones((), np.int64)}

    assert_same(load(write(tmp_path, change)), plain["bert"])


def test_two_networks_are_not_taken_for_one(tmp_path):
    def change(tensors):
        return {f"{which}.{name}": tensor for which in ("student", "teacher") for name, tensor in tensors.items()}

    with pytest.raises(ValueError, match=r"student\.bert\..* is not a tensor of this network"):
        load(write(tmp_path, change))


def test_compiled_and_sharded_layers(plain, tmp_path):
    def rename(name):
        return name.replace("layer.0.", "layer.0._orig_mod.").replace("layer.1.", "layer.1._fsdp_wrapped_module.")

    assert_same(load(write(tmp_path, renaming(rename))), plain["bert"])


def test_a_wrapped_resnet_without_config(small_resnet, tmp_path):
    tensors = load_file(small_resnet / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "resnet.safetensors")
    found, expected = (
        pretrained.load(path, families=[resnet.FAMILY]) for path in (tmp_path / "resnet.safetensors", small_resnet)
    )
    assert found.model.config == expected.model.config
    assert_same(found.params, expected.params)


def test_names_of_a_network_s_own_are_no_wrappers():
    assert checkpoints.unwrapped("model.embed.weight", {"model"}) == "model.embed.weight"
    assert checkpoints.unwrapped("module.model.embed.weight", {"model"}) == "model.embed.weight"
    assert checkpoints.unwrapped("remodel.embed.weight") == "remodel.embed.weight"


def test_a_tensor_with_and_without_wrapper_is_an_error(tmp_path):
    folder = write(tmp_path, lambda tensors: tensors | {f"module.{BERT_WORDS}": tensors[BERT_WORDS]})
    with pytest.raises(ValueError, match=r"there twice.*: embeddings\.word_embeddings\.weight"):
        load(folder)


# Heads of other tasks


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ["qa_outputs.weight", "qa_outputs.bias"]),
        ("bert", ["cls.predictions.bias", "cls.seq_relationship.weight"]),
        ("bert", ["loss_fct.weight", "criterion.weight", "class_weights"]),
        ("bert", ["crf.transitions", "bert.embeddings.token_type_ids"]),
        ("gpt2", ["lm_head.weight", "multiple_choice_head.summary.weight"]),
        ("gpt2", ["qa_outputs.weight", "classifier.bias", "v_head.summary.weight"]),
    ],
)
def test_heads_of_other_tasks_are_left_out(kind, names, plain, tmp_path):
    more = {name: np.ones((2, 2), np.float32) for name in names}
    folder = write(tmp_path, lambda tensors: tensors | more, of={"bert": test_bert, "gpt2": test_gpt2}[kind])
    assert_same(load(folder), plain[kind])


def test_a_bert_that_answers_questions_has_no_pooler(plain, tmp_path):
    def change(tensors):
        kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name and "classifier" not in name}
        return kept | {"qa_outputs.weight": np.ones((2, 16), np.float32), "qa_outputs.bias": np.ones(2, np.float32)}

    found, expected = load(write(tmp_path, change)), dict(plain["bert"])
    assert found.pop("head").keys() == expected.pop("head").keys()
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert.encoder.layer.0.adapter.weight", r"adapter\.weight is not a tensor of this network; remove what belongs"),
        ("bert.encoder.layer.0.attention.self.query.lora_A.default.weight", "it contains unmerged LoRA weights; merge them"),
    ],
)
def test_parts_of_another_network_are_no_head(name, message, tmp_path):
    folder = write(tmp_path, lambda tensors: tensors | {name: np.ones((2, 2), np.float32)})
    with pytest.raises(ValueError, match=message):
        load(folder)


# Configs


@pytest.mark.parametrize(
    ("kind", "architectures"),
    [("bert", None), ("bert", ["BertForMaskedLM"]), ("gpt2", None), ("gpt2", ["GPT2DoubleHeadsModel"])],
)
def test_a_config_without_model_type(kind, architectures, plain, tmp_path):
    config = {"model_type": None, "architectures": architectures}
    folder = write(tmp_path / "old", of={"bert": test_bert, "gpt2": test_gpt2}[kind], config=config)
    loaded = pretrained.load(folder, num_classes=3)
    assert_same(loaded.params, plain[kind])
    loaded.save(tmp_path / "saved", loaded.params)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == kind


def test_a_config_with_a_byte_order_mark(plain, tmp_path):
    path = write(tmp_path / "marked") / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    loaded = pretrained.load(path.parent, num_classes=3)
    assert_same(loaded.params, plain["bert"])
    loaded.save(tmp_path / "saved", loaded.params)
    assert (tmp_path / "saved" / "config.json").read_bytes().startswith(b"{")


def test_a_config_of_another_network_without_model_type(tmp_path):
    folder = write(tmp_path, config={"model_type": None, "architectures": ["RoFormerForMaskedLM"]})
    with pytest.raises(ValueError, match="unknown model_type None, expected bert"):
        load(folder)


def test_quantised_weights(tmp_path):
    load(write(tmp_path / "whole", config={"quantization_config": {}}))
    folder = write(tmp_path, config={"quantization_config": {"load_in_8bit": True}})
    with pytest.raises(ValueError, match="its weights are quantised and cannot be trained; give the unquantised model"):
        load(folder)


# Other formats


TRAINING = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin")
FORMATS = {
    "a pickle": (["pytorch_model.bin"], "pytorch_model.bin is a pickle, which can run code and is not read. To convert it: "),
    "shards": (["pytorch_model-00001-of-00002.bin", "x.json"], "pytorch_model-*-of-00002.bin is a pickle"),
    "a trainer's folder": ([*TRAINING, "pytorch_model.bin"], "pytorch_model.bin is a pickle"),
    "a training's state alone": (
        TRAINING, "it contains only training state (optimizer.pt, rng_state.pth, scheduler.pt, training_args.bin); give",
    ),
    "Flax": (["flax_model.msgpack"], "flax_model.msgpack is of Flax. To convert it: python -c "),
    "TensorFlow": (["tf_model.h5"], "tf_model.h5 is of TensorFlow. Where TensorFlow, PyTorch and transformers below"),
    "half precision": (["model.fp16.safetensors"], "model.fp16.safetensors is a variant, such as fp16, or has another name."),
    "shards of a variant": (
        ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
        "model.safetensors.index.fp16.json is a variant",
    ),
    "shards without an index": (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "model-00001-of-00002.safetensors is one of several shards, and their index model.safetensors.index.json is missing",
    ),
    "an adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        "it holds an adapter for another model, not a whole model. To merge the two, with peft and PyTorch: python -c ",
    ),
    "prompts": (["adapter_config.json"], "it holds an adapter for a/b, not a whole model, and PROMPT_TUNING cannot be merged"),
    "TensorFlow 1": (
        ["bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index", "bert_model.ckpt.meta"],
        "bert_model.ckpt.index is of TensorFlow and is not read; give the same model as model.safetensors or in PyTorch's",
    ),
    "OpenVINO": (["openvino_model.bin", "openvino_model.xml"], "openvino_model.xml (OpenVINO) cannot be trained; give"),
    "DeepSpeed": (
        ["global_step9/mp_rank_00_model_states.pt", "zero_to_fp32.py"],
        "it holds the parts of DeepSpeed's training; the program zero_to_fp32.py in it writes whole weights",
    ),
    "FSDP": (
        ["optimizer_0/__0_0.distcp", "pytorch_model_fsdp_0/__0_0.distcp", "scheduler.bin"],
        "it holds the parts of PyTorch's FSDP. To merge them, with accelerate and PyTorch: accelerate merge-weights /",
    ),
    "Meta's": (
        ["consolidated.00.pth", "params.json"],
        "consolidated.00.pth has its maker's own names for tensors; give the model in the Hugging Face layout",
    ),
    "Mistral's": (["consolidated.safetensors"], "consolidated.safetensors has its maker's own names for tensors"),
    "the hub's cache": (["snapshots/0a1b/config.json"], "models are in its folders snapshots/0a1b; give one of them"),
    "GGUF": (["model-q4.gguf"], "model-q4.gguf (GGUF) cannot be trained; give the model that it was made from"),
    "ONNX": (["model.onnx"], "model.onnx (ONNX) cannot be trained"),
    "folders of checkpoints": (
        ["checkpoint-10/config.json", "checkpoint-20/config.json"], "models are in its folders checkpoint-10, checkpoint-20;",
    ),
}  # fmt: skip

CONTENTS = {"prompts": '{"base_model_name_or_path": "a/b", "peft_type": "PROMPT_TUNING"}'}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_named(name, with_config, tmp_path):
    files, message = FORMATS[name]
    folder = tmp_path / ("a" * 20)
    write(folder)
    (folder / "model.safetensors").unlink()
    if not with_config:
        (folder / "config.json").unlink()
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True, parents=True)
        (folder / file).write_text(CONTENTS.get(name, ""))
    with pytest.raises(FileNotFoundError) as error:
        load(folder)
    assert message in str(error.value)
    assert len(str(error.value)) < summary.LONGEST_ERROR


def test_weights_that_are_a_broken_link(tmp_path):
    (write(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("../blobs/0a1b")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a broken link; expected a folder"):
        load(tmp_path)


def test_a_pointer_of_git_lfs(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"not a whole safetensors file: .*; it is a pointer of Git LFS, .* git lfs pull$"):
        load(tmp_path)


def test_many_tensors_that_do_not_fit_are_counted(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"is missing; and \d+ more$") as error:
        load(write(tmp_path, config={"num_hidden_layers": 100}))
    assert summary.fail(error.value) == 2
    assert len(capsys.readouterr().err) <= summary.LONGEST_ERROR


# Commands that convert them


def follow(error, start="To convert it: ", **options):
    """Does what an error says, as a shell would."""
    command = str(error.value).partition(start)[2].replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(command, shell=True, check=True, **options)


def refuse(folder):
    with pytest.raises(FileNotFoundError) as error:
        load(folder)
    return error


@pytest.fixture
def old(tmp_path):
    """A folder whose name a shell has to quote, with a BERT, and its tensors, which are not in it."""
    folder = write(tmp_path / "a model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, tensors


def test_the_command_for_shards(old, plain):
    torch = pytest.importorskip("torch")
    folder, tensors = old
    tensors = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    for number in (1, 2):
        shard = {name: tensor for i, (name, tensor) in enumerate(tensors.items()) if i % 2 == number - 1}
        torch.save(shard, folder / f"pytorch_model-0000{number}-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    follow(refuse(folder))
    assert_same(load(folder), plain["bert"])


@pytest.mark.parametrize(("name", "entry"), [("pytorch_model.bin", None), ("last.ckpt", "state_dict"), ("best.pt", "model")])
def test_the_command_for_the_folder_of_a_trainer(name, entry, old, plain):
    torch = pytest.importorskip("torch")
    folder, tensors = old
    tensors = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "optimizer": {"state": {}}, entry: tensors} if entry else tensors, folder / name)
    for other in TRAINING:
        (folder / other).write_bytes(b"not to be read")
    follow(refuse(folder))
    assert_same(load(folder), plain["bert"])


def test_the_command_for_the_parts_of_fsdp(old, plain, monkeypatch):
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("accelerate")
    import torch.distributed.checkpoint as parts

    folder, tensors = old
    state = {"model": {name: torch.tensor(tensor) for name, tensor in tensors.items()}}
    parts.save(state, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    follow(refuse(folder), start="To merge them, with accelerate and PyTorch: ")
    assert_same(load(folder), plain["bert"])


@pytest.mark.parametrize("num", [1, 2])
def test_the_command_for_flax(num, old, plain):
    folder, tensors = old
    flax_names = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        last = {"weight": "scale" if "LayerNorm" in stem else "embedding" if "_embeddings" in stem else "kernel"}.get(
            last, last
        )
        flax_names[f"{stem}.{last}"] = tensor.T if last == "kernel" else tensor
    for shard in range(num):
        of_shard = {name: tensor for i, (name, tensor) in enumerate(flax_names.items()) if i % num == shard}
        packed = serialization.msgpack_serialize(traverse_util.unflatten_dict(of_shard, sep="."))
        (folder / ("flax_model.msgpack" if num == 1 else f"flax_model-0000{shard}-of-00002.msgpack")).write_bytes(packed)
    follow(refuse(folder))
    assert_same(load(folder), plain["bert"])


def test_the_command_for_half_precision(old, plain):
    folder, tensors = old
    save_file(tensors, folder / "model.fp16.safetensors")
    follow(refuse(folder), "To use it: ")
    assert_same(load(folder), plain["bert"])


def test_the_command_for_an_adapter(tmp_path, plain):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(write(tmp_path / "base"), num_labels=3)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    follow(refuse(tmp_path / "adapter"), "with peft and PyTorch: ")
    found, expected = load(tmp_path / "adapter-merged"), plain["bert"]
    assert (
        np.abs(found["layer_0"]["attention"]["query"]["kernel"] - expected["layer_0"]["attention"]["query"]["kernel"]).max() > 0
    )
    assert_same(found["layer_0"]["mlp"], expected["layer_0"]["mlp"])


def test_a_model_of_the_hub_without_safetensors(tmp_path, monkeypatch):
    """The command is tried with a folder in place of a name."""

    def snapshot_download(name, *, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return tmp_path / "downloaded"

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "downloaded").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^me/model: the hub has no safetensors of it\. .* me/model model$"):
        checkpoints.find_model("me/model")


def test_the_command_for_a_model_of_the_hub(small_bert, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "model").symlink_to(small_bert)
    subprocess.run(
        formats.refusal_of_hub("me/model").partition("transformers: ")[2].replace("python -c", f"{sys.executable} -c", 1),
        shell=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    found, expected = load(tmp_path / "model"), load(small_bert)
    assert_same(found["layer_0"], expected["layer_0"])
    assert (tmp_path / "model" / "tokenizer.json").exists()
