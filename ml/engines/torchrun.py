"""Trains in several processes of this machine, which torch's elastic launcher (`torchrun`) starts, watches and restarts.

Each is ml/engines/rank.py, a fresh process that knows nothing of Prefect and MLflow. It finds in the folder `ranks` what ml.plan describes, and

    reports.jsonl            what rank 0 reports: {"metrics", "step"}, {"progress"} or {"warning"}; this process passes it on
    outcome.json             how it ended: "fitted", "interrupted" or "error"
    trained.safetensors      the best weights
    logs/                    what each process printed

All have the reading end of a pipe as standard input. A byte in it asks to stop with a checkpoint; its end says that this process is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ml import progress
from ml.contracts import InputError, Report
from ml.device import device_of
from ml.fit import Fitted
from ml.interruption import Interrupted, interruption
from ml.plan import Plan, read_weights, save_weights
from ml.recipe import Compute
from ml.training import Training

ROOT = Path(__file__).resolve().parents[2]
LOOK = 0.2  # seconds between two looks at what was reported
ASK = 2.0  # seconds after which the request to stop is repeated: who read it may have died
GRACE = 10  # seconds that processes have to end by themselves when one of them failed
LAST = 2000  # characters of a log in an error
FOREIGN = ("MLFLOW_", "PREFECT_", "TORCHELASTIC_")
"""Beginnings of variables that the processes do not get."""


class RanksFailed(RuntimeError):
    """Processes of a training died more often than they are restarted."""


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    compute, folder = plan.recipe.compute, workdir / "ranks"
    device = device_of(compute)
    _check(compute, device)
    _write(plan, given, folder, report)
    training = plan.build(given, device)
    save_weights(training.module, folder / "module.safetensors")
    reports = _Reports(folder / "reports.jsonl", report, plan.stage)
    with _launched(folder, compute) as launcher, interruption() as asked:
        asked_at = 0.0
        while launcher.poll() is None:
            reports.pass_on()
            if asked.requested and time.monotonic() - asked_at > ASK:
                asked_at = time.monotonic()
                with suppress(BrokenPipeError):
                    launcher.stdin.write(b"s")
            time.sleep(LOOK)
    reports.pass_on()
    fitted = _outcome(folder, plan.stage, compute)
    read_weights(training.module, folder / "trained.safetensors")
    training.module.to(device, memory_format=torch.channels_last).eval()
    shutil.rmtree(folder)
    return training, fitted


def _check(compute: Compute, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda") or device.index is not None:
        raise InputError(f"compute.engine=torchrun computes on cpu or cuda, one device a process; found compute.device={compute.device}")
    if device.type == "cuda" and compute.workers > torch.cuda.device_count():
        raise InputError(f"compute.workers is {compute.workers}, but there are {torch.cuda.device_count()} CUDA devices: a process needs one of its own")


def _write(plan: Plan, given: nn.Module, folder: Path, report: Report) -> None:
    """Makes the folder anew; what an earlier process left unreported in it is reported first."""
    _Reports(folder / "reports.jsonl", report, plan.stage).pass_on()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    plan.write(folder)
    save_weights(given, folder / "given.safetensors")


@contextmanager
def _launched(folder: Path, compute: Compute) -> Iterator[subprocess.Popen]:
    """The launcher, while the block runs; after it, no process is left."""
    options = {"nproc-per-node": compute.workers, "max-restarts": compute.max_restarts, "monitor-interval": LOOK, "log-dir": folder / "logs", "redirects": 3}
    words = [f"--{name}={value}" for name, value in options.items()]
    # On this machine alone, whatever its name and its networks are.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", *words, "-m", "ml.engines.rank", str(folder.resolve())]
    with (folder / "logs" / "launcher.log").open("w") as log:
        launcher = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(compute), start_new_session=True)
        try:
            yield launcher
        finally:
            launcher.stdin.close()
            if launcher.poll() is None:
                launcher.kill()
            launcher.wait()


def _environment(compute: Compute) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = compute.threads or max(1, len(os.sched_getaffinity(0)) // compute.workers)
    # The working folder may hold a module named like one of ours.
    ours = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE)}
    # Processes that spin take each other's cores: see docs/decisions/0013.
    return kept | {"OMP_WAIT_POLICY": "PASSIVE"} | ours


class _Reports:
    """Passes on what rank 0 wrote. Steps that a restarted rank reports again are known to who listens."""

    def __init__(self, path: Path, report: Report, stage: str) -> None:
        self.path, self.report, self.stage, self.read = path, report, stage, 0

    def pass_on(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                with suppress(ValueError):  # of a process that was killed while it wrote
                    self._tell(json.loads(line))

    def _tell(self, told: Mapping[str, Any]) -> None:
        if "metrics" in told:
            self.report(told["metrics"], told["step"])
        elif "warning" in told:
            progress.warn(self.stage, told["warning"])
        else:
            done, total, facts = told["progress"]
            progress.update(self.stage, done, total, **facts)


def _outcome(folder: Path, stage: str, compute: Compute) -> Fitted:
    """How the training went; raises what ended it."""
    try:
        outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        logs = sorted(folder.glob("logs/**/*.log"), key=lambda path: path.stat().st_mtime)
        said = "\n".join(f"{path.relative_to(folder)}:\n{text[-LAST:]}" for path in logs[-3:] if (text := path.read_text(errors="replace").strip()))
        raise RanksFailed(
            f"the {compute.workers} processes of {stage} ended {compute.max_restarts + 1} times before they were done (compute.max_restarts is "
            f"{compute.max_restarts}). The same command goes on from the last checkpoint. They said last:\n{said}"
        ) from None
    if "error" in outcome:
        raise InputError(outcome["error"])
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    return Fitted(**outcome["fitted"])
