"""Makes the two runs in this folder. They were made by version 0.1.0 (commit 4e42920), from the repository's root:

    python tests/old_runs/make.py

Later versions must show, report, predict with and resume them; see tests/test_old_runs.py.
"""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from gafreeze_jax.data.text import load_text
from gafreeze_jax.models import base, pretrained

HERE = Path("tests/old_runs")
OPTIONS = [
    "--model", str(HERE / "model"), "--data", str(HERE / "reviews.csv"), "--gens", "2", "--population", "2", "--train-examples",
    "32", "--validation-examples", "16", "--epochs", "16", "--batch-size", "8", "--max-tokens", "16", "--finalist-seeds", "2",
    "--learning-rate", "0.01", "--head-learning-rate", "0.02",
    "--plan", "members=1,steps=0,freezing=static,calls=1",
]  # fmt: skip


def write_model() -> None:
    split = load_text("reviews", max_train=80).train
    with open(HERE / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Review", "Sentiment"])
        writer.writerows((text, "good" if label else "bad") for (text,), label in zip(split.texts, split.labels, strict=True))
    source = HERE / "source"
    source.mkdir()
    words = sorted({word.strip(".,;:!?\"'()") for (text,) in split.texts for word in text.lower().split()} - {""})
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    config = {
        "model_type": "bert", "vocab_size": len(words) + 5, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16, "initializer_range": 0.3,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    model = base.Model(*pretrained.read_config(source), num_classes=2)
    params = model.init_params(jax.random.key(0))
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).round(3), params)
    model.save(HERE / "model", rounded, source=source, label_names=("negative", "positive"))
    shutil.rmtree(source)


def main() -> None:
    write_model()
    command = [sys.executable, "experiments/run_bert.py", *OPTIONS, "--out"]
    subprocess.run([*command, str(HERE / "finished")], check=True)
    process = subprocess.Popen([*command, str(HERE / "interrupted")])
    while not list((HERE / "interrupted" / "members").glob("[0-9]/_CHECKPOINT_METADATA")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    for name in ("plots", "report.html"):  # can be made again, and are large
        subprocess.run(["rm", "-r", str(HERE / "finished" / name)], check=True)
    for path in (HERE / "interrupted" / "members").glob("*tmp"):
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
