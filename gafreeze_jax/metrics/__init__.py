"""Metrics: what a search maximizes on the validation split, and what a report compares on the test split.

`base.py` says what a metric is. `classes.py`, `label_sets.py`, `numbers.py` and `tags.py` have those of a kind of task.
"""

from gafreeze_jax.metrics.base import ACCURACY, PERPLEXITY, Estimate, Metric, cross_entropy, exponential_mean, from_estimate

__all__ = ["ACCURACY", "PERPLEXITY", "Estimate", "Metric", "cross_entropy", "exponential_mean", "from_estimate"]
