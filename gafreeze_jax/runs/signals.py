"""Ctrl-C and SIGTERM end a run between two writes."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from gafreeze_jax.engine import devices

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 0.05  # after which a lost signal is raised again


class _Stopped(BaseException):
    """A signal asked the program to stop."""


@contextlib.contextmanager
def stoppable(how_to_resume: Callable[[], str]) -> Iterator[None]:
    """Ends the program at Ctrl-C or SIGTERM once the current write is complete, with exit code 130 or 143.

    Args:
      how_to_resume: the text to print then.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # only there can signals be handled
    with _raising_stopped() if in_main_thread else contextlib.nullcontext():
        try:
            yield
        except _Stopped as stopped:
            print(f"\nStopped. {how_to_resume()}", file=sys.stderr)
            devices.leave(128 + stopped.args[0])


@contextlib.contextmanager
def _raising_stopped() -> Iterator[None]:
    """Raises `_Stopped` at the first signal; a second one ends the program at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    def repeat_if_lost(unraisable: Any) -> None:
        """Python ignores exceptions in what the garbage collector calls, such as JAX's callbacks: raise the signal again."""
        if not isinstance(unraisable.exc_value, _Stopped):
            hook(unraisable)
            return
        for each in SIGNALS:
            signal.signal(each, stop)
        # Not a signal to the process, which would kill it where `stop` has seen another one: this does nothing then.
        timer = threading.Timer(REPEAT_SECONDS, _thread.interrupt_main, unraisable.exc_value.args)
        timer.daemon = True
        timers.append(timer)
        timer.start()

    timers: list[threading.Timer] = []
    hook, handlers = sys.unraisablehook, {number: signal.signal(number, stop) for number in SIGNALS}
    sys.unraisablehook = repeat_if_lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
            timer.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
