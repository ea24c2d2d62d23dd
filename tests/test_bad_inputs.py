"""What is wrong with an input is told in one line, before anything is trained or written, and no input is ever executed.

The table is run through the real `main` of every script. How each reader takes its input apart is tested beside it.
"""

import datetime
import gzip
import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_bert
import run_custom
import run_gpt2
import run_resnet
from etils import epath
from PIL import Image
from safetensors.numpy import load_file, save_file

from gafreeze_jax import user_cache
from gafreeze_jax.runs.run_dir import RunDir, as_json

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Case(NamedTuple):
    """An input that cannot be used.

    Attributes:
      script: that gets it.
      make: makes it in a folder, in which `model` is a small whole model, and gives the options.
      message: part of the error.
    """

    script: ModuleType
    make: Callable[[Path], dict[str, Any]]
    message: str


def given(**options):
    """The options are what is wrong."""
    return lambda folder: options


def model(damage, **options):
    """The model is what is wrong, after `damage(its folder)`."""
    return lambda folder: damage(folder / "model") or options


def data(content, name="data.csv", **options):
    """A data file is what is wrong."""
    return splits({name: content}, name, **options)


def splits(contents, source="", **options):
    """So are some in a folder."""

    def make(folder):
        for name, content in contents.items():
            (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "data" / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return {"data": str(folder / "data" / source)} | options

    return make


# Texts

CSV = "text,label\n" + "\n".join(f"review number {i},{'yes' if i % 2 else 'no'}" for i in range(40)) + "\n"
JSONL = '{"text": "a", "label": 1}\n'


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns or {"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}), buffer)
    return buffer.getvalue()


def of_parquet(**columns):
    return data(parquet(**columns), "a.parquet")


def make_pipe(folder):
    (folder / "data.csv").symlink_to("/dev/zero")
    return {"data": str(folder / "data.csv")}


def make_loop(folder):
    (folder / "data.csv").symlink_to(folder / "data.csv")
    return {"data": str(folder / "data.csv")}


# Images


def picture(size=(8, 8), kind="PNG", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width, height):
    """A small file with a large or empty image in its header."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = (header, b"IDAT" + zlib.compress(bytes(100)), b"IEND")
    words = [len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(words)


def photos(content, name="7.png"):
    """Two classes of twenty pictures, one of which is not good."""
    whole = {f"{kind}/{i}.png": picture() for kind in ("ant", "bee") for i in range(20)}
    return splits(whole | {f"bee/{name}": content}, train_examples=40, validation_examples=40)


def arrays(**changes):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{"images": np.zeros((40, 8, 8), np.uint8), "labels": np.arange(40) % 2} | changes)
    return data(buffer.getvalue(), "data.npz")


def zipped(contents):
    """A zip file of other things than arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return data(buffer.getvalue(), "data.npz")


def array_that_claims(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


# Models


class Attack:
    """Reading its pickle makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def edit(path, **entries):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | entries))


def config(**entries):
    """The model's config is what is wrong."""
    return model(lambda folder: edit(folder / "config.json", **entries))


def raw_config(text, place='"hidden_size": 16'):
    """A config with text that is not proper JSON in one place."""

    def damage(folder):
        path = folder / "config.json"
        assert place in path.read_text()
        path.write_text(path.read_text().replace(place, text))

    return model(damage)


def weights(change):
    """The tensors are what is wrong."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return model(damage)


def put(index, value):
    return lambda tensors: tensors[NORM].__setitem__(index, value)


NORM = "bert.embeddings.LayerNorm.weight"


def remove(*names):
    return model(lambda folder: [(folder / name).unlink() for name in names] and None)


def write(name, content):
    """A file of the model is replaced."""
    return model(lambda folder: (folder / name).write_bytes(content) and None)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(name):
    """A model whose weights are a pickle."""

    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps({"weight": Attack()}))

    return model(damage)


def pickled_file(name):
    def make(folder):
        (folder / name).write_bytes(pickle.dumps({"weight": Attack()}))
        return {"model": str(folder / name)}

    return make


def index(text):
    """An index of shards in place of the weights, which lie one folder above."""

    def damage(folder):
        (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return model(damage)


def shard(name):
    return index(json.dumps({"weight_map": {NORM: name}}))


def make_pipe_of_weights(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def remove_tokenizer_of_words(folder):
    """Of a GPT-2 that does not model bytes."""
    edit(folder / "config.json", vocab_size=300)
    (folder / "tokenizer.json").unlink()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"] = np.zeros((300, 16), np.float32)
    save_file(tensors, path)


# Runs

RUN = {"gens": 3, "population": 2}


def run_there(damage=lambda folder: None, kind="custom", options=None, **given):
    """There is an unfinished run of some options."""

    def make(folder):
        path = folder / "there"
        known = run_custom.Options(**RUN | (options or {}), out=path)
        facts = {"kind": kind, "options": as_json(known), "versions": {}, "device": "1 x cpu", "fingerprint": "0"}
        facts |= {"stages": [], "num_steps": 1}
        RunDir.open(epath.Path(path), facts)
        damage(path)
        return {name: path if value == "there" else value for name, value in given.items()}

    return make


def cut_facts(folder):
    path = folder / "run.json"
    path.write_text(path.read_text()[:-20])


def change_facts(folder):
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"gens": 3', '"gens": 4'))


def fill(folder):
    (folder / "there").mkdir()
    (folder / "there" / "thesis.tex").write_text("...")
    return {"out": folder / "there"}


def finish_and_damage(folder):
    saved = RunDir(epath.Path(folder))
    with saved.finishing() as local:
        (local / "result.json").write_text("{}")
    (folder / "result.json").write_text("{ }")


CASES = {
    # Tables of texts
    "no such file": Case(run_bert, given(data="no.csv"), "no.csv: no such file or folder; expected a .csv"),
    "a loop of links": Case(run_bert, make_loop, "data.csv: no such file or folder"),
    "a device": Case(run_bert, make_pipe, "data.csv: expected a file, got a device or pipe"),
    "a name of a file with NUL": Case(run_bert, given(data="a\0b.csv"), r"a\x00b.csv: no such file or folder"),
    "an empty file": Case(run_bert, data(""), "data.csv: the file is empty"),
    "a header only": Case(run_bert, data("text,label\n"), "data.csv: no rows with text"),
    "texts that are empty": Case(run_bert, data("text,label\n,yes\n  ,no\n"), "data.csv: no rows with text"),
    "one class": Case(run_bert, data(CSV.replace("yes", "no")), "only one class, 'no'; at least two are needed"),
    "a label for every row": Case(
        run_bert, data("text,label\n" + "".join(f"a,{i}\n" for i in range(40))), "are the labels those of classes?"
    ),
    "no text column": Case(run_bert, data(CSV.replace("text,", "phrases,")), "no text column found; name it with --text"),
    "no label column": Case(run_bert, data(CSV.replace(",label", ",q")), "no label column found; name it with --label-column"),
    "a column twice": Case(run_bert, data("text,label,text\na,no,b\n"), "column 'text' occurs more than once in the header"),
    "another column asked for": Case(run_bert, data(CSV, label_column="stars"), "no column 'stars'; the columns are"),
    "three text columns": Case(run_bert, data(CSV, text_columns=("a", "b", "c")), "expected one text column, or two"),
    "Latin-1": Case(run_bert, data(CSV.replace("r 7", "r \xe9").encode("latin-1")), "line 9 is not UTF-8 (byte 0xe9)"),
    "UTF-16": Case(
        run_bert, data(CSV.encode("utf-16")), "line 1 is not UTF-8 (byte 0xff); convert the file to UTF-8, as by iconv -f UTF"
    ),
    "UTF-16 without its mark": Case(run_bert, data(CSV.encode("utf-16-le")), "line 1 has a NUL byte; expected text in UTF-8"),
    "a NUL byte": Case(run_bert, data(CSV.replace("number 7", "number \0")), "line 9 has a NUL byte"),
    "a row too long": Case(run_bert, data(CSV + "a,b,c\n"), "line 42 has 3 fields, the header has 2"),
    "an open quotation": Case(run_bert, data(CSV + '"open,no\n'), "line 42: unexpected end of data"),
    "an open quotation, 10 MB": Case(run_bert, data(CSV + '"' + "open,no\n" * 10**6), "unexpected end of data"),
    "text behind a quotation": Case(run_bert, data(CSV + '"so" they say,no\n'), "line 42: ',' expected after '\"'"),
    "no label at all": Case(
        run_bert, data(CSV.replace(",yes", ",").replace(",no", ",")), "no rows with text and a label in column 'label'"
    ),
    "labels missing in a split, or called otherwise": Case(
        run_bert, splits({"train.csv": CSV, "test.csv": "text,q\na,no\n"}), "test.csv: no label column found"
    ),
    "a label that train lacks": Case(
        run_bert,
        splits({"train.csv": CSV, "validation.csv": CSV.replace("3,yes", "3,perhaps")}),
        "the validation split has labels that are not in train: perhaps; train has no, yes",
    ),
    "two training files": Case(run_bert, splits({"train.csv": CSV, "train.tsv": CSV}), "more than one train file"),
    "no training file": Case(run_bert, splits({"test.csv": CSV}), "expected one of train{.csv,.tsv,.jsonl,.parquet,.conll}"),
    "an archive": Case(run_bert, data(b"PK\x03\x04", "data.zip"), "data.zip: unknown kind of file; expected .csv"),
    "half a gzip file": Case(run_bert, data(gzip.compress(CSV.encode())[:-9], "data.csv.gz"), "not a whole gzip file"),
    "a gzip bomb": Case(
        run_bert, data(gzip.compress(bytes(10**8)), "data.csv.gz"), "would unpack to more than 100 times its size"
    ),
    "no JSON": Case(run_bert, data(JSONL + "{'text': 'a'}", "data.jsonl"), "line 2 is not JSON: Expecting property name"),
    "deep JSON": Case(run_bert, data("[" * 10**5, "data.jsonl"), "line 1 is not JSON: it is nested too deeply"),
    "NaN in JSON": Case(run_bert, data('{"text": "a", "label": NaN}', "data.jsonl"), "not JSON: NaN is not a finite number"),
    "a name twice in JSON": Case(
        run_bert, data('{"text": "a", "label": 1, "label": 2}', "data.jsonl"), "line 1 is not JSON: 'label' occurs twice"
    ),
    "half a character": Case(run_bert, data(r'{"text": "\ud83d", "label": 1}', "data.jsonl"), "has half a surrogate pair"),
    "infinite scores": Case(run_bert, data("text,score\na,inf\nb,0.5\n"), "line 2: column 'score' must hold finite numbers"),
    "a metric of another task": Case(run_bert, given(metric="rmse"), "--metric rmse is not for one of two labels; choose"),
    "classes of numbers by GPT-2": Case(
        run_gpt2,
        data("text,score\n" + "a,1.5\nb,0.5\n" * 9, task="classify", metric="accuracy"),
        "--metric accuracy is not for a number for each text; choose spearman or pearson or",
    ),
    "the next token by F1": Case(run_gpt2, given(metric="macro-f1"), "--metric macro-f1 is not for the next token; choose"),
    "labels of 5,000 digits": Case(
        run_bert, splits({"train.csv": CSV.replace("yes", "1" * 5000).replace(",no", ",2"), "test.csv": "text,label\na,5\n"}),
        "the test split has labels that are not in train: 5",
    ),
    "a label that moves the cursor": Case(
        run_bert,
        splits({"train.csv": CSV, "test.csv": "text,label\na,\x1b[2J\x07\n"}),
        r"not in train: \x1b[2J\x07; train has no, yes",
    ),
    "no set of TFDS": Case(run_bert, given(data="tfds:no_such_set"), "TFDS has no such data set"),
    "a path for TFDS": Case(run_bert, given(data="tfds:../../etc"), "expected tfds:NAME"),
    # Parquet, spreadsheets and the hub
    "half a Parquet file": Case(run_bert, data(parquet()[:-60], "a.parquet"), "a.parquet: not a whole Parquet file: "),
    "the first half of a Parquet file": Case(run_bert, data(parquet()[:60] + parquet()[120:], "a.parquet"), "not a whole Parq"),
    "an empty Parquet file": Case(run_bert, data(b"", "a.parquet"), "not a whole Parquet file: Parquet file size is 0 bytes"),
    "a pointer to a Parquet file": Case(
        run_bert, data("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.parquet"), "replaced by git lfs pull"
    ),
    "a table called Parquet": Case(run_bert, data(CSV, "a.parquet"), "a.parquet: not a whole Parquet file"),
    "a folder called Parquet": Case(run_bert, splits({"a.parquet/b": ""}, "a.parquet"), "no train file"),
    "Parquet without rows": Case(run_bert, of_parquet(text=[], label=[]), "a.parquet: no rows with text"),
    "Parquet without texts": Case(
        run_bert, of_parquet(phrases=["a"], label=[1]), "no text column found; name it with --text-col"
    ),
    "Parquet without labels": Case(run_bert, of_parquet(text=["a"]), "a.parquet: no label column found"),
    "a nested column of texts": Case(
        run_bert, of_parquet(text=[{"en": "a"}], label=[1]), "row 1: column 'text' must hold text, got {'en': 'a'}"
    ),
    "texts that are bytes": Case(run_bert, of_parquet(text=[b"a"], label=[1]), "must hold text, got b'a'"),
    "labels that are dates": Case(
        run_bert, of_parquet(text=["a"], label=[datetime.date(2020, 1, 1)]), "got datetime.date(2020, 1, 1)"
    ),
    "a column of numbers as texts": Case(run_bert, of_parquet(text=[1.5], label=[1]), "must hold text, got 1.5"),
    "mixed types in a column": Case(
        run_bert, data(JSONL + '{"text": 7, "label": 1}\n', "a.jsonl"), "line 2: column 'text' must hold text, got 7"
    ),
    "a bomb of Parquet": Case(
        run_bert, of_parquet(text=pa.nulls(10**7, pa.string()), label=pa.nulls(10**7)), "more than 100 times its"
    ),
    "a shard missing": Case(
        run_bert, splits({"train-00000-of-00002.parquet": parquet()}), "expected the train shards train-00000-of-00002 to"
    ),
    "shards with other names": Case(
        run_bert, splits({"train-1.parquet": parquet(), "train-2.parquet": parquet()}), "train-2.parquet; keep one, or all"
    ),
    "several sets in a folder": Case(
        run_bert, splits({"cola/train.parquet": parquet(), "rte/train.parquet": parquet()}), "the folders in it: cola, rte"
    ),
    "a spreadsheet": Case(run_bert, data(b"PK\x03\x04", "a.xlsx"), "a.xlsx: unknown kind of file; it is a spreadsheet, save"),
    "an open spreadsheet": Case(run_bert, data(b"PK\x03\x04", "a.ods"), "it is a spreadsheet, save it as CSV (UTF-8)"),
    "a spreadsheet called CSV": Case(run_bert, data(b"PK\x03\x04\x14\0", "a.csv"), "it is a spreadsheet or an archive under"),
    "JSON as a whole": Case(run_bert, data("[]", "a.json"), "write a JSON object for each row on a line of its own, as .jsonl"),
    "a set of the hub, offline": Case(
        run_bert, given(data="hub:nyu-mll/glue/cola"), "in the local cache, and huggingface.co cannot be reached (HF_HUB_O"
    ),
    "a path for the hub": Case(run_bert, given(data="hub:../../etc/passwd/x"), "hub:../../etc/passwd/x: expected hub:NAME or"),
    # Texts
    "no such text": Case(run_gpt2, given(data="no.txt"), "no.txt: no such file or folder; expected a .txt file"),
    "a short text": Case(run_gpt2, data("a short text", "a.txt"), "a.txt, validation split: 1 tokens leave none to predict"),
    "a binary file as a text": Case(run_gpt2, data("text\nand \0", "a.txt"), "line 2 has a NUL byte"),
    "a table for language": Case(run_gpt2, data(CSV), "data.csv: unknown kind of file; expected .txt, plain or .gz"),
    "a text to classify": Case(run_gpt2, given(task="classify", data="pydoc"), "pydoc: no such file or folder; expected a"),
    # Images
    "no such images": Case(run_resnet, given(data="no"), "no: no such file or folder; expected a .npz file"),
    "digits the wrong way": Case(run_resnet, given(data="digits:7-5"), "no digits from 7 to 5"),
    "half an image": Case(run_resnet, photos(picture((40, 40))[:-30]), "cannot be read as images: bee/7.png ("),
    "no image": Case(run_resnet, photos(b"no image"), "bee/7.png (cannot identify image file)"),
    "an image without pixels": Case(run_resnet, photos(png_that_claims(0, 8)), "cannot be read as images: bee/7.png ("),
    "a decompression bomb": Case(run_resnet, photos(png_that_claims(2**20, 2**20)), "7.png (Image size (1099511627776 pixels)"),
    "an image of one line": Case(run_resnet, photos(picture((60_000, 1))), "7.png (60000 x 1 pixels; one side is more"),
    "a program as an image": Case(
        run_resnet, photos(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(ran) (w) file\n"), "7.png (cannot identify image"
    ),
    "16 bits": Case(run_resnet, photos(picture(mode="I;16")), "7.png (pixels of kind I;16"),
    "another file": Case(run_resnet, photos(b"", "notes.txt"), "bee/notes.txt (unknown suffix)"),
    "one class of images": Case(run_resnet, splits({"ant/1.png": picture()}), "only one class, 'ant'"),
    "no class folders": Case(run_resnet, splits({"1.png": picture()}), "no class folders in it"),
    "a pickle as images": Case(run_resnet, arrays(labels=np.array([Attack()] * 40)), "not a whole .npz file of plain arrays"),
    "a pickle for .npz": Case(
        run_resnet, data(pickle.dumps(Attack()), "data.npz"), "data.npz: not a whole .npz file of plain arrays"
    ),
    "images that are floats": Case(run_resnet, arrays(images=np.zeros((40, 8, 8))), "images must be uint8, from 0 to 255"),
    "images with channels first": Case(
        run_resnet, arrays(images=np.zeros((40, 3, 8, 8), np.uint8)), "images must have 1 or 3 channels, as the last axis"
    ),
    "flat images": Case(run_resnet, arrays(images=np.zeros((40, 64), np.uint8)), "must be [N, H, W] or [N, H, W, C]"),
    "images without height": Case(run_resnet, arrays(images=np.zeros((40, 0, 8), np.uint8)), "got [40, 0, 8]"),
    "too few labels": Case(
        run_resnet, arrays(labels=np.arange(39) % 2), "must be [40], one for each image, or [40, C] of 0 and 1, got [39]"
    ),
    "labels that are points in time": Case(
        run_resnet, arrays(labels=np.zeros(40, "M8[s]")), "labels must be numbers or strings, got datetime64[s]"
    ),
    "a single array": Case(run_resnet, data(array_that_claims((0,)), "data.npz"), "not a whole .npz file of plain arrays"),
    "no arrays in a zip file": Case(run_resnet, zipped({"images": "a", "labels": "b"}), "images must be"),
    "a path in a zip file": Case(run_resnet, zipped({"../../images.npy": array_that_claims((0,))}), "no array 'images'"),
    "an array that claims 1 EB": Case(
        run_resnet, zipped({"images.npy": array_that_claims((10**18,)), "labels.npy": b""}), "not a whole .npz file"
    ),
    "a zip bomb": Case(run_resnet, zipped({"images.npy": bytes(10**8)}), "would unpack to more than 100 times its size"),
    # Weights
    "weights cut off": Case(run_bert, model(truncate), "model.safetensors: not a whole safetensors file"),
    "weights of a ResNet cut off": Case(run_resnet, model(truncate), "model.safetensors: not a whole safetensors file"),
    "weights of a GPT-2 cut off": Case(run_gpt2, model(truncate), "model.safetensors: not a whole safetensors file"),
    "a header of 16 EB": Case(run_bert, write("model.safetensors", b"\xff" * 64), "not a whole safetensors file"),
    "weights that are a folder": Case(
        run_bert, model(lambda folder: (folder / "model.safetensors").unlink() or (folder / "model.safetensors").mkdir()),
        "no model.safetensors",
    ),
    "weights that are a pipe": Case(run_bert, model(make_pipe_of_weights), "no model.safetensors"),
    "no weights": Case(run_bert, remove("model.safetensors"), "no model.safetensors and no model.safetensors.index.json"),
    "a pickle": Case(run_bert, pickled("pytorch_model.bin"), "is a pickle, which can run code and is not read. To convert"),
    "a pickle of a GPT-2": Case(run_gpt2, pickled("model.pt"), "model.pt is a pickle, which can run code and is not read"),
    "a pickle of a ResNet": Case(run_resnet, pickled("resnet.ckpt"), "resnet.ckpt is a pickle, which can run code"),
    "a pickle in place of a folder": Case(run_bert, pickled_file("model.pt"), "got a file; model.pt is a pickle, which"),
    "a pickle for a ResNet": Case(run_resnet, pickled_file("resnet18.pth"), "a folder with one; resnet18.pth is a pickle"),
    "a pickle called safetensors": Case(
        run_resnet, pickled_file("model.safetensors"), "model.safetensors: not a whole safetensors file"
    ),
    "NaN among the weights": Case(run_bert, weights(put(0, np.nan)), f"{NORM.removeprefix('bert.')} has NaN or infinite"),
    "integers for weights": Case(
        run_bert, weights(lambda tensors: tensors.update({NORM: tensors[NORM].astype(int)})), "numbers of kind int64"
    ),
    "a tensor missing": Case(run_bert, weights(lambda tensors: tensors.pop(NORM)), "embeddings.LayerNorm.weight is missing"),
    "a tensor too many": Case(
        run_bert, weights(lambda tensors: tensors.update({"lora.weight": np.zeros(3)})), "lora.weight is not a tensor of this"
    ),
    "another architecture": Case(
        run_resnet,
        model(lambda folder: save_file({"encoder.weight": np.zeros(3)}, folder / "model.safetensors")),
        "not a ResNet with PyTorch's names",
    ),
    "a shard of another folder": Case(run_bert, shard("../model.safetensors"), "shard '../model.safetensors' is missing"),
    "a shard anywhere": Case(run_bert, shard("/etc/passwd"), "shard '/etc/passwd' is missing"),
    "a shard without a name": Case(run_bert, shard(["a"]), "not an index of safetensors shards"),
    "an index that is none": Case(run_bert, index("[" * 10**5), "not an index of safetensors shards"),
    # Configs
    "no config": Case(run_bert, remove("config.json"), "config.json: no such file; expected a folder in the"),
    "not a BERT": Case(run_bert, config(model_type="fnet"), "unknown model_type 'fnet', expected bert, roberta, "),
    "not a GPT-2": Case(run_gpt2, config(model_type="gpt_neo"), "unknown model_type 'gpt_neo', expected gpt2, "),
    "a BERT for a GPT-2": Case(
        run_gpt2, given(model="minilm"), "mistral, qwen2, qwen3, gpt_neox; a BERT is for run_bert.py"
    ),
    "not a ResNet": Case(run_resnet, config(model_type="swin"), "unknown model_type 'swin', expected resnet, "),
    "a config that is a list": Case(run_bert, write("config.json", b"[]"), "unknown model_type [], expected bert, "),
    "a config that is no JSON": Case(run_bert, write("config.json", b"{"), "config.json: not JSON"),
    "a config of bytes": Case(run_bert, write("config.json", b"\xff\xfe"), "config.json: not JSON"),
    "a deep config": Case(run_bert, write("config.json", b'{"a":' * 10**5), "config.json: not JSON: it is nested too deeply"),
    "a name twice in a config": Case(run_bert, raw_config('"hidden_size": 16, "hidden_size": 32'), "'hidden_size' occurs"),
    "NaN in a config": Case(run_bert, raw_config('"hidden_size": NaN'), "config.json: not JSON: NaN is not a finite number"),
    "1e999 in a config": Case(run_bert, raw_config('"hidden_size": 1e999'), "config.json: not JSON: 1e999 is not a finite"),
    "a number of 5,000 digits": Case(run_bert, raw_config(f'"hidden_size": {"1" * 5000}'), "config.json: not JSON: Exceeds"),
    "a huge width": Case(run_bert, config(hidden_size=10**12), "hidden_size must be a positive integer below 2**31, got"),
    "a billion layers": Case(run_bert, config(num_hidden_layers=10**9), "num_hidden_layers must be an integer from 1 to 1000"),
    "a million blocks": Case(run_gpt2, config(n_layer=10**6), "n_layer must be an integer from 1 to 1000, got 1000000"),
    "a billion residual blocks": Case(
        run_resnet,
        config(model_type="resnet", num_channels=3, embedding_size=4, hidden_sizes=[4], depths=[10**9], layer_type="basic"),
        "depths must be a list, each an integer from 1 to 1000, got [1000000000]",
    ),
    "a width in words": Case(run_bert, config(hidden_size="16"), "hidden_size must be a positive integer below 2**31, got"),
    "a width that is true": Case(run_bert, config(hidden_size=True), "hidden_size must be a positive integer"),
    "a negative dropout": Case(run_bert, config(hidden_dropout_prob=-0.1), "hidden_dropout_prob must be a number from 0 to"),
    "an unhashable activation": Case(run_bert, config(hidden_act=["gelu"]), "hidden_act must be one of"),
    "heads that do not divide": Case(run_bert, config(num_attention_heads=3), "3 attention heads do not divide hidden_size 16"),
    "other shapes": Case(run_bert, config(intermediate_size=64), "has shape [32, 16], the config needs [64, 16]"),
    "more layers": Case(run_bert, config(num_hidden_layers=3), "encoder.layer.2.attention.output.LayerNorm.bias is missing"),
    "other shapes of a GPT-2": Case(run_gpt2, config(n_inner=60), "has shape [64, 16], the config needs [60, 16]"),
    "more blocks": Case(run_gpt2, config(n_layer=3), "h.2.ln_1.weight is missing"),
    "a preprocessor that is no JSON": Case(
        run_resnet, write("preprocessor_config.json", b"{"), "not the config of an image processor"
    ),
    "images of no size": Case(
        run_resnet,
        write("preprocessor_config.json", b'{"size": 0, "crop_size": 8, "do_center_crop": true}'),
        "preprocessor_config.json: not the config of an image processor: ZeroDivisionError",
    ),
    "images of a billion lines": Case(
        run_resnet,
        write("preprocessor_config.json", b'{"size": 1000000000, "do_normalize": false}'),
        "images cannot be larger than 4096 x 4096 pixels, got 1000000000",
    ),
    # Tokenizers
    "no tokenizer": Case(run_bert, remove("tokenizer.json", "vocab.txt"), "no tokenizer files"),
    "no tokenizer of words": Case(run_gpt2, model(remove_tokenizer_of_words), "no tokenizer files"),
    "half a tokenizer": Case(run_bert, write("tokenizer.json", b'{"version": "1.0"'), "the tokenizer files cannot be read"),
    # Names of models
    "a name of the hub, offline": Case(run_bert, given(model="google-bert/bert-base-uncased"), "--model minilm, which needs"),
    "a name of the hub for GPT-2": Case(run_gpt2, given(model="openai-community/gpt2"), "--model pydoc, which needs"),
    "a name of the hub for ResNet": Case(run_resnet, given(model="microsoft/resnet-18"), "--model digits, which needs"),
    "an address": Case(run_bert, given(model="https://host/model"), "no such folder, and not a name that the hub can have"),
    "a path that climbs": Case(run_bert, given(model="../../no/model"), "no such folder, and not a name that the hub can have"),
    # Options
    "no generations": Case(run_bert, given(gens=0), "--gens must be at least 1, got 0"),
    "a population of one": Case(run_bert, given(population=1), "--population must be at least 2, got 1"),
    "a negative learning rate": Case(run_bert, given(learning_rate=-1.0), "--learning-rate must be between 0 and 1, got -1.0"),
    "a learning rate of NaN": Case(run_bert, given(head_learning_rate=np.nan), "--head-learning-rate must be between 0 and 1"),
    "no micro-batch": Case(run_bert, given(micro_batch=0), "--micro-batch must be at least 1, got 0"),
    "no batch": Case(run_bert, given(batch_size=0), "--batch-size must be at least 1, got 0"),
    "one training example": Case(run_bert, given(train_examples=1), "--train-examples must be at least 2, got 1"),
    "a negative seed": Case(run_custom, given(seed=-1), "--seed must be at least 0, got -1"),
    "a seed of 100 bits": Case(run_custom, given(seed=2**100), "--seed must be below 2**32, got"),
    "more tokens than positions": Case(run_bert, given(max_tokens=1000), "--max-tokens must be at most the model's 512"),
    "more tokens than GPT-2 has": Case(run_gpt2, given(max_tokens=65), "--max-tokens must be at most the model's 64, got 65"),
    "few tokens": Case(run_gpt2, given(max_tokens=7), "--max-tokens must be at least 8, got 7"),
    "images of no pixels": Case(run_resnet, given(image_size=0), "--image-size must be at least 1, got 0"),
    "images that fill the memory": Case(run_resnet, given(image_size=10**6), "images cannot be larger than 4096 x 4096 pixels"),
    "flat data for a CNN": Case(run_custom, given(network="cnn", data="mock"), "--network cnn needs images: take --data"),
    "more examples than there are": Case(
        run_custom, given(train_examples=800), "--train-examples and --validation-examples are 1056 together; there are 896"
    ),
    "no FLOPs": Case(run_custom, given(max_flops=0.0), "--max-flops must be above 0 and at most 1, got 0.0"),
    "too many FLOPs": Case(run_custom, given(max_flops=1.5), "--max-flops must be above 0 and at most 1, got 1.5"),
    "too few FLOPs": Case(
        run_custom, given(out="run", max_flops=1e-6, plan="members=4,steps=9,freezing=traced"),
        "--max-flops 1e-06: no mask costs so little; training the head alone costs 0.0",
    ),
    "negative minutes": Case(run_custom, given(max_minutes=-1.0), "--max-minutes must be above 0, got -1.0"),
    "minutes that are NaN": Case(run_custom, given(max_minutes=np.nan), "--max-minutes must be above 0, got nan"),
    "endless minutes": Case(run_custom, given(max_minutes=np.inf), "--max-minutes must be a finite number; leave it out"),
    "endless evaluations": Case(run_custom, given(max_evaluations=np.inf), "--max-evaluations must be a finite number; leave"),
    "half an evaluation": Case(run_custom, given(max_evaluations=0.5), "--max-evaluations must be at least 1, got 0.5"),
    "evaluations that are NaN": Case(run_custom, given(max_evaluations=np.nan), "--max-evaluations must be at least 1"),
    "no patience": Case(run_custom, given(patience=0), "--patience must be at least 1, got 0"),
    "no finalists' seeds": Case(run_custom, given(finalist_seeds=0), "--finalist-seeds must be at least 1, got 0"),
    "a plan in words": Case(run_custom, given(plan="fast"), "plan 'fast': expected auto, or members=N, steps=N"),
    "a plan with no members": Case(run_custom, given(plan="members=0"), "with commas between; got 'members=0'"),
    "a plan that cannot be": Case(run_custom, given(plan="steps=0,freezing=traced"), "block by block, masks are static"),
    "a plan of code": Case(run_custom, given(plan="__import__('os').mkdir('ran')"), "expected auto, or members=N"),
    # Folders
    "a folder that cannot be": Case(run_bert, given(out=Path("/proc/run")), "--out /proc/run: cannot be written"),
    "a folder that is a file": Case(run_custom, given(out="model/model.safetensors"), "cannot be read: Not a directory"),
    "a folder with something else": Case(run_bert, fill, "the folder isn't empty (it holds thesis.tex); choose a new folder"),
    "nothing to resume": Case(run_custom, given(resume="model"), "--resume model: expected the folder of a run, with run.json"),
    "a run of another script": Case(
        run_custom, run_there(kind="bert", resume="there"), "is a run of run_bert.py; expected one of run_custom.py"
    ),
    "a run of other options": Case(
        run_custom, run_there(out="there", **RUN | {"gens": 5}), "holds a run with other options: --gens 3 there, 5 given"
    ),
    "options for a run to resume": Case(
        run_custom, run_there(resume="there", seed=3), "holds a run with other options: --seed 0 there, 3 given"
    ),
    "a run of other data": Case(run_custom, run_there(resume="there"), "model or data have changed since this run started"),
    "half a run.json": Case(run_custom, run_there(cut_facts, resume="there"), "run.json: damaged; restore it, or begin again"),
    "a run.json with other options": Case(run_custom, run_there(change_facts, resume="there"), "run.json: damaged"),
    "a deep run.json": Case(
        run_custom,
        run_there(lambda folder: (folder / "run.json").write_text("[" * 10**5), resume="there"),
        "run.json: damaged",
    ),
    "a finished run with damage": Case(run_custom, run_there(finish_and_damage, resume="there"), "damaged or missing: result"),
    "a run in a bucket, without its package": Case(run_custom, given(out="gs://bucket/run"), "Please install gcsfs"),
}  # fmt: skip


def content(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def error_of(script, options, capsys):
    """The one line that a run ends with before any training."""
    with pytest.raises(SystemExit) as stopped:
        script.main(script.Options(**options))
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Generation" not in printed.out
    line = printed.err.removesuffix("\n")
    assert line.startswith("error: ")
    assert line.isprintable()  # and so on one line
    return line


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(case, small_bert, small_gpt2, small_resnet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    usual = {
        run_bert: (small_bert, {}),
        run_gpt2: (small_gpt2, {"data": "reviews", "max_tokens": 16}),
        run_resnet: (small_resnet, {"data": "digits"}),
        run_custom: (small_resnet, {}),
    }
    source, options = usual[case.script]
    shutil.copytree(source, tmp_path / "model")
    if case.script is not run_custom:
        options = options | {"model": "model"}
    options |= case.make(tmp_path)
    before = content(tmp_path)
    assert case.message in error_of(case.script, options, capsys)
    assert content(tmp_path) == before


def test_an_attack_would_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Attack()))
    assert (tmp_path / "ran").exists()


def test_code_of_a_model_is_not_run(small_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(small_bert, tmp_path / "model")
    (folder / "code.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Tokenizer: ...\nclass Config: ...\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "code.Config", "AutoTokenizer": "code.Tokenizer"})
    names = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}}
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run it"))
    run_bert.prepare(run_bert.Options(model="model"))
    edit(folder / "tokenizer_config.json", **names)
    run_bert.prepare(run_bert.Options(model="model"))
    assert not (tmp_path / "ran").exists()


def test_the_command_that_converts_a_pickle(small_bert, tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(small_bert, tmp_path / "a model")
    whole = load_file(folder / "model.safetensors")
    torch.save({name: torch.tensor(tensor) for name, tensor in whole.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    _, _, command = error_of(run_bert, {"model": str(folder)}, capsys).partition("To convert it: python ")
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    for name, tensor in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, whole.pop(name))
    assert not whole


@pytest.mark.parametrize("options", [{"data": "no.txt"}, {"task": "classify", "data": "no.csv"}, {"max_tokens": 129}], ids=str)
def test_bad_options_are_told_before_pretraining(options, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_cache, "keep", lambda *args: pytest.fail("pretrains"))
    error_of(run_gpt2, options, capsys)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    assert "cannot be written" in error_of(run_gpt2, {}, capsys)
