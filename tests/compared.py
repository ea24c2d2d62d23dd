"""What every search puts into its results."""

from gafreeze_jax.runs.baselines import BASELINES

MASKS = {"found", "train all", "best prefix mask", "best suffix mask"}
COMPARED = MASKS | {baseline.name for baseline in BASELINES if baseline.schedules}
