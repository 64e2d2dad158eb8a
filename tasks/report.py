"""The end of a run: its summary as JSON and its report as HTML, both artifacts of the parent run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml.recipe import Recipe
from ml.report import duration, render
from tasks.evaluate import read_evaluation
from tasks.references import BackboneRef, ClassicalRef, DatasetRef, ModelRef, RegisteredModel, ReportRef, SplitsRef, StageSummary
from tasks.stage import TASK, Run, flat
from tasks.tracking import flow_run, parent
from tasks.tracking.artifacts import fetch

SECTIONS = {"preprocess": "data", "pretrain": "training", "finetune": "training", "baseline": "training", "evaluate": "evaluation"}


@task(name="report", cache_policy=NO_CACHE, **TASK)
def report(
    dataset: DatasetRef,
    backbone: BackboneRef,
    splits: SplitsRef,
    model: ModelRef,
    baseline: ModelRef | None,
    classical: ClassicalRef | None,
    evaluation: ReportRef,
    registered: RegisteredModel,
    recipe: Recipe,
    run: Run,
) -> dict[str, Any]:
    """Writes both, and gives the summary, which is what `warmstart run --json` prints."""
    references = (dataset, backbone, splits, model, baseline, classical, evaluation, registered)
    stages = [stage for one in references if one is not None for stage in (*getattr(one, "tried", ()), one.stage)]
    content = read_evaluation(evaluation)
    summary = {
        "run_id": run.tracked.run_id,
        "experiment": run.tracked.experiment,
        "stages": [stage.to_dict() for stage in stages],
        "primary": content["primary"],
        "metrics": evaluation.metrics,
        "baseline": evaluation.baseline,
        "classical": evaluation.classical,
        "differences": content["differences"],
        "conclusions": [*content["words"], _cost(backbone, model)],
        "model": {"name": registered.name, "version": registered.version, "uri": registered.uri, "aliases": list(registered.aliases)},
        "verdict": {"passed": registered.passed, "reasons": list(registered.reasons)},
        "look": parent.where_to_look(),
    }
    page = render(_context(summary, content, stages, dataset, classical, recipe))
    summary["report"] = parent.store(run.tracked, run.home / "work", {"report.html": page})
    parent.store(run.tracked, run.home / "work", {"summary.json": json.dumps(summary, indent=1)})
    metrics = {f"best/{name}": one["value"] for name, one in evaluation.metrics.items()} | {"passed": float(registered.passed)}
    gain = content["differences"].get("baseline", {}).get(content["primary"])
    parent.describe(
        run.tracked,
        params=flat({"seed": recipe.seed, "backbone": recipe.backbone.name.value, "objective": recipe.pretraining.objective.name.value}),
        metrics=metrics | ({"best/gain_over_scratch": gain["value"]} if gain else {}),
        datasets={recipe.name: dataset.digest},
    )
    flow_run.summarise(recipe.name, _markdown(summary, parent.page(run.tracked)))
    return summary


def _markdown(summary: dict[str, Any], page: str) -> str:
    """What Prefect's UI shows of the run."""
    verdict, model = summary["verdict"], summary["model"]
    scores = {name: f"{one['value']:.4g} [{one['low']:.4g}, {one['high']:.4g}]" for name, one in summary["metrics"].items() if None not in (one["value"], one["low"], one["high"])}
    lines = [
        f"# {flow_run.plain(summary['experiment'])}: the gate was {'passed' if verdict['passed'] else 'not passed'}",
        *(f"- {flow_run.plain(line)}" for line in (*summary["conclusions"], *verdict["reasons"])),
        flow_run.table(scores),
        flow_run.table({f"{stage['name']}": f"{'reused' if stage['cached'] else 'done'} in {stage['seconds']:.1f} s" for stage in summary["stages"]}),
        f"Model: {flow_run.plain(model['uri'])} {flow_run.plain(', '.join(model['aliases']))}",
        f"[Parameters, curves and the report in MLflow]({page})" if page.startswith("http") else f"In MLflow: run {page}",
    ]
    return "\n\n".join([lines[0], "\n".join(lines[1:-4]), *lines[-4:]])


def _context(
    summary: dict[str, Any], content: dict[str, Any], stages: list[StageSummary], dataset: DatasetRef, classical: ClassicalRef | None, recipe: Recipe
) -> dict[str, Any]:
    """What the template needs, as ml.report documents it."""
    facts = json.loads(fetch(dataset.stage.run_id, "data.json").read_text(encoding="utf-8"))
    return {
        "title": recipe.name,
        "subtitle": f"{recipe.backbone.name.value}, {_started(recipe)}, {recipe.finetuning.method.name.value} fine-tuning, seed {recipe.seed}",
        "evaluation": content,
        "verdict": summary["verdict"],
        "model": summary["model"],
        "leakage": {"seen": content["seen_in_pretraining"], "of": content["n"]},
        "data": {
            "items found": facts["scanned"],
            "rows used": facts["rows"],
            "classes": len(facts["classes"]),
            **({"rows of no class": facts["of_no_class"], "labels a row": round(facts["labels_per_row"], 2)} if "of_no_class" in facts else {}),
            **{f"{part} rows": count for part, count in facts["parts"].items()},
            "stored as": " × ".join(map(str, facts["shape"])),
            "quarantined": facts["quarantined"],
            "exact copies removed": facts["duplicates"]["exact"],
            "near copies kept together": facts["duplicates"]["near"],
            "copies of test rows removed": sum(facts["leakage"].values()),
            "items with two labels": facts["conflicts"]["items"],
            "largest class over smallest": round(float(facts["imbalance"]), 2),
            "digest": dataset.digest[:16],
        },
        "quarantine": facts["reasons"],
        "stages": [stage.to_dict() for stage in stages],
        "pictures": [one for stage in stages if stage.name != "pretrain" or recipe.pretraining.enabled for one in _pictures(stage)],
        "notes": [summary["conclusions"][-1], *_notes(classical, recipe)],
        "recipe": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _notes(classical: ClassicalRef | None, recipe: Recipe) -> list[str]:
    notes = [f"The simple alternative was {classical.description}."] if classical else []
    if recipe.pretraining.enabled and recipe.pretraining.objective.chosen.labels:
        notes.append(
            "Pretraining used the labels of all rows outside the test, those that splitting leaves out or keeps for validation among "
            "them: the gain over random weights is not one of few labels, and validation scores are optimistic."
        )
    return notes


def _cost(backbone: BackboneRef, model: ModelRef) -> str:
    fine_tuning = f"fine-tuning took {duration(model.seconds)}"
    return f"Pretraining took {duration(backbone.seconds)}, {fine_tuning}." if backbone.seconds else f"{fine_tuning.capitalize()}."


def _started(recipe: Recipe) -> str:
    start = "random weights" if recipe.weights == "random" else Path(recipe.weights).name
    return f"pretrained with {recipe.pretraining.objective.name.value} from {start}" if recipe.pretraining.enabled else f"from {start}"


def _pictures(stage: StageSummary) -> list[dict[str, Any]]:
    if stage.name not in SECTIONS:
        return []
    folder = fetch(stage.run_id, "pictures")
    return [
        {"title": f"{stage.name}: {path.stem.lstrip('0123456789_').replace('_', ' ')}", "png": path.read_bytes(), "section": SECTIONS[stage.name]}
        for path in sorted(folder.glob("*.png"))
    ]
