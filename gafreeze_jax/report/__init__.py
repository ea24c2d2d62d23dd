"""What a person sees of a run, live and afterwards."""

from gafreeze_jax.extras import needs

with needs("report"):
    import etils as etils
    import matplotlib as matplotlib
    import rich as rich
