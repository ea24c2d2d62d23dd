"""What every search with random masks beside it puts into its results."""

from gafreeze_jax.runs.baselines import BASELINES

COMPARED = {
    "found",
    "train all",
    "best prefix mask",
    "best random mask",
    *(baseline.name for baseline in BASELINES if baseline.schedules),
}
