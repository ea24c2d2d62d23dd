"""What a search ends with: its leaders and the baselines are trained again with fresh seeds, a winner is named, and compared.

The best of many noisy validation scores is too good by construction. So the last word has training with seeds that the search
has not used, the same for all: on the validation split they name the winner among the leaders, and on the test split, which is
opened then, they say what it is worth.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gafreeze_jax.ledger import Ledger, genome_array, genome_text
from gafreeze_jax.population import Member, Population, Run, side_by_side

PHASES = 4  # of gradual unfreezing
GRADUAL = "gradual unfreezing"


class Trainer:
    """Trains and scores members of a population, as `search.Search` asks for it.

    Args:
      make_run: what a seed decides.
    """

    def __init__(self, population: Population, make_run: Callable[[int], Run]):
        self.population, self.run = population, make_run

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterator[Member]:
        return self.population.evaluate(genomes, self.run(seed), until)

    def resume(self, members: Sequence[Member], seed: int, until: int) -> Iterator[Member]:
        return self.population.resume(members, self.run(seed), until)


class Recalled(NamedTuple):
    """What a ledger says of a genome."""

    genome: np.ndarray
    accuracy: float
    loss: float
    train_loss: float


class Recall:
    """A trainer that takes what it can from the ledger of an earlier search: another search then takes less time."""

    def __init__(self, trainer: Trainer, ledger: Ledger):
        self._trainer, self._ledger = trainer, ledger

    def evaluate(self, genomes: np.ndarray, seed: int, until: int) -> Iterator[Member | Recalled]:
        unknown = []
        for genome in genomes:
            known = self._ledger.recall(genome_text(genome), seed, until)
            if known is None:
                unknown.append(genome)
            else:
                yield Recalled(genome, known.accuracy, known.loss, known.train_loss)
        if unknown:
            yield from self._trainer.evaluate(np.array(unknown), seed, until)

    def resume(self, members: Sequence[Member | Recalled], seed: int, until: int) -> Iterator[Member | Recalled]:
        trained = [member for member in members if isinstance(member, Member)]
        recalled = [member.genome for member in members if isinstance(member, Recalled)]
        yield from self.evaluate(np.array(recalled), seed, until)
        if trained:
            yield from self._trainer.resume(trained, seed, until)


class Finalist(NamedTuple):
    """A mask, or another way to fine-tune, that was trained with S fresh seeds.

    Attributes:
      name: such as "train all".
      genome: as text; that of the end for gradual unfreezing.
      members: S of them.
      flops: of a training run.
    """

    name: str
    genome: str
    members: tuple[Member, ...]
    flops: float

    @property
    def validation(self) -> tuple[float, float]:
        """Mean accuracy and mean loss on the validation split; those of a diverged member are the worst."""
        scores = [(one.accuracy, one.loss) if math.isfinite(one.loss) else (-math.inf, math.inf) for one in self.members]
        accuracy, loss = np.mean(scores, axis=0).tolist()
        return accuracy, loss

    @property
    def best(self) -> Member:
        """The member with the highest validation accuracy; ties go to the lower loss."""
        return max(self.members, key=lambda one: (one.accuracy, -one.loss) if math.isfinite(one.loss) else (-math.inf, 0.0))


def retrain(
    trainer: Trainer,
    leaders: Sequence[str],
    baselines: Mapping[str, str],
    seeds: Sequence[int],
    num_steps: int,
    record: Callable[[Member, int], None] = lambda member, seed: None,
) -> tuple[Finalist, list[Finalist]]:
    """Trains leaders and baselines with fresh seeds, and names the leader that is fittest on the validation split.

    Args:
      leaders: genomes as text, the most promising first.
      baselines: name and genome of each.
      record: called with every member and its seed.

    Returns:
      The winner, named "found", and the baselines; the last of these is gradual unfreezing.
    """
    texts = list(dict.fromkeys([*leaders, *baselines.values()]))
    genomes = np.array(list(map(genome_array, texts)))
    trained: dict[str, list[Member]] = {text: [] for text in texts}
    for seed in seeds:
        for member in trainer.evaluate(genomes, seed, num_steps):
            record(member, seed)
            trained[genome_text(member.genome)].append(_on_host(member))
    unfreeze = lambda seed: _on_host(unfreeze_gradually(trainer, seed, num_steps))  # noqa: E731
    gradual = list(side_by_side(unfreeze, seeds, trainer.population.plan.calls))  # one member at a time leaves cores idle

    population, run = trainer.population, trainer.run(seeds[0])

    def finalist(name: str, text: str) -> Finalist:
        flops = num_steps * population.flops_per_step(genome_array(text), run)
        return Finalist(name, text, tuple(trained[text]), flops)

    found = max((finalist("found", text) for text in leaders), key=lambda one: (one.validation[0], -one.validation[1]))
    masks = [finalist(name, text) for name, text in baselines.items()]
    of_phases = [population.flops_per_step(genome, run) for genome in phases(genomes.shape[1])]
    unfrozen = genome_text(gradual[0].genome)
    return found, [*masks, Finalist(GRADUAL, unfrozen, tuple(gradual), num_steps * float(np.mean(of_phases)))]


def phases(num_genes: int) -> np.ndarray:
    """Genomes of gradual unfreezing [4, G]: the head only, its upper third too, two thirds, everything."""
    num_frozen = np.round(num_genes * np.arange(PHASES - 1, -1, -1) / (PHASES - 1)).astype(int)
    return np.arange(num_genes)[None] < num_frozen[:, None]


def unfreeze_gradually(trainer: Trainer, seed: int, num_steps: int) -> Member:
    """Gradual unfreezing (Howard & Ruder 2018), from the head down, in four phases of as many steps."""
    genomes = phases(len(trainer.population.network.stages))
    ends = np.unique(np.round(num_steps * np.arange(1, PHASES + 1) / PHASES).astype(int)).tolist()
    ends = [end for end in ends if end > 0]
    (member,) = trainer.evaluate(genomes[-len(ends)][None], seed, ends[0])
    for genome, until in zip(genomes[-len(ends) + 1 :] if len(ends) > 1 else [], ends[1:], strict=True):
        (member,) = trainer.resume([member._replace(genome=genome)], seed, until)
    return member


def _on_host(member: Member) -> Member:
    """Its parameters in the host's memory; JAX keeps one copy there of the frozen ones, which all members share."""
    return member._replace(params=jax.device_get(dict(member.params)))
