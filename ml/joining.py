"""Trainings that several machines make together by torchrun: the one whose stage it is offers it, the others join.

An offer is the file `machines.json` in the folder `ranks` of the stage, which all machines see under the same path: the words that the launcher is called with
on each. It is gone when the training is. `join` looks for offers, and takes part in one whose machine answers.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ml.checkpoint import write_atomically
from ml.launch import LOOK, environment, running
from ml.recipe import Compute

_log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that the machine of an offer has to answer, and between two tries
OFFER = "machines.json"
APART = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For each launcher: one that shares its store tells a machine that comes in another's place nothing of it."""


def offer(folder: Path, words: Sequence[str], compute: Compute) -> list[str]:
    """Asks other machines for the workers that this one does not have; gives the words for the launcher of this one."""
    shared = [
        f"--nnodes={compute.workers}",
        f"--nproc-per-node={compute.devices_per_worker}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={compute.address}",
        f"--rdzv-id={folder.parent.name}",
        *words,
    ]
    write_atomically(folder / OFFER, json.dumps({"address": compute.address, "words": shared}))
    return [*_own(compute.address, host=True), *shared]


def join(work: Path, stop: Callable[[], bool]) -> None:
    """Takes part in each training that is offered under `work`, one after the other, until told to `stop`."""
    tried: dict[Path, float] = {}
    while not stop():
        for path in sorted(work.glob(f"*/ranks/{OFFER}")):
            if time.monotonic() - tried.get(path, -PATIENCE) >= PATIENCE and not stop():
                _take_part(path, stop)
                tried[path] = time.monotonic()
        time.sleep(LOOK)


def _take_part(path: Path, stop: Callable[[], bool]) -> None:
    with suppress(FileNotFoundError, ValueError):  # it ended as it was looked at
        offered = json.loads(path.read_text(encoding="utf-8"))
        if not _answers(offered["address"]):
            return  # left by a machine that died
        stage = path.parent.parent.name
        _log.info("joins %s at %s", stage, offered["address"])
        command = [sys.executable, "-m", "torch.distributed.run", *_own(offered["address"], host=False), *offered["words"]]
        with running(command, environment() | APART, path.parent / "logs" / f"{socket.gethostname()}.log") as launcher:
            while launcher.poll() is None and not stop():
                time.sleep(LOOK)
        _log.info("left %s", stage)


def _own(address: str, host: bool) -> list[str]:
    """What the launcher is told of its own machine."""
    return [f"--rdzv-conf=is_host={int(host)}", f"--local-addr={_seen_from(address)}"]


def _seen_from(address: str) -> str:
    """This machine's address in the network of the other one: nothing is sent to find it."""
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return probe.getsockname()[0]


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), PATIENCE):
        return True
    return False
