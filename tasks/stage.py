"""How every stage is run: its key made, looked up, locked, resumed or done, and committed in MLflow."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ml import progress
from ml.contracts import InputError
from ml.copies import copied
from ml.fit import Fitted
from ml.pictures import curves
from ml.recipe import Recipe
from ml.remote import Remote, StorageError
from tasks import collector
from tasks.references import StageSummary
from tasks.tracking import database, flow_run, runs
from tasks.tracking.cache import stage_key
from tasks.tracking.runs import PipelineRun
from tasks.tracking.spool import json_lines
from tasks.tracking.stages import StageRun, run_stage

STAGES = ("preprocess", "pretrain", "split", "finetune", "baseline", "classical", "evaluate", "register")

TRAINING = ("pretrain", "finetune", "baseline")

MACHINERY = ("learning_rate", "rows_per_second", "data_share")
"""Curves of a training that say nothing of what was learnt."""

_log = logging.getLogger(__name__)


def _tracking_was_away(task: Any, run: Any, state: Any) -> bool:
    """Whether to try again: what ended is the way to MLflow, and the stage's result waits on disk."""
    return isinstance(state.result(raise_on_failure=False), database.TrackingError)


TASK = {"persist_result": False, "log_prints": False, "retries": 2, "retry_delay_seconds": 30, "retry_condition_fn": _tracking_was_away}
"""Prefect options of every stage: our own record in MLflow is the cache, and stored results could be tampered with."""


@dataclass(frozen=True)
class Run:
    """One pipeline run, as its stages see it: where it is tracked, where it works, what is to be done anew."""

    tracked: PipelineRun
    home: Path
    redo: frozenset[str] = frozenset()
    storage: Remote | None = None
    """Where stores and checkpoints are kept for other machines."""

    @property
    def stores(self) -> Path:
        return self.home / "stores"

    def stage(
        self,
        name: str,
        body: Callable[[StageRun], dict[str, Any]],
        *,
        options: Mapping[str, Any],
        inputs: Mapping[str, str],
        modules: Sequence[str],
        verify: Callable[[dict], str | None] | None = None,
    ) -> tuple[StageSummary, dict[str, Any]]:
        """The stage's summary and output: of this run's work, or of an earlier run's with the same key. `finetune-lora` is a part of `finetune`."""
        stage = name.partition("-")[0]
        copies = self.storage.within("checkpoints") if self.storage is not None and stage in TRAINING else None
        result = run_stage(
            self.tracked,
            name,
            key=stage_key(name, dict(options), dict(inputs), list(modules)),
            params=flat(options),
            inputs=dict(inputs),
            workroot=self.home / "work",
            body=body if copies is None else _copied(name, body, copies),
            force=stage in self.redo,
            verify=verify,
            system_metrics=stage in TRAINING,
        )
        if copies is not None:
            with deferrable(copies, name):
                copies.remove(result.run_id)
        progress.finish(name, f"{'reused' if result.cached else 'done'} in {result.seconds:.1f} s: {result.why}")
        return StageSummary(name, result.run_id, result.cached, result.why, round(result.seconds, 3)), result.output


@contextmanager
def pipeline_run(recipe: Recipe, from_stage: str = "") -> Iterator[Run]:
    """The parent run in MLflow of one pipeline run, closed with its status whatever happens."""
    with flow_run.followed():
        database.prepare()
        collector.resume()
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        with runs.pipeline_run(recipe.name, text, recipe.seed, flow_run.tags()) as tracked:
            yield Run(tracked, home(), redo_from(from_stage), storage())


def redo_from(stage: str) -> frozenset[str]:
    """The stages from `stage` on, which are done anew whatever the cache holds; none for an empty name."""
    if not stage:
        return frozenset()
    if stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}. Valid: {', '.join(STAGES)}.")
    return frozenset(STAGES[STAGES.index(stage) :])


