"""What the served model saw lately beside what it was tested on, and the data beside those that it was trained on."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml import drift, observed
from ml.contracts import InputError
from ml.drift_pictures import pictures
from ml.predictor import Predictor, values_of
from ml.recipe import Recipe
from tasks import collector
from tasks.evaluate import REFERENCE
from tasks.stage import TASK
from tasks.tracking import database, flow_run, lineage, parent, registry, runs
from tasks.tracking.artifacts import fetch

EVALUATION = "warmstart.evaluation"
LATEST = observed.KEPT
"""Sampled rows that are read, at most: the latest."""


@task(name="observe", cache_policy=NO_CACHE, **TASK)
def observe(recipe: Recipe, samples: str, days: float, level: float, bound: float) -> dict[str, Any]:
    """Compares, and records what was found in a run in MLflow; `reasons` say why the model should be trained again."""
    database.prepare()
    collector.resume()
    name = recipe.registration.model or recipe.name
    champion = registry.champion(name)
    if champion is None:
        raise InputError(f"{name} has no champion to watch: run the pipeline first (`warmstart run`)")
    predictor = Predictor.load(registry.files(champion) / "artifacts" / "model")
    reference = observed.load(fetch(champion.tags[EVALUATION], REFERENCE)) if EVALUATION in champion.tags else {}
    if not reference:
        raise InputError(f"{champion.uri} has no reference to compare with: it was registered by an older Warmstart. Run the pipeline again.")
    values = recent(Path(samples), predictor.modality, days)
    seen = observed.of_values(predictor, values) if values else {}
    rows, tested = len(seen.get(observed.INPUTS, ())), len(reference[observed.INPUTS])
    found = [drift.compare(kind, reference[kind], seen[kind], recipe.seed) for kind in reference if kind in seen] if min(rows, tested) >= drift.LEAST else []
    # As many tests as comparisons: the level of the whole is that of one.
    drifted = [one for one in found if one.found(level / len(found), bound)]
    source = recipe.data.source.make().fingerprint()
    new_data = _trained_on(champion) not in (None, source)
    reasons = [f"{one.name} have drifted: p {one.p:.3g} at level {level:g} for {len(found)} tests, told apart with an AUC of {one.auc:.2f} (bound {bound:g})" for one in drifted]
    reasons += ["the data have changed since the champion was trained"] if new_data else []
    told = {
        "model": champion.uri,
        "rows": rows,
        "unusable": len(values) - rows,
        "days": days,
        "level": level,
        "bound": bound,
        "comparisons": [one.to_dict() for one in found],
        "new_data": new_data,
        "reasons": reasons,
        "key": hashlib.sha256(json.dumps([champion.uri, source, sorted(one.name for one in drifted)]).encode()).hexdigest(),
        "note": "" if found else f"{rows} usable rows were served in {days:g} days, and {tested} tested: {drift.LEAST} or more of each are needed to tell a drift",
    }
    told["page"] = _record(recipe, champion, told, pictures(reference, seen, predictor.spec.classes) if found else {})
    return told


def recent(folder: Path, modality: Any, days: float) -> list[Any]:
    """Items that were served lately, as `warmstart serve --sample` kept them: each one once, since many equal requests are no more evidence than one."""
    files = sorted(folder.glob("samples-*.parquet")) if folder.is_dir() else []
    since = datetime.now(UTC) - timedelta(days=days)
    found: dict[bytes, Any] = {}
    for file in reversed(files):
        try:
            if not set(modality.fields) <= set(pq.read_schema(file).names):
                continue  # of another kind of model
            table = ds.dataset(file, format="parquet").to_table(columns=list(modality.fields), filter=ds.field("time") >= since)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}. Remove it.") from None
        for value in values_of(table.to_pandas(), modality):
            found.setdefault(hashlib.sha256(repr(value).encode()).digest(), value)
        if len(found) >= LATEST:
            break
    return list(found.values())[:LATEST]


def _trained_on(champion: registry.Version) -> str | None:
    """The fingerprint of the data that the version was made from; None where that is no longer known."""
    steps = lineage.lineage(f"{champion.name}/{champion.version}")["steps"]
    return next((step["facts"].get("fingerprint") for step in steps if step["name"] == "preprocess" and step["facts"]), None)


def _record(recipe: Recipe, champion: registry.Version, told: dict[str, Any], figures: dict[str, Any]) -> str:
    """A run in MLflow with the comparison's figures and pictures; gives its address."""
    metrics = {f"drift/{one['name']}/{value}": one[value] for one in told["comparisons"] for value in ("p", "auc", "discrepancy")}
    with runs.single(f"{recipe.name}-watch", "watch", "watch", {"warmstart.model": champion.uri, **flow_run.tags()}) as run:
        parent.describe(run, {"model": champion.uri, "level": told["level"], "bound": told["bound"], "days": told["days"]}, metrics | {"rows": told["rows"], "reasons": len(told["reasons"])}, {})
        for name, figure in figures.items():
            database.retry(database.client().log_figure, run.run_id, figure, f"pictures/{name}.png")
        database.retry(database.client().log_dict, run.run_id, told, "watch.json")
        return parent.page(run)
