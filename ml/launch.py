"""Trains in processes that an engine's launcher starts, watches and restarts; they know nothing of Prefect and MLflow.

They run ml/launched.py, find in the folder `ranks` of the stage what ml.plan describes, and

    reports.jsonl            what rank 0 reports: {"metrics", "step"}, {"progress"} or {"warning"}; this process passes it on
    stop                     there once they are asked to stop with a checkpoint
    outcome.json             how it ended: "fitted", "interrupted" or "error"
    trained.safetensors      the best weights
    logs/                    what each process printed
    beats/                   that each of them runs, for the others

The launcher has the reading end of a pipe as standard input; its end says that nobody waits for the processes any more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from ml import progress
from ml.contracts import InputError, Report
from ml.device import device_of
from ml.fit import Fitted
from ml.interruption import Interrupted, interruption
from ml.plan import Plan, read_weights, save_weights
from ml.recipe import Compute
from ml.step_probe import How, memory_format
from ml.training import Training

ROOT = Path(__file__).resolve().parents[1]
LOOK = 0.2  # seconds between two looks at what was reported
GRACE = 10  # seconds that processes have to end by themselves when one of them failed
LAST = 2000  # characters of a log in an error
FOREIGN = ("MLFLOW_", "PREFECT_", "TORCHELASTIC_")
"""Beginnings of variables that the processes do not get."""


class RanksFailed(RuntimeError):
    """Processes of a training died more often than they are restarted."""


def check_device(compute: Compute) -> None:
    """InputError for a device that not every process can have one of."""
    if compute.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"compute.engine={compute.engine.value} computes on cpu or cuda, one device a process; found compute.device={compute.device}")


def launch(
    plan: Plan, given: nn.Module, workdir: Path, report: Report, command: Callable[[Path], Sequence[str]], variables: Mapping[str, str]
) -> tuple[Training, Fitted]:
    """Trains `given` by the launcher that `command(folder)` starts, with these variables among those of its environment. See ml.engines."""
    compute, folder = plan.recipe.compute, (workdir / "ranks").resolve()
    device = device_of(compute)
    _write(plan, given, folder, report)
    training = plan.build(given, device)
    save_weights(training.module, folder / "module.safetensors")
    with interruption() as asked:
        outcome = followed(command(folder), variables, folder, plan.stage, report, lambda: asked.requested and (folder / "stop").touch())
    fitted = _fitted(outcome, folder, plan.stage, compute)
    read_weights(training.module, folder / "trained.safetensors")
    training.module.to(device, memory_format=memory_format(How(**fitted.how))).eval()
    shutil.rmtree(folder)
    return training, fitted


def _write(plan: Plan, given: nn.Module, folder: Path, report: Report) -> None:
    """Makes the folder anew; what an earlier process left unreported in it is reported first."""
    _Reports(folder, report, plan.stage).pass_on()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    plan.write(folder)
    save_weights(given, folder / "given.safetensors")


def followed(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, stage: str, report: Report, look: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """What a launcher and its processes left in `folder` of how they ended, nothing where they died; InputError where that is an error.

    Passes on what they report meanwhile, and calls `look` every now and then.
    """
    reports = _Reports(folder, report, stage)
    with running(command, environment() | variables, folder / "logs" / "launcher.log") as launcher:
        while launcher.poll() is None and "error" not in _told(folder):  # for which the others wait in vain, and which no restart helps
            reports.pass_on()
            look()
            time.sleep(LOOK)
    reports.pass_on()
    outcome = _told(folder)
    if "error" in outcome:
        raise InputError(outcome["error"])
    return outcome


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], path: Path) -> Iterator[subprocess.Popen]:
    """The launcher, while the block runs; after it, no process is left."""
    with path.open("w") as log:
        launcher = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            yield launcher
        finally:
            launcher.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(GRACE)
            launcher.kill()
            launcher.wait()


def environment() -> dict[str, str]:
    """Of a launcher."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # The working folder may hold a module named like one of ours.
    ours = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE)}
    # Processes that spin take each other's cores: see docs/decisions/0013.
    return kept | {"OMP_WAIT_POLICY": "PASSIVE"} | ours


class _Reports:
    """Passes on what rank 0 wrote into `folder`. Steps that a restarted rank reports again are known to who listens."""

    def __init__(self, folder: Path, report: Report, stage: str) -> None:
        self.path, self.report, self.stage, self.read = folder / "reports.jsonl", report, stage, 0

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


def _told(folder: Path) -> dict[str, Any]:
    """What the processes left of how it ended; nothing while none did."""
    try:
        return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def said(folder: Path) -> str:
    """The last words of the processes that worked in `folder`."""
    logs = sorted(folder.glob("logs/**/*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"{path.relative_to(folder)}:\n{text[-LAST:]}" for path in logs[-3:] if (text := path.read_text(errors="replace").strip()))


def _fitted(outcome: Mapping[str, Any], folder: Path, stage: str, compute: Compute) -> Fitted:
    """How the training went; raises what ended it."""
    if not outcome:
        raise RanksFailed(
            f"the {compute.processes} processes of {stage} ended {compute.max_restarts + 1} times before they were done (compute.max_restarts is "
            f"{compute.max_restarts}). The same command goes on from the last checkpoint. They said last:\n{said(folder)}"
        )
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    return Fitted(**outcome["fitted"])
