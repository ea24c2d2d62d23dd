"""Signals that end a run."""

import gc
import signal
import sys
import time

import pytest

from gafreeze_jax.runs.signals import REPEAT_SECONDS, stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_exceptions_are_ignored_is_not_lost(number, capsys):
    """As in what the garbage collector calls, which for JAX is much. One that is repeated while another ends the program does
    no harm.
    """
    handlers, hook, rung = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook, []

    def ring(phase, info):
        if len(rung) < 2:
            rung.append(phase)
            time.sleep(0.6 * REPEAT_SECONDS)
            signal.raise_signal(number)

    def how_to_resume():
        time.sleep(2 * REPEAT_SECONDS)
        return "To resume: again"

    def run():
        with stoppable(how_to_resume):
            gc.callbacks.append(ring)  # not before: this process would end
            gc.collect()
            while True:
                time.sleep(REPEAT_SECONDS / 10)

    try:
        with pytest.raises(SystemExit) as stop:
            run()
    finally:
        gc.callbacks.remove(ring)
    assert len(rung) == 2
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == "\nStopped. To resume: again\n"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert sys.unraisablehook is hook


def test_other_exceptions_that_are_ignored_are_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(what.exc_value))

    class Bad:
        def __del__(self):
            raise ValueError("on my way out")

    with stoppable(lambda: "To resume: again"):
        Bad()
    assert [str(one) for one in told] == ["on my way out"]
