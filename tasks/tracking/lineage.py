"""Where a model version comes from: data → pretraining → split → fine-tuning → evaluation → version → who promoted it, as plain data.

    lineage = {uri, name, version, aliases, created, run_id, experiment, started, user, code, steps, history, notes, missing}
    step    = {name, run_id, reused, missing, facts, weights}

`steps` are in order. `reused` names the pipeline run that did the step where it was an earlier one; `missing` says what was deleted
since; `weights` is the lineage of the registered backbone that a pretraining started from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml.contracts import InputError
from ml.masking import mask
from tasks.tracking import database, history, registry
from tasks.tracking.history import Stage
from tasks.tracking.stages import PARENT

if TYPE_CHECKING:
    from mlflow.entities import Run

DEPTH = 8
"""Backbones that were pretrained from one another that are followed."""
STEPS = ("preprocess", "pretrain", "split", "finetune", "evaluate", "register")
BACKBONE = ("preprocess", "pretrain")


def lineage(name: str) -> dict[str, Any]:
    """Of the version that NAME@ALIAS, NAME/VERSION or models:/... means. What was deleted is told in its place."""
    return _of_version(history.version(name), frozenset())


def _of_version(one: registry.Version, seen: frozenset[str]) -> dict[str, Any]:
    made = history.get(one.run_id)
    pipeline = history.get(made.data.tags.get(PARENT)) if made else None
    moved = registry.moved_by_hand(one.name)
    told = {
        "uri": one.uri,
        "name": one.name,
        "version": one.version,
        "aliases": sorted(one.aliases),
        "created": history.moment(one.created),
        **_pipeline(pipeline, made),
        "steps": [],
        "history": [entry | {"time": history.moment(1000 * entry["time"])} for entry in registry.audit(one.name) if one.version in (entry["from"], entry["to"])],
        "notes": [by_hand(moved)] if moved and one.version in (moved["from"], moved["to"]) else [],
    }
    if made is not None:
        backbone = made.data.tags.get("warmstart.stage") == "pretrain"
        told["steps"] = _steps(pipeline, made, BACKBONE if backbone else STEPS, seen | {one.uri})
    return told


def by_hand(moved: Mapping[str, Any]) -> str:
    """What `registry.moved_by_hand` found, in words."""
    where = f"from version {moved['from'] or 'none'} to version {moved['to']}" if moved["to"] else f"away from version {moved['from']}"
    return f"the alias champion was moved by hand (outside Warmstart) {where}, some time after {history.moment(1000 * moved['after'])}"


def _pipeline(pipeline: Run | None, made: Run | None) -> dict[str, Any]:
    """Which pipeline run it was; or what of it is gone."""
    if pipeline is None:
        return {"run_id": None, "missing": "the run that registered it was deleted" if made is None else "the pipeline run was deleted"}
    tags, deleted = pipeline.data.tags, pipeline.info.lifecycle_stage == "deleted"
    return {
        "run_id": pipeline.info.run_id,
        "missing": "the pipeline run was deleted" if deleted else "",
        "experiment": pipeline.info.run_name,
        "started": history.moment(pipeline.info.start_time),
        "user": tags.get("mlflow.user", ""),
        "code": {"version": tags.get("warmstart.version", ""), "commit": tags.get("mlflow.source.git.commit", ""), "dirty": tags.get("warmstart.dirty") == "true"},
    }


def _steps(pipeline: Run | None, made: Run, names: tuple[str, ...], seen: frozenset[str]) -> list[dict[str, Any]]:
    found = history.stages(pipeline) if pipeline is not None else {}
    own = made.data.tags.get("warmstart.stage", "")
    found[own] = found[own] if own in found else Stage(own, made.info.run_id, made, False)
    recipe = history.recipe(pipeline)
    return [_step(name, found.get(name), recipe, seen) for name in names]


def _step(name: str, stage: Stage | None, recipe: Mapping[str, Any], seen: frozenset[str]) -> dict[str, Any]:
    if stage is None:
        return {"name": name, "run_id": None, "reused": None, "missing": "there is no record of it any more", "facts": {}, "weights": None}
    facts = {fact: value for fact, value in FACTS[name](stage, recipe).items() if value not in (None, "", {}, [])}
    weights = _weights(stage, recipe, seen) if name == "pretrain" else None
    return {"name": name, "run_id": stage.run_id, "reused": _doer(stage), "missing": stage.missing, "facts": facts, "weights": weights}


def _doer(stage: Stage) -> dict[str, Any] | None:
    """The earlier pipeline run that did a reused stage."""
    if not stage.reused:
        return None
    pipeline = history.get(stage.run.data.tags.get(PARENT)) if stage.run else None
    if pipeline is None:
        return {"run_id": None, "experiment": None, "started": None}
    return {"run_id": pipeline.info.run_id, "experiment": pipeline.info.run_name, "started": history.moment(pipeline.info.start_time)}


def _weights(stage: Stage, recipe: Mapping[str, Any], seen: frozenset[str]) -> dict[str, Any] | None:
    """The lineage of the registered backbone, or of the run, that a pretraining started from; None for other weights."""
    given, digest = str(recipe.get("weights", "")), stage.inputs.get("weights")
    if digest is None or not given.startswith(("models:/", "runs:/")):
        return None
    if len(seen) >= DEPTH:
        return _unknown(given, f"not followed further than {DEPTH} backbones back")
    if given.startswith("runs:/"):
        return _of_run(given, seen)
    name = re.split(r"[/@]", given.removeprefix("models:/"))[0]
    # What the alias named then may be another version now: the one with the digest that was read is looked for.
    try:
        numbers = sorted((int(one.version) for one in database.retry(database.client().search_model_versions, f"name = '{name}'")), reverse=True)
        found = next((one for one in (registry.version(name, number) for number in numbers) if _weights_digest(one.run_id) == digest), None)
    except InputError as error:
        return _unknown(given, str(error))
    if found is None:
        return _unknown(given, f"no version of {name} has these weights any more")
    return _unknown(found.uri, "these weights were told before") if found.uri in seen else _of_version(found, seen)


def _of_run(uri: str, seen: frozenset[str]) -> dict[str, Any]:
    made = history.get(uri.removeprefix("runs:/").split("/")[0])
    if made is None or uri in seen:
        return _unknown(uri, "the run was deleted" if made is None else "these weights were told before")
    pipeline = history.get(made.data.tags.get(PARENT))
    return _unknown(uri, "") | _pipeline(pipeline, made) | {"steps": _steps(pipeline, made, BACKBONE, seen | {uri})}


def _unknown(uri: str, why: str) -> dict[str, Any]:
    return {"uri": uri, "name": uri, "version": None, "aliases": [], "created": None, "run_id": None, "missing": why, "steps": [], "history": [], "notes": []}


def _weights_digest(run_id: str) -> str:
    """`ml.weights.weights_digest` of the backbone that a run stored, by its manifest."""
    run = history.get(run_id)
    listed = (Stage("pretrain", run_id, run, False).content("manifest.json") or {}).get("artifacts", {})
    sums = [listed.get(f"backbone/backbone.{kind}", {}).get("sha256", "") for kind in ("json", "safetensors")]
    return hashlib.sha256(b"".join(map(bytes.fromhex, sums))).hexdigest() if all(sums) else ""


def _preprocess(stage: Stage, recipe: Mapping[str, Any]) -> dict[str, Any]:
    facts, data = stage.content("data.json") or {}, recipe.get("data", {})
    options = data.get("source", {}).get("options", {})
    return {
        "source": data.get("source", {}).get("name"),
        "path": mask(str(options.get("path", ""))),
        "modality": data.get("modality", {}).get("name"),
        "fingerprint": stage.inputs.get("source"),
        "store": facts.get("digest"),
        "rows": facts.get("rows"),
        "parts": facts.get("parts"),
        "quarantined": facts.get("quarantined"),
        "classes": len(facts.get("classes", ())),
    }


def _pretrain(stage: Stage, recipe: Mapping[str, Any]) -> dict[str, Any]:
    params, metrics = _values(stage)
    trained = params.get("pretraining.enabled") != "False"
    return {
        "backbone": params.get("backbone.name"),
        "weights": mask(str(recipe.get("weights", ""))) or params.get("weights"),
        "objective": params.get("pretraining.objective.name") if trained else "none: the weights as they were",
        **_training(params, metrics),
    }


def _split(stage: Stage, recipe: Mapping[str, Any]) -> dict[str, Any]:
    _, metrics = _values(stage)
    return {"rows": {name.removeprefix("rows/"): int(value) for name, value in metrics.items() if name.startswith("rows/")}}


def _finetune(stage: Stage, recipe: Mapping[str, Any]) -> dict[str, Any]:
    params, metrics = _values(stage)
    score = metrics.get("best/score")
    return {
        "head": params.get("finetuning.head.name"),
        "method": params.get("finetuning.method.name"),
        **_training(params, metrics),
        "validation": score,
    }


def _evaluate(stage: Stage, recipe: Mapping[str, Any]) -> dict[str, Any]:
    found = stage.content("evaluation.json") or {}
    primary = found.get("primary", "")
    return {
        "metric": primary,
        "score": found.get("metrics", {}).get("model", {}).get(primary),
        "confidence": found.get("confidence"),
        "conclusions": found.get("words"),
        "seen in pretraining": found.get("seen_in_pretraining"),
    }


def _register(stage: Stage, recipe: Mapping[str, Any]) -> dict[str, Any]:
    found = stage.content("judged.json") or {}
    return {"passed": found.get("passed"), "against": found.get("against"), "reasons": found.get("reasons")}


FACTS = {"preprocess": _preprocess, "pretrain": _pretrain, "split": _split, "finetune": _finetune, "evaluate": _evaluate, "register": _register}


def _training(params: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, Any]:
    rows, epochs = (int(params[name]) if params.get(name, "").isdigit() else None for name in ("rows", "epochs_done"))
    return {"rows": rows, "epochs": epochs, "samples": rows * epochs if rows and epochs else None, "seed": params.get("seed"), "seconds": metrics.get("seconds")}


def _values(stage: Stage) -> tuple[dict[str, str], dict[str, float]]:
    return (stage.run.data.params, stage.run.data.metrics) if stage.run else ({}, {})
