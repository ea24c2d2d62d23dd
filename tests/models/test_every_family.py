"""What every family can do with each of its heads, by sublayers where it has some: shapes alone, so nothing is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from gafreeze_jax import export, masking
from gafreeze_jax.engine.network import parameters
from gafreeze_jax.models import base, configs, pretrained, products
from gafreeze_jax.tasks.base import block_genes

RAW = {name: given[0] for name, given in parity.CONFIGS.items()} | {
    "bert": parity.BERT,
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
}
NUM_CLASSES, SIZE = 3, 12
FAMILIES = {family.model_type: family for family in pretrained.FAMILIES}
HEADS = [(name, head) for name, family in FAMILIES.items() for head in family.heads]
WITHOUT_SUBLAYERS = {"albert", "gpt_neox", "resnet", "convnext"}  # shared, side by side, or of convolutions
WIDE = {("convnext", "final_norm"), *((name, "output") for name in FAMILIES)}  # of an image, and logits


def make(name, head):
    values, problems = configs.check(RAW[name], FAMILIES[name].config)
    assert not problems
    num_classes = None if head == "lm" else NUM_CLASSES
    model = base.Model(FAMILIES[name], FAMILIES[name].config(**values), head=head, num_classes=num_classes)
    return model, jax.eval_shape(model.init_params, jax.random.key(0))


def make_batch(model):
    """What enters the lowest block, the context, and the number of rows that come out."""
    if model.pixels:
        return jnp.zeros((2, SIZE, SIZE, 3), jnp.uint8), {"weights": jnp.ones(2)}, 2
    texts = parity.make_texts({"vocab_size": model.config.vocab_size})
    batch = jax.tree.map(lambda leaf: leaf[0], parity.pack(texts, model.head, parity.BATCHES))
    return {name: column[batch.elements] for name, column in texts.inputs.items()}, batch.context, len(batch.examples)


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_narrow_activations_go_from_sublayer_to_sublayer_and_logits_are_float32(name, head, monkeypatch):
    monkeypatch.setattr(products, "activation_dtype", lambda dtype: dtype)  # as on an accelerator
    model, params = make(name, head)
    network = model.make_network(dtype=jnp.bfloat16, granularity="sublayer")
    assert (name in WITHOUT_SUBLAYERS) == (not any("/" in gene for gene in network.names))
    assert jax.tree.structure(base.join_layers(base.split_layers(params, network.names))) == jax.tree.structure(params)
    params = base.split_layers(params, network.names)
    x, context, num_rows = make_batch(model)
    for block in network.blocks:
        if block.apply is not None:
            read = params[block.name] | {name: params[name] for name in block.shared}
            x = jax.eval_shape(functools.partial(block.apply, frozen=True, key=None), read, x, context)
            assert x.dtype == (jnp.float32 if (name, block.name) in WIDE else jnp.bfloat16), block.name
    read = params["head"] | {name: params[name] for name in network.shared}
    logits = jax.eval_shape(functools.partial(network.head, frozen=True, key=None), read, x, context)
    assert logits.shape == (num_rows, NUM_CLASSES if model.num_classes else model.config.vocab_size)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_a_mask_names_all_parameters_of_pytorch_in_memory(name, head, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, params = make(name, head)
    params = {block: parameters(tree) for block, tree in params.items()}  # running statistics are none of PyTorch's
    genes = block_genes(model.make_network(), params)
    genome = np.arange(len(genes)) % 2 == 0
    carried = ["embeddings.mask_token"] if FAMILIES[name].layout.carried else []
    masking.write_mask(tmp_path / "mask.json", genes, genome, model.torch_names(params, carried))
    trainable = export.requires_grad(tmp_path / "mask.json")
    config = transformers.AutoConfig.for_model(name, num_labels=NUM_CLASSES, **RAW[name])
    with torch.device("meta"):
        network = getattr(transformers, model.head_kind.architecture)(config)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sizes.keys() <= trainable.keys()
    trained = sum(size for name, size in sizes.items() if trainable[name] and "mask_token" not in name)
    assert trained == masking.count_trainable(params, genes, genome)


OTHER_TASKS = (
    "",
    "ForPreTraining",
    "ForMaskedLM",
    "ForCausalLM",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForMaskedImageModeling",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoints_of_other_tasks_are_read(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    seen = set()
    for task in OTHER_TASKS:
        config = transformers.AutoConfig.for_model(name, **RAW[name])
        try:
            network = getattr(transformers, f"AutoModel{task}").from_config(config)
        except ValueError:  # there is none of this kind
            continue
        seen.add(type(network).__name__)
        network.save_pretrained(tmp_path / task)
        checkpoint = pretrained.read(tmp_path / task)
        for head in FAMILIES[name].heads.keys() - {"lm"}:
            loaded = checkpoint.load(head, num_classes=NUM_CLASSES)
            assert all(path.startswith("head/") for path in loaded.fresh)
    assert seen
