"""The page that shows a run, or several side by side: one HTML file that needs nothing else.

It is built as a tree, so that whatever comes from data or options is escaped when the tree is written.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from matplotlib.figure import Figure

from gafreeze_jax.report import charts
from gafreeze_jax.report.folder_format import NOT_COMPARED
from gafreeze_jax.report.run_folder import RunFolder, furthest
from gafreeze_jax.report.summary import advise, describe_found
from gafreeze_jax.search.history import FINAL, RANDOM, SEARCH, write_whole
from gafreeze_jax.space import Space

Node = Element | str
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a browser holds the page to its promise
CHARTS = {
    "progress": "generations",
    "frozen_shares": "generations",
    "effects": "effects",
    "trade_off": "full",
}  # what they need


def write(runs: Sequence[RunFolder], path: Path) -> None:
    """Writes the page; for a single run, its charts as PNG and SVG to plots/ beside it, too."""
    write_whole(path, render(runs))
    if len(runs) == 1:
        (path.parent / "plots").mkdir(exist_ok=True)
        for name, needed in CHARTS.items():
            if getattr(runs[0], needed):
                charts.save(draw(runs[0], name), path.parent / "plots" / name)


def render(runs: Sequence[RunFolder]) -> str:
    """The page as text."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} - gafreeze_jax"),
        tag("style", files("gafreeze_jax.report").joinpath("page.css").read_text(encoding="utf-8")),
    )
    opening = opening_of_one(runs[0]) if len(runs) == 1 else opening_of_several(runs)
    sections = [section(runs, *one) for one in SECTIONS]
    body = tag("body", tag("main", *opening, *(one for one in sections if one is not None)))
    return "<!DOCTYPE html>\n" + tostring(tag("html", head, body, lang="en"), encoding="unicode", method="html") + "\n"


