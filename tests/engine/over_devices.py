"""Trains members or searches over all devices there are, for test_devices.py, also in processes of their own.

python tests/engine/over_devices.py {train,share,parts,search} FOLDER [COORDINATOR NUM_PROCESSES PROCESS_ID]
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from gafreeze_jax.engine import devices
from gafreeze_jax.engine.cache import Budget
from gafreeze_jax.engine.cohort import Member, Plan
from gafreeze_jax.engine.costs import bytes_of_cohort
from gafreeze_jax.space import digits

GENOMES = [(0, 0, 0), (1, 0, 1), (0, 1, 1)]
SEARCH = (
    "--gens 2 --population 3 --train-examples 32 --validation-examples 60 --epochs 8 --batch-size 8 --finalist-seeds 1 "
    "--max-evaluations 7"  # fewer than all 8 masks
)


def train(folder: Path, num_members: int | None = None) -> None:
    """Three members of a BERT with dropout to step 2, and two of them further on, block by block."""
    import test_population as tasks

    task = tasks.TASKS["bert"]
    with devices.over_all_devices(num_members):
        population = tasks.make_population(task, tasks.RECIPES["adamw"], plan=Plan(3))
        run = tasks.make_run(task)
        members = list(population.evaluate(GENOMES, run, until=2))
        members += population.resume(members[:0:-1], run)
        save(folder / "bert.npz", members)


def share(folder: Path) -> None:
    """The same for two members at a time, and two of a ResNet with batch normalisation, whose data are streamed."""
    import test_population as tasks
    import test_resnet

    train(folder, 2)
    task = test_resnet.small_task()
    with devices.over_all_devices(2):
        population = tasks.make_population(task, tasks.RECIPES["sgd"], plan=Plan(2), budget=Budget(0, 10**9))
        save(folder / "resnet.npz", population.evaluate(GENOMES[:2], tasks.make_run(task)))


def parts(folder: Path) -> None:
    """The same members, of which all devices hold parts, and the bytes of one trained member on each device."""
    import test_population as tasks

    devices.LARGE = 16
    train(folder, 1)
    with devices.over_all_devices(1):
        population = tasks.make_population(tasks.TASKS["bert"], tasks.RECIPES["adamw"])
        (member,) = population.evaluate(GENOMES[:1], tasks.make_run(tasks.TASKS["bert"]), until=1)
        arrays = jax.tree.leaves((population.params, dict(member.params), member.state))
        held = [shard for array in arrays for shard in array.addressable_shards]
        of_devices = [sum(shard.data.nbytes for shard in held if shard.device == device) for device in jax.devices()]
        counted = bytes_of_cohort(population, population.plan, GENOMES[:1], tasks.make_run(tasks.TASKS["bert"]))
    np.savez(folder / "bytes.npz", of_devices=of_devices, all=sum(array.nbytes for array in arrays), counted=counted)


def rated(folder: Path) -> None:
    """Three members with levels, a rate of all genes and the head as a gene; two of them go on."""
    import test_population as tasks
    import test_rated_genomes as cases

    genomes = [cases.SPACE.parse(text) for text in ("021@0.5", "102@1", "201@0.5")]
    run = tasks.make_run(cases.TASK)
    with devices.over_all_devices():
        population = tasks.make_population(cases.TASK, cases.make_adamw(1), plan=Plan(3), space=cases.SPACE)
        members = list(population.evaluate(genomes, run, until=2))
        members += population.resume(members[:0:-1], run)
        save(folder / "rated.npz", members)


def save(path: Path, members: Iterable[Member]) -> None:
    """Scores and parameters."""
    arrays = {}
    for member in members:
        key = f"{digits(member.genome)} {member.steps}"
        arrays[f"{key} scores"] = np.array([member.score, member.loss, member.train_loss])
        for place, leaf in jax.tree_util.tree_leaves_with_path(dict(member.params)):
            arrays[f"{key} {jax.tree_util.keystr(place, simple=True, separator='/')}"] = np.asarray(leaf)
    np.savez(path, **arrays)


def search(folder: Path, *several: str) -> None:
    """The tutorial, with early stopping and a plan that is measured."""
    import run_custom
    import tyro

    words = [*SEARCH.split(), "--out", str(folder / "search")]
    for name, word in zip(("--coordinator", "--num-processes", "--process-id"), several, strict=False):
        words += [name, word]
    run_custom.main(tyro.cli(run_custom.Options, args=words))


if __name__ == "__main__":
    what, where, *several = sys.argv[1:]
    if what == "train":
        rated(Path(where))
    {"train": train, "share": share, "parts": parts, "search": search}[what](Path(where), *several)
