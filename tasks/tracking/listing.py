"""What there is, as plain data: pipeline runs, and registered models with their versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml.contracts import InputError
from tasks.tracking import database, history, registry
from tasks.tracking.history import Stage
from tasks.tracking.lineage import by_hand

if TYPE_CHECKING:
    from mlflow.entities import Run


def pipelines(experiment: str, limit: int) -> dict[str, Any]:
    """The newest pipeline runs, with what each came to."""
    found = history.newest(experiment, limit)
    names = history.short([one.info.run_id for one in found])
    return {"runs": [{"id": name, **described(one)} for name, one in zip(names, found, strict=True)]}


def described(run: Run) -> dict[str, Any]:
    """One pipeline run: when, how it ended, its primary score with its interval, its verdict, its model version."""
    told = history.summary(run)
    metrics = told.get("metrics") or {}
    primary = told.get("primary") or next(iter(metrics), None)
    return {
        "run_id": run.info.run_id,
        "experiment": run.info.run_name,
        "started": history.moment(run.info.start_time),
        "status": history.status(run),
        "error": run.data.tags.get("warmstart.error", ""),
        "seconds": history.seconds(run),
        "seed": run.data.tags.get("warmstart.seed", ""),
        "user": run.data.tags.get("mlflow.user", ""),
        "score": {"metric": primary, **metrics[primary]} if primary in metrics else None,
        "passed": (told.get("verdict") or {}).get("passed"),
        "model": {part: told["model"][part] for part in ("name", "version", "uri")} if "model" in told else None,
    }


def models(name: str = "") -> dict[str, Any]:
    """All registered models with the versions that matter, or one with all of its versions and the audit of its champion."""
    known = history.names()
    if name and name not in known:
        raise InputError(f"there is no registered model {name!r}. Known: {', '.join(known) or 'none yet'}.")
    return {"models": [_model(one, bool(name)) for one in ([name] if name else known)]}


def _model(name: str, whole: bool) -> dict[str, Any]:
    numbers = sorted((int(one.version) for one in database.retry(database.client().search_model_versions, f"name = '{name}'")), reverse=True)
    every = [registry.version(name, number) for number in numbers]
    shown = [one for one in every if whole or one.aliases or one is every[0]]
    moved = registry.moved_by_hand(name)
    log = [entry | {"time": history.moment(1000 * entry["time"])} for entry in registry.audit(name)] if whole else None
    told = {"name": name, "count": len(every), "versions": [_version(one) for one in shown], "notes": [by_hand(moved)] if moved else []}
    return told | ({"audit": log} if whole else {})


def _version(one: registry.Version) -> dict[str, Any]:
    passed = one.tags.get("warmstart.passed")
    return {
        "version": one.version,
        "uri": one.uri,
        "aliases": sorted(one.aliases),
        "created": history.moment(one.created),
        "passed": None if passed is None else passed == "true",
        "score": _score(one.tags),
    }


def _score(tags: Mapping[str, str]) -> dict[str, Any] | None:
    run_id = tags.get("warmstart.evaluation", "")
    found = Stage("evaluate", run_id, history.get(run_id), False).content("evaluation.json") or {}
    primary = found.get("primary")
    score = found.get("metrics", {}).get("model", {}).get(primary)
    return {"metric": primary, **score} if score else None
