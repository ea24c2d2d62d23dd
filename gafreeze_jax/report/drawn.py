"""The charts of a run, by name."""

import functools
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.figure import Figure

from gafreeze_jax.report import charts
from gafreeze_jax.report.html import tag
from gafreeze_jax.report.run_folder import RunFolder

CHARTS = {
    "progress": (charts.progress, "generations"),
    "frozen_shares": (charts.frozen_shares, "generations"),
    "effects": (charts.effects, "effects"),
    "trade_off": (charts.trade_off, "full"),
    "confusions": (charts.confusions, "confusions"),
    "numbers": (charts.numbers, "numbers"),
    "blocks": (charts.blocks, "blocks"),
}  # and what of a run they need


@functools.lru_cache(maxsize=len(CHARTS))  # the page shows what plots/ holds
def draw(run: RunFolder, name: str) -> Figure:
    """A chart of a run that has what it shows, laid out."""
    with matplotlib.rc_context(charts.STYLE):
        figure = CHARTS[name][0](run)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough for all formats
    return figure


def chart(run: RunFolder, place: str, name: str, *, title: str, description: str) -> Element:
    return tag("figure", charts.inline(draw(run, name), f"{place}-{name}", title, description))
