"""Small random models of every family in folders as users have them, with tokenizers as these families have them."""

import json

import jax
import parity
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from gafreeze_jax.data.text import load_text
from gafreeze_jax.models import base, pretrained

LABELS = ("negative", "positive")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MPNET = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
GPT = ("<|endoftext|>", "<|padding|>")


def _bytes(special, template):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return tokenizer, trainer, template


def _sentencepieces(special, template):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unknown = next(token for token in special if "unk" in token.lower())
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(special), unk_token=unknown, show_progress=False
    )  # fmt: skip
    return tokenizer, trainer, template


def _wordpieces(special, template):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(special), show_progress=False), template


IN_BERT, IN_ROBERTA = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
ENCODERS = ("roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "mpnet", "deberta-v2")
TOKENIZERS = {
    "roberta": (_bytes, ROBERTA, IN_ROBERTA),
    "xlm-roberta": (_sentencepieces, ROBERTA, IN_ROBERTA),
    "camembert": (_sentencepieces, ROBERTA, IN_ROBERTA),
    "distilbert": (_wordpieces, BERT, IN_BERT),
    "electra": (_wordpieces, BERT, IN_BERT),
    "albert": (_sentencepieces, BERT, IN_BERT),
    "modernbert": (_bytes, BERT, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")),
    "mpnet": (_wordpieces, MPNET, ("<s> $A </s>", "<s> $A </s> </s> $B </s>")),
    "deberta-v2": (_sentencepieces, BERT, IN_BERT),
    "llama": (_bytes, GPT, None),
    "mistral": (_sentencepieces, ("<unk>", "<s>", "</s>"), ("<s> $A", "<s> $A <s> $B:1")),
    "qwen2": (_bytes, GPT, None),
    "qwen3": (_bytes, GPT, None),
    "gpt_neox": (_bytes, GPT, None),
}


def write_tokenizer(folder, model_type):
    """A tokenizer trained on the embedded reviews; returns the number of its words."""
    make, special, given = TOKENIZERS[model_type]
    tokenizer, trainer, template = make(special, given)
    tokenizer.train_from_iterator((text for (text,) in load_text("reviews").train.texts), trainer)
    if template:
        pairs = [(token, tokenizer.token_to_id(token)) for token in special if token in " ".join(template).replace(":1", "")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template[0], pair=template[1], special_tokens=pairs)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"<s>": "bos_token", "</s>": "eos_token", "<unk>": "unk_token", "<pad>": "pad_token", "<mask>": "mask_token",
             "[PAD]": "pad_token", "[UNK]": "unk_token", "[CLS]": "cls_token", "[SEP]": "sep_token", "[MASK]": "mask_token",
             "<|endoftext|>": "eos_token"}  # fmt: skip
    config = {names[token]: token for token in special if token in names}
    if special in (ROBERTA, MPNET):
        config |= {"cls_token": "<s>", "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def write_texts_model(folder, model_type, head="classify"):
    """A model for texts of the family's first config with positions for 64 tokens."""
    vocabulary = write_tokenizer(folder, model_type)
    raw = {"model_type": model_type, **parity.CONFIGS[model_type][0], "vocab_size": vocabulary, "max_position_embeddings": 66}
    (folder / "config.json").write_text(json.dumps(raw))
    model = base.Model(*pretrained.read_config(folder), head=head, num_classes=None if head == "lm" else len(LABELS))
    model.save(folder, model.init_params(jax.random.key(0)), source=folder, label_names=() if head == "lm" else LABELS)
    return folder


def write_images_model(folder, model_type):
    raw = {"model_type": model_type, **parity.CONFIGS[model_type][0], "num_channels": 1}
    (folder / "config.json").write_text(json.dumps(raw))
    model = base.Model(*pretrained.read_config(folder), num_classes=3)
    model.save(folder, model.init_params(jax.random.key(0)), source=folder, label_names=("a", "b", "c"))
    return folder
