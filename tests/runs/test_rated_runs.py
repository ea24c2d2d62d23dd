"""Runs that search for rates: their options, what they leave, and what happens when they are interrupted."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import run_bert
import run_custom
import run_gpt2
import run_resnet
import small_models
import tyro
from test_bad_inputs import Case, content, error_of, given
from test_run_dir import outcome

from gafreeze_jax import masking
from gafreeze_jax.runs import run_dir
from gafreeze_jax.runs.baselines import BASELINES, FURTHER, LOWER_RATES
from gafreeze_jax.search import genetic, history
from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAN, INFINITE = float("nan"), float("inf")
ELEVEN = tuple(i / 4 for i in range(1, 12))

# Options


def rates_mask(rates, head="fresh"):
    """A mask file for the tutorial's network."""

    def make(folder):
        names = [f"dense_{i}" for i in range(len(rates))]
        write_rates(folder / "mask.json", dict(zip(names, rates, strict=True)), head)
        return {"mask": "mask.json"}

    return make


def write_rates(path, rates, head="fresh"):
    facts = {"format": "gafreeze_jax mask", "version": 2, "head": head, "rates": rates}
    path.write_text(json.dumps(facts | {"frozen": {name: rate == 0 for name, rate in rates.items()}}))
    return path


CASES = {
    "rates without 1": Case(run_bert, given(rates=(0.5, 2.0)), "different numbers above 0, 1 among them, got 0.5 2"),
    "a rate twice": Case(run_bert, given(rates=(1.0, 0.5, 0.5)), "--rates must be different numbers above 0"),
    "a rate of 0": Case(run_custom, given(rates=(0.0, 1.0)), "--rates must be different numbers above 0"),
    "a negative rate": Case(run_resnet, given(rates=(1.0, -0.5)), "--rates must be different numbers above 0"),
    "a rate that is no number": Case(run_custom, given(rates=(1.0, NAN)), "--rates must be different numbers above 0"),
    "an infinite rate": Case(run_custom, given(rates=(1.0, INFINITE)), "--rates must be different numbers above 0"),
    "rates that read alike": Case(run_custom, given(rates=(1.0, 1.0000001)), "--rates must be different numbers above 0"),
    "a huge rate": Case(run_custom, given(rates=(1.0, 1e39)), "--rates must be numbers from 1e-06 to 1e+06, got 1 1e+39"),
    "a tiny level": Case(run_custom, given(levels=(1.0, 1e-46)), "--levels must be numbers from 1e-06 to 1e+06, got 1 1e-46"),
    "too many rates": Case(run_custom, given(rates=ELEVEN), "--rates must be at most 9 numbers, got 11"),
    "no level": Case(run_custom, given(levels=()), "--levels must be different numbers above 0, 1 among them, got none"),
    "levels without 1": Case(run_resnet, given(levels=(0.1, 0.3)), "--levels must be different numbers above 0, 1 among them"),
    "a level twice": Case(run_bert, given(levels=(1.0, 1.0)), "--levels must be different numbers above 0"),
    "frozen as a level": Case(run_custom, given(levels=(0.0, 1.0)), "--levels must be different numbers above 0"),
    "a negative level": Case(run_custom, given(levels=(-0.3, 1.0)), "--levels must be different numbers above 0"),
    "a level that is no number": Case(run_custom, given(levels=(NAN, 1.0)), "--levels must be different numbers above 0"),
    "an infinite level": Case(run_bert, given(levels=(1.0, INFINITE)), "--levels must be different numbers above 0"),
    "too many levels": Case(run_custom, given(levels=ELEVEN), "--levels must be at most 9 numbers, got 11"),
    "a head to model language": Case(run_gpt2, given(head="fresh"), "--head fresh is for --task classify; a language model"),
    "a mask of other genes with rates": Case(run_custom, rates_mask([0.5, 1]), "the mask has the genes dense_0, dense_1; the"),
    "a mask of more genes, the head kept": Case(run_custom, rates_mask([0.5, 1, 1, 0, 1], "kept"), "the network has dense_0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_rates(case, small_bert, small_resnet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models = {run_bert: {"model": str(small_bert)}, run_resnet: {"model": str(small_resnet), "data": "digits"}}
    options = models.get(case.script, {}) | case.make(tmp_path)
    before = content(tmp_path)
    line = error_of(case.script, options, capsys)
    assert case.message in line
    assert len(line) <= 600
    assert content(tmp_path) == before


def test_a_mask_of_more_rates_than_a_run_can_train_at(tmp_path, capsys):
    names = ["embeddings", *(f"layer_{i}" for i in range(9))]
    mask = write_rates(tmp_path / "mask.json", {name: 0.9**place for place, name in enumerate(names, start=1)})
    model = small_models.write_bert(tmp_path, 9)
    line = error_of(run_bert, {"model": str(model), "mask": mask, "head": "fresh", "out": tmp_path / "run"}, capsys)
    assert line == f"error: {mask}: a run can train at 8 rates besides 0 and 1 at most; the mask has 10"


@pytest.mark.parametrize(
    "words",
    [
        "--rates 1 x",
        "--levels 0.1 one",
        "--levels",
        "--head both",
        "--head",
        "--baselines some",
    ],
)
def test_words_that_are_no_rates_or_heads(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_bert.main(tyro.cli(run_bert.Options, args=words.split()))
    assert stopped.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


# A search for rates

SEARCH = run_custom.Options(
    gens=2,
    population=2,
    epochs=1,
    rates=(2.0, 0.5, 1.0),
    levels=(0.3, 1.0),
    baselines="all",
    finalist_seeds=1,
    plan="members=4,steps=35,freezing=traced",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_custom.main(replace(SEARCH, out=folder))
    return folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_an_interrupted_search_for_rates_ends_like_an_undisturbed_one(share, undisturbed, tmp_path, capsys, monkeypatch):
    """Early, later, and while finalists are trained, whose rows may be in another order then."""
    write_whole, out = run_dir.write_whole, tmp_path / "run"
    num_rows = len((undisturbed / "evaluations.csv").read_text().splitlines())

    def fails(path, text):
        if path.name == "evaluations.csv" and text.count("\n") > share * num_rows:
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(history, "write_whole", fails)
        with pytest.raises(SystemExit):
            run_custom.main(replace(SEARCH, out=out))
    assert "What was done is kept; to resume" in capsys.readouterr().err
    assert not (out / "result.json").exists()
    run_custom.main(run_custom.Options(resume=out))
    assert "Resuming with" in capsys.readouterr().out
    (rows, *ours), (expected, *others) = outcome(out), outcome(undisturbed)
    assert ours == others
    assert sorted(rows) == sorted(expected)
    searched = [row for row in expected if row[0] != "final"]
    assert rows[: len(searched)] == searched


def test_all_baselines_have_a_row(undisturbed):
    results = {name: row for name, row in result_of(undisturbed)["results"].items() if not name.startswith("found, ")}
    space = Space([f"dense_{i}" for i in range(3)], (1, 0, 0.3), (0.5, 1, 2))
    expected = {baseline.name for baseline in (*BASELINES, *FURTHER) if baseline.fits(space)} - {"train nothing"}
    assert {baseline.name for baseline in FURTHER} <= expected
    assert not {baseline.name for baseline in LOWER_RATES} & expected  # as a search for rates has them
    for name in expected:
        assert any(row == name or row.startswith(f"{name} ") for row in results), name
    assert len(results) == len(expected) + 2  # and the found mask and the best random mask
    assert all(row["rate"] in space.rates for row in results.values())


def test_the_best_random_mask_has_been_tried_at_all_rates(undisturbed):
    """As the found mask and all baselines have, with the search's seed."""
    result = result_of(undisturbed)
    space = Space.from_facts(result)
    with open(undisturbed / "evaluations.csv", encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["seed"] == "0" and int(row["steps"]) == result["search"]["rungs"][-1]
        ]
    scores = {space.parse(row["genome"]): (float(row["accuracy"]), -float(row["loss"])) for row in rows}
    for name in ("found", "best random mask", "best third", "greedy selection"):
        genome = tuple(result["results"][name]["genome"])
        at_rates = list(map(tuple, space.at_rates([genome]).tolist()))
        assert max(at_rates, key=scores.__getitem__) == genome, name


@pytest.mark.parametrize(("rates", "are_random"), [((4.0, 1.0, 0.25), True), ((1.0,), False)])
def test_members_of_the_first_generation_beyond_the_first_masks_are_random(rates, are_random, tmp_path, monkeypatch):
    """Not the first masks again, which train at other rates then than those that the algorithm would begin with."""
    initial, make_ga = [], genetic.make_ga
    monkeypatch.setattr(genetic, "make_ga", lambda *args, **given: initial.append(given["initial"]) or make_ga(*args, **given))
    given = {"epochs": 1, "finalist_seeds": 1, "plan": SEARCH.plan}
    run_custom.main(run_custom.Options(gens=1, population=16, rates=rates, out=tmp_path / "run", **given))
    assert [genomes is None for genomes in initial] == [are_random]


def test_the_page_has_rates_and_says_what_levels_are(undisturbed):
    page = (undisturbed / "report.html").read_text()
    titles = [re.findall(r"<th[^>]*>([^<]*)</th>", head) for head in re.findall("<thead>.*?</thead>", page)]
    assert [named[:3] for named in titles if "rate" in named] == [["mask", "rate", "validation"], ["", "mask", "rate"]]
    assert "Digits in masks are levels at which a layer trains: 2 is 0.3 times the learning rate." in page


def test_the_found_rates_are_in_the_mask_file(undisturbed):
    result, mask = result_of(undisturbed), json.loads((undisturbed / "mask.json").read_text())
    space = Space.from_facts(result)
    assert (space.levels, space.rates) == ((1, 0, 0.3), (0.5, 1, 2))
    rates = space.multipliers(result["best_genome"])
    assert mask["version"] == 2
    assert mask["head"] == "fresh"
    np.testing.assert_allclose(list(mask["rates"].values()), rates)
    assert list(mask["frozen"].values()) == [rate == 0 for rate in rates]
    assert masking.read_rates(undisturbed / "mask.json") == mask["rates"]


def test_a_run_with_the_found_mask_trains_at_its_rates(undisturbed, tmp_path):
    """With the same seeds it ends at the same scores."""
    found = result_of(undisturbed)["results"]["found"]
    given = {"epochs": SEARCH.epochs, "finalist_seeds": 1, "plan": SEARCH.plan}
    run_custom.main(run_custom.Options(mask=undisturbed / "mask.json", out=tmp_path / "run", **given))
    again = result_of(tmp_path / "run")["results"]["found"]
    for name in ("validation_accuracy", "test_accuracy", "trainable_parameters"):
        assert again[name] == found[name]
    assert again["validation_loss"] == pytest.approx(found["validation_loss"], rel=1e-4)
    assert json.loads((tmp_path / "run" / "mask.json").read_text())["rates"] == pytest.approx(
        json.loads((undisturbed / "mask.json").read_text())["rates"]
    )


def test_a_mask_of_halves_trains_as_everything_at_half_the_rate(tmp_path):
    mask = write_rates(tmp_path / "mask.json", {f"dense_{i}": 0.5 for i in range(3)})
    run_custom.main(run_custom.Options(mask=mask, out=tmp_path / "run", epochs=1, finalist_seeds=1, plan=SEARCH.plan))
    results = result_of(tmp_path / "run")["results"]
    assert results["found"]["validation_loss"] == pytest.approx(results["train all, half rate"]["validation_loss"], rel=1e-5)
    assert results["found"]["validation_loss"] != pytest.approx(results["train all"]["validation_loss"], rel=1e-5)