def tag(name: str, /, *children: Node | None, **attributes: str) -> Element:
    """An element; an attribute's name is given with _ for -, and class_ for class."""
    element = Element(name, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child and len(element):
            element[-1].tail = (element[-1].tail or "") + child
        elif child:
            element.text = (element.text or "") + child
    return element


def opening_of_one(run: RunFolder) -> list[Element]:
    """What a hurried reader takes along."""
    facts = {"mask": mask_glyph(run.space, run.found)} if run.found else {}
    if run.finished:
        found = run.facts["results"]["found"]
        facts |= {
            "test accuracy": f"{percent(found['test_accuracy'])} {between(found['test_accuracy_interval'])}",
            "training FLOPs": f"{percent(share_of(found, run, 'training_flops'), 0)} of training everything",
            "trained parameters": f"{found['trainable_parameters']:,} "
            f"({percent(share_of(found, run, 'trainable_parameters'), 0)})",
        }
    entries = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    heading = " · ".join([run.name, run.facts["kind"], *(["unfinished"] * (not run.finished))])
    advice = advise(run.facts) if run.finished else None
    return [
        tag("h1", heading),
        tag("p", verdict_of(run), class_="verdict"),
        *([tag("p", advice)] if advice else []),
        tag("dl", *entries, class_="facts"),
    ]


def opening_of_several(runs: Sequence[RunFolder]) -> list[Element]:
    """Several runs, a line each; how they got there; and in which options they differ."""
    tested = [run.facts["results"]["found"] for run in runs if run.finished]
    scale = scale_of(tested)
    lines = []
    for run in runs:
        found = run.facts["results"]["found"] if run.finished else None
        lines.append([
            run.name,
            mask_glyph(run.space, run.found),
            percent(found["validation_accuracy"] if found else run.full[0].score if run.full else None),
            percent(found and found["test_accuracy"]),
            interval_bar(found, scale) if found else "",
            percent(share_of(found, run, 'training_flops'), 0) if found else "",
            f"{len(run.searched)}",
            f"{run.facts['seconds']:,.0f}" if found else "",
            tag("td", verdict_of(run), class_="words verdict"),
        ])  # fmt: skip
    titles = ["run", "mask", "validation", "test", "95 % interval", "FLOPs", "masks tried", "seconds", "verdict"]
    names = [name for name in dict.fromkeys(name for run in runs for name in run.options) if name not in NOT_COMPARED]
    options = [[name, *(plain(run.options.get(name)) for run in runs)] for name in names]
    options = [[name, *map(words, values)] for name, *values in options if len(set(values)) > 1]
    parts = [tag("h1", "gafreeze_jax"), tag("p", f"{len(runs)} runs side by side", class_="verdict"), table(titles, lines)]
    if all(run.full for run in runs):
        traces = [(run.name, *run.trace) for run in runs]
        title, description = "Best accuracy against training done", "A line for each run."
        chart = charts.inline(charts.race(traces), "race", title, description)
        parts.append(
            part("How they got there", "The best mask trained to the end, as the search goes on.", [tag("figure", chart)])
        )
    if options:
        differences = [table(["option", *(run.name for run in runs)], options)]
        parts.append(part("Options that differ", "", differences))
    return parts


def section(
    runs: Sequence[RunFolder], title: str, lead: str, content: Callable[[RunFolder, str], list[Element]], beside: bool
) -> Element | None:
    """A part of the page with figures of each run; None if no run has anything to show there.

    Args:
      content: of a run; the text it is given makes names unique.
      beside: whether, on a wide screen, words stand beside the figure.
    """
    contents = [(run, content(run, f"run{i}")) for i, run in enumerate(runs)]
    if not any(nodes for _, nodes in contents):
        return None
    several = len(runs) > 1
    figures = [
        tag("div", tag("h3", run.name) if several else None, *(nodes or [note("Nothing to show.")])) for run, nodes in contents
    ]
    return part(title, lead, figures, beside=beside and not several)


def part(title: str, lead: str, figures: Sequence[Element], *, beside: bool = False) -> Element:
    header = tag("header", tag("h2", title), tag("p", lead) if lead else None)
    return tag("section", header, tag("div", *figures, class_="figures"), class_="beside" if beside else "across")


def draw(run: RunFolder, name: str) -> Figure:
    """A chart of a run that has what it shows."""
    match name:
        case "progress":
            return charts.progress(run.generations, run.baselines, run.num_steps)
        case "frozen_shares":
            return charts.frozen_shares(run.generations, run.space, run.found)
        case "effects":
            return charts.effects(run.genes, run.effects or [])
        case _:
            points, front = ([(run.cost(row), row) for row in rows] for rows in (run.full, run.front))
            return charts.trade_off(points, front, run.baselines, run.found, cost_name(run))


def network(run: RunFolder, place: str) -> list[Element]:
    """The network, a box per layer."""
    if run.found is None:
        return []
    layers = [
        tag("li", tag("span", name, tag("small", state := "frozen" if frozen else "trained"), class_="layer"), class_=state)
        for name, frozen in zip(run.genes, run.space.frozen(run.found), strict=True)
    ]
    head = tag("li", tag("span", "head", tag("small", "always trained"), class_="layer"), class_="always")
    ends = [tag("li", tag("span", word, class_="end")) for word in ("input", "output")]
    mask = describe_found(run.facts) if run.finished else run.space.describe(run.found)
    drawn = tag("ol", ends[0], *layers, head if run.has_head else None, ends[1], class_="network")
    return [tag("figure", drawn, tag("figcaption", f"{mask[0].upper()}{mask[1:]}.", class_="note"), style="max-width: none")]


def progress(run: RunFolder, place: str) -> list[Element]:
    if not run.generations:
        return []
    rows = []
    for one in run.generations:
        accuracies = [row.score for row in one.population]
        mean = sum(accuracies) / len(accuracies)
        rows.append([str(one.number), str(len(one.new)), *map(percent, (max(accuracies), mean, min(accuracies)))])
    last = rows[-1]
    description = f"After generation {last[0]} the best of the population has {last[2]}, the mean is {last[3]}. " + " ".join(
        f"{name}: {percent(row.score)}." for name, row in run.baselines.items()
    )
    titles = ["generation", "new masks", "best", "mean", "lowest"]
    return [chart(run, place, "progress", "Validation accuracy over generations", description), as_table(titles, rows)]


def frozen_shares(run: RunFolder, place: str) -> list[Element]:
    if not run.generations:
        return []
    columns = [one.frozen_share for one in run.generations]
    rows = [[name, *(percent(column[i], 0) for column in columns)] for i, name in enumerate(run.genes)]
    ends = ", ".join(f"{row[0]} {row[-1]}" for row in rows)
    description = f"After the last generation the population freezes: {ends}."
    titles = ["layer", *(str(one.number) for one in run.generations)]
    return [
        chart(run, place, "frozen_shares", "Share of the population that freezes each layer", description),
        as_table(titles, rows),
    ]


def effects(run: RunFolder, place: str) -> list[Element]:
    if not run.searched:
        return []
    if run.effects is None:
        least = len(run.genes) + 2
        return [
            note(f"{len(run.searched)} masks are too few, or too alike, to tell the layers apart; it takes {least} at least.")
        ]
    rows = [
        [name, f"{100 * effect.mean:+.1f}", f"{100 * effect.low:+.1f} to {100 * effect.high:+.1f}"]
        for name, effect in zip(run.genes, run.effects, strict=True)
    ]
    description = "Freezing changes accuracy by, in points: " + "; ".join(f"{row[0]} {row[1]} ({row[2]})" for row in rows) + "."
    drawn = chart(run, place, "effects", "Effect of freezing each layer on validation accuracy", description)
    return [drawn, as_table(["layer", "points", "95 % interval"], rows)]


def trade_off(run: RunFolder, place: str) -> list[Element]:
    if not run.full:
        return []
    on_front = {row.genome for row in run.front}
    rows = [
        [
            mask_glyph(run.space, row.genome),
            percent(row.score),
            percent(run.cost(row), 0),
            "front" if row.genome in on_front else "",
        ]
        for row in run.full
    ]
    best = "; ".join(f"{Space.text(row.genome)}: {percent(row.score)} at {percent(run.cost(row), 0)}" for row in run.front)
    drawn = chart(run, place, "trade_off", f"Validation accuracy against {cost_name(run)}", f"The front: {best}.")
    return [drawn, as_table(["mask", "validation", "cost", ""], rows)]


def cost_name(run: RunFolder) -> str:
    return f"{'trainable parameters' if run.flops is None else 'training FLOPs'}, as a share of those of training everything"


def finalists(run: RunFolder, place: str) -> list[Element]:
    if not run.finished:
        return []
    results, pairs = run.facts["results"], run.facts["verdict"]["differences"]
    scale = scale_of(list(results.values()))
    lines = []
    for name, row in results.items():
        difference = pairs["found"].get(name)
        lines.append([
            name,
            mask_glyph(run.space, row["genome"]) if row["is_mask"] else "none",
            percent(row["validation_accuracy"]),
            percent(row["test_accuracy"]),
            interval_bar(row, scale, results["found"]["test_accuracy"]),
            between(row["test_accuracy_interval"]),
            points(difference) if difference else "",
            percent(share_of(row, run, 'training_flops'), 0),
            percent(share_of(row, run, 'trainable_parameters'), 0),
        ])  # fmt: skip
    titles = ["", "mask", "validation", "test", "", "95 % interval", "found ahead by, points", "FLOPs", "trained"]
    nodes = [table(titles, lines)]
    rows = [[name, *(points(own[other]) if other != name else "" for other in pairs)] for name, own in pairs.items()]
    matrix = table(["row minus column", *pairs], rows)
    nodes.append(tag("details", tag("summary", "All pairs: differences in test accuracy, points"), matrix))
    return nodes


def costs(run: RunFolder, place: str) -> list[Element]:
    if not run.rows:
        return []
    names = {SEARCH: "search", RANDOM: "random masks, for comparison", FINAL: "finalists, with fresh seeds"}
    lines = []
    for phase in dict.fromkeys(map(run.phase, run.rows)):
        rows = [row for row in run.rows if run.phase(row) == phase]
        longest = furthest(rows)
        full = sum(row.steps == run.num_steps for row in longest)
        seconds = sum(row.seconds for row in rows if row.seconds == row.seconds)
        steps = sum(row.steps for row in longest)
        counts = [len(longest), full, len(longest) - full, steps]
        lines.append([names.get(phase, phase), *(f"{count:,}" for count in counts), f"{seconds:,.0f}" if seconds else ""])
    nodes = [table(["", "evaluated", "to the end", "stopped early", "training steps", "seconds"], lines)]
    if looked_up := run.facts.get("search", {}).get("random_masks"):
        counts = "Of {evaluated} random masks, {looked_up} had been evaluated by the search and were looked up".format(
            **looked_up
        )
        nodes.append(note(f"{counts}; no mask is trained twice with one seed."))
    if run.finished:
        diverged = run.facts["num_diverged"]
        nodes.append(note(f"{run.facts['seconds']:,.0f} s in all, with preparation and test; {diverged} evaluations diverged."))
        if phases := run.facts.get("seconds_of_phases"):
            took = ", ".join(f"{phase} {seconds:,.0f}" for phase, seconds in phases.items() if round(seconds))
            nodes.append(note(f"Seconds of the process that finished the run, baselines that are no masks among them: {took}."))
    if spent := run.spent:
        lines = [
            ["every mask in full", flop(spent.in_full), "100 %"],
            *(
                [f"spared by {by}", f"-{flop(saved)}", f"-{percent(saved / spent.in_full, 0)}"]
                for by, saved in zip(("early stopping", "freezing", "prefix reuse"), spent[1:], strict=True)
                if saved
            ),
            ["done", flop(spent.spent), percent(spent.spent / spent.in_full, 0)],
        ]
        nodes.append(table(["training, as XLA counts it", "", ""], lines, total=True))
        nodes.append(note(TRACED_NOTE if spent.freezing == spent.keeping == 0 else SPENT_NOTE))
    return [tag("div", *nodes, class_="costs")]


SPENT_NOTE = (
    "In full: to the end, nothing frozen, nothing kept. Freezing spares gradients and updates; prefix reuse spares computing "
    "the frozen bottom for every step. Keeping it costs one pass over the data, which is not counted."
)
TRACED_NOTE = "This run traced its masks: one program served all of them, and did the work of training everything."


def repeat(run: RunFolder, place: str) -> list[Element]:
    parts = command(run.facts["kind"], run.options)
    options = [[name, words(plain(value))] for name, value in run.options.items()]
    versions = ", ".join(f"{name} {version}" for name, version in run.facts["versions"].items())
    cores = [f"{run.facts['cpus']} CPU cores"] if "cpus" in run.facts else []
    return [
        tag("pre", *(node for one in parts for node in (tag("span", one), " "))),
        note(", ".join([run.facts["device"], *cores, versions])),
        tag("details", tag("summary", "All options"), table(["option", "value"], options)),
    ]


def command(kind: str, options: Mapping[str, Any]) -> list[str]:
    """That starts such a run again, an option each."""
    parts = [f"python experiments/run_{kind}.py"]
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
    ("The mask", "Filled layers are frozen: they stay as pretrained. Outlined ones are trained.", network, False),
    (
        "Fitness over generations",
        "The population that is bred from: its best mask, its mean, and from best to lowest. Dots are new masks trained to the "
        "end; dashed lines, masks that need no search.",
        progress,
        True,
    ),
    ("Frozen layers over generations", "The fuller a cell, the more of the population freezes the layer.", frozen_shares, True),
    (
        "What freezing a layer does",
        "Its mean effect over all masks evaluated, by least squares on all layers at once, with 95 % intervals (Student's t). "
        "What layers do together counts as noise. A search does not choose masks at random, so read this as a hint.",
        effects,
        True,
    ),
    (
        "Accuracy against training cost",
        "Masks trained to the end. On the line is the front: no other mask is both more accurate and cheaper.",
        trade_off,
        True,
    ),
    (
        "Trained again, with fresh seeds",
        "Means over seeds the search has not used. Validation names the found mask; then the test split was opened, once. "
        "Intervals are 95 %, over seeds and test examples; differences are in pairs.",
        finalists,
        False,
    ),
    ("What it cost", "", costs, False),
    ("To repeat it", "", repeat, False),
)


