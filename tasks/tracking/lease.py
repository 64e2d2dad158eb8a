"""Who works on a run: a lease in one tag of the run, renewed by a heartbeat and numbered by a fence.

A killed process leaves its run RUNNING. On the same host its process is looked for; of another host, where clocks may differ,
the lease itself is watched: unchanged for TAKEOVER seconds of the watcher's own clock, it is dead. Each takeover raises the
fence, and an owner that reads a lease that is not its own has lost the run.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.hosts import this_host
from tasks.tracking import database

if TYPE_CHECKING:
    from mlflow.entities import Run

TAG = "warmstart.lease"
BEAT = 10.0  # seconds between heartbeats
TAKEOVER = 60.0  # seconds without a heartbeat after which another host's lease is taken over
SETTLE = 0.5  # seconds between writing a lease and reading it back; longer than another takes from reading to writing
FORGOTTEN = 120.0  # seconds after which another host's run is reported as failed

_log = logging.getLogger(__name__)
_mine: set[str] = set()  # tokens of this process's work that goes on


class LeaseLost(RuntimeError):
    """Another process has taken this run over; what this one does no longer counts."""


@dataclass(frozen=True)
class Lease:
    """What the tag holds. `token` tells two leases of one process apart; `beat` is the owner's time of day in seconds."""

    host: str
    pid: int
    started: int
    token: str
    fence: int
    beat: float
    released: bool = False

    @classmethod
    def mine(cls, fence: int = 1) -> Lease:
        pid, token = os.getpid(), uuid.uuid4().hex[:12]
        _mine.add(token)
        return cls(this_host(), pid, _started(pid) or 0, token, fence, time.time())

    def dump(self) -> str:
        return json.dumps(asdict(self))

    def owner(self) -> str:
        return f"process {self.pid} on {self.host.split('/')[0]}"


def read(run: Run) -> Lease | None:
    """The lease in a run's tag; None where there is none that can be read."""
    try:
        return Lease(**json.loads(run.data.tags[TAG]))
    except (KeyError, TypeError, ValueError):
        return None


def alive(lease: Lease | None) -> bool | None:
    """True or False where this host can tell, None for a lease of another host."""
    if lease is None or lease.released:
        return False
    if lease.host != this_host():
        return None
    if lease.pid == os.getpid():  # an attempt of this process that ended while MLflow was away could not release it
        return lease.token in _mine
    return _started(lease.pid) == lease.started


def acquire(run_id: str, say: Callable[[str], None] = _log.warning) -> Lease:
    """Takes the run's lease, once that of its owner is released or dead; waits for as long as the owner lives."""
    while True:
        seen = _wait_until_free(run_id, say)
        mine = Lease.mine(seen.fence + 1 if seen else 1)
        database.retry(database.client().set_tag, run_id, TAG, mine.dump())
        # Another may have seen it free too. MLflow cannot compare and swap: the last writer has it.
        time.sleep(SETTLE)
        if held(run_id, mine):
            return mine


def held(run_id: str, mine: Lease) -> bool:
    """Whether the run's lease is still `mine`."""
    found = read(database.retry(database.client().get_run, run_id))
    return found is not None and found.token == mine.token


def _wait_until_free(run_id: str, say: Callable[[str], None]) -> Lease | None:
    before, since = None, time.monotonic()
    while True:
        lease = read(database.retry(database.client().get_run, run_id))
        if alive(lease) is False:
            return lease
        if lease != before:
            if before is None:
                say(f"run {run_id} belongs to {lease.owner()}; waiting until that is done, or silent for {TAKEOVER:.0f} s")
            before, since = lease, time.monotonic()
        elif alive(lease) is None and time.monotonic() - since >= TAKEOVER:
            return lease
        time.sleep(min(1.0, BEAT / 4))


class Heartbeat:
    """Renews a lease from a thread of its own; `lost` turns true when another has taken the run over."""

    def __init__(self, run_id: str, lease: Lease, each: Callable[[], None] | None = None) -> None:
        self.run_id = run_id
        self.lease = lease
        self.lost = False
        self._each = each
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{run_id[:8]}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost once another process has taken the run over."""
        if self.lost:
            raise LeaseLost(f"run {self.run_id} was taken over by another process while this one was out of touch; this one stops")

    def stop(self) -> None:
        """Ends the thread. The lease stays until it is released, or the process ends."""
        self._stop.set()
        self._thread.join()
        _mine.discard(self.lease.token)

    def release(self, seconds: float = 10.0) -> None:
        """Marks the run as free, after its status is set."""
        if not self.lost:
            database.retry(database.client().set_tag, self.run_id, TAG, replace(self.lease, released=True).dump(), seconds=seconds)

    def _beat(self) -> None:
        client = database.client()
        while not self._stop.wait(BEAT):
            try:
                run = client.get_run(self.run_id)
                found = read(run)
                if found is not None and found.token != self.lease.token:
                    self.lost = True
                    return
                client.set_tag(self.run_id, TAG, replace(self.lease, beat=time.time()).dump())
                if run.info.status != "RUNNING":  # a host with another clock took this one for dead
                    client.update_run(self.run_id, status="RUNNING")
            except Exception as error:  # the server may be away for a while: the lease is renewed when it is back
                _log.debug("heartbeat of run %s: %s", self.run_id, error)
            if self._each is not None:
                with suppress(OSError):  # a full disk: the lease outlives it, and whoever reports next is told
                    self._each()


def _started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since boot: a process id alone is used again. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
