"""The sections of the page, each made from a run's files."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from gafreeze_jax.intervals import Interval
from gafreeze_jax.report import outcomes
from gafreeze_jax.report.drawn import chart
from gafreeze_jax.report.folder_format import FUNCTION, NOT_COMPARED, made_by
from gafreeze_jax.report.html import flop, folded_table, interval_bar, mask_glyph, note, percent, table, tag, words
from gafreeze_jax.report.run_folder import RunFolder, Spent, furthest
from gafreeze_jax.report.summary import describe_found, dropped, printable
from gafreeze_jax.search.history import BASELINE, FINAL, RANDOM, SEARCH

BLOCK_COSTS = ("equations", "parameters", "flops", "bytes_up")
PHASES = {
    SEARCH: "search",
    RANDOM: "random masks, for comparison",
    BASELINE: "searches of baselines",
    FINAL: "finalists, with fresh seeds",
}
SPENT_NOTE = (
    "In full: every mask to the end, nothing frozen, nothing cached. Freezing saves gradients and updates; prefix reuse saves "
    "computing the frozen prefix in every step. Caching it costs one pass over the data, which is not counted."
)
TRACED_NOTE = "This run traced its masks: one program served all of them, and did the work of training everything."


class Section(NamedTuple):
    """A section of the page.

    Attributes:
      title: may contain {metric}.
      lead: what it shows, in words.
      content: `content(run, place)` gives its figures, none if there is nothing to show; `place` makes names unique.
      beside: whether, on a wide screen, words stand beside the figures.
    """

    title: str
    lead: str
    content: Callable[[RunFolder, str], list[Element]]
    beside: bool = False


def network(run: RunFolder, place: str) -> list[Element]:
    """The network, a box per layer."""
    if run.found is None:
        return []
    states = {0.0: "frozen", 1.0: "trained"}
    layers = [
        tag(
            "li",
            tag("span", name, tag("small", states.get(rate, f"{rate:g} x rate")), class_="layer"),
            class_="trained" if rate else "frozen",
        )
        for name, rate in zip(run.genes, run.space.multipliers(run.found).tolist(), strict=True)
    ]
    head = tag("li", tag("span", "head", tag("small", "always trained"), class_="layer"), class_="always")
    ends = [tag("li", tag("span", word, class_="end")) for word in ("input", "output")]
    mask = describe_found(run.facts) if run.finished else run.space.describe(run.found)
    drawn = tag("ol", ends[0], *layers, head if run.has_head else None, ends[1], class_="network")
    return [tag("figure", drawn, tag("figcaption", f"{mask[0].upper()}{mask[1:]}.", class_="note"), style="max-width: none")]


def progress(run: RunFolder, place: str) -> list[Element]:
    if not run.generations:
        return []
    metric, rows = run.metric, []
    for generation in run.generations:
        scores = [row.score for row in generation.population]
        summary = max(scores), sum(scores) / len(scores), min(scores)
        rows.append([str(generation.number), str(len(generation.new)), *map(metric.write_score, summary)])
    last = rows[-1]
    baselines = " ".join(f"{name}: {metric.write_score(row.score)}." for name, row in run.baselines.items())
    description = f"After generation {last[0]} the best of the population has {last[2]}, the mean is {last[3]}. {baselines}"
    return [
        chart(run, place, "progress", title=f"Validation {metric.name} over generations", description=description),
        folded_table(["generation", "new masks", "best", "mean", "worst"], rows),
    ]


def frozen_shares(run: RunFolder, place: str) -> list[Element]:
    if not run.generations:
        return []
    columns = [generation.frozen_share for generation in run.generations]
    rows = [[name, *(percent(column[i]) for column in columns)] for i, name in enumerate(run.genes)]
    ends = ", ".join(f"{row[0]} {row[-1]}" for row in rows)
    title = "Share of the population that freezes each layer"
    description = f"After the last generation the population freezes: {ends}."
    return [
        chart(run, place, "frozen_shares", title=title, description=description),
        folded_table(["layer", *(str(generation.number) for generation in run.generations)], rows),
    ]


def effects(run: RunFolder, place: str) -> list[Element]:
    if not run.searched:
        return []
    if run.effects is None:
        masks, least = f"{len(run.searched)} masks", len(run.genes) + 2
        return [note(f"{masks} are too few, or too alike, to tell the layers apart; it takes at least {least}.")]
    metric, rows = run.metric, []
    for name, effect in zip(run.genes, map(run.metric.shown_interval, run.effects), strict=True):
        mean, low, high = map(metric.write_change, effect)
        rows.append([name, mean, f"{low} to {high}"])
    changes = "; ".join(f"{name} {mean} ({bounds})" for name, mean, bounds in rows)
    description = f"Freezing changes the {metric.name} by{', in points' if metric.is_share else ''}: {changes}."
    title = f"Effect of freezing each layer on validation {metric.name}"
    return [
        chart(run, place, "effects", title=title, description=description),
        folded_table(["layer", "points" if metric.is_share else "change", "95 % interval"], rows),
    ]


def trade_off(run: RunFolder, place: str) -> list[Element]:
    if not run.full:
        return []
    metric, on_front = run.metric, {row.genome for row in run.front}
    rows = [
        [
            mask_glyph(run.space, row.genome),
            *[f"{run.space.rate(row.genome):g}"] * run.space.has_rate,
            metric.write_score(row.score),
            percent(run.cost(row)),
            "front" if row.genome in on_front else "",
        ]
        for row in run.full
    ]
    front = "; ".join(
        f"{run.space.text(row.genome)}: {metric.write_score(row.score)} at {percent(run.cost(row))}" for row in run.front
    )
    title = f"Validation {metric.name} against {run.cost_name}"
    return [
        chart(run, place, "trade_off", title=title, description=f"The front: {front}."),
        folded_table(["mask", *["rate"] * run.space.has_rate, "validation", "cost", ""], rows),
    ]


def finalists(run: RunFolder, place: str) -> list[Element]:
    if not run.finished:
        return []
    metric, entries, pairs = run.metric, run.facts["results"], run.facts["verdict"]["differences"]
    scale = scale_of([run.test_value(name) for name in entries], [run.test_bounds(name) for name in entries])
    ahead = {name: metric.shown_interval(Interval.from_json(difference)) for name, difference in pairs["found"].items()}
    lines = []
    for name, entry in entries.items():
        lines.append([
            name,
            mask_glyph(run.space, entry["genome"]) if entry["is_mask"] else "none",
            *[f"{entry.get('rate', 1):g}"] * run.space.has_rate,
            metric.write(entry[f"validation_{metric.key}"]),
            metric.write(run.test_value(name)),
            interval_bar(run.test_value(name), run.test_bounds(name), scale, mark=run.test_value("found")),
            metric.write_bounds(*run.test_bounds(name)),
            metric.write_difference(ahead[name]) if name in ahead else "",
            percent(share_of("training_flops", entry, run)),
            percent(share_of("trainable_parameters", entry, run)),
        ])  # fmt: skip
    if majority := run.facts.get("majority"):
        shares = [metric.write(majority[f"{split}_{metric.key}"]) for split in ("validation", "test")]
        lines.append([f"majority class ({majority['label']})", "none", *[""] * run.space.has_rate, *shares, *[""] * 5])
    points = ", points" if metric.is_share else ""
    rate = ["rate"] * run.space.has_rate
    titles = ["", "mask", *rate, "validation", "test", "", "95 % interval", f"found ahead by{points}", "FLOPs", "trained"]
    rows = [
        [name, *(metric.write_difference(Interval.from_json(differences[other])) if other != name else "" for other in pairs)]
        for name, differences in pairs.items()
    ]
    summary = f"All pairs: differences in test {metric.name}{points}"
    notes = map(note, (*_legend(run), *dropped(run.facts)))
    return [table(titles, lines), *notes, folded_table(["row minus column", *pairs], rows, summary)]


def _legend(run: RunFolder) -> list[str]:
    """What digits in masks mean, if there are any."""
    others = [f"{level} is {rate:g} times" for level, rate in enumerate(run.space.levels) if rate not in (0, 1)]
    return [f"Digits in masks are levels at which a layer trains: {', '.join(others)} the learning rate."] if others else []


def blocks(run: RunFolder, place: str) -> list[Element]:
    if not run.blocks:
        return []
    rows = [[printable(str(row["block"])), *(f"{row[key]:,.0f}" for key in BLOCK_COSTS), row["code"]] for row in run.blocks]
    most = max(run.blocks, key=lambda row: row["flops"])
    description = f"{len(rows)} blocks; {printable(str(most['block']))} has most operations, {most['flops']:,.0f}."
    return [
        chart(run, place, "blocks", title="Costs of each block", description=description),
        folded_table(["block", "equations", "parameters", "FLOPs", "bytes up", "compiled code"], rows),
    ]


def costs(run: RunFolder, place: str) -> list[Element]:
    if not run.rows:
        return []
    lines = [_phase_row(run, phase) for phase in dict.fromkeys(map(run.phase, run.rows))]
    nodes = [table(["", "evaluated", "to the end", "stopped early", "training steps", "seconds"], lines)]
    if looked_up := run.facts.get("search", {}).get("random_masks"):
        counts = "Of {evaluated} random masks, {looked_up} had been evaluated by the search and were looked up"
        nodes.append(note(f"{counts.format(**looked_up)}; no mask is trained twice with one seed."))
    if run.finished:
        diverged = run.facts["num_diverged"]
        nodes.append(note(f"{run.facts['seconds']:,.0f} s in all, with preparation and test; {diverged} evaluations diverged."))
        phases = run.facts.get("seconds_of_phases", {}).items()
        if took := ", ".join(f"{phase} {seconds:,.0f}" for phase, seconds in phases if round(seconds)):
            nodes.append(note(f"Seconds of the process that finished the run, baselines that are no masks among them: {took}."))
    if spent := run.spent:
        nodes.append(_spent_table(spent))
        nodes.append(note(TRACED_NOTE if spent.freezing == spent.keeping == 0 else SPENT_NOTE))
    return [tag("div", *nodes, class_="costs")]


def _phase_row(run: RunFolder, phase: str) -> list[str]:
    rows = [row for row in run.rows if run.phase(row) == phase]
    longest = furthest(rows)
    full = sum(row.steps == run.num_steps for row in longest)
    seconds = sum(row.seconds for row in rows if row.seconds == row.seconds)  # without NaN
    counts = [len(longest), full, len(longest) - full, sum(row.steps for row in longest)]
    return [PHASES.get(phase, phase), *(f"{count:,}" for count in counts), f"{seconds:,.0f}" if seconds else ""]


def _spent_table(spent: Spent) -> Element:
    saved = zip(("early stopping", "freezing", "prefix reuse"), spent[1:], strict=True)
    rows = [
        ["every mask in full", flop(spent.in_full), "100 %"],
        *([f"saved by {by}", f"-{flop(flops)}", f"-{percent(flops / spent.in_full)}"] for by, flops in saved if flops),
        ["done", flop(spent.spent), percent(spent.spent / spent.in_full)],
    ]
    return table(["training, as XLA counts it", "", ""], rows, total=True)


def about(run: RunFolder, place: str) -> list[Element]:
    return [note(line) for line in run.facts.get("about", ())]


def repeat(run: RunFolder, place: str) -> list[Element]:
    options = [[name, words(option_text(value))] for name, value in run.options.items()]
    versions = ", ".join(f"{name} {version}" for name, version in run.facts["versions"].items())
    cores = [f"{run.facts['cpus']} CPU cores"] if "cpus" in run.facts else []
    return [
        tag("pre", *(node for word in command(run.facts["kind"], run.options) for node in (tag("span", word), " "))),
        note(", ".join([run.facts["device"], *cores, versions])),
        folded_table(["option", "value"], options, "All options"),
    ]


def command(kind: str, options: Mapping[str, Any]) -> list[str]:
    """The command that repeats the run, in parts: the script, then each option."""
    parts = [made_by(kind) if kind == FUNCTION else f"python experiments/{made_by(kind)}"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if name in NOT_COMPARED:
            continue
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None and value != []:
            parts.append(shlex.join([f"--{flag}", *map(str, value if isinstance(value, list) else [value])]))
    return parts


SECTIONS = (
    Section("The mask", "Filled layers are frozen: they stay as pretrained. Outlined ones are trained.", network),
    Section(
        "Fitness over generations",
        "The population that is bred from: its best mask, its mean, and from best to worst. Dots are new masks trained to the "
        "end; dashed lines, masks that need no search.",
        progress,
        beside=True,
    ),
    Section(
        "Frozen layers over generations",
        "The fuller a cell, the more of the population freezes the layer.",
        frozen_shares,
        beside=True,
    ),
    Section(
        "What freezing a layer does",
        "Its mean effect over all masks evaluated, by least squares on all layers at once, with 95 % intervals (Student's t). "
        "Interactions of layers count as noise. A search does not choose masks at random, so read this as a hint.",
        effects,
        beside=True,
    ),
    Section(
        "{metric} against training cost",
        "Masks trained to the end. The line is the front: no other mask is both better and cheaper.",
        trade_off,
        beside=True,
    ),
    Section(
        "Trained again, with fresh seeds",
        "Means over seeds that the search has not used. Validation names the found mask; then the test split was opened, once. "
        "Intervals are 95 %, over seeds and test examples; differences are in pairs.",
        finalists,
    ),
    Section(
        "Which classes are confused",
        "The saved model on the test split: a row for each true class, a column for each predicted one.",
        outcomes.confusions,
        beside=True,
    ),
    Section(
        "Predicted and true numbers",
        "The saved model on the test split, a point for each example. On the dashed line both are equal.",
        outcomes.numbers,
        beside=True,
    ),
    Section(
        "What is found of each kind",
        "The saved model on the test split: entities of each type, which are right if all their words and the type are; or "
        "labels, of which an example may have several.",
        outcomes.types,
        beside=True,
    ),
    Section(
        "Most confidently wrong",
        "Test examples to which the saved model gives a wrong class with the highest probability. Some of them may be "
        "mislabelled.",
        outcomes.confidently_wrong,
    ),
    Section(
        "What each block costs",
        "The blocks that the function was cut into, for one example in inference mode: parameters, operations, and bytes that "
        "go to the block above.",
        blocks,
        beside=True,
    ),
    Section("Model and data", "", about),
    Section("What it cost", "", costs),
    Section("To repeat it", "", repeat),
)


def scale_of(values: Sequence[float], bounds: Sequence[Sequence[float | None]]) -> tuple[float, float]:
    """From the lowest to the highest of some values and their bounds."""
    ends = [*values, *(bound for pair in bounds for bound in pair if bound is not None)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def share_of(name: str, entry: Mapping[str, Any], run: RunFolder) -> float:
    """An entry's number as a share of that of training everything."""
    return entry[name] / max(1, run.facts["results"]["train all"][name])


def option_text(value: Any) -> str:
    """An option's value in words."""
    text = " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return {"True": "yes", "False": "no"}.get(text, text)
