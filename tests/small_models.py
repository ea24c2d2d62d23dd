"""Random models of a few layers, in folders as users have them."""

import json

import jax

from gafreeze_jax.data import tokens
from gafreeze_jax.models import base, checkpoints, preprocessing, pretrained, resnet
from gafreeze_jax.tasks import language_model as gpt2_task


def write_bert(folder, num_layers=2):
    """A BERT with MiniLM's vocabulary, in folder/model."""
    source, written = checkpoints.find_model("minilm"), folder / "source"
    written.mkdir(parents=True)
    raw = json.loads((source / "config.json").read_text())
    raw |= {"hidden_size": 16, "num_hidden_layers": num_layers, "num_attention_heads": 2, "intermediate_size": 32}
    (written / "config.json").write_text(json.dumps(raw))
    checkpoints.copy_tokenizer(source, written)
    model = base.Model(*pretrained.read_config(written), num_classes=2)
    params = model.init_params(jax.random.key(0))
    model.save(folder / "model", params, source=written, label_names=("negative", "positive"))
    return folder / "model"


def write_gpt2(folder):
    """A GPT-2 of 2 blocks for bytes, with a tokenizer."""
    raw = gpt2_task.SMALL | {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
    (folder / "config.json").write_text(json.dumps(raw))
    tokens.make_byte_tokenizer().save_pretrained(folder)
    model = base.Model(*pretrained.read_config(folder), head="lm")
    model.save(folder, model.init_params(jax.random.key(0)), source=folder)
    return folder


def write_resnet(folder, shortcut="projection"):
    """A ResNet of three genes for images of 8 x 8 pixels, with PyTorch's names."""
    config = resnet.ResNetConfig(3, 4, (4, 8), (1, 1), "basic", stem="cifar", shortcut=shortcut)
    model = base.Model(resnet.CIFAR_FAMILY, config, num_classes=4)
    preprocessing.write(folder, resnet.default_preprocessing(config)._replace(size=8))
    model.save(folder, model.init_params(jax.random.key(0)), source=folder)
    return folder
