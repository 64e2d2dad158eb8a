"""Trainings that several machines make together by torchrun: the one whose stage it is begins, the others join.

All see its folder under the same path, and in it the plan, which says where they meet. `join` looks for plans, and takes part in one whose machine answers.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ml.contracts import InputError
from ml.engines.torchrun import APART, command
from ml.launch import LOOK, environment, running
from ml.recipe import Compute, EngineName, parse

_log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that a machine has to answer, and between two looks for plans


def join(work: Path, stop: Callable[[], bool]) -> None:
    """Takes part in each training of several machines under `work`, one after the other, until told to `stop`."""
    looked = -PATIENCE
    while not stop():
        if time.monotonic() - looked >= PATIENCE:
            for path in sorted(work.glob("*/ranks/job.json")):
                compute = _meeting(path)
                if compute is not None and not stop() and _answers(compute.address):
                    _take_part(path.parent, compute, stop)
            looked = time.monotonic()
        time.sleep(LOOK)


def _meeting(path: Path) -> Compute | None:
    """What a plan says of the processes, where several machines are asked for."""
    with suppress(FileNotFoundError, ValueError, KeyError, InputError):  # it ended as it was looked at, or is of another version
        compute = parse(json.loads(path.read_text(encoding="utf-8"))["recipe"]).compute
        return compute if compute.engine is EngineName.torchrun and compute.address else None
    return None


def _take_part(folder: Path, compute: Compute, stop: Callable[[], bool]) -> None:
    stage = folder.parent.name
    _log.info("joins %s at %s", stage, compute.address)
    with running(command(folder, compute, host=False), environment() | APART, folder / "logs" / f"{socket.gethostname()}.log") as launcher:
        while launcher.poll() is None and not stop():
            time.sleep(LOOK)
    _log.info("left %s", stage)


def _answers(address: str) -> bool:
    """Whether the machine is there: a plan stays behind where it died."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), PATIENCE):
        return True
    return False
