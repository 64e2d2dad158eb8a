"""A node of a Ray cluster that dies in a training: its ranks start again on the others, from the last checkpoint."""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from tempfile import TemporaryDirectory

import psutil
import pytest
from commands import newest_step
from mlflow import MlflowClient

pytest.importorskip("ray")

pytestmark = pytest.mark.e2e

NODES = """
import sys
from ray.cluster_utils import Cluster
common = {"object_store_memory": 10**8, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 0})
for _ in range(3):
    cluster.add_node(num_cpus=1, **common)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
CHANGES = [
    "pretraining.objective=simclr", "pretraining.fit.epochs=20", "pretraining.fit.checkpoint_seconds=0", "finetuning.fit.epochs=2", "finetuning.baseline=false", "finetuning.classical=false",
    "compute.engine=ray", "compute.workers=2", "compute.timeout=60",
]  # fmt: skip


@pytest.fixture
def nodes():
    """The folder and the address of a cluster of a head that computes nothing and three nodes of one core."""
    with TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        process = subprocess.Popen([sys.executable, "-c", NODES], env={**os.environ, "RAY_TMPDIR": folder}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield folder, process.stdout.readline().strip()
        finally:
            process.communicate()


def raylets(folder: str) -> dict[int, int]:
    """Of each rank that trains on the cluster in the folder: its process id, and that of its node."""
    found = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::RayTrainWorker"):
            with suppress(psutil.NoSuchProcess):
                if folder in " ".join(psutil.Process(process.info["ppid"]).cmdline()):
                    found[process.pid] = process.info["ppid"]
    return found


def test_a_killed_node_costs_nothing_but_time(nodes, tmp_path, start, tiny):
    folder, address = nodes
    process = start(tmp_path, "run", tiny, "--json", *CHANGES, f"compute.address={address}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    deadline = time.monotonic() + 240
    while newest_step(tmp_path) < 3:
        assert time.monotonic() < deadline and process.process.is_alive(), process.err
        time.sleep(0.05)
    ranks = raylets(folder)
    assert len(set(ranks.values())) == 2, "a rank on each of two nodes"
    os.kill(next(iter(ranks.values())), signal.SIGKILL)
    while not set(raylets(folder)) - set(ranks):  # others have taken their place
        assert time.monotonic() < deadline + 120 and process.process.is_alive(), process.err
        time.sleep(0.05)
    result = process.wait(400).result
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(next(stage["run_id"] for stage in result["stages"] if stage["name"] == "pretrain"))
    assert run.data.tags["warmstart.processes"] == "2"
    steps = [one.step for one in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] == int(run.data.params["steps"])
