"""A stage, done once: reused where a finished run has its key, resumed where one was killed, else run, and then committed.

In order: 1. a finished run with the key whose artifacts verify is linked to; 2. an unfinished one is taken over, in the same
MLflow run and the same folder; 3. a new run is made. Processes of this host that want the same key wait for a file lock, those
of other hosts for a lease on the run.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.contracts import InputError
from ml.crash import crash_point
from tasks.tracking import database, lease, runs
from tasks.tracking.runs import PipelineRun
from tasks.tracking.stage_run import StageRun
from tasks.tracking.uploads import check_manifest

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = ["StageResult", "StageRun", "run_stage"]

PATIENCE = 30.0  # seconds that a finished stage waits for MLflow, unless told otherwise
PARENT = "mlflow.parentRunId"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """What a stage gave. `run_id` is the run that did the work, also where it was `cached`; `uri` is where its artifacts are."""

    name: str
    run_id: str
    cached: bool
    why: str
    seconds: float
    output: dict[str, Any]
    uri: str


def run_stage(
    pipeline: PipelineRun,
    stage: str,
    *,
    key: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    workroot: Path,
    body: Callable[[StageRun], dict[str, Any]],
    force: bool = False,
    verify: Callable[[dict[str, Any]], str | None] | None = None,
    system_metrics: bool = False,
) -> StageResult:
    """Runs `body` as the stage `stage` of `pipeline`, unless a finished run has the same `key`; gives its output.

    `body` returns JSON-able data. `verify(output)` says what is missing outside MLflow, so that a finished run is of no use.
    `force` does it anew whatever is finished. A body that is killed at any moment is resumed by the next call, with the same
    `workdir` and run id; its exceptions pass through, after the run is closed as FAILED or KILLED.
    """
    began = time.monotonic()
    workdir = workroot / f"{stage}-{key[:16]}"
    with _exclusive(workdir, stage) as waited:
        while True:
            run, output, why = _find(stage, key, force, verify)
            if run is not None and output is not None:
                _link(pipeline, stage, run, why)
                shutil.rmtree(workdir, ignore_errors=True)
                why = f"another process did it while this one waited: {why}" if waited else why
                return StageResult(stage, run.info.run_id, True, why, time.monotonic() - began, output, run.info.artifact_uri)
            if run is None:
                why = why or _compared(pipeline, stage, params, inputs)
                run, held = _create(pipeline, stage, key, inputs)
            else:
                why = f"goes on with run {run.info.run_id[:8]}, which did not finish"
                held = _adopt(pipeline, run)
            if held is not None:
                break
            force = False  # another host was first
        output = _work(run, held, workdir, stage, key, params, body, system_metrics)
        shutil.rmtree(workdir, ignore_errors=True)
    return StageResult(stage, run.info.run_id, False, why, time.monotonic() - began, output, run.info.artifact_uri)


def _work(
    run: Run,
    held: lease.Lease,
    workdir: Path,
    stage: str,
    key: str,
    params: Mapping[str, Any],
    body: Callable[[StageRun], dict[str, Any]],
    system_metrics: bool,
) -> dict[str, Any]:
    """Runs the body, sends what it reported, and commits: files, then manifest, then the status."""
    _settle(workdir, run.info.run_id)
    stage_run = StageRun(run, held, workdir, system_metrics)
    finished = workdir / "output.json"
    try:
        stage_run.log_params(params)
        if not finished.exists():
            output = json.dumps(body(stage_run))
            _write(finished, output)
        output = json.loads(finished.read_text())
        try:
            stage_run.send_all(database.patience(PATIENCE))
            stage_run.heartbeat.check()
            if not lease.held(run.info.run_id, held):
                raise lease.LeaseLost(f"run {run.info.run_id} was taken over by another process; what this one did is dropped")
            crash_point("stage.uploaded")
            stage_run.outbox.commit({"stage": stage, "key": key, "output": output})
        except database.TrackingError as error:
            raise database.TrackingError(
                f"{stage} is done, but {error}. Its result is kept in {workdir}: run the same command again when MLflow is back, and it is stored."
            ) from error
        crash_point("stage.manifest")
    except BaseException as error:
        try:
            with suppress(Exception):
                if isinstance(error, database.TrackingError):
                    stage_run.close()
                else:
                    stage_run.send_all(5.0)
        finally:  # a second interrupt ends the sending, and the run is closed all the same
            runs.end(run.info.run_id, stage_run.heartbeat, error)
        raise
    runs.end(run.info.run_id, stage_run.heartbeat)
    return output


def _find(
    stage: str, key: str, force: bool, verify: Callable[[dict[str, Any]], str | None] | None
) -> tuple[Run | None, dict[str, Any] | None, str]:
    """A finished run and its output, or an unfinished run and None, or None, None; and why."""
    found = runs.search(list(database.experiments()), f"tags.`warmstart.key` = '{key}'")
    why = ""
    for run in reversed(found):
        if run.info.status != "FINISHED":
            continue
        if force:
            why = "asked to do it anew"
            break
        output, problem = check_manifest(run, stage, key)
        if output is not None:
            problem = (verify(output) if verify is not None else None) or ""
            if not problem:
                return run, output, f"run {run.info.run_id[:8]} did the same, and all that it stored is there"
        why = why or f"run {run.info.run_id[:8]} did the same, but {problem}"
    return _unfinished(found), None, why


def _unfinished(found: list[Run]) -> Run | None:
    """The earliest of the runs that did not finish: all hosts choose the same."""
    open_runs = [run for run in found if run.info.status != "FINISHED" and "warmstart.duplicate" not in run.data.tags]
    return min(open_runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _create(pipeline: PipelineRun, stage: str, key: str, inputs: Mapping[str, str]) -> tuple[Run, lease.Lease | None]:
    """A new run with its lease; None for a lease when another host began the same at this moment, and goes first."""
    held = lease.Lease.mine()
    tags = {
        "warmstart.kind": "stage",
        "warmstart.stage": stage,
        "warmstart.key": key,
        "warmstart.inputs": json.dumps(dict(inputs)),
        "warmstart.parents": pipeline.run_id,
        PARENT: pipeline.run_id,
        lease.TAG: held.dump(),
    }
    run = runs.create_run(pipeline.experiment_id, stage, tags)
    first = _unfinished(runs.search(list(database.experiments()), f"tags.`warmstart.key` = '{key}'"))
    if first is None or first.info.run_id == run.info.run_id:
        return run, held
    database.retry(database.client().set_tag, run.info.run_id, "warmstart.duplicate", first.info.run_id)
    database.retry(database.client().set_terminated, run.info.run_id, "KILLED")
    return run, None


def _adopt(pipeline: PipelineRun, run: Run) -> lease.Lease | None:
    """Takes an unfinished run over; None when it finished meanwhile."""
    client, run_id = database.client(), run.info.run_id
    held = lease.acquire(run_id)
    now = database.retry(client.get_run, run_id)
    if now.info.status == "FINISHED":
        return None
    parents = [one for one in now.data.tags.get("warmstart.parents", "").split(",") if one and one != pipeline.run_id]
    database.retry(client.set_tag, run_id, PARENT, pipeline.run_id)
    database.retry(client.set_tag, run_id, "warmstart.parents", ",".join([*parents, pipeline.run_id][-50:]))
    if "warmstart.error" in now.data.tags:
        database.retry(client.delete_tag, run_id, "warmstart.error")
    database.retry(client.update_run, run_id, status="RUNNING")
    return held


def _link(pipeline: PipelineRun, stage: str, run: Run, why: str) -> None:
    """A finished child run that stands for the reused one, so that each pipeline run shows all its stages."""
    tags = {
        "warmstart.kind": "link",
        "warmstart.stage": stage,
        "warmstart.reuses": run.info.run_id,
        "warmstart.why": why,
        "mlflow.note.content": f"Reused: {why}. Experiment {run.info.experiment_id}, run {run.info.run_id}.",
        PARENT: pipeline.run_id,
    }
    linked = runs.create_run(pipeline.experiment_id, f"{stage} (cached)", tags)
    database.retry(database.client().set_terminated, linked.info.run_id, "FINISHED")


def _compared(pipeline: PipelineRun, stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Why there is no run with this key: what differs from the newest of this stage in the experiment."""
    earlier = runs.search([pipeline.experiment_id], f"tags.`warmstart.stage` = '{stage}' AND tags.`warmstart.kind` = 'stage'")
    if not earlier:
        return "no earlier run of this stage"

    def differences(run: Run) -> list[str]:
        before, now = run.data.params, {name: str(value) for name, value in params.items()}
        changed = [f"{name} {before.get(name, 'unset')} → {now[name]}" for name in sorted(now) if before.get(name) != now[name]]
        with suppress(ValueError):
            given = json.loads(run.data.tags.get("warmstart.inputs", "{}"))
            changed += [f"another {name}" for name in sorted(inputs) if given.get(name) != inputs[name]]
        return changed

    nearest = min(reversed(earlier), key=lambda run: len(differences(run)))
    changed = differences(nearest)
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"differs from run {nearest.info.run_id[:8]}: {', '.join(changed[:3]) or 'its code changed'}{more}"


@contextmanager
def _exclusive(workdir: Path, stage: str) -> Iterator[bool]:
    """Holds the stage's file lock, which ends with the process; yields whether it had to be waited for."""
    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        file = workdir.with_name(f"{workdir.name}.lock").open("a")
    except OSError as error:
        raise InputError(f"cannot work in {workdir.parent}: {error.strerror}. Run in a folder that can be written, or set WARMSTART_HOME.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except BlockingIOError:
            _log.warning("another process is doing the same %s; waiting for it", stage)
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        yield waited


def _settle(workdir: Path, run_id: str) -> None:
    """Makes the folder ready for the run: what another run left there belongs to records that are gone."""
    owner = workdir / "run_id"
    if workdir.exists() and not (owner.exists() and owner.read_text() == run_id):
        shutil.rmtree(workdir)
    workdir.mkdir(exist_ok=True)
    _write(owner, run_id)


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
