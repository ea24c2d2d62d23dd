"""The summary of a finished run in the terminal."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gafreeze_jax.intervals import Interval
from gafreeze_jax.listing import shorten
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.space import Space

WIDTH, MOST_WIDTH = 110, 1000  # of tables; that of finalists takes what it needs, as nothing in it is cut
LONGEST_ERROR = 600  # characters


def print_summary(result: Mapping[str, Any], out: os.PathLike[str], *, quiet: bool = False) -> None:
    """Prints the found mask, the table of finalists, the verdict, and where the files are.

    Args:
      result: the content of `result.json`.
      out: the run's folder.
      quiet: print the verdict and the folder only.
    """
    if quiet:
        print(result["verdict"]["sentence"], os.fspath(out), sep="\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    table = comparison(result)
    whole = console.measure(table, options=console.options.update(max_width=MOST_WIDTH)).maximum
    console.width = max(console.width, WIDTH, whole)
    console.print(f"Found mask: {describe_found(result)}", style="bold", markup=False)
    console.print(table)
    console.print(result["verdict"]["sentence"], style="bold", markup=False)
    for remark in (*dropped(result), *remarks(result)):
        console.print(remark, markup=False)
    metric = MetricFormat(**result["metric"])
    if front := result.get("front"):
        console.print(front_table(Space.from_facts(result), front["masks"], metric))
        console.print("Also in masks/", markup=False)
    if (gap := result["verdict"]["gap"]) is not None:
        change = f"{metric.write_change(gap)}{metric.unit}"
        console.print(f"Validation minus test {metric.name} of the found mask: {change}", markup=False)
    console.print(
        f"{result['num_evaluations']} evaluations in {result['seconds']:.0f} s. In {os.fspath(out)}: report.html, model/, "
        "mask.json, evaluations.csv, result.json, plots/",
        markup=False,
    )


def comparison(result: Mapping[str, Any]) -> Table:
    """The table of finalists, with means over seeds, from the content of `result.json`."""
    entries, metric = result["results"], MetricFormat(**result["metric"])
    has_perplexity = metric.key != "perplexity" and "test_perplexity" in entries["train all"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    has_rates = len(result.get("rates", ())) > 1
    titles = [*["rate"] * has_rates, "validation", "test", "95 % interval", *["test perplexity"] * has_perplexity]
    table.add_column("", no_wrap=True)
    for title in (*titles, "FLOPs", "trainable"):
        table.add_column(title, justify="right", no_wrap=True)
    everything = entries["train all"]
    for name, entry in entries.items():
        parameters = entry["trainable_parameters"]
        table.add_row(
            name,
            *[f"{entry.get('rate', 1):g}"] * has_rates,
            f"{entry[f'validation_{metric.key}']:.4f}",
            f"{entry[f'test_{metric.key}']:.4f}",
            _bounds(entry[f"test_{metric.key}_interval"], metric),
            *([f"{entry['test_perplexity']:.2f}"] if has_perplexity else []),
            f"{entry['training_flops'] / everything['training_flops']:.0%}",
            f"{_count(parameters)} ({parameters / max(1, everything['trainable_parameters']):.0%})",
            style="bold" if name == "found" else None,
        )
    if majority := result.get("majority"):
        values = (f"{majority[f'{split}_{metric.key}']:.4f}" for split in ("validation", "test"))
        table.add_row("majority class", *[""] * has_rates, *values)
    return table


def _count(number: int) -> str:
    """A number of parameters or bytes in three digits, or exactly if it is small.

    >>> _count(9520), _count(172_218), _count(999_999), _count(1_235_000_000)
    ('9,520', '172k', '1M', '1.24B')
    """
    if number < 10_000:
        return f"{number:,}"
    rounded = float(f"{number:.3g}")
    size, unit = next((size, unit) for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if rounded >= size)
    return f"{rounded / size:.3g}{unit}"


def dropped(result: Mapping[str, Any]) -> list[str]:
    """Which finalists dropped out, and why: a sentence for each reason."""
    metric, entries = MetricFormat(**result["metric"]), result.get("dropped", {})
    behind = {name: Interval.from_json(entry["behind"]) for name, entry in entries.items() if entry["behind"]}
    worse = [f"{name}, {metric.write_difference(lag, '-', metric.unit)} behind" for name, lag in behind.items()]
    level = [
        f"{name}, {metric.write(entry[f'validation_{metric.key}'])}" for name, entry in entries.items() if not entry["behind"]
    ]
    seeds = max((entry["seeds"] for entry in entries.values()), default=0)
    reasons = {"clearly worse on validation": worse, "as the verdict does not need them (with their validation scores)": level}
    return [f"Dropped after {seeds} seeds, {reason}: {'; '.join(names)}." for reason, names in reasons.items() if names]


def _bounds(bounds: Sequence[float | None], metric: MetricFormat) -> str:
    low, high = bounds
    if low is None or high is None:
        return "one seed"
    low, high = metric.limit(low, high)
    return f"{low:.4f} to {high:.4f}"


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the verdict should know, and what to try next, a sentence each."""
    advice = advise(result)
    said = result.get("search", {}).get("remarks", ())
    return [*said, *beside_majority(result), *regime(result), *contributions(result), *([] if advice is None else [advice])]


