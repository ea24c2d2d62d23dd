"""Runs of experiments, and the folders that they leave."""

import gafreeze_jax.report  # noqa: F401, as it names the packages that runs need, too
