"""The process that ml/engines/ray_train.py trains by: `python -m ml.engines.ray_driver FOLDER` connects to a Ray cluster and runs Ray Train on it."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
import ray.train
import ray.train.torch
import torch

from ml import ranks
from ml.checkpoint import write_atomically
from ml.contracts import InputError
from ml.device import device_of
from ml.launch import LOOK, ROOT
from ml.launched import work
from ml.plan import Plan
from ml.recipe import Compute

OBJECTS = 100 * 2**20
"""Bytes of Ray's object store on a cluster of our own: tensors and data do not go through it."""


def main(folder: Path) -> None:
    """Trains as planned in `folder`; ends at once, and with it what it started, when standard input ends."""
    compute = Plan.read(folder).recipe.compute
    try:
        with _connected(compute):
            training = threading.Thread(target=_train, args=(folder, compute), name="training", daemon=True)
            training.start()
            while training.is_alive() and not (select.select([0], [], [], LOOK)[0] and not os.read(0, 1)):
                pass
    except InputError as error:
        _tell(folder, str(error))


@contextmanager
def _connected(compute: Compute) -> Iterator[None]:
    """The cluster, while the block runs; after it nothing of ours is left there, and one that was started here is gone."""
    quiet = {"logging_level": "error", "logging_config": ray.LoggingConfig(log_level="ERROR")}
    with TemporaryDirectory(prefix="ray-") as home:  # not beside the checkpoints: a socket's path must be short
        if compute.address:
            try:
                ray.init(compute.address, runtime_env={"py_modules": [str(ROOT / "ml")]}, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"cannot train on the Ray cluster at compute.address={compute.address}: {' '.join(str(error).split())[:300]}") from None
        else:
            ray.init("local", num_cpus=compute.processes, object_store_memory=OBJECTS, _temp_dir=home, include_dashboard=False, **quiet)
        try:
            yield
        finally:
            ray.shutdown()


def _train(folder: Path, compute: Compute) -> None:
    try:
        device = _device(compute)
        trainer = ray.train.torch.TorchTrainer(
            partial(_rank, str(folder), device.type),
            torch_config=ray.train.torch.TorchConfig(backend=ranks.backend_of(device), timeout_s=compute.timeout),
            scaling_config=ray.train.ScalingConfig(num_workers=compute.processes, use_gpu=device.type == "cuda"),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(folder / "ray"),
                failure_config=ray.train.FailureConfig(max_failures=compute.max_restarts, controller_failure_limit=compute.max_restarts),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        blind = trainer.fit().return_value
        if blind:
            raise InputError(blind)
    except InputError as error:
        _tell(folder, str(error))


def _device(compute: Compute) -> torch.device:
    """The kind of device that each process gets one of; InputError where the cluster has too few."""
    there = ray.cluster_resources()
    gpu = compute.device == "cuda" or (compute.device == "auto" and there.get("GPU", 0) > 0)
    found = int(there.get("GPU" if gpu else "CPU", 0))
    if found < compute.processes:
        raise InputError(f"{compute.processes} processes are to train, but the Ray cluster has {found} {'GPU' if gpu else 'CPU'}s: each needs one of its own. Lower compute.workers or compute.devices_per_worker")
    return torch.device("cuda" if gpu else "cpu")


def _rank(folder: str, kind: str) -> str | None:
    """One of the processes, somewhere in the cluster; gives what is wrong where not all of them can work in `folder`."""
    ranks.adopt()
    blind = ranks.summed({"blind": torch.tensor(float(not (Path(folder) / "job.json").exists()))})["blind"]
    if blind:
        return (
            f"{int(blind)} of {ranks.count()} processes do not see {folder}: compute.engine=ray needs a folder that all nodes of the cluster share under "
            "the same path. Set WARMSTART_HOME to one."
        )
    work(Path(folder), partial(_join, kind))
    return None


def _join(kind: str, compute: Compute) -> torch.device:
    """What this process computes on; Ray Train has it among the ranks already."""
    device_of(compute)
    return ray.train.torch.get_device() if kind == "cuda" else torch.device(kind)


def _tell(folder: Path, error: str) -> None:
    write_atomically(folder / "outcome.json", json.dumps({"error": error}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
