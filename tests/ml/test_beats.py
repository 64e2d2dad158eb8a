"""Processes that watch one another: one that is stopped ends the others, one that takes long does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from pathlib import Path
from ml.beats import watched
folder, rank, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with watched(folder / "beats", rank, 2, 2.0):
    (folder / f"in-{rank}").touch()
    time.sleep(seconds)
time.sleep(4)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def one(rank: int, seconds: float) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(rank), str(seconds)], cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.communicate()


def test_one_that_is_stopped_ends_the_other(start, tmp_path):
    first, other = start(0, 300), start(1, 300)
    while not all((tmp_path / f"in-{rank}").exists() for rank in (0, 1)):
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGSTOP)
    assert other.wait(60) == 1
    assert "rank 0 is silent for 2 s" in other.stderr.read()
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 1, "what was stopped itself counts anew, and then finds the other gone"


def test_those_that_were_done_or_have_not_begun_are_not_waited_for(start):
    first, other = start(0, 0), start(1, 8)
    assert (first.wait(60), other.wait(60)) == (0, 0)
