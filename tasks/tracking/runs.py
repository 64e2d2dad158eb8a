"""Pipeline runs: one MLflow parent run each, with a lease, closed by whoever comes next where its process was killed.

Run ids are passed explicitly everywhere: MLflow's active run is thread-local and inherited through the environment.
"""

from __future__ import annotations

import getpass
import logging
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.tracking import database, lease

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PipelineRun:
    """The parent run of one pipeline run."""

    run_id: str
    experiment_id: str
    experiment: str


@contextmanager
def pipeline_run(recipe_name: str, recipe_yaml: str, seed: int = 0, tags: Mapping[str, str] | None = None) -> Iterator[PipelineRun]:
    """A new parent run in the experiment `recipe_name`, with `tags`: RUNNING inside the block, then FINISHED, FAILED or KILLED."""
    with single(recipe_name, "pipeline", recipe_name, {**(tags or {}), "warmstart.seed": str(seed)}) as run:
        database.retry(database.client().log_text, run.run_id, recipe_yaml, "recipe.yaml")
        yield run


@contextmanager
def single(experiment: str, kind: str, name: str, tags: Mapping[str, str]) -> Iterator[PipelineRun]:
    """A new run of that kind in an experiment, below no other: RUNNING inside the block, then FINISHED, FAILED or KILLED. Closes those whose process is gone."""
    experiment_id = database.experiment(experiment)
    reconcile(experiment_id)
    mine = lease.Lease.mine()
    run_id = create_run(experiment_id, name, {**tags, "warmstart.kind": kind, lease.TAG: mine.dump()}).info.run_id
    heartbeat = lease.Heartbeat(run_id, mine)
    try:
        yield PipelineRun(run_id, experiment_id, experiment)
    except BaseException as error:
        end(run_id, heartbeat, error)
        raise
    end(run_id, heartbeat)


def end(run_id: str, heartbeat: lease.Heartbeat, error: BaseException | None = None) -> None:
    """Closes a run as FINISHED, or as FAILED or KILLED by `error`, which alone is what the caller shall see."""
    heartbeat.stop()  # first: it sets a run that it holds RUNNING again
    client = database.client()
    if error is None:
        database.retry(client.set_terminated, run_id, "FINISHED")
        heartbeat.release()
    elif not heartbeat.lost:
        # Not an Exception: Ctrl-C, an exit, or Prefect's signal that a run is cancelled.
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with suppress(Exception):
            database.retry(client.set_tag, run_id, "warmstart.error", f"{type(error).__name__}: {database.first_line(error)}", seconds=10.0)
            database.retry(client.set_terminated, run_id, status, seconds=10.0)
            heartbeat.release()


def reconcile(experiment_id: str) -> list[str]:
    """Marks as FAILED the runs of the experiment that are RUNNING though their process is gone; gives their ids.

    A stage closed so is resumed by the next run that needs it.
    """
    closed = []
    for run in search([experiment_id], "attributes.status = 'RUNNING'"):
        # Looked at again once it is known to be gone: it may have finished its run after the search.
        if gone(run) and database.retry(database.client().get_run, run.info.run_id).info.status == "RUNNING":
            reason = f"{lease.read(run).owner()} ended without a word; noticed by process {lease.Lease.mine().owner()}"
            client = database.client()
            database.retry(client.set_tag, run.info.run_id, "warmstart.error", reason)
            database.retry(client.set_terminated, run.info.run_id, "FAILED")
            closed.append(run.info.run_id)
            _log.info("run %s: %s", run.info.run_id, reason)
    return closed


def gone(run: Run) -> bool:
    """Whether the process of a run of ours that is RUNNING has ended without a word."""
    held = lease.read(run)
    if held is None:
        return False  # not ours
    living = lease.alive(held)
    return time.time() - held.beat >= lease.FORGOTTEN if living is None else not living


def create_run(experiment_id: str, name: str, tags: dict[str, str]) -> Run:
    """A new RUNNING run with `tags` and those that all our runs carry. Asked for again after an error, it is made once."""
    mark = uuid.uuid4().hex
    tags = {**code_tags(), **tags, "warmstart.uuid": mark, "mlflow.source.name": "warmstart", "mlflow.user": user()}
    tried = False

    def create() -> Run:
        nonlocal tried
        # MLflow does not repeat a request that makes something: the one that failed may have come through.
        made = search([experiment_id], f"tags.`warmstart.uuid` = '{mark}'") if tried else []
        tried = True
        return made[0] if made else database.client().create_run(experiment_id, tags=tags, run_name=name)

    return database.retry(create)


def search(experiment_ids: list[str], condition: str, order: str = "attributes.start_time ASC") -> list[Run]:
    """All runs that meet the condition."""
    return list(database.pages(database.client().search_runs, experiment_ids, condition, order_by=[order]))


def everywhere(deleted: bool = False) -> list[Run]:
    """The runs of all experiments, deleted ones too: those that are there, or those that were deleted."""
    from mlflow.entities import ViewType

    client = database.client()
    experiments = [one.experiment_id for one in database.pages(client.search_experiments, ViewType.ALL)]
    kind = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    return list(database.pages(client.search_runs, experiments, "", run_view_type=kind)) if experiments else []


@cache
def code_tags() -> dict[str, str]:
    """Which code runs: the version, and the commit where the code lies in a git checkout of its own."""
    try:
        tags = {"warmstart.version": version("warmstart")}
    except PackageNotFoundError:
        tags = {"warmstart.version": "source"}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            tags |= {"mlflow.source.git.commit": commit, "warmstart.dirty": str(bool(_git(root, "status", "--porcelain"))).lower()}
    return tags


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return "unknown"
