"""Removes for good the runs that were deleted in MLflow some time ago, but for those that the registry still refers to.

`mlflow gc` does not look at the registry: a champion whose run was deleted by mistake would lose its files. What is kept: the run of every registered
version and every run that is under way, all runs of the pipeline that it belongs to, and every run that one of those names (a stage that was reused, an
evaluation).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from ml.contracts import InputError
from ml.masking import mask
from tasks.tracking import database, registry, runs

ID = re.compile(r"\b[0-9a-f]{32}\b")
AT_ONCE = 50  # runs that one call of `mlflow gc` gets: a command line is bounded


def clean(uri: str, artifacts: str, days: float, dry: bool, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """The ids that were (with `dry`, would be) removed, and of deleted runs those that are kept. Raises InputError."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    database.prepare()
    deleted = runs.everywhere(deleted=True)
    before = (time.time() - days * 86400) * 1000
    old = {run.info.run_id for run in deleted if (run.info.end_time or run.info.start_time or 0) <= before}
    kept = referred([*deleted, *runs.everywhere()], registry.everything())
    removed = sorted(old - kept)
    for start in range(0, 0 if dry else len(removed), AT_ONCE):
        say(f"removing {start:,} of {len(removed):,}")
        part = removed[start : start + AT_ONCE]
        line = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri, "--artifacts-destination", artifacts, "--run-ids", ",".join(part)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"mlflow gc failed: {mask(' '.join(done.stderr.split()))[-300:]}")
    return removed, sorted(old & kept)


def referred(all_runs: Iterable[Any], registered: Iterable[Any]) -> set[str]:
    """Ids of the runs that the registry or a run under way refers to, directly or by way of other runs."""
    waiting = [one for version in registered for one in ID.findall(" ".join([version.run_id or "", version.source or "", *version.tags.values()]))]
    named: dict[str, set[str]] = {}
    together: dict[str, set[str]] = {}
    for run in all_runs:
        told = " ".join([*run.data.tags.values(), *run.data.params.values()])
        named[run.info.run_id] = set(ID.findall(told))
        parent = run.data.tags.get("mlflow.parentRunId", run.info.run_id)
        together.setdefault(parent, set()).add(run.info.run_id)
        if run.info.status == "RUNNING":
            waiting.append(run.info.run_id)
    family = {one: members | {parent} for parent, members in together.items() for one in members}
    found: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += named.get(one, set()) | family.get(one, set())
    return found
