"""The charts of a run, drawn once by matplotlib: for the page as SVG that takes the page's colours, and as PNG and SVG files.

They are as wide as a phone shows them, and grow on larger screens. Colours are those of Okabe & Ito (2008, "Color universal
design"), which colour-blind people can tell apart.
"""

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from gafreeze_jax.report.html import tag
from gafreeze_jax.report.metric_format import MetricFormat
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.report.summary import printable

INK, MUTED, RULE = "#1f2328", "#6a737d", "#d0d7de"
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", BLUE: "blue", VERMILLION: "vermillion", GREEN: "green", PURPLE: "purple"}
HOVER = "hover: "  # before what the pointer shows
WIDTH = 400  # points
MOST_POINTS = 2000  # of a chart with one for each example
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
}
EDGE: dict[str, Any] = {"edgecolor": RULE, "linewidth": 0.4}  # of a cell


def progress(run: RunFolder) -> Figure:
    """The metric over generations: the population's best, mean and spread, new masks, and baselines."""
    figure, axes = _start(250)
    write, generations = _title(axes, f"validation {run.metric.name}", run.metric), run.generations
    numbers = [generation.number for generation in generations]
    scores = [[row.score for row in generation.population] for generation in generations]
    best, mean, worst = (np.array(list(map(summary, scores))) for summary in (max, np.mean, min))
    new = [row for generation in generations for row in generation.new if row.steps == run.num_steps]
    floor = _floor([row.score for row in new])
    for row in new:
        label = f"{run.space.text(row.genome)}: {write(row.score)}"
        _point(axes, row.generation, row.score, label, floor=floor, color=MUTED, alpha=0.5, markersize=4)
    axes.fill_between(numbers, worst, best, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(numbers, mean, color=BLUE, linewidth=1)
    axes.plot(numbers, best, color=BLUE, linewidth=2.4, marker="o", markersize=4)
    labels = [("best", best[-1], BLUE), ("mean", mean[-1], BLUE)]
    for name, row in run.baselines.items():
        if row.score < floor:
            labels.append((f"{name} {write(row.score)} ↓", floor, INK))
        else:
            axes.axhline(row.score, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            labels.append((name, row.score, INK))
    axes.set_xlim(0.5, max(numbers) + 0.5)
    if floor > -math.inf:
        axes.set_ylim(bottom=floor)
    axes.set_xlabel("generation")
    axes.set_xticks(_spaced(numbers))
    _label_right(axes, labels)
    return figure


def frozen_shares(run: RunFolder) -> Figure:
    """A row per layer, a column per generation: the share of the population that freezes it; and the mask found."""
    figure, axes = _start(55 + 19 * run.space.num_genes)
    generations, found = run.generations, run.found
    columns = [(float(generation.number), generation.frozen_share) for generation in generations]
    gap = 1 + 0.04 * (len(columns) + 1)
    if found is not None:
        columns.append((generations[-1].number + gap, run.space.frozen(found).astype(float)))
    for x, shares in columns:
        for i, share in enumerate(shares):
            axes.add_patch(Rectangle((x - 0.5, i - 0.44), 1, 0.88, facecolor=(BLUE, float(share)), **EDGE))
    numbers = [generation.number for generation in generations]
    labels = {number: str(number) for number in _spaced(numbers)} | ({columns[-1][0]: "found"} if found is not None else {})
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xlim(min(numbers) - 0.6, columns[-1][0] + 0.6)
    _name_rows(axes, run.space.names)
    axes.set_xlabel("generation")
    axes.spines[:].set_visible(False)
    return figure


def effects(run: RunFolder) -> Figure:
    """A row per layer: by how much freezing it changes the metric, with its interval."""
    metric = run.metric
    scale = 100 if metric.is_share else 1
    figure, axes = _start(55 + 19 * len(run.genes))
    axes.axvline(0, color=INK, linewidth=0.8)
    for i, effect in enumerate(map(metric.shown_interval, run.effects or [])):
        axes.plot([scale * effect.low, scale * effect.high], [i, i], color=BLUE, linewidth=1.6, solid_capstyle="butt")
        axes.plot(scale * effect.mean, i, "o", color=BLUE, markersize=6)
    _name_rows(axes, run.genes)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"change in validation {metric.name} where frozen{', points' if metric.is_share else ''}")
    return figure


def trade_off(run: RunFolder) -> Figure:
    """The metric against cost: masks that were trained to the end, the front, the mask found, and both extremes."""
    figure, axes = _start(270)
    write, space, found = _title(axes, f"validation {run.metric.name}", run.metric), run.space, run.found
    points, front = ([(run.cost(row), row) for row in rows] for rows in (run.full, run.front))
    floor = _floor([row.score for _, row in points])
    for x, row in points:
        label = f"{space.text(row.genome)} at {x:.0%}: {write(row.score)}"
        _point(axes, x, row.score, label, floor=floor, color=MUTED, alpha=0.6, markersize=5)
    ascending = sorted((x, row.score) for x, row in front)
    axes.step(*zip(*ascending, strict=True), where="post", color=BLUE, linewidth=1.6)
    for x, row in front:
        label = f"{space.text(row.genome)} at {x:.0%}: {write(row.score)}"
        _point(axes, x, row.score, label, floor=floor, color=BLUE, markersize=6)
    extremes = {row.genome: name for name, row in run.baselines.items() if len(set(space.frozen(row.genome).tolist())) == 1}
    named = {**extremes, found: "found"}
    for x, row in points:
        if name := named.get(row.genome):
            color, place = INK, {"ha": "right", "xytext": (-7, -13)} if x > 0.7 else {"ha": "left", "xytext": (8, -13)}
            if row.score < floor:
                name, place = f"{name} {write(row.score)} ↓", {"ha": "left", "xytext": (8, 2)}
            elif row.genome == found:
                color, place = VERMILLION, {"ha": "center", "xytext": (0, 10)}
                axes.plot(x, row.score, "o", color=color, markersize=11, markerfacecolor="none", markeredgewidth=2)
            axes.annotate(name, (x, max(floor, row.score)), textcoords="offset points", color=color, **place)
    axes.set_xlabel(run.cost_name)
    axes.set_xlim(-0.04, 1.04)
    axes.margins(y=0.1)
    if floor > -math.inf:
        axes.set_ylim(bottom=floor)
    axes.xaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 1):g} %")
    return figure


