"""What every search with random masks beside it puts into its results."""

from gafreeze_jax.runs.baselines import BASELINES

MASKS = {"found", "train all", "best prefix mask", "best suffix mask", "best third", "best random mask"}
COMPARED = MASKS | {baseline.name for baseline in BASELINES if baseline.schedules}
AT_THEIR_RATES = MASKS | {baseline.name for baseline in BASELINES if baseline.schedules and baseline.learning_rate_factor == 1}
