"""The page that shows a run, or several side by side: one HTML file that needs nothing else."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from gafreeze_jax.report import charts
from gafreeze_jax.report.drawn import CHARTS, draw
from gafreeze_jax.report.folder_format import NOT_COMPARED
from gafreeze_jax.report.html import interval_bar, mask_glyph, note, part, percent, table, tag, words
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.report.sections import SECTIONS, Section, option_text, scale_of, share_of
from gafreeze_jax.report.summary import remarks
from gafreeze_jax.search.history import write_whole

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a browser holds the page to its promise


def write(runs: Sequence[RunFolder], path: Path) -> None:
    """Writes the page; for a single run, also its charts as PNG and SVG, to plots/ beside it."""
    write_whole(path, render(runs))
    if len(runs) == 1:
        (path.parent / "plots").mkdir(exist_ok=True)
        for name, (_, needed) in CHARTS.items():
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
    opening = opening_of_run(runs[0]) if len(runs) == 1 else opening_of_comparison(runs)
    body = tag("body", tag("main", *opening, *(show(section, runs) for section in SECTIONS)))
    return "<!DOCTYPE html>\n" + tostring(tag("html", head, body, lang="en"), encoding="unicode", method="html") + "\n"


def opening_of_run(run: RunFolder) -> list[Element]:
    """What a hurried reader needs."""
    facts: dict[str, Any] = {"mask": mask_glyph(run.space, run.found)} if run.found else {}
    if run.finished:
        entry, metric = run.facts["results"]["found"], run.metric
        facts |= {
            f"test {metric.name}": f"{metric.write(run.test_value('found'))} {metric.write_bounds(*run.test_bounds('found'))}",
            **({"majority class": metric.write(shares[f"test_{metric.key}"])} if (shares := run.facts.get("majority")) else {}),
            "training FLOPs": f"{percent(share_of('training_flops', entry, run))} of training everything",
            "trained parameters": f"{entry['trainable_parameters']:,} "
            f"({percent(share_of('trainable_parameters', entry, run))})",
        }
    entries = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    heading = " · ".join([run.name, run.facts["kind"], *([] if run.finished else ["unfinished"])])
    return [
        tag("h1", heading),
        tag("p", verdict_of(run), class_="verdict"),
        *(tag("p", remark) for remark in (remarks(run.facts) if run.finished else ())),
        tag("dl", *entries, class_="facts"),
    ]


def opening_of_comparison(runs: Sequence[RunFolder]) -> list[Element]:
    """Several runs, a row each; how they got there; and the options in which they differ."""
    titles = ["run", "mask", "validation", "test", "95 % interval", "FLOPs", "masks tried", "seconds", "verdict"]
    finished = [run for run in runs if run.finished]
    scale = scale_of([run.test_value("found") for run in finished], [run.test_bounds("found") for run in finished])
    rows = [_comparison_row(run, scale) for run in runs]
    parts = [tag("h1", "gafreeze_jax"), tag("p", f"{len(runs)} runs side by side", class_="verdict"), table(titles, rows)]
    if all(run.full for run in runs) and len({run.metric for run in runs}) == 1:
        metric = runs[0].metric
        title = f"Best {metric.name} against training done"
        figure = charts.race([(run.name, *run.trace) for run in runs], metric)
        chart = charts.inline(figure, "race", title, "A line for each run.")
        parts.append(
            part("How they got there", "The best mask trained to the end, as the search goes on.", [tag("figure", chart)])
        )
    if options := _differing_options(runs):
        parts.append(part("Options that differ", "", [table(["option", *(run.name for run in runs)], options)]))
    return parts


def _comparison_row(run: RunFolder, scale: tuple[float, float]) -> list[Element | str]:
    metric, searched, verdict = run.metric, f"{len(run.searched)}", tag("td", verdict_of(run), class_="words verdict")
    mask = mask_glyph(run.space, run.found) if run.found else ""
    if not run.finished:
        best = metric.write_score(run.full[0].score if run.full else None)
        return [run.name, mask, best, "", "", "", searched, "", verdict]
    entry, value, bounds = run.facts["results"]["found"], run.test_value("found"), run.test_bounds("found")
    return [
        run.name,
        mask,
        metric.write(entry[f"validation_{metric.key}"]),
        metric.write(value),
        interval_bar(value, bounds, scale),
        percent(share_of("training_flops", entry, run)),
        searched,
        f"{run.facts['seconds']:,.0f}",
        verdict,
    ]


def _differing_options(runs: Sequence[RunFolder]) -> list[list[Element | str]]:
    names = dict.fromkeys(name for run in runs for name in run.options if name not in NOT_COMPARED)
    values = {name: [option_text(run.options.get(name)) for run in runs] for name in names}
    return [[name, *map(words, texts)] for name, texts in values.items() if len(set(texts)) > 1]


def show(section: Section, runs: Sequence[RunFolder]) -> Element | None:
    """A section with figures of each run; None if no run has anything to show there."""
    figures = [(run, section.content(run, f"run{i}")) for i, run in enumerate(runs)]  # names of elements are unique
    if not any(nodes for _, nodes in figures):
        return None
    several = len(runs) > 1
    name = " or ".join(dict.fromkeys(run.metric.name for run in runs))
    shown = [
        tag("div", tag("h3", run.name) if several else None, *(nodes or [note("Nothing to show.")])) for run, nodes in figures
    ]
    title = section.title.format(metric=f"{name[0].upper()}{name[1:]}")
    return part(title, section.lead, shown, beside=section.beside and not several)


def verdict_of(run: RunFolder) -> str:
    """The verdict on a run in one sentence, or what is known of an unfinished run."""
    if run.finished:
        return run.facts["verdict"]["sentence"]
    if not run.full:
        return "Unfinished: no mask has been trained to the end yet."
    best = run.full[0]
    masks = f"{len(run.searched)} masks in {len(run.generations)} generations"
    shares, write = run.facts.get("majority"), run.metric.write
    majority = f" (that of the majority class is {write(shares[f'validation_{run.metric.key}'])})" if shares else ""
    return (
        f"Unfinished: of {masks} so far, the fittest is {run.space.text(best.genome)}, with a validation {run.metric.name} of "
        f"{run.metric.write_score(best.score)}{majority}. The best of many scores is optimistic; fresh seeds and the test "
        "split decide."
    )
