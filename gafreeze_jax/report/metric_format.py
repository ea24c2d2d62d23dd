"""Formats a metric, as a run's files describe it."""

import math
from typing import Any, NamedTuple

from gafreeze_jax.intervals import Interval


class MetricFormat(NamedTuple):
    """The entry "metric" of `run.json` and `result.json`, and words and numbers made from it.

    A *value* is in the metric's own direction, as in these files. A *score* is negated if lower is better.
    """

    name: str
    higher_is_better: bool
    is_share: bool

    @property
    def key(self) -> str:
        """The name in keys, such as "test_accuracy"."""
        return self.name.replace(" ", "_")

    @property
    def unit(self) -> str:
        """The unit of differences."""
        return " points" if self.is_share else ""

    def shown(self, score: Any) -> Any:
        """The value of a score; also the change in value for a change in score."""
        return score if self.higher_is_better else -score

    def score(self, value: float) -> float:
        """The score of a value."""
        return value if self.higher_is_better else -value

    def shown_interval(self, scores: Interval) -> Interval:
        return scores if self.higher_is_better else -scores

    def limit(self, low: float, high: float) -> tuple[float, float]:
        """The bounds of an interval, without impossible values."""
        return (max(low, 0.0), min(high, 1.0)) if self.is_share else (low, high)

    def write(self, value: float | None) -> str:
        """A value, such as "81.2 %" or "13.37"."""
        return "" if value is None else f"{100 * value:z.1f} %" if self.is_share else f"{value:z.4g}"

    def write_score(self, score: float | None) -> str:
        """The value of a score, as `write` has it."""
        return "" if score is None else self.write(self.shown(score))

    def write_change(self, change: float, sign: str = "+") -> str:
        """A difference of values, without its unit."""
        return f"{100 * change:{sign}z.1f}" if self.is_share else f"{change:{sign}z.3g}"

    def write_bounds(self, low: float | None, high: float | None) -> str:
        """An interval of values, without its unit."""
        if low is None or high is None:
            return "one seed"
        low, high = self.limit(low, high)
        return f"[{100 * low:.1f}, {100 * high:.1f}]" if self.is_share else f"[{low:.4g}, {high:.4g}]"

    def write_difference(self, change: Interval, sign: str = "+", unit: str = "") -> str:
        """A difference with its interval, if that is known; the sign is that of the difference alone."""
        mean = f"{self.write_change(change.mean, sign)}{unit}"
        if math.isnan(change.low):
            return mean
        return f"{mean} [{self.write_change(change.low, '-')}, {self.write_change(change.high, '-')}]"


ACCURACY = MetricFormat("accuracy", higher_is_better=True, is_share=True)
