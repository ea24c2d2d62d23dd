import importlib.util
import io
import re
import sys
import time
import types
from typing import Any

import jax
import numpy as np
import pytest
import run_custom
import tyro
from rich.console import Console

from gafreeze_jax.options import check
from gafreeze_jax.report import display as module
from gafreeze_jax.report.display import Display, Progress, clock, heat_map
from gafreeze_jax.runs import search_run
from gafreeze_jax.search.history import Evaluation
from gafreeze_jax.search.loop import Generation
from gafreeze_jax.space import Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

LINES = "=== Generation 1 ===\nFittest chromosome: [0, 1, 0] | Fitness: 0.8500\n"


def evaluation(genome, seed=0, steps=24, *, generation=1, accuracy=0.85):
    return Evaluation(tuple(map(int, genome)), seed, steps, generation, accuracy, 0.4, 0.3, 100, 2.0)


def generation(number, frozen_share, mean=0.8):
    best = evaluation("1" * len(frozen_share) if len(frozen_share) > 3 else "010", generation=number)
    return Generation(number, best, 4, 2, False, mean, np.array(frozen_share), 30.0)


def terminal(width=80, height=40, **settings: Any):
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, soft_wrap=True, highlight=False, **settings
    )


def seen(display):
    """The lines of the live view."""
    with display.console.capture() as captured:
        display.console.print(display, soft_wrap=False)
    return re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()


def test_off_a_terminal_there_are_the_lines_alone(capsys):
    with Display(Space("abc")) as display:
        display.line("Plan: [bold] :smile: one")
        display.line("a detail", detail=True)
        display.progress.begin("searching")
        display.progress.step(2)
        display.evaluation("search", evaluation("010"), True)
        display.generation(generation(1, [0, 1, 0]))
        time.sleep(0.3)  # in which a live view would be drawn
    assert capsys.readouterr().out == "Plan: [bold] :smile: one\n" + LINES


def test_quiet_prints_generations_alone_and_verbose_details_too():
    printed = []
    for kind in ("quiet", "verbose"):
        console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
        with Display(Space("abc"), console=console, **{kind: True}) as display:
            display.line("Plan")
            display.line("a detail", detail=True)
            display.evaluation("search", evaluation("010", steps=6), True)
            display.evaluation("search", evaluation("010"), False)
            display.generation(generation(1, [0, 1, 0]))
        printed.append(console.file.getvalue())
    assert printed[0] == LINES
    assert printed[1].startswith(
        "Plan\na detail\nsearch 010, seed 0, 6 steps: accuracy 0.8500, loss 0.4000, train loss 0.3000, 2.00 s\n"
    )
    assert "24 steps: accuracy 0.8500, loss 0.4000, train loss 0.3000, known already\n" + LINES in printed[1]
    assert "4 new masks, 2 of them trained to the end; mean of the population 0.8000" in printed[1]


def test_on_a_terminal_the_lines_stand_above_the_view_which_goes_at_the_end():
    console = terminal()
    with Display(Space("abc"), console=console) as display:
        display.progress.begin("searching")
        display.generation(generation(1, [0, 1, 0]))
        display._live.refresh()
        shown = console.file.getvalue()
    assert LINES in shown
    assert "Generation 1   best 0.8500   mean 0.8000" in shown.partition(LINES)[2]
    assert console.file.getvalue().endswith("\x1b[2K")  # the last line of the view is erased
    quiet = terminal()
    with Display(Space("abc"), quiet=True, console=quiet) as display:
        display.generation(generation(1, [0, 1, 0]))
    assert quiet.file.getvalue() == LINES


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("num_genes", [3, 26, 52, 200])
@pytest.mark.parametrize("ascii_only", [False, True], ids=["blocks", "digits"])
def test_the_view_fits(width, num_genes, ascii_only, monkeypatch):
    """Nothing is wider than the terminal, nothing is wrapped, and half of the height is left to lines."""
    monkeypatch.setattr(module, "memory_in_use", lambda: ["memory 123.4/141.0 GiB"])
    console = terminal(width, 30)
    if ascii_only:
        monkeypatch.setattr(Console, "encoding", "ascii")
    display = Display(Space([f"layer_{i}" for i in range(num_genes)]), console=console)
    display.progress.expect({"scoring the test examples": 1e6})
    display.progress.begin("scoring the test examples")
    display.progress.step(1234)
    for number in range(1, 41):
        display._generations.append(generation(number, np.linspace(0, 1, num_genes)))
        for i in range(50):
            display.evaluation("search", evaluation(f"{i:b}", number, 6 if i % 2 else 24, generation=number), i % 3 > 0)
    lines = seen(display)
    rows = [line for line in lines if re.match(r" {2}\d\d 0\.", line)]
    assert [int(row[:4]) for row in rows] == list(range(32, 41))  # the last nine
    assert len(lines) == 6 + len(rows) == 15
    assert max(map(len, lines)) <= width
    assert all(row[20:].rstrip()[0] == ("0" if ascii_only else "▁") for row in rows)
    assert all(row.rstrip()[-1] == ("9" if ascii_only else "█") for row in rows)
    assert len({len(row.rstrip()) for row in rows}) == 1
    assert lines[-1].startswith("scoring the test ex")
    if width >= 80:
        assert lines[-2] == "Evaluations: 1,320 done, 680 reused, 975 stopped early   memory 123.4/141.0 GiB"
        assert "…" not in lines[-3]
        assert re.search(r"\d:\d\d, about [\d:]+ left$", lines[-1].rstrip())