def verdict_of(run: RunFolder) -> str:
    if run.finished:
        return run.facts["verdict"]["sentence"]
    if not run.full:
        return "Unfinished: no mask has been trained to the end yet."
    masks = f"{len(run.searched)} masks in {len(run.generations)} generations"
    return (
        f"Unfinished: of {masks} so far, the fittest is {Space.text(run.found or ())}, with a validation accuracy of "
        f"{percent(run.full[0].score)}. The best of many scores is too good; fresh seeds and the test split will tell."
    )


def chart(run: RunFolder, place: str, name: str, title: str, description: str) -> Element:
    return tag("figure", charts.inline(draw(run, name), f"{place}-{name}", title, description))


def table(titles: Sequence[str], rows: Sequence[Sequence[Node]], *, total: bool = False) -> Element:
    """A table whose first column names its rows.

    Args:
      total: whether the last row is one.
    """

    def line(cells: Sequence[Node]) -> Element:
        first, *rest = cells
        others = (cell if isinstance(cell, Element) and cell.tag == "td" else tag("td", cell) for cell in rest)
        return tag("tr", tag("th", first, scope="row"), *others, **({"class_": "found"} if first == "found" else {}))

    in_words = [isinstance(cell, Element) and "words" in cell.get("class", "") for cell in rows[0]]
    titled = (
        tag("th", title, scope="col", class_="words" if left else "") for title, left in zip(titles, in_words, strict=True)
    )
    head = tag("thead", tag("tr", *titled))
    body = tag("tbody", *map(line, rows[:-1] if total else rows))
    foot = [tag("tfoot", line(rows[-1]))] if total else []
    return tag("div", tag("table", head, body, *foot), class_="scroll", tabindex="0")


