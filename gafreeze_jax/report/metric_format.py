"""Formats a metric, as a run's files describe it."""

from collections.abc import Mapping
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

    def write_lead(self, difference: Mapping[str, Any]) -> str:
        """By how much the first of two is better, as `write_difference` has it."""
        if self.higher_is_better:
            return self.write_difference(difference)
        mean, low, high = (None if number is None else -number for number in difference.values())
        return self.write_difference({"mean": mean, "low": high, "high": low})

    def write_lag(self, lag: Mapping[str, float]) -> str:
        """By how much a score is lower than another, with its interval and its unit."""
        mean, low, high = (self.write_change(lag[name], "-") for name in Interval._fields)
        return f"{mean}{self.unit} [{low}, {high}]"

    def write_difference(self, difference: Mapping[str, Any]) -> str:
        """A difference of values with its interval, without its unit."""
        mean, low, high = (difference[name] for name in Interval._fields)
        if low is None or high is None:
            return self.write_change(mean)
        return f"{self.write_change(mean)} [{self.write_change(low, '-')}, {self.write_change(high, '-')}]"


ACCURACY = MetricFormat("accuracy", higher_is_better=True, is_share=True)


def from_facts(facts: Mapping[str, Any]) -> MetricFormat:
    """The metric of a run, from the content of one of its files.

    Raises:
      KeyError, TypeError: if the entry is not as expected.
    """
    entry = facts["metric"]
    return MetricFormat(str(entry["name"]), bool(entry["higher_is_better"]), bool(entry["is_share"]))
