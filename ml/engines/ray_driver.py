"""The process that ml/engines/ray_train.py trains by: `python -m ml.engines.ray_driver FOLDER` connects to a Ray cluster and runs Ray Train on it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from ml import ranks
from ml.contracts import InputError
from ml.device import device_of
from ml.launched import work
from ml.plan import Plan
from ml.ray_cluster import found, serve
from ml.recipe import Compute


def main(folder: Path) -> None:
    """Trains as planned in `folder`."""
    compute = Plan.read(folder).recipe.compute
    serve(folder, partial(_train, folder, compute), compute)


def _train(folder: Path, compute: Compute) -> None:
    device = found(compute)
    trainer = ray.train.torch.TorchTrainer(
        partial(_rank, str(folder), device.type, compute.timeout),
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


def _rank(folder: str, kind: str, silence: float) -> str | None:
    """One of the processes, somewhere in the cluster; gives what is wrong where not all of them can work in `folder`."""
    ranks.adopt(silence)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