def beside_majority(result: Mapping[str, Any]) -> list[str]:
    """Whether the majority class alone would score as much as the found mask: a sentence, unless the verdict says it."""
    majority, metric = result.get("majority"), MetricFormat(**result["metric"])
    if not majority or "the majority class" in result["verdict"]["sentence"]:
        return []
    entry, share = result["results"]["found"], majority[f"test_{metric.key}"]
    value, (low, high) = entry[f"test_{metric.key}"], entry[f"test_{metric.key}_interval"]
    if share < (value if low is None else low):
        return []
    found = f"the found mask, with {metric.write(value)} {metric.write_bounds(low, high)}, is not ahead of it"
    advice = "; --class-weights balanced may help" if result["options"].get("class_weights") == "none" else ""
    return [f"The majority class alone, {majority['label']}, would score {metric.write(share)}: {found}{advice}."]


def regime(result: Mapping[str, Any]) -> list[str]:
    """Whether it matters here which layers train, or only what that costs: a sentence, if the found mask freezes something.

    It is compared with training everything at the rate that is best on the validation split.
    """
    entries, metric = result["results"], MetricFormat(**result["metric"])
    names = [name for name, entry in entries.items() if name == "train all" or entry["learning_rate_factor"] != 1]
    everything = max(names, key=lambda name: _rank(entries[name], metric))
    difference = result["verdict"]["differences"].get("found", {}).get(everything)
    if difference is None or difference["low"] is None or not entries["found"]["frozen"]:
        return []
    ahead = metric.shown_interval(Interval.from_json(difference))
    has_rates = len(result.get("rates", ())) > 1 or everything != "train all"
    lead, rate = f"{metric.write_difference(ahead)}{metric.unit}", " at its best rate" if has_rates else ""
    share = entries["found"]["training_flops"] / entries["train all"]["training_flops"]
    if ahead.low > 0:
        return [f"Which layers train matters here: the found mask is {lead} ahead of training everything{rate}."]
    if ahead.high < 0:
        return []
    cost = f"what freezing changes for certain is the cost, {share:.0%} of the FLOPs"
    return [f"No clear difference from training everything{rate} ({lead}); {cost}."]


def _rank(entry: Mapping[str, Any], metric: MetricFormat) -> tuple[float, float]:
    """The higher, the better on the validation split."""
    return metric.score(entry[f"validation_{metric.key}"]), -entry["validation_loss"]


def contributions(result: Mapping[str, Any]) -> list[str]:
    """What freezing and what the rates contribute to the found mask, a sentence each, where a search covers rates.

    On the test split, or on the validation split if the mask is so much better with them that no other seeds were needed.
    """
    metric, ahead = MetricFormat(**result["metric"]), result["verdict"]["differences"]["found"]
    rates = "Its learning rate changes" if len(result.get("levels", ())) == 2 else "Its learning rates change"
    sentences = []
    for name, what in {"found, nothing frozen": "What it freezes changes", "found, usual rates": rates}.items():
        behind = result.get("dropped", {}).get(name, {}).get("behind")
        if name in ahead:
            sentences.append(_contribution(what, "test", Interval.from_json(ahead[name]), metric))
        elif behind:
            sentences.append(_contribution(what, "validation", metric.shown_interval(Interval.from_json(behind)), metric))
    return sentences


def _contribution(what: str, split: str, change: Interval, metric: MetricFormat) -> str:
    return f"{what} the found mask's {split} {metric.name} by {metric.write_difference(change)}{metric.unit}."


def advise(result: Mapping[str, Any]) -> str | None:
    """What to try next, if training everything at another learning rate is ahead of all other rows on the validation split."""
    entries, metric = result["results"], MetricFormat(**result["metric"])
    best = max(entries.values(), key=lambda entry: _rank(entry, metric))
    if best["learning_rate_factor"] == 1:
        return None
    rate = best["learning_rate_factor"] * result["options"]["learning_rate"]
    other = "a lower" if best["learning_rate_factor"] < 1 else "a higher"
    return f"On validation, training everything at {other} learning rate is best: try again with --learning-rate {rate:g}"


def describe_found(result: Mapping[str, Any]) -> str:
    """The found mask in words."""
    if not result["results"]["found"]["trainable_parameters"]:
        return "train nothing"
    return Space.from_facts(result).describe(result["best_genome"])


def front_table(space: Space, front: Sequence[Mapping[str, Any]], metric: MetricFormat) -> Table:
    """Masks that no other mask beats in the metric, training FLOPs and optimizer bytes at once."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("front", "validation", "FLOPs", "optimizer bytes", "trainable"):
        table.add_column(title, justify="left" if title == "front" else "right")
    for mask in front:
        table.add_row(
            space.describe(space.parse(mask["genome"])),
            f"{mask[f'validation_{metric.key}']:.4f}",
            f"{mask['flops']:.0%}",
            _count(mask["optimizer_bytes"]),
            _count(mask["trainable_parameters"]),
        )
    return table


def printable(text: str) -> str:
    r"""Text that may come from data, with what a terminal could take for commands as escapes.

    >>> print(printable("caf\u00e9 \x1b[2J"))
    café \x1b[2J
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def fail(error: Exception) -> int:
    """Prints an error on one line of stderr; returns the exit code, 2."""
    print("error:", shorten(printable(" ".join(str(error).split())), LONGEST_ERROR), file=sys.stderr)
    return 2
