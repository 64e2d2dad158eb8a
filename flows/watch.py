"""Watch and retrain: a scheduled look at what the served model saw lately, which triggers the pipeline when that has drifted or new data have come."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ml.contracts import InputError
from ml.recipe import Recipe
from tasks.tracking import flow_run
from tasks.watch import observe


@flow(name="watch", flow_run_name="{recipe.name}", persist_result=False)
def watch(recipe: Recipe, samples: str = "samples", days: float = 7, level: float = 0.01, bound: float = 0.6, retrain: bool = True) -> dict[str, Any]:
    """Compares what the champion served lately with what it was tested on, and its data with those of today.

    Args:
        recipe: the recipe that the model is made by
        samples: the folder that `warmstart serve --samples` writes
        days: how far back samples count
        level: the chance of a false alarm of one look, at most, however many tests it makes
        bound: the smallest drift that matters: how well a classifier tells both samples apart (AUC, 0.5 to 1)
        retrain: trigger the deployment pretrain-finetune/NAME when there is a reason; its result goes through the gate
    """
    with flow_run.followed():
        if not (0 < level < 1 and 0.5 <= bound <= 1 and days > 0):
            raise InputError(f"level {level:g}, bound {bound:g}, days {days:g}: expected a level between 0 and 1, a bound from 0.5 to 1, and days above 0")
        found = observe(recipe, samples, days, level, bound)
        found["triggered"] = trigger(recipe.name, found["key"]) if found["reasons"] and retrain else None
        flow_run.summarise(f"{recipe.name}-watch", _markdown(recipe.name, found))
        return found


def trigger(name: str, key: str) -> str:
    """Starts the pipeline's deployment, once for one reason: the same champion, data and drift. Gives the flow run's id. Raises InputError."""
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    try:
        return str(run_deployment(f"pretrain-finetune/{name}", timeout=0, as_subflow=False, idempotency_key=f"watch-{key}").id)
    except ObjectNotFound:
        raise InputError(f"there is no deployment pretrain-finetune/{name} to retrain by: `warmstart deploy` makes it, or set retrain to false") from None


def _markdown(name: str, found: dict[str, Any]) -> str:
    compared = {one["name"]: f"p {one['p']:.3g}, AUC {one['auc']:.2f}, {one['m']:,} served rows against {one['n']:,} tested" for one in found["comparisons"]}
    lines = [
        f"# {flow_run.plain(name)}: {'retrain' if found['reasons'] else 'no reason to retrain'}",
        *(f"- {flow_run.plain(one)}" for one in found["reasons"]),
        *([flow_run.plain(found["note"])] if found["note"] else []),
        flow_run.table({"watched": found["model"], "rows": found["rows"], **compared}),
        f"[Pictures in MLflow]({found['page']})" if found["page"].startswith("http") else f"In MLflow: run {found['page']}",
        *([f"Triggered: flow run {found['triggered']}"] if found["triggered"] else []),
    ]
    return "\n\n".join(lines)
