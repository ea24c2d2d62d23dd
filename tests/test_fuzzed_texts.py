"""Files for texts, damaged at random: they are read, or the error is a line that names the file.

Each file follows from its format and a seed, which a failure names. Runs a second for each format; for longer:

    GAFREEZE_FUZZ_SECONDS=60 pytest tests/test_fuzzed_texts.py
"""

import gzip
import io
import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gafreeze_jax.data import lm, tokens
from gafreeze_jax.data.text import load_text, load_unlabelled

SECONDS = float(os.environ.get("GAFREEZE_FUZZ_SECONDS", "1"))
SEEDS = range(10)  # that are tried in any case, those of past failures among them
ROWS = [(f'review {i}, «so» "they said"\nhere', "ja" if i % 2 else "nein") for i in range(12)]
SNIPPETS = [
    b'"',
    b'""',
    b"\\",
    b",",
    b";",
    b"\t",
    b"|",
    b"\r",
    b"\n",
    b" ",
    b"sep=;\n",
    b"text",
    b"label",
    b"nan",
    b"null",
    b"true",
    b"{}",
]
SNIPPETS += [
    b"[",
    b"{",
    b"]",
    b"}",
    b":",
    b"1e999",
    b"-1",
    b"\\ud83d",
    b"\\u0000",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xe2\x80\xa8",
    b"\xc3",
]


def quoted(separator):
    lines = [("text", "label"), *((text.replace('"', '""'), label) for text, label in ROWS)]
    return "".join(f'"{text}"{separator}"{label}"\n' for text, label in lines).encode()


TSV = "text\tlabel\n" + "".join(f"{text}\t{label}\n".replace("\n", " ", 1) for text, label in ROWS)
JSONL = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in ROWS).encode()
PARQUET = io.BytesIO()
pq.write_table(pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}), PARQUET)
FILES = {
    "a.csv": quoted(","),
    "semicolons.csv": quoted("; "),
    "a.tsv": TSV.encode(),
    "quoted.tsv": quoted("\t"),
    "a.jsonl": JSONL,
    "a.csv.gz": gzip.compress(quoted(","), mtime=0),
    "a.parquet": PARQUET.getvalue(),
    "a.conll": "".join(f"review\tO\nnumber\tB-{label}\n\n" for _, label in ROWS).encode(),
    "a.txt": " ".join(text for text, _ in ROWS).encode(),
}


def damaged(content, seed):
    """A file with one to four changes: bytes changed, cut, doubled or put in."""
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 5)):
        start, size = int(rng.integers(len(content) + 1)), int(rng.integers(1, 30))
        part = content[start : start + size]
        new = [bytes(rng.integers(128, size=len(part), dtype=np.uint8)), b"", 2 * part, part[::-1]]
        new += [SNIPPETS[rng.integers(len(SNIPPETS))] + part] * 4
        content = content[:start] + new[rng.integers(len(new))] + content[start + size :]
    return content


def check(path, content, read):
    """Reads damaged files until the time is over."""
    end = time.monotonic() + SECONDS
    for seed in range(10**9):
        if seed not in SEEDS and time.monotonic() > end:
            break
        path.write_bytes(damaged(content, seed))
        try:
            read(path)
        except BaseException as error:
            is_told = type(error) in (ValueError, FileNotFoundError) and str(path.parent) in str(error)
            if not is_told or len(str(error).replace(str(path), "")) > 600:
                error.add_note(f"{path.name}, seed {seed}")
                raise


def read_table(path):
    loaded = load_text(str(path))
    assert all(isinstance(text, str) and text.strip() for split in loaded[:3] for texts in split.texts for text in texts)
    load_unlabelled(path)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name, tmp_path):
    check(tmp_path / name, FILES[name], lm.read_text if name.endswith(".txt") else read_table)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_damaged_tokenizers(name, tmp_path):
    folder = tmp_path / "tokenizer-folder"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "##a", "##b", "##c"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = tokens.load_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()

    def read(path):
        tokenizer = tokens.load_tokenizer(folder, len(words))
        texts = [("abc",), ("a 😭 zz",), ("",)]
        tokens.tokenize(tokenizer, texts, max_tokens=8, vocabulary=10**6, types=2, where=str(folder))
        tokens.padding(tokenizer, len(words))

    check(folder / name, (folder / name).read_bytes() if (folder / name).exists() else b"{}", read)
