"""What a run prints, and how many steps its phases take. Nothing here decides anything."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gafreeze_jax.engine import planning
from gafreeze_jax.engine.planning import Choice
from gafreeze_jax.listing import listed
from gafreeze_jax.report.display import Display
from gafreeze_jax.runs import racing
from gafreeze_jax.runs.finalists import Finalist
from gafreeze_jax.search.history import Ledger
from gafreeze_jax.search.loop import Found, Generation

SEARCHING, RANDOM_MASKS, FINALISTS = "searching", "random masks", "finalists"  # names of phases
TEST = "scoring the test examples"


class Narrator:
    """Passes the progress of a run to a display.

    Attributes:
      comparing: whether random masks are to come.
    """

    def __init__(self, display: Display):
        self.display, self.comparing = display, False
        self.screened: list[bool] = []

    def expect(self, *, search: float = 0, finalists: float = 0) -> None:
        """Training steps of the phases to come."""
        self.display.progress.expect({RANDOM_MASKS: search * self.comparing, FINALISTS: finalists, SEARCHING: search})

    def begin(self, phase: str, steps: float | None = None, *, training: bool = True) -> None:
        self.display.progress.begin(phase, training=training)
        if steps is not None:
            self.display.progress.expect({phase: steps})

    def plan(self, choice: Choice, dtype: np.dtype | None, num_recorded: int) -> None:
        line = self.display.line
        line(f"Plan: {planning.describe(choice.plan)} ({choice.reason})" + (f"; {dtype.name}" if dtype else ""))
        for trial in choice.trials:
            line(
                f"Tried: {planning.describe(trial.plan)}: {trial.step_seconds * 1e3:.3g} ms a member-step, "
                f"{trial.compile_seconds:.1f} s compiling",
                detail=True,
            )
        if num_recorded:
            line(f"Resuming with {num_recorded} recorded evaluations")

    def enumerating(self, num_masks: int) -> None:
        self.display.line(f"All {num_masks} masks fit the budget: each is trained to the end, instead of a search")

    def generation(self, generation: Generation, ledger: Ledger) -> None:
        self.screened.append(generation.screened)
        steps = ledger.steps_trained + generation.steps_left
        self.display.progress.expect({SEARCHING: steps, RANDOM_MASKS: steps * self.comparing})
        self.display.generation(generation)

    def searched(self, found: Found, ledger: Ledger, spent: float) -> None:
        line, name = self.display.line, self.display.metric.name
        line(f"The search ended {found.why_stopped}: {_count(ledger)}, as many training steps as {spent:.1f} full ones")
        for (start, stop), value, num in found.correlations:
            line(f"Rank correlation of {name} after {start} and {stop} steps: {value:.2f}, over {num} masks")

    def remark(self, remarks: Iterable[str]) -> None:
        for remark in remarks:
            self.display.line(remark)

    def compared(self, ledger: Ledger) -> None:
        self.display.line(f"Random masks, for comparison, with the same training steps: {_count(ledger)}")

    def retraining(self, leaders: Sequence[object], baselines: Sequence[object], seeds: Sequence[int]) -> None:
        masks = "most promising mask" if len(leaders) == 1 else f"{len(leaders)} most promising masks"
        self.display.line(f"Training the {masks} and {len(baselines)} baselines again with fresh seeds ({_each(seeds)}) ...")

    def raced(self, finalists: Sequence[Finalist]) -> None:
        still_in = [finalist.name for finalist in finalists if finalist.is_in]
        if len(still_in) < len(finalists):
            self.display.line(f"After {racing.FIRST_SEEDS} seeds, still in: {listed(still_in)}")

    def training_mask(self, seeds: Sequence[int]) -> None:
        self.display.line(f"Training with the mask, and everything, also at lower rates, with fresh seeds ({_each(seeds)}) ...")


def _each(seeds: Sequence[int]) -> str:
    """How many seeds finalists train with."""
    few = f"; {racing.FIRST_SEEDS} where that suffices" if len(seeds) > racing.FIRST_SEEDS else ""
    return f"{len(seeds)} each{few}"


def _count(ledger: Ledger) -> str:
    """Number of masks evaluated, in words."""
    num = len({evaluation.genome for evaluation in ledger})
    return f"{num} masks" if ledger.num_full == num else f"{num} masks, {ledger.num_full} of them to the end"


def num_overlapping(first: Ledger, second: Ledger) -> Mapping[str, int]:
    """Masks that the first ledger has, and how many of them the second has as well."""
    genomes = [{evaluation.genome for evaluation in ledger} for ledger in (first, second)]
    return {"evaluated": len(genomes[0]), "looked_up": len(genomes[0] & genomes[1])}
