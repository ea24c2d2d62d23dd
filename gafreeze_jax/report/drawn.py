"""The charts of a run, by name."""

import functools
from xml.etree.ElementTree import Element

from matplotlib.figure import Figure

from gafreeze_jax.report import charts
from gafreeze_jax.report.html import tag
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.report.summary import printable

CHARTS = {
    "progress": "generations",
    "frozen_shares": "generations",
    "effects": "effects",
    "trade_off": "full",
    "confusions": "confusions",
    "numbers": "numbers",
    "blocks": "blocks",
}  # and what of a run they need


@functools.lru_cache(maxsize=len(CHARTS))  # the page shows what plots/ holds
def draw(run: RunFolder, name: str) -> Figure:
    """A chart of a run that has what it shows, laid out."""
    figure = _draw(run, name)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough for all formats
    return figure


def _draw(run: RunFolder, name: str) -> Figure:
    match name:
        case "progress":
            return charts.progress(run.generations, run.baselines, space=run.space, num_steps=run.num_steps, metric=run.metric)
        case "frozen_shares":
            return charts.frozen_shares(run.generations, run.space, run.found)
        case "effects":
            return charts.effects(run.genes, [run.metric.shown_interval(effect) for effect in run.effects or []], run.metric)
        case "confusions":
            assert run.confusions
            return charts.confusions(*run.confusions)
        case "numbers":
            assert run.numbers
            return charts.numbers(*run.numbers)
        case "blocks":
            columns = {"parameters": "parameters", "FLOPs": "flops", "bytes up": "bytes_up"}
            return charts.blocks(
                [printable(block["block"]) for block in run.blocks],
                {title: [block[key] for block in run.blocks] for title, key in columns.items()},
            )
        case _:
            points, front = ([(run.cost(row), row) for row in rows] for rows in (run.full, run.front))
            return charts.trade_off(
                points,
                front,
                space=run.space,
                baselines=run.baselines,
                found=run.found,
                cost=cost_name(run),
                metric=run.metric,
            )


def chart(run: RunFolder, place: str, name: str, *, title: str, description: str) -> Element:
    return tag("figure", charts.inline(draw(run, name), f"{place}-{name}", title, description))


def cost_name(run: RunFolder) -> str:
    return f"{'trainable parameters' if run.flops is None else 'training FLOPs'}, as a share of those of training everything"
