"""Searches which layers of a pretrained BERT to freeze when it is fine-tuned to classify texts.

    python experiments/run_bert.py --gens 10

runs without a network: it takes the embedded all-MiniLM-L6-v2 and 1,988 embedded reviews. On 2 CPU cores it ends in under
5 minutes. It leaves a fine-tuned model, the mask and all evaluations in a folder under runs/.
"""

import tyro

from gafreeze_jax.runs.main import main as run
from gafreeze_jax.tasks.text import Options, prepare


def main(options: Options) -> None:
    run("bert", prepare, options)


if __name__ == "__main__":
    main(tyro.cli(Options))
