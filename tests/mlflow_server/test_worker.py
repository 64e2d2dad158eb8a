"""What the worker gives to its runs."""

import os
import sys

import pytest

from mlflow_server import worker

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("runs", "given", "threads"),
    [(1, None, None), (2, None, str(max(1, CORES // 2))), (1000, None, "1"), (2, "5", "5"), (1, "5", "5")],
)
def test_runs_that_work_at_once_share_the_cores(monkeypatch, runs, given, threads):
    """In what the worker itself has as its environment, which its runs inherit."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setattr(os, "environ", {**environment, **({"OMP_NUM_THREADS": given} if given else {})})
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(worker, "install", lambda pool, runs: None)
    monkeypatch.setattr(worker, "watch", lambda: None)
    became = []
    monkeypatch.setattr(worker.runpy, "run_module", lambda name, **options: became.append(os.environ.get("OMP_NUM_THREADS")))
    worker.main("warmstart", runs, 0)
    assert became == [threads]
