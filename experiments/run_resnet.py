"""Finds which blocks of a pretrained ResNet to freeze when it is fine-tuned to classify images.

    python experiments/run_resnet.py --gens 10

works offline: it pretrains a small ResNet on scikit-learn's handwritten digits, which takes seconds and is done once, and
adapts it to inverted ones with 40 examples; its head is kept. On 2 CPU cores it ends in under 3 minutes. It leaves a
fine-tuned model, the mask and all evaluations in a folder under runs/.

    python experiments/run_resnet.py --data digits:5-9

pretrains it on the digits 0 to 4, and teaches it to tell 5 to 9 apart, with a fresh head.

    python experiments/run_resnet.py --model microsoft/resnet-18 --data FOLDER

takes photos from a folder that has a folder for every class.
"""

from gafreeze_jax.extras import script_needs

with script_needs("images"):
    import tyro

    from gafreeze_jax.runs.main import main as run
    from gafreeze_jax.tasks.images import Options, prepare


def main(options: Options) -> None:
    run("resnet", prepare, options)


if __name__ == "__main__":
    main(tyro.cli(Options))
