"""Elements of the page.

A page is built as a tree, so everything that comes from data or options is escaped when it is written.
"""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from gafreeze_jax.space import Space

Node = Element | str


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


def part(title: str, lead: str, figures: Sequence[Element], *, beside: bool = False) -> Element:
    """A part of the page.

    Args:
      lead: what it shows, in words.
      beside: whether, on a wide screen, words stand beside the figures.
    """
    header = tag("header", tag("h2", title), tag("p", lead) if lead else None)
    return tag("section", header, tag("div", *figures, class_="figures"), class_="beside" if beside else "across")


def table(titles: Sequence[str], rows: Sequence[Sequence[Node]], *, total: bool = False) -> Element:
    """A table whose first column names its rows.

    Args:
      total: whether the last row is a total.
    """
    left = [isinstance(cell, Element) and "words" in cell.get("class", "") for cell in rows[0]]
    titled = [tag("th", title, scope="col", class_="words" if words else "") for title, words in zip(titles, left, strict=True)]
    body = tag("tbody", *map(_row, rows[:-1] if total else rows))
    foot = tag("tfoot", _row(rows[-1])) if total else None
    return tag("div", tag("table", tag("thead", tag("tr", *titled)), body, foot), class_="scroll", tabindex="0")


def _row(cells: Sequence[Node]) -> Element:
    first, *rest = cells
    others = (cell if isinstance(cell, Element) and cell.tag == "td" else tag("td", cell) for cell in rest)
    return tag("tr", tag("th", first, scope="row"), *others, **({"class_": "found"} if first == "found" else {}))


def folded_table(titles: Sequence[str], rows: Sequence[Sequence[Node]], summary: str = "As a table") -> Element:
    """A table that opens when its summary is clicked."""
    return tag("details", tag("summary", summary), table(titles, rows))


def note(text: str) -> Element:
    return tag("p", text, class_="note")


def words(text: str) -> Element:
    """A cell of running text."""
    return tag("td", text, class_="words")


def mask_glyph(space: Space, genome: Sequence[int]) -> Element:
    """A mask as a row of boxes, filled where frozen; other levels than frozen and trained as usual have their digits."""
    usual, levels = (space.levels.index(0.0), space.levels.index(1.0)), genome[: space.num_genes]
    frozen = space.frozen(genome)
    boxes = [
        tag("i", None if level in usual else f"{level}", class_="on" if gene else "off")
        for level, gene in zip(levels, frozen, strict=True)
    ]
    text = space.text(genome)
    width = f"width: calc({min(12, len(boxes))} * (.62rem + 2px))"
    return tag("span", *boxes, class_="mask", role="img", aria_label=f"mask {text}", title=text, style=width)


def interval_bar(
    value: float, bounds: Sequence[float | None], scale: tuple[float, float], *, mark: float | None = None
) -> Element:
    """A value and its interval on a scale from low to high, and a line to compare it with."""

    def x(at: float) -> str:
        return f"{4 + 102 * (at - scale[0]) / (scale[1] - scale[0]):.1f}"

    low, high = bounds
    marks = [] if mark is None else [tag("line", x1=x(mark), x2=x(mark), y1="-9", y2="20", style="stroke: var(--rule)")]
    lines = []
    if low is not None and high is not None:
        lines.append(tag("line", x1=x(low), x2=x(high), y1="5.5", y2="5.5", style="stroke: var(--blue)"))
    circle = tag("circle", cx=x(value), cy="5.5", r="2.4", style="fill: var(--blue)")
    return tag("svg", *marks, *lines, circle, viewBox="0 0 110 11", aria_hidden="true")


def percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def flop(number: float) -> str:
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}FLOP"
    return f"{number:.3g} FLOP"
