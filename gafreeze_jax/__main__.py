"""`python -m gafreeze_jax` is `gafreeze`."""

import sys


def main() -> None:
    try:
        from gafreeze_jax import cli

        cli.main()
    except ModuleNotFoundError as error:  # says which extra brings it
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