def as_table(titles: Sequence[str], rows: Sequence[Sequence[Node]]) -> Element:
    return tag("details", tag("summary", "As a table"), table(titles, rows))


def note(text: str) -> Element:
    return tag("p", text, class_="note")


def words(text: str) -> Element:
    """A cell of running text."""
    return tag("td", text, class_="words")


def mask_glyph(space: Space, genome: Sequence[int] | None) -> Element:
    """A mask as a row of boxes, filled where frozen."""
    genes = [tag("i", class_="on" if frozen else "off") for frozen in space.frozen(genome or ())]
    text = Space.text(genome or ())
    width = f"width: calc({min(12, len(genes))} * (.62rem + 2px))"
    return tag("span", *genes, class_="mask", role="img", aria_label=f"mask {text}", title=text, style=width)


def interval_bar(row: Mapping[str, Any], scale: tuple[float, float], mark: float | None = None) -> Element:
    """Test accuracy and its interval on a scale, and a line to compare it with."""
    x = lambda value: f"{4 + 102 * (value - scale[0]) / (scale[1] - scale[0]):.1f}"  # noqa: E731
    low, high = row["test_accuracy_interval"]
    marks = [] if mark is None else [tag("line", x1=x(mark), x2=x(mark), y1="-9", y2="20", style="stroke: var(--rule)")]
    lines = [] if low is None else [tag("line", x1=x(low), x2=x(high), y1="5.5", y2="5.5", style="stroke: var(--blue)")]
    circle = tag("circle", cx=x(row["test_accuracy"]), cy="5.5", r="2.4", style="fill: var(--blue)")
    return tag("svg", *marks, *lines, circle, viewBox="0 0 110 11", aria_hidden="true")


def scale_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From the lowest to the highest bound."""
    ends = [end for row in rows for end in (row["test_accuracy"], *row["test_accuracy_interval"]) if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def share_of(row: Mapping[str, Any], run: RunFolder, name: str) -> float:
    """Of what training everything takes."""
    return row[name] / max(1, run.facts["results"]["train all"][name])


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def between(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "one seed" if low is None or high is None else f"[{100 * max(0.0, low):.1f}, {100 * min(1.0, high):.1f}]"


def points(difference: Mapping[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    mean = f"{100 * difference['mean']:+.1f}"
    return mean if low is None else f"{mean} [{100 * low:.1f}, {100 * high:.1f}]"


def flop(number: float) -> str:
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}FLOP"
    return f"{number:.3g} FLOP"


def plain(value: Any) -> str:
    """An option's value."""
    text = " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return {"True": "yes", "False": "no"}.get(text, text)
