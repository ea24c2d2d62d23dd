"""The page of a real run: what it says, and what a real browser makes of it."""

import csv
import html.parser
import json
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import browser
import pytest
import run_custom
import test_run_folder
import tyro

from gafreeze_jax import cli
from gafreeze_jax.intervals import Interval
from gafreeze_jax.report import outcomes, page, sections
from gafreeze_jax.report.html import flop, mask_glyph, percent
from gafreeze_jax.report.metric_format import ACCURACY
from gafreeze_jax.report.run_folder import RunFolder
from gafreeze_jax.space import Space

SECTIONS = ["The mask", "Fitness over generations", "Frozen layers over generations", "What freezing a layer does"]
SECTIONS += [
    "Accuracy against training cost",
    "Trained again, with fresh seeds",
    "Which classes are confused",
    "Most confidently wrong",
    "Model and data",
    "What it cost",
    "To repeat it",
]
CHARTS = ["progress", "frozen_shares", "effects", "trade_off", "confusions"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compilation):
    """The folder of a search of two generations or more."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--population", "2", "--max-evaluations", "7", "--epochs", "1", "--finalist-seeds", "2", "--baselines", "all"]
    options += ["--plan", "members=8,steps=7,freezing=traced", "--out", str(out)]
    run_custom.main(tyro.cli(run_custom.Options, args=options))
    return out


@pytest.fixture(scope="module")
def unfinished(run, tmp_path_factory):
    """What the run left while it was in its second generation."""
    folder = tmp_path_factory.mktemp("runs") / "unfinished"
    folder.mkdir()
    shutil.copy(run / "run.json", folder)
    lines = (run / "evaluations.csv").read_text().splitlines()
    (folder / "evaluations.csv").write_text("\n".join(lines[:8]))
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with browser.start(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `gafreeze` with some words; gives its exit status, and what it prints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gafreeze", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1280, "light"), (1280, "dark")])
def test_a_browser_shows_all_of_it_and_asks_for_nothing_else(run, chromium, width, scheme):
    address = (run / "report.html").as_uri()
    chromium.open(address, width, scheme=scheme)
    assert chromium.ask("[...document.querySelectorAll('h2')].map(h => h.innerText)") == SECTIONS
    sentence = json.loads((run / "result.json").read_text())["verdict"]["sentence"]
    assert chromium.ask("document.querySelector('p.verdict').innerText") == sentence
    charts = chromium.ask(
        "[...document.querySelectorAll('figure svg')].map(s => [s.getAttribute('role'), s.getBoundingClientRect().width,"
        " ...s.getAttribute('aria-labelledby').split(' ').map(id => document.getElementById(id).textContent.length)])"
    )
    assert len(charts) == len(CHARTS)
    for role, drawn, title, description in charts:
        assert role == "img"
        assert width / 4 < drawn <= width
        assert min(title, description) > 20
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    paper = "getComputedStyle(document.body).backgroundColor"
    assert chromium.ask(paper) == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    axis = "getComputedStyle(document.querySelector('figure svg text')).fill"  # a variable of the page
    assert chromium.ask(axis) == {"light": "rgb(87, 96, 106)", "dark": "rgb(154, 164, 174)"}[scheme]
    requests = [event["request"]["url"] for event in chromium.reported("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert chromium.reported("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []


def test_costs_are_shares_of_training_everything(run):
    """Not of the dearest row, which is Auto-RGN."""
    rows = json.loads((run / "result.json").read_text())["results"]
    shares = {name: row["training_flops"] / rows["train all"]["training_flops"] for name, row in rows.items()}
    assert max(shares, key=shares.__getitem__) == "auto-RGN"
    assert f"{100 * shares['found']:.0f} % of training everything" in (run / "report.html").read_text(encoding="utf-8")


def test_costs_tell_of_all_that_took_time(run):
    facts = json.loads((run / "result.json").read_text())
    phases = facts["seconds_of_phases"]
    expected = ["starting", "searching", "random masks", "finalists", "counting FLOPs", "scoring the test examples"]
    assert [phase for phase in phases if phase in expected] == expected
    assert sum(phases.values()) <= facts["seconds"] + 0.05 * len(phases)


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ({"starting": 0.4, "searching": 1234.4, "finalists": 0.6}, ["searching 1,234, finalists 1"]),
        ({"starting": 0.4, "searching": 0.3}, []),  # where nothing takes half a second
        ({}, []),
    ],
)
def test_costs_tell_the_seconds_of_phases(run, phases, told):
    folder = RunFolder(run)
    folder.facts["seconds_of_phases"] = phases
    (costs,) = sections.costs(folder, "")
    text = ElementTree.tostring(costs, encoding="unicode")
    assert re.findall(r"Seconds of the process that finished the run, [^:]*: ([^<]*)\.<", text) == told


def test_the_browser_would_tell_of_requests_and_errors(chromium, tmp_path):
    (tmp_path / "bad.html").write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    chromium.open((tmp_path / "bad.html").as_uri(), 375)
    requests = [event["request"]["url"] for event in chromium.reported("Network.requestWillBeSent")]
    assert "http://127.0.0.1:9/x.png" in requests
    assert [event["type"] for event in chromium.reported("Runtime.consoleAPICalled")] == ["error"]
    assert chromium.reported("Log.entryAdded")


def test_the_page_comes_from_the_files_alone(run, command):
    written = (run / "report.html").read_text()
    assert page.render([RunFolder(run)]) == written
    assert sorted(path.name for path in (run / "plots").iterdir()) == sorted(
        f"{name}.{kind}" for name in CHARTS for kind in ("png", "svg")
    )
    (run / "report.html").unlink()
    assert command("report", run) == (None, f"{run / 'report.html'}\n", "")
    assert (run / "report.html").read_text() == written


def test_an_unfinished_run_has_a_page(unfinished, command):
    command("report", unfinished)
    text = (unfinished / "report.html").read_text()
    assert "Unfinished: of 7 masks in 4 generations so far, the fittest is" in text
    assert "Trained again" not in text
    assert "experiments/run_custom.py" in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    test_run_folder.write(tmp_path, rows=[])
    assert "Unfinished: no mask has been trained to the end yet." in page.render([RunFolder(tmp_path)])
    (tmp_path / "rates").mkdir()
    of_rates = test_run_folder.write(tmp_path / "rates", rows=[], rates=[0.25, 1])
    assert "2 runs side by side" in page.render([of_rates, RunFolder(tmp_path)])


def test_several_runs_stand_side_by_side(run, unfinished, tmp_path, chromium, command):
    out = tmp_path / "both.html"
    assert command("report", run, unfinished, run, "--out", out)[1] == f"{out}\n"
    chromium.open(out.as_uri(), 375)
    assert chromium.ask("document.querySelector('p.verdict').innerText") == "3 runs side by side"
    assert (
        chromium.ask("document.querySelectorAll('figure svg').length") == 1 + 3 * len(CHARTS) - 1
    )  # the unfinished run has no confusions
    assert chromium.ask("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == chromium.ask(
        "document.querySelectorAll('[id]').length"
    )
    assert chromium.ask("document.documentElement.scrollWidth") <= 375


class Tags(html.parser.HTMLParser):
    """The elements of a page and what stands between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_what_comes_from_names_options_and_paths_is_text(tmp_path):
    bad = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;$x_{$"
    folder = tmp_path / bad.replace("/", "")
    folder.mkdir()
    options = test_run_folder.OPTIONS | {"data": bad, bad: bad}
    facts = {"kind": bad, "stages": [bad, "b"], "versions": {bad: bad}, "device": bad}
    for runs in ([test_run_folder.write(folder, options=options, **facts)], 2 * [RunFolder(folder)]):
        found = Tags(page.render(runs))
        assert not {tag for tag, _ in found.tags} & {"script", "img"}
        assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
        assert "".join(found.words).count(bad) >= 6


def test_a_name_may_have_control_characters(tmp_path):
    folder = test_run_folder.write(tmp_path, stages=["a\x01", "b\x1b[2J"])
    found = Tags(page.render([folder]))
    assert r"a\x01" in " ".join(found.words)


def test_what_comes_from_the_test_split_is_text_and_is_cut(run, tmp_path):
    bad = "<script>alert(1)</script>\x1b[2J"
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "SHA256SUMS").unlink()
    with open(folder / "test_predictions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "truth", "label", "probability"), *[(f"{bad} {'x' * 1000}", bad, "b", 0.9)] * 30])
    found = Tags(page.render([RunFolder(folder)]))
    assert "script" not in {tag for tag, _ in found.tags}
    shown = [words for words in found.words if "xxx" in words]
    assert len(shown) == outcomes.NUM_WRONG
    assert {len(words) for words in shown} == {outcomes.LONGEST_INPUT + len(r"\x1b") - 1}
    assert all(words.startswith(r"<script>alert(1)</script>\x1b[2J x") for words in shown)


def test_show_prints_the_summary(run, unfinished, command):
    line = [sys.executable, "-m", "gafreeze_jax", "show", run]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["verdict"]["sentence"] in done.stdout
    assert "best prefix mask" in done.stdout
    assert command("show", unfinished)[1].startswith("Unfinished: of 7 masks")


@pytest.mark.parametrize("word", ["report", "show"])
def test_a_folder_that_is_no_run_is_one_line(word, tmp_path, command):
    message = f"{tmp_path}: no run: expected run.json in it; give a run's folder"
    assert command(word, tmp_path) == (2, "", f"error: {message}\n")
    assert not list(tmp_path.iterdir())


def test_the_command_says_every_option_once():
    options = {"gens": 3, "halving": False, "out": "x", "patience": None, "text_columns": ["a b", "c"], "model": "m"}
    parts = sections.command("bert", options)
    assert parts == ["python experiments/run_bert.py", "--gens 3", "--no-halving", "--text-columns 'a b' c", "--model m"]


def test_a_mask_has_digits_for_levels_that_are_not_usual():
    space = Space("abcd", (1, 0, 0.3, 0.1), (1, 4))
    glyph = mask_glyph(space, space.parse("0123@4"))
    assert [(box.get("class"), box.text) for box in glyph] == [("off", None), ("on", None), ("off", "2"), ("off", "3")]
    assert (glyph.get("title"), glyph.get("aria-label")) == ("0123@4", "mask 0123@4")
    assert [box.text for box in mask_glyph(Space("abc"), (0, 1, 0))] == [None] * 3


def test_numbers_read_well():
    assert [flop(number) for number in (12, 3.4e6, 5.67e9, 8.9e12, 1.2e16)] == [
        "12 FLOP", "3.4 MFLOP", "5.67 GFLOP", "8.9 TFLOP", "12 PFLOP",
    ]  # fmt: skip
    assert percent(0.98765, 1) == "98.8 %"
    assert ACCURACY.write(0.98765) == "98.8 %"
    assert ACCURACY.write_bounds(-0.1, 1.2) == "[0.0, 100.0]"
    assert ACCURACY.write_bounds(None, None) == "one seed"
    assert ACCURACY.write_difference(Interval(0.02, -0.008, 0.048)) == "+2.0 [-0.8, 4.8]"


def test_a_reader_may_stop_reading(run):
    code = "import sys; from gafreeze_jax.__main__ import main; sys.stdin.read(); main()"
    process = subprocess.Popen([sys.executable, "-c", code, "show", run], stdin=-1, stdout=-1, stderr=-1)
    process.stdout.close()
    _, errors = process.communicate()
    assert errors == b""
