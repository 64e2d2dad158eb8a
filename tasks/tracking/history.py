"""What runs have left, for those who look back: pipeline runs and their stages, found by name. Reads alone; what was deleted is None."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import yaml

from ml.contracts import InputError
from tasks.tracking import database, registry, runs, versions
from tasks.tracking.artifacts import fetch, inside, sizes
from tasks.tracking.stages import PARENT

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.entities import Run

SHORT = 8  # letters of a run's id that are shown, where they suffice
PIPELINE = "tags.`warmstart.kind` = 'pipeline'"
STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running", "SCHEDULED": "scheduled"}


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline run: `run` is the MLflow run that did it, an earlier pipeline's where it was `reused`; None where that was deleted for good."""

    name: str
    run_id: str
    run: Run | None
    reused: bool

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of what it read, by name."""
        return _json(self.run.data.tags.get("warmstart.inputs", "")) or {} if self.run else {}

    @property
    def missing(self) -> str:
        """What is gone of it, in words; "" where nothing is."""
        if self.run is None:
            return "the run was deleted"
        if self.run.info.lifecycle_stage == "deleted":
            return f"the run was deleted; `mlflow runs restore --run-id {self.run_id}` brings it back"
        listed = (self.content("manifest.json") or {}).get("artifacts")
        if listed is None:
            return "its artifacts were deleted" if self.run.info.status == "FINISHED" else f"it is {status(self.run)}"
        there = sizes(self.run.info.artifact_uri)
        gone = [path for path in listed if path not in there]
        return f"{len(gone)} of its {len(listed)} files were deleted: {', '.join(gone[:3])}{'…' if len(gone) > 3 else ''}" if gone else ""

    def file(self, path: str) -> Path | None:
        """The local path of an artifact, None where there is none any more."""
        return artifact(self.run, path)

    def content(self, path: str) -> dict[str, Any] | None:
        """A JSON artifact, None where there is none any more, or a damaged one."""
        return _read(self.file(path))


def run(name: str) -> Run:
    """The pipeline run that `name` means: its id or the beginning of it, or NAME/VERSION, NAME@ALIAS or models:/... of a version that it registered.

    Raises InputError, with what there is, where none or more than one is meant.
    """
    if "/" in name or "@" in name:
        return _of_version(version(name))
    found = _starting_with(name) if re.fullmatch(r"[0-9a-zA-Z]{1,32}", name) else []
    if len(found) > 1:
        raise InputError(f"{name!r} is the beginning of several runs: {_named(found)}. Give more of it.")
    if not found:
        known = _named(newest("", 5))
        raise InputError(f"there is no pipeline run {name!r}. Known: {known or 'none yet'}. `warmstart runs` lists them.")
    if found[0].data.tags.get("warmstart.kind") != "pipeline":
        parent = found[0].data.tags.get(PARENT, "")
        raise InputError(f"{name!r} is the run of a stage ({found[0].info.run_name}), of the pipeline run {parent[:SHORT] or 'unknown'}. Give that one.")
    return found[0]


def version(name: str) -> registry.Version:
    """The version that NAME@ALIAS, NAME/VERSION or models:/... means; InputError, with what there is, where there is none."""
    uri = name if name.startswith("models:/") else f"models:/{name}"
    try:
        return versions.pinned(uri)
    except InputError:
        raise InputError(_unknown_version(name, re.split(r"[/@]", uri.removeprefix("models:/"))[0])) from None


def newest(experiment: str, limit: int) -> list[Run]:
    """At most `limit` pipeline runs, the newest first; of one experiment, or of all for ""."""
    names = database.experiments()
    chosen = [number for number, name in names.items() if experiment in ("", name)]
    if not chosen:
        raise InputError(f"there is no experiment {experiment!r}. Known: {', '.join(sorted(names.values()))}.")
    found = database.pages(database.client().search_runs, chosen, PIPELINE, max_results=min(1000, limit), order_by=["attributes.start_time DESC"])
    return list(islice(found, limit))


def stages(pipeline: Run) -> dict[str, Stage]:
    """The stages of a pipeline run by name, in the order in which it came to them. Of a ladder of methods `finetune` is the rung that was kept."""
    own = pipeline.info.run_id
    everywhere = list(database.experiments())
    done = runs.search(everywhere, f"tags.`warmstart.kind` = 'stage' AND tags.`warmstart.parents` LIKE '%{own}%'")
    linked = runs.search([pipeline.info.experiment_id], f"tags.`warmstart.kind` = 'link' AND tags.`{PARENT}` = '{own}'")
    found: dict[str, Stage] = {}
    for one in sorted([*done, *linked], key=lambda one: one.info.start_time):
        tags = one.data.tags
        reused = tags.get("warmstart.reuses")
        name = tags.get("warmstart.stage", "")
        if "warmstart.duplicate" not in tags:
            found[name] = Stage(name, reused, get(reused), True) if reused else Stage(name, one.info.run_id, one, False)
    for name in ("finetune", "baseline"):
        _choose_rung(found, name, summary(pipeline))
    return found


def get(run_id: str | None) -> Run | None:
    """A run by its id, also one that can be restored; None for one that is gone."""
    from mlflow.exceptions import MlflowException

    try:
        return database.retry(database.client().get_run, run_id) if run_id else None
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def artifact(run: Run | None, path: str) -> Path | None:
    """The local path of a run's artifact, None where there is none."""
    try:
        return fetch(run.info.artifact_uri, inside(path)) if run is not None else None
    except InputError:
        return None


