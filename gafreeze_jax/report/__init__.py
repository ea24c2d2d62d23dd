"""Shows a run, live and afterwards."""

from gafreeze_jax.extras import find, needs

with needs("report"):
    import etils as etils
    import rich as rich

    find("matplotlib")  # is imported where it draws, as that takes half a second
