"""The sections of the page on what the saved model predicts for the test examples."""

from xml.etree.ElementTree import Element

import numpy as np

from gafreeze_jax.listing import shorten
from gafreeze_jax.report.drawn import chart
from gafreeze_jax.report.html import folded_table, percent, table, words
from gafreeze_jax.report.predictions import LONGEST_NAME, most_confidently_wrong
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.report.summary import printable

NUM_WRONG, LONGEST_INPUT = 10, 240  # test examples that are shown, and characters of each of their texts
NUM_PARTS = 10  # of the test split, by its true numbers


def confusions(run: RunFolder, place: str) -> list[Element]:
    if run.confusions is None:
        return []
    names, counts = run.confusions
    rows = [
        [name, *(f"{count:,}" for count in row), percent(row[i] / row.sum() if row.sum() else None, 1)]
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    ]
    right = "; ".join(f"{row[0]} {row[-1] or 'does not occur'}" for row in rows)
    title, description = "Confusions of classes on the test split", f"Share of each class that is recognized: {right}."
    return [
        chart(run, place, "confusions", title=title, description=description),
        folded_table(["true class, predicted as", *names, "right"], rows),
    ]


def confidently_wrong(run: RunFolder, place: str) -> list[Element]:
    def shown(text: str) -> str:
        return printable(shorten(" ".join(text.split()), LONGEST_INPUT))

    wrong = most_confidently_wrong(run.predictions, NUM_WRONG)
    rows = [
        [shown(truth), shown(label), percent(probability, 1), *(words(shown(text)) for text in inputs.values())]
        for inputs, truth, label, probability in wrong
    ]
    return [table(["true class", "predicted", "probability", *wrong[0].inputs], rows)] if wrong else []


def numbers(run: RunFolder, place: str) -> list[Element]:
    if run.numbers is None:
        return []
    truth, predicted = run.numbers
    order = np.argsort(truth, kind="stable")
    rows = [
        [
            f"{truth[part].min():.4g} to {truth[part].max():.4g}",
            f"{len(part):,}",
            *(f"{mean:.4g}" for mean in (truth[part].mean(), predicted[part].mean(), np.abs(predicted - truth)[part].mean())),
        ]
        for part in np.array_split(order, min(NUM_PARTS, len(order)))
    ]
    means = "; ".join(f"{row[0]}: {row[3]}" for row in rows)
    return [
        chart(
            run,
            place,
            "numbers",
            title="Predicted against true numbers on the test split",
            description=f"Mean predictions where the true number is from one value to another: {means}.",
        ),
        folded_table(["true number", "examples", "mean", "mean prediction", "mean error"], rows),
    ]


def types(run: RunFolder, place: str) -> list[Element]:
    rows = [
        [
            shorten(printable(of_type.name), LONGEST_NAME),
            *(f"{count:,}" for count in of_type[1:]),
            *(percent(share, 1) for share in (of_type.precision, of_type.recall, of_type.f1)),
        ]
        for of_type in run.types
    ]
    return [table(["", "true", "predicted", "right", "precision", "recall", "F1"], rows)] if rows else []