def test_a_row_of_the_heat_map_by_hand():
    names, shares = ["embeddings", "layer_0", "layer_1"], [1.0, 0.5, 0.0]
    title, header, row = (text.plain for text in heat_map(names, [generation(7, shares)], width=80, levels="abc"))
    assert title == "Share of the population that freezes each layer, a none to c all"
    assert header == " gen   best   mean  embeddings layer_0    layer_1"
    assert row == "   7 0.8500 0.8000  cccccccccc bbbbbbbbbb aaaaaaaaaa "
    _, header, row = (text.plain for text in heat_map(names, [generation(7, shares)], width=22, levels="abc"))
    assert (header, row) == (" gen   best   mean  ", "   7 0.8500 0.8000  ca")  # neighbours share a column: (1 + 0.5) / 2, 0


def test_the_heat_map_is_read_without_colours():
    display = Display(Space("ab"), console=terminal(no_color=True))
    display._generations.append(generation(1, [0.0, 1.0]))
    assert any(line.rstrip().endswith("  ▁ █") for line in seen(display))
    with display.console.capture() as captured:
        display.console.print(display, soft_wrap=False)
    assert "38;" not in captured.get()


def test_evaluations_are_counted_by_mask_and_seed():
    display = Display(Space("ab"))
    display.progress.begin("searching")
    for steps, genomes in ((6, ("00", "01", "10")), (24, ("00",))):
        for genome in genomes:
            display.evaluation("search", evaluation(genome, steps=steps), True)
    assert display._counts() == ["Evaluations: 3 done, 0 reused, 0 stopped early"]  # their generation is not over
    display.evaluation("search", evaluation("11", steps=6, generation=2), False)
    assert display._counts() == ["Evaluations: 3 done, 1 reused, 2 stopped early"]
    display.progress.begin("random masks")
    display.progress.expect({"random masks": 48})
    display.evaluation("random", evaluation("00", steps=6), False)
    display.evaluation("random", evaluation("00", steps=24), False)
    assert display._counts() == ["Evaluations: 3 done, 2 reused, 3 stopped early"]
    assert (display.progress.done, display.progress.speed) == (24, None)


def test_time_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    progress = Progress()
    progress.expect({"searching": 100, "finalists": 50, "random masks": 100})
    progress.begin("choosing a plan", training=False)
    now = 130.0  # no step is done in this time
    progress.begin("searching")
    assert (progress.seconds, progress.speed, progress.seconds_left) == (30, None, None)
    now = 140.0
    progress.step(20)  # in 10 s
    assert (progress.speed, progress.seconds_left) == (2, pytest.approx((80 + 150) / 2))
    progress.expect({"searching": 40, "random masks": 40})  # as masks were stopped early
    assert progress.seconds_left == pytest.approx((20 + 90) / 2)
    progress.step(20)
    progress.begin("random masks")
    progress.skip(30)  # no time for what is known
    assert (progress.done, progress.speed, progress.seconds_left) == (30, None, pytest.approx((10 + 50) / 4))
    progress.begin("finalists")
    now = 150.0
    progress.step(10)  # a second each, where a quarter had been expected
    own = (10 + 5 * 20 / 50) / (10 + 5)  # and where all so far took 20 s for 50 steps
    assert progress.seconds_left == pytest.approx(own * 40)
    progress.begin("writing files", training=False)
    assert (progress.expected, progress.seconds_left) == (0, 0)
    took = {"starting": 0, "choosing a plan": 30, "searching": 10, "random masks": 0, "finalists": 10}
    assert progress.took == pytest.approx(took)


