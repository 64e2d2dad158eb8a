"""Promotion and rollback as flows, so that they can be triggered, scheduled and seen in Prefect: the same moves as the commands make."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tasks.tracking import database, flow_run, registry


@flow(name="promote", flow_run_name="{model}-{version}", persist_result=False)
def promote(model: str, version: int, reason: str = "by hand") -> dict[str, Any]:
    """Makes version `version` of the registered model the champion; the one before becomes `previous`."""
    return move(model, version, reason)


@flow(name="rollback", flow_run_name="{model}", persist_result=False)
def rollback(model: str, reason: str = "by hand") -> dict[str, Any]:
    """Makes the previous champion of the registered model the champion again."""
    return move(model, None, reason)


@task(name="move", cache_policy=NO_CACHE, persist_result=False)
def move(model: str, version: int | None, reason: str) -> dict[str, Any]:
    """Moves the alias to the version, or back to the previous one; gives which it was and is."""
    database.prepare()
    before, found = registry.move(model, version, reason)
    moved = {"model": found.uri, "before": before.uri if before else None}
    flow_run.summarise(f"{model}-champion", f"# {flow_run.plain(found.uri)} is the champion\n\n{flow_run.table(moved | {'reason': reason})}\n")
    return moved
