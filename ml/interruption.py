"""Signals that ask a long loop to stop at its next safe point, so that a checkpoint is made first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ml.contracts import InputError


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the run to stop; its state is saved."""


class TimeUp(InputError):
    """What was to be done took longer than it was given; its state is saved."""


class Interruption:
    """`requested` turns true at the first SIGINT or SIGTERM, by `ask`, or when the time is `up`; a second signal interrupts at once."""

    requested = up = False

    def error(self, words: str) -> Interrupted | TimeUp:
        """What to raise once the state is saved, and why that is."""
        return TimeUp(f"its time is up: {words}") if self.up else Interrupted(words)

    def _end(self) -> None:
        self.requested = self.up = True

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise Interrupted("stopped at once; the same command goes on from the last checkpoint")
        self.requested = True


_current: Interruption | None = None


def ask() -> bool:
    """Asks the loop of this process to stop, from whatever thread; false while none is in an `interruption` block."""
    if _current is not None:
        _current.requested = True
    return _current is not None


@contextmanager
def interruption(seconds: float | None = None) -> Iterator[Interruption]:
    """Takes the two signals over while the block runs, in the main thread (elsewhere Python allows no handlers); asks to stop after `seconds`."""
    global _current
    asked, outer = Interruption(), _current
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, asked._handle) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    _current = asked
    timer = threading.Timer(seconds or 0, asked._end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield asked
    finally:
        timer.cancel()
        _current = outer
        for number, handler in before.items():
            signal.signal(number, handler)
