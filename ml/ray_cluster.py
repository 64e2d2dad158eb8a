"""Work on a Ray cluster: of one of this machine alone, which lives as long as the work does, or of that at `compute.address`.

What connects to it, the driver, is a process of its own: Ray takes over signals and the standard streams of whoever does. The stage's process starts it as
ml/launch.py does and waits; the driver calls `serve`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ml.checkpoint import write_atomically
from ml.contracts import InputError
from ml.launch import GRACE, LOOK, ROOT
from ml.recipe import Compute

OBJECTS = 100 * 2**20
"""Bytes of Ray's object store on a cluster of our own, where neither tensors nor data go through it."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: a cluster of one machine, which listens on the loopback address
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # or it kills processes where others fill the memory
}


def variables(compute: Compute) -> dict[str, str]:
    """Of the driver's environment."""
    return QUIET if compute.address else QUIET | ALONE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def serve(folder: Path, work: Callable[[], Any], compute: Compute, objects: int = OBJECTS) -> None:
    """Does the work on the cluster; leaves what it gives, or an InputError, in the outcome of `folder`. Ends at once, and with it what it started, when standard input ends."""
    ended = _watch()
    try:
        with _connected(compute, objects):
            thread = threading.Thread(target=_told, args=(folder, work), name="work", daemon=True)
            thread.start()
            while thread.is_alive() and not ended.wait(LOOK):
                pass
    except InputError as error:
        _tell(folder, {"error": str(error)})


def _watch() -> threading.Event:
    """Tells of the end of standard input. A driver that is not gone soon after it is killed: connecting to a cluster that died can take minutes."""
    ended = threading.Event()

    def read() -> None:
        while os.read(0, 1):
            pass
        ended.set()
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=read, name="watch", daemon=True).start()
    return ended


def found(compute: Compute) -> torch.device:
    """The kind of device that each process gets one of; InputError where the cluster has too few."""
    import ray  # not at the top: the stage's process has no use for it

    there = ray.cluster_resources()
    gpu = compute.device == "cuda" or (compute.device == "auto" and there.get("GPU", 0) > 0)
    count = int(there.get("GPU" if gpu else "CPU", 0))
    if count < compute.processes:
        raise InputError(f"{compute.processes} processes are to work, but the Ray cluster has {count} {'GPU' if gpu else 'CPU'}s: each needs one of its own. Lower compute.workers or compute.devices_per_worker, or --workers")
    return torch.device("cuda" if gpu else "cpu")


@contextmanager
def _connected(compute: Compute, objects: int) -> Iterator[None]:
    """The cluster, while the block runs; after it nothing of ours is left there, and one that was started here is gone."""
    import ray

    quiet = {"logging_level": "error", "logging_config": ray.LoggingConfig(log_level="ERROR")}
    with TemporaryDirectory(prefix="ray-") as home:  # not beside the work: a socket's path must be short
        if compute.address:
            try:
                ray.init(compute.address, runtime_env={"py_modules": [str(ROOT / "ml")], "worker_process_setup_hook": "ml.networks.meet_nodes"}, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"cannot work on the Ray cluster at {compute.address}: {' '.join(str(error).split())[:300]}") from None
        else:
            ray.init("local", num_cpus=compute.processes, object_store_memory=objects, _temp_dir=home, include_dashboard=False, **quiet)
        try:
            yield
        finally:
            ray.shutdown()


def _told(folder: Path, work: Callable[[], Any]) -> None:
    try:
        done = work()
        if done is not None:
            _tell(folder, {"done": done})
    except InputError as error:
        _tell(folder, {"error": str(error)})


def _tell(folder: Path, outcome: dict[str, Any]) -> None:
    write_atomically(folder / "outcome.json", json.dumps(outcome))