def confusions(run: RunFolder) -> Figure:
    """A row per true class, a column per predicted one: how often; the fuller a cell, the larger its share of the row."""
    assert run.confusions
    names, counts = run.confusions
    num = len(names)
    figure, axes = _start(100 + 300 * min(1, num / 8))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, column in itertools.product(range(num), range(num)):
        cell = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=(BLUE, 0.65 * shares[row, column]), **EDGE)
        cell.set_gid(f"{HOVER}{names[row]}, taken for {names[column]}: {counts[row, column]:,}")
        axes.add_patch(cell)
        if counts[row, column]:
            size = 10.5 if num <= 10 else 7.5
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size)
    _name_rows(axes, names)
    axes.set_xlim(-0.6, num - 0.4)
    rotation = 90 if max(map(len, names)) * num > 40 else 0
    axes.set_xticks(range(num), list(map(_short, names)), color=INK, rotation=rotation)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    return figure


def numbers(run: RunFolder) -> Figure:
    """A point for each example, the true number to the right and the predicted one upwards; on the line they are equal."""
    assert run.numbers
    truth, predicted = run.numbers
    figure, axes = _start(300)
    every = math.ceil(len(truth) / MOST_POINTS)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(truth[::every], predicted[::every], "o", color=BLUE, alpha=0.45, markersize=4, markeredgewidth=0)
    axes.set_xlabel("true")
    axes.set_title("predicted", loc="left", fontsize=10.5, color=MUTED)
    return figure


def blocks(run: RunFolder) -> Figure:
    """A row per block, and a bar for each of its costs."""
    names = [printable(block["block"]) for block in run.blocks]
    columns = {"parameters": "parameters", "FLOPs": "flops", "bytes up": "bytes_up"}
    figure = Figure(figsize=(WIDTH / 72, (55 + 19 * len(names)) / 72), layout="constrained")
    for axes, (title, key) in zip(figure.subplots(1, len(columns), sharey=True), columns.items(), strict=True):
        for i, (name, block) in enumerate(zip(names, run.blocks, strict=True)):
            (bar,) = axes.barh(i, block[key], height=0.7, color=BLUE, alpha=0.8)
            bar.set_gid(f"{HOVER}{name}: {block[key]:,.0f} {title}")
        _name_rows(axes, names)
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(2))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


