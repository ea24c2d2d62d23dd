"""The test split, which opens once."""

from gafreeze_jax.engine.network import Source
from gafreeze_jax.runs.finalists import Result
from gafreeze_jax.runs.fingerprint import fingerprint


class HeldOut:
    """A test split that opens once, for the result of a finished search."""

    def __init__(self, source: Source):
        self._source, self._opened = source, False

    @property
    def fingerprint(self) -> str:
        """Of its content."""
        return fingerprint(self._source.data)

    @property
    def num_examples(self) -> int:
        return self._source.num_examples

    def open(self, result: Result) -> Source:
        """The split.

        Raises:
          RuntimeError: before there is a result, and the second time.
        """
        if not isinstance(result, Result):
            raise RuntimeError(f"the test split opens when the search is over, for its Result; got {type(result).__name__}")
        if self._opened:
            raise RuntimeError("the test split has been opened already; a choice made now would be made on it")
        self._opened = True
        return self._source