def test_compiling_does_not_count_as_time_of_steps(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    progress = Progress()
    now = 10.0
    progress.begin("searching")
    now = 16.0
    progress.pause(8)  # of which 6 s belong to this phase
    now = 18.0
    progress.pause(4)  # of which 2 s are new
    now = 22.0
    progress.step(8)
    assert (progress.seconds, progress.speed) == (22, 2)


def test_a_display_hears_of_compiling():
    with Display() as display:
        jax.jit(lambda x: x + 1).lower(0.5).compile()
    assert len(display._compiled) == 1
    jax.jit(lambda x: x + 2).lower(0.5).compile()
    assert len(display._compiled) == 1
    assert display.progress._paused > display.progress._begun


def test_the_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 36000)] == ["0:00", "1:00", "59:59", "10:00:00"]


def run(out, *words):
    tiny = ["--gens", "2", "--population", "2", "--epochs", "1", "--finalist-seeds", "1", "--max-evaluations", "7"]
    plan = ["--plan", "members=8,steps=7,freezing=traced"]
    run_custom.main(tyro.cli(run_custom.Options, args=[*tiny, *plan, *words, "--out", str(out)]))


def test_a_quiet_run_and_its_files_with_events(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    out = tmp_path / "run"
    run(out, "--quiet", "--tensorboard")
    *generations, verdict, folder = capsys.readouterr().out.splitlines()
    assert folder == str(out)
    assert verdict.startswith("The ")
    assert [
        bool(re.match(r"=== Generation \d ===|Fittest chromosome: \[[01, ]+\] \| Fitness: 0\.\d{4}", line))
        for line in generations
    ] == [True] * 4
    scalars = read_events(out / "tensorboard")
    fitness = [float(line.rpartition(" ")[2]) for line in generations[1::2]]
    assert [round(value, 4) for value in scalars["fitness/best"].values()] == fitness
    assert list(scalars["fitness/best"]) == list(scalars["frozen/dense_0"]) == list(scalars["fitness/mean"]) == [1, 2]
    rows = (out / "evaluations.csv").read_text().splitlines()[1:]
    for phase in ("search", "final"):
        expected = [float(row.split(",")[5]) for row in rows if row.startswith(phase)]
        assert list(scalars[f"{phase}/accuracy"].values()) == pytest.approx(expected)
        assert all(seconds > 0 for seconds in scalars[f"{phase}/seconds"].values())
    assert "tensorboard" not in (out / "SHA256SUMS").read_text()


def read_events(folder):
    """{tag: {step: value}} of all event files in a folder, in the TFRecord format: length, its CRC, event, its CRC."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = {}
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            for value in event.summary.value:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 16 + size
    return scalars


def test_how_a_run_is_shown_may_change_when_it_goes_on(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(search_run, "retrain", lambda *rest: sys.exit("stopped"))
        with pytest.raises(SystemExit):
            run(out)
    before = capsys.readouterr().out
    run(out, "--verbose")
    after = capsys.readouterr().out
    searched = before[before.index("===") : before.index("The search ended")]
    assert searched.splitlines() == [line for line in after.splitlines() if line.startswith(("=== ", "Fittest"))]
    assert re.search(r"search 000, seed 0, 7 steps: accuracy 0\.\d+, loss [\d.]+, train loss [\d.]+, known already", after)
    assert re.search(r"final \d{3}, seed 1, 7 steps: accuracy .*, [\d.]+ s\n", after)
    run(out, "--quiet")
    assert "it is finished, nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quiet": True, "verbose": True}, "--quiet and --verbose contradict each other: give one of them"),
        ({"tensorboard": True}, '--tensorboard needs tensorboardX: pip install "gafreeze_jax[tensorboard]"'),
    ],
)
def test_what_cannot_be_shown_is_said_before_the_start(options, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(run_custom.Options(**options))


def test_memory_is_shown_where_the_device_tells_it(monkeypatch):
    for stats, expected in (
        ({"bytes_in_use": 3 * 2**29, "bytes_limit": 2**34}, ["memory 1.5/16.0 GiB"]),
        ({"bytes_in_use": 2**30}, ["memory 1.0 GiB"]),
        ({}, []),
        (None, []),  # a CPU
    ):
        device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert module.memory_in_use() == expected
