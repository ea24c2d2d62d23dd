"""Finds which layers of a pretrained BERT to freeze when it is fine-tuned on texts with labels, numbers or tags.

    python experiments/run_bert.py --gens 10

fine-tunes all-MiniLM-L6-v2, which is fetched once and then works offline, on 1,988 bundled reviews. On 2 CPU cores it takes
under 4 minutes. It leaves a fine-tuned model, the mask and all evaluations in a folder under runs/.
"""

from gafreeze_jax.extras import script_needs

with script_needs("text"):
    import tyro

    from gafreeze_jax.runs.main import main as run
    from gafreeze_jax.tasks.text import Options, prepare


def main(options: Options) -> None:
    run("bert", prepare, options)


if __name__ == "__main__":
    main(tyro.cli(Options))
