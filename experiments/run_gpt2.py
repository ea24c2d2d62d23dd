"""Finds which layers of a GPT-2 to freeze when it is fine-tuned to another kind of text, or to classify texts.

    python experiments/run_gpt2.py --gens 10

works offline: it pretrains a small GPT-2 on the bytes of the Python language's reference, which takes about 90 s on 2
CPU cores and is done once, and fine-tunes it to the texts of the embedded reviews. On 2 cores it ends in under 10 minutes. It
leaves a fine-tuned model, the mask and all evaluations in a folder under runs/.

    python experiments/run_gpt2.py --task classify --model openai-community/gpt2 --learning-rate 1e-4

tells good reviews from bad ones with GPT-2 itself.
"""

from gafreeze_jax.extras import script_needs

with script_needs("text"):
    import tyro

    from gafreeze_jax.runs.main import main as run
    from gafreeze_jax.tasks.language_model import Options, prepare


def main(options: Options) -> None:
    run("gpt2", prepare, options)


if __name__ == "__main__":
    main(tyro.cli(Options))