def home() -> Path:
    """Where stores and unfinished work lie: WARMSTART_HOME, or `.warmstart` in the working folder."""
    folder = Path(os.environ.get("WARMSTART_HOME") or ".warmstart").resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}. Work from a folder that you may write to, or set WARMSTART_HOME.") from None
    return folder


def storage() -> Remote | None:
    """What WARMSTART_STORAGE names: a URL or a folder that all machines reach; None where it is not set, and all stays on this machine."""
    url = os.environ.get("WARMSTART_STORAGE", "")
    return Remote(url) if url else None


@contextmanager
def deferrable(storage: Remote, stage: str) -> Iterator[None]:
    """Work on the storage that can wait: where it fails, that is told, and a later run does it."""
    try:
        yield
    except StorageError as error:
        storage.warn(stage, f"is done, but {error}; the next run tries again")


def _copied(name: str, body: Callable[[StageRun], dict[str, Any]], copies: Remote) -> Callable[[StageRun], dict[str, Any]]:
    """`body`, its checkpoints copied and taken up again with the curves that lead to them."""

    def wrapped(stage: StageRun) -> dict[str, Any]:
        with copied(stage.workdir, copies.within(stage.run_id), name, stage.begun, ["metrics.jsonl"]) as fetched:
            if fetched is not None:
                stage.metrics.take(fetched / "metrics.jsonl")
            return body(stage)

    return wrapped


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as `a.b.c` → value, for MLflow's parameters."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def dump(section: BaseModel) -> dict[str, Any]:
    """A recipe section as plain data, defaults included; a choice carries its class's whole options."""
    content = section.model_dump(mode="json")
    for name in type(section).model_fields:
        part = getattr(section, name)
        if hasattr(part, "parsed"):
            content[name] = {"name": part.name.value, "options": part.parsed().model_dump(mode="json")}
        elif isinstance(part, BaseModel):
            content[name] = dump(part)
    return content


def arithmetic(recipe: Recipe) -> dict[str, Any]:
    """What of `compute` changes the numbers, and so belongs to a stage's key."""
    return {"precision": recipe.compute.precision.value, "deterministic": recipe.compute.deterministic}


def log_fitted(stage: StageRun, fitted: Fitted, rows: int, metric: str = "") -> None:
    """How a training went, as parameters, final metrics, the `best/*` values to compare runs by, and its curves with that of `metric`."""
    stage.log_params({"epochs_done": fitted.epochs, "steps": fitted.steps, "rows": rows, "accumulate_used": fitted.accumulate} | {f"{name}_used": value for name, value in fitted.how.items()})
    stage.log_metrics(
        {"seconds": fitted.seconds, "rows_per_second": fitted.rows_per_second, "data_share": fitted.data_share}
        | {f"best/{name}": value for name, value in fitted.metrics.items()}
    )
    stage.log_figure(curves(_series(stage, metric)), "pictures/curves.png")
    stage.set_tag("warmstart.stopped_early", str(fitted.stopped_early).lower())
    stage.set_tag("warmstart.processes", ", then ".join(map(str, fitted.processes)))
    if len(fitted.processes) > 1:
        numbers = " and then ".join(map(str, fitted.processes))
        _log.warning("a training was done by %s processes: it is not exactly what either number alone would give", numbers)


def _series(stage: StageRun, metric: str) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The curves by panel: what was trained and probed, and `metric`; training and validation share one. MLflow draws all others."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for line in json_lines(stage.workdir / "metrics.jsonl"):
        for name, value in line["metrics"].items():
            part, _, quantity = name.partition("/")
            if part in ("train", "validation", "probe") and quantity not in MACHINERY:
                steps, values = panels.setdefault(quantity, {}).setdefault(part, ([], []))
                steps.append(line["step"])
                values.append(value)
    return {name.replace("_", " "): lines for name, lines in panels.items() if name == metric or lines.keys() != {"validation"}}


def sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
