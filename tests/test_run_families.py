"""Small models of the families with tokenizers of their kinds: a run begins, and what it saves is read as before."""

import json

import family_folders
import jax
import numpy as np
import pytest
import test_kinds

from gafreeze_jax.data import tokens
from gafreeze_jax.engine.scoring import each_batch
from gafreeze_jax.models import preprocessing, pretrained
from gafreeze_jax.tasks import images, kinds, language_model, text

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {"train_examples": 8, "validation_examples": 8, "batch_size": 4, "max_tokens": 32}


@pytest.mark.parametrize("model_type", family_folders.TOKENIZERS)
def test_a_run_begins_and_saves_a_model_with_its_tokenizer(model_type, tmp_path):
    source = family_folders.write_texts_model(tmp_path, model_type)
    module = text if model_type in family_folders.ENCODERS else language_model
    more = {"task": "classify"} if module is language_model else {}
    setup = module.prepare(module.Options(**SMALL, **more, model=str(source), data="reviews"))
    assert setup.problem.head == "kept"
    params = setup.restore(setup.problem.params)
    setup.save(tmp_path / "saved", params)

    before, after = (pretrained.load(folder) for folder in (source, tmp_path / "saved"))
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    ids = [
        tokens.load_tokenizer(folder)("A plain, honest film.", "No.")["input_ids"] for folder in (source, tmp_path / "saved")
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) > 5


@pytest.mark.parametrize("model_type", family_folders.ENCODERS)
def test_several_labels_and_numbers_have_the_head_of_one_label(model_type, tmp_path):
    auto = pytest.importorskip("transformers").AutoModelForSequenceClassification
    pytest.importorskip("torch")
    source = family_folders.write_texts_model(tmp_path, model_type)
    for kind in ("labels", "number"):
        _, setup = test_kinds.prepare(kind, tmp_path, source, head="fresh")
        setup.save(tmp_path / kind, test_kinds.with_random_head(setup))
        model, info = auto.from_pretrained(tmp_path / kind, output_loading_info=True)
        assert {name: list(culprits) for name, culprits in info.items() if culprits} == {}
        assert model.config.problem_type == kinds.PROBLEM_TYPES[kind]
        assert list(model.config.id2label.values()) == list(setup.facts["label_names"])


@pytest.mark.parametrize(
    "model_type", ["roberta", "modernbert", "albert", "llama", "gpt_neox"]
)  # bytes as words, bytes, and sentence pieces
def test_pytorch_gives_words_the_same_tags(model_type, tmp_path):
    module = text if model_type in family_folders.ENCODERS else language_model
    folder = family_folders.write_texts_model(tmp_path, model_type)
    test_kinds.assert_pytorch_computes_the_same("tags", folder, tmp_path, module)


@pytest.mark.parametrize("model_type", ["albert", "electra", "roberta", "qwen2"])
def test_pytorch_classifies_pairs_the_same(model_type, tmp_path):
    """The tokenizer of an ALBERT would not return types of tokens."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = family_folders.write_texts_model(tmp_path, model_type)
    module = text if model_type in family_folders.ENCODERS else language_model
    pairs = [(f"A film of {n} hours.", f"It was long, {n} times.") for n in range(20)]
    rows = [f"{first}\t{second}\t{('good', 'bad')[n % 2]}" for n, (first, second) in enumerate(pairs)]
    (tmp_path / "set.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]))
    more = {"task": "classify"} if module is language_model else {}
    options = module.Options(**SMALL, **more, model=str(folder), data=str(tmp_path / "set.tsv"), head="fresh")
    setup = module.prepare(options)
    setup.save(tmp_path / "model", test_kinds.with_random_head(setup))
    labelled = module.load_unlabelled(options, tmp_path / "model", tmp_path / "set.tsv", setup.facts["label_names"])
    batches = each_batch(labelled.network, labelled.params, labelled.source, lambda logits, _: logits)
    numbers, outputs = zip(*batches, strict=True)
    ours = np.concatenate(outputs)[np.argsort(np.concatenate(numbers))]
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        theirs = network(**tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("made_as", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_pytorch_gives_words_the_same_tags_whether_or_not_a_tokenizer_is_made_anew(made_as, tmp_path):
    """As that of a SmolLM2, whose digits the first one does not take apart."""
    folder = family_folders.write_texts_model(tmp_path, "llama")
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, raw["pre_tokenizer"]],
    }  # fmt: skip
    path.write_text(json.dumps(raw))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": made_as}))
    test_kinds.assert_pytorch_computes_the_same("tags", folder, tmp_path, language_model)


def test_pytorch_classifies_texts_that_end_with_the_token_for_padding(tmp_path, monkeypatch):
    template = ("$A <|endoftext|>", "$A <|endoftext|> $B <|endoftext|>")  # as in models for embeddings
    monkeypatch.setitem(family_folders.TOKENIZERS, "qwen3", (family_folders._bytes, family_folders.GPT, template))
    folder = family_folders.write_texts_model(tmp_path, "qwen3")
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')
    tokenizer = tokens.load_tokenizer(folder)
    assert tokenizer("A film.")["input_ids"][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    test_kinds.assert_pytorch_computes_the_same("label", folder, tmp_path, language_model)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["pad_token_id"]
    assert tokens.load_tokenizer(tmp_path / "model").pad_token_id == saved != tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["labels", "number", "tags"])
def test_pytorch_gives_texts_the_same_with_a_gpt2(kind, small_gpt2, tmp_path):
    test_kinds.assert_pytorch_computes_the_same(kind, small_gpt2, tmp_path, language_model)


@pytest.mark.parametrize(("model_type", "first"), [("roberta", "\u0120"), ("modernbert", "\u0120"), ("xlm-roberta", "\u2581")])
def test_words_are_tokenized_as_within_a_text(model_type, first, tmp_path):
    family_folders.write_texts_model(tmp_path, model_type)
    tokenizer = tokens.load_tokenizer(tmp_path, as_words=True)
    of_words = tokenizer([["plain", "film"]], is_split_into_words=True)
    starts = [of_words.word_ids(0).index(word) for word in (0, 1)]
    assert all(of_words.tokens(0)[start].startswith(first) for start in starts)


def test_vision_transformers_have_genes_for_sublayers(tmp_path):
    source = family_folders.write_images_model(tmp_path, "vit")
    preprocessing.write(source, pretrained.load(source).model.pixels._replace(size=8))
    options = images.Options(model=str(source), data="digits:5-9", granularity="sublayer", image_size=12, train_examples=5)
    setup = images.prepare(options)
    assert setup.problem.network.names[1:3] == ("layer_0/attention", "layer_0/mlp")
    setup.save(tmp_path / "saved", setup.restore(setup.problem.params | {"head": setup.problem.make_head(jax.random.key(0))}))
    before, after = (pretrained.load(folder).params for folder in (source, tmp_path / "saved"))
    assert pretrained.load(tmp_path / "saved").model.pixels.size == 12
    for name in before.keys() - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
