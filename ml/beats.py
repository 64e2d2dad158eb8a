"""Ranks that watch one another: where one stops, the others end, so that their launcher starts all again from the last checkpoint.

In a step the exchange of gradients has its time limit. What rank 0 does alone, a validation or a checkpoint's reading, may take as long as it needs,
and so do those who wait for it; only that its process runs can be asked of it then. Each rank writes FOLDER/RANK again and again from a thread.
A process that was stopped, or whose machine is gone, does not; one whose own thread is caught in a deadlock outside a step does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OFTEN = 10  # looks in the time that a rank may be silent
FAREWELL = "done"


@contextmanager
def watched(folder: Path, rank: int, count: int, silence: float) -> Iterator[None]:
    """While the block runs this process is one of `count` that watch one another: it ends when another is silent for `silence` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    ended, own = threading.Event(), folder / str(rank)
    own.write_text(f"{os.getpid()} 0")
    others = [folder / str(other) for other in range(count) if other != rank]
    thread = threading.Thread(target=_watch, args=(own, others, silence, ended), name="beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        own.write_text(FAREWELL)  # others may take longer to their end


def _watch(own: Path, others: list[Path], silence: float, ended: threading.Event) -> None:
    seen: dict[Path, tuple[str, float]] = {}
    before, number = time.monotonic(), 0
    while not ended.wait(silence / OFTEN):
        now, number = time.monotonic(), number + 1
        if now - before > silence / 2:  # it was this one that was stopped
            seen.clear()
        before = now
        with suppress(OSError):
            own.write_text(f"{os.getpid()} {number}")
        for other in others:
            beat = _read(other)
            if beat == FAREWELL or other not in seen or seen[other][0] != beat:
                seen[other] = beat, now
            elif now - seen[other][1] > silence:
                print(f"rank {other.name} is silent for {silence:g} s: this one ends, so that all are started again", file=sys.stderr, flush=True)
                os._exit(1)


def _read(path: Path) -> str:
    """A rank's last beat, FAREWELL where there is none to wait for: it has not begun, or its folder is another machine's."""
    try:
        return path.read_text()
    except OSError:
        return FAREWELL