def summary(pipeline: Run) -> dict[str, Any]:
    """What `warmstart run --json` printed, empty where the run did not get that far."""
    return _read(artifact(pipeline, "summary.json")) or {}


def recipe(pipeline: Run | None) -> dict[str, Any]:
    """The run's recipe as plain data, empty where it was deleted."""
    file = artifact(pipeline, "recipe.yaml")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8", errors="replace")) if file else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, by step."""
    points = sorted({point.step: point.value for point in database.retry(database.client().get_metric_history, run.info.run_id, metric)}.items())
    return [step for step, _ in points], [value for _, value in points]


def status(run: Run) -> str:
    """In a word; "dead" where the process is gone though MLflow has the run as RUNNING."""
    if run.info.lifecycle_stage == "deleted":
        return "deleted"
    return "dead" if run.info.status == "RUNNING" and runs.gone(run) else STATUS.get(run.info.status, run.info.status.lower())


def seconds(run: Run) -> float | None:
    """How long it took, None for one that has not ended."""
    return (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None


def moment(milliseconds: float | None) -> str | None:
    """A time in ISO 8601, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds is not None else None


def _of_version(one: registry.Version) -> Run:
    made = get(one.run_id)
    found = get(made.data.tags.get(PARENT)) if made else None
    if found is None:
        raise InputError(f"the run that registered {one.uri} was deleted")
    return found


def _starting_with(prefix: str) -> list[Run]:
    """Runs whose id begins so: pipeline runs, or where there is none the stages'."""
    everywhere = list(database.experiments())
    exact = get(prefix) if len(prefix) == 32 else None
    if exact is not None:
        return [exact]
    found = database.retry(database.client().search_runs, everywhere, f"attributes.run_id LIKE '{prefix}%' AND {PIPELINE}", max_results=10)
    return list(found or database.retry(database.client().search_runs, everywhere, f"attributes.run_id LIKE '{prefix}%'", max_results=1))


def _choose_rung(found: dict[str, Stage], name: str, told: Mapping[str, Any]) -> None:
    best = next((stage.get("run_id") for stage in told.get("stages", []) if stage.get("name") == name), None)
    rung = next((stage for stage in found.values() if stage.run_id == best), None)
    if name not in found and rung is not None:
        found[name] = Stage(name, rung.run_id, rung.run, rung.reused)


def _unknown_version(name: str, model: str) -> str:
    known = names()
    if model not in known:
        return f"there is no registered model {model!r}. Known: {', '.join(known) or 'none yet'}."
    found = database.retry(database.client().search_model_versions, f"name = '{model}'")
    aliases = {alias: one.version for one in found for alias in registry.version(model, one.version).aliases}
    there = [f"{model}/{one.version}" for one in sorted(found, key=lambda one: int(one.version))][-10:] + [f"{model}@{alias}" for alias in aliases]
    return f"{name!r} is no version: expected NAME@ALIAS or NAME/VERSION. {model} has {', '.join(there) or 'no version'}."


def names() -> list[str]:
    """The registered models."""
    return sorted(one.name for one in database.pages(database.client().search_registered_models))


def short(ids: Sequence[str]) -> list[str]:
    """The beginnings of run ids that tell them apart."""
    length = next(length for length in range(SHORT, 33) if length == 32 or len({one[:length] for one in ids}) == len(set(ids)))
    return [one[:length] for one in ids]


def _named(found: list[Run]) -> str:
    return ", ".join(f"{one.info.run_id[:SHORT]} ({one.info.run_name})" for one in found)


def _read(file: Path | None) -> dict[str, Any] | None:
    return _json(file.read_text(encoding="utf-8", errors="replace")) if file is not None and file.is_file() else None


def _json(text: str) -> dict[str, Any] | None:
    """The object in a text, None where it is damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
