"""`python -m gafreeze_jax` is `gafreeze`."""

from gafreeze_jax.cli import main

main()
