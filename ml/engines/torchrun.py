"""Trains in several processes, which torch's elastic launcher (`torchrun`) starts, watches and restarts: of this machine, or with `compute.address` of several.

Each is ml/engines/rank.py. All have the reading end of a pipe as standard input, whose end says that the stage's process is gone. The launchers of other
machines are started by `warmstart join` there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from ml.contracts import InputError, Report
from ml.device import device_of
from ml.fit import Fitted
from ml.launch import LOOK, check_device, launch
from ml.networks import seen_from
from ml.plan import Plan
from ml.recipe import Compute
from ml.training import Training

ALONE = ("--standalone", "--local-addr=127.0.0.1")
"""For a launcher of this machine alone, whatever its name and its networks are."""
APART = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For launchers of several machines: one that shares its store tells a machine that comes in another's place nothing of it."""


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    compute = plan.recipe.compute
    check_device(compute)
    here = compute.devices_per_worker if compute.address else compute.processes
    if device_of(compute).type == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"{here} processes are to train on this machine, which has {torch.cuda.device_count()} CUDA devices: each needs one of its own. Lower compute.workers or compute.devices_per_worker.")
    return launch(plan, given, workdir, report, lambda folder: command(folder, compute), APART if compute.address else {})


def command(folder: Path, compute: Compute, host: bool = True) -> list[str]:
    """The launcher of what is planned in `folder`: of the machine whose stage it is, the `host`, or of another one."""
    options = {"max-restarts": compute.max_restarts, "monitor-interval": LOOK, "log-dir": folder / "logs", "redirects": 3}
    words = [*(f"--{name}={value}" for name, value in options.items()), "-m", "ml.engines.rank", str(folder)]
    where = _meeting(folder, compute, host) if compute.address else [*ALONE, f"--nproc-per-node={compute.processes}"]
    return [sys.executable, "-m", "torch.distributed.run", *where, *words]


def _meeting(folder: Path, compute: Compute, host: bool) -> list[str]:
    return [
        f"--nnodes={compute.workers}",
        f"--nproc-per-node={compute.devices_per_worker}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={compute.address}",
        f"--rdzv-id={folder.parent.name}",
        f"--rdzv-conf=is_host={int(host)}",
        f"--local-addr={_seen_from(compute.address)}",
    ]


def _seen_from(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        return seen_from(host, int(port))
    except OSError as error:
        raise InputError(f"compute.address={address} is no place that this machine can reach: {error}. Give a name and a free port of the machine that runs the stage.") from None
