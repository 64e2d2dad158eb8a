"""Eight commands at once, from nothing: one of them does each stage, and all come to the same end."""

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.e2e


def living(mark: str) -> list[str]:
    """The commands of processes whose environment holds `mark`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_eight_runs_on_an_empty_folder_with_no_server(eight, tiny, tmp_path):
    every = eight("run", tiny, "--json", "finetuning.classical=false")
    results = [done.result for done in every]
    for number, stage in enumerate(results[0]["stages"]):
        ways = [result["stages"][number] for result in results]
        assert len({way["run_id"] for way in ways}) == 1, stage["name"]
        assert sum(not way["cached"] for way in ways) == 1, f"{stage['name']} was done more than once"
    assert len({result["run_id"] for result in results}) == 8
    assert all(result["metrics"] == results[0]["metrics"] and result["model"] == results[0]["model"] for result in results)
    client = MlflowClient(f"sqlite:///{tmp_path / 'work' / 'mlflow.db'}")
    assert {run.info.status for run in client.search_runs([client.get_experiment_by_name("tiny").experiment_id])} == {"FINISHED"}
    deadline = time.monotonic() + 30
    while (left := living(str(tmp_path / "prefect"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == [], "the temporary server ends with the last command"
