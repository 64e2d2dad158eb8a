"""What the worker gives to its runs."""

import os

import pytest

from mlflow_server.worker import share

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("runs", "threads"), [(1, None), (2, max(1, CORES // 2)), (1000, 1)])
def test_runs_that_work_at_once_share_the_cores(monkeypatch, runs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share(runs) == ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share(runs) == {}, "what was set stays"