@matplotlib.rc_context(STYLE)
def race(runs: Sequence[tuple[str, Sequence[float], Sequence[float]]], metric: MetricFormat) -> Figure:
    """Several runs: name, training done, in full evaluations, and the best score until then."""
    figure, axes = _start(250)
    _title(axes, f"best validation {metric.name}", metric)
    labels = []
    for (name, done, best), color in zip(runs, itertools.cycle((BLUE, VERMILLION, GREEN, PURPLE)), strict=False):
        axes.step(done, best, where="post", color=color, linewidth=2)
        labels.append((name, best[-1], color))
    axes.set_xlim(0)
    axes.set_xlabel("training done, in full evaluations")
    _label_right(axes, labels)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as `path` with .svg and with .png."""
    with _style(path.name):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None}, transparent=True)
        figure.savefig(path.with_suffix(".png"), dpi=216, facecolor="white")


def inline(figure: Figure, name: str, title: str, description: str) -> ElementTree.Element:
    """A figure as an SVG element whose colours are variables of the page, with its text alternative.

    Args:
      name: that no other figure of the page has.
    """
    buffer = io.StringIO()
    with _style(name):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    svg = ElementTree.fromstring(buffer.getvalue())
    svg.remove(svg[0])  # a style for all of the page
    for element in list(svg.iter()):
        element.tag = element.tag.partition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        label = attributes.pop("id", "") if element.tag == "g" else ""
        attributes |= {"style": _with_variables(attributes["style"])} if "style" in attributes else {}
        element.attrib = attributes
        element.tail = None
        if label.startswith(HOVER):
            element.insert(0, tag("title", label.removeprefix(HOVER)))
    labels = {"role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    svg.attrib = {"viewBox": svg.attrib["viewBox"]} | labels
    svg.insert(0, tag("desc", description, id=f"{name}-description"))
    svg.insert(0, tag("title", title, id=f"{name}-title"))
    return svg


@contextlib.contextmanager
def _style(salt: str) -> Iterator[None]:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the font lacks a character of a class's name; a browser's may have it
        yield


def _start(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


def _title(axes: Axes, title: str, metric: MetricFormat) -> Callable[[float], str]:
    """Names the vertical axis, which shows scores, so that better is higher; returns what writes a score."""

    def write(score: float, _: float = 0) -> str:
        value = metric.shown(score)
        return f"{round(100 * value, 1):g} %" if metric.is_share else f"{value:.4g}"

    axes.set_title(title, loc="left", fontsize=10.5, color=MUTED)
    axes.yaxis.set_major_formatter(write)
    return write


def _floor(scores: Sequence[float]) -> float:
    """Below which a mask is drawn at the edge, as it would press all others together; -inf if there is no such mask."""
    best, median = max(scores, default=0.0), float(np.median(scores or [0.0]))
    floor = best - 4 * (best - median)
    return floor if min(scores, default=0.0) < floor < median else -math.inf


def _point(axes: Axes, x: float, score: float, label: str, *, floor: float, **style) -> None:
    """A mask; the pointer shows its label. Below the floor it is a triangle on it."""
    marker = "o" if score >= floor else "v"
    (point,) = axes.plot(x, max(floor, score), marker, markeredgewidth=0, clip_on=False, **style)
    point.set_gid(f"{HOVER}{label}")


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"


def _spaced(numbers: Sequence[int]) -> Sequence[int]:
    """At most twelve of them."""
    return numbers[:: math.ceil(len(numbers) / 12)]


def _name_rows(axes: Axes, blocks: Sequence[str]) -> None:
    axes.set_yticks(range(len(blocks)), map(_short, blocks), color=INK)
    axes.set_ylim(len(blocks) - 0.4, -0.6)
    axes.tick_params(length=0)


def _label_right(axes: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Names lines at their right ends, by name, height and colour; moved apart where they would overlap."""
    low, high = axes.get_ylim()
    least = (high - low) * 0.075
    ordered = sorted(labels, key=lambda label: label[1])
    heights = [height for _, height, _ in ordered]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + least)
    heights[-1] = min(heights[-1], high)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - least)
    right = axes.get_xlim()[1]
    for (name, _, color), height in zip(ordered, heights, strict=True):
        axes.annotate(_short(name), (right, height), xytext=(4, 0), textcoords="offset points", va="center", color=color)


def _with_variables(style: str) -> str:
    style = re.sub(r"font-family: [^;]*; ", "", style)
    return re.sub("#[0-9a-f]{6}", lambda color: f"var(--{VARIABLES[color[0]]})" if color[0] in VARIABLES else color[0], style)
