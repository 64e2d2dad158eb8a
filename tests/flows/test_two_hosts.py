"""Two machines, each with a network and a name of its own, which at home resolves to 127.0.1.1 as on Debian: here two network namespaces."""

import json
import os
import secrets
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import namespaces
import pytest
from commands import COMMAND, clean_environment

BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.e2e, namespaces.needed]
CHANGES = ["pretraining.objective=simclr", "finetuning.baseline=false", "finetuning.classical=false", "compute.workers=2", "compute.threads=1", "compute.timeout=60"]


@pytest.fixture
def hosts(tmp_path):
    """alpha (10.99.0.1) and beta (10.99.0.2)."""
    with TemporaryDirectory(prefix="ray-") as short, ExitStack() as stack:  # a socket's path must be short
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0"}
        environment = {**clean_environment(), **token, "WARMSTART_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
        found = []
        for name, hosts in (("alpha", "127.0.1.1 alpha\n10.99.0.2 beta\n"), ("beta", "127.0.1.1 beta\n10.99.0.1 alpha\n")):
            found.append(namespaces.Namespace(name, tmp_path, hosts, environment))
            stack.callback(found[-1].remove)
        ends = [f"ws{os.getpid()}{one.name[0]}" for one in found]
        namespaces.ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (one, end) in enumerate(zip(found, ends, strict=True), 1):
            namespaces.ip("link", "set", end, "netns", one.space)
            namespaces.ip("-n", one.space, "addr", "add", f"10.99.0.{number}/24", "dev", end)
            namespaces.ip("-n", one.space, "link", "set", end, "up")
        yield found


def train(host: namespaces.Namespace, recipe: Path, *changes: str) -> None:
    process = host.start(COMMAND, "run", recipe, "--json", *CHANGES, *changes, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert {stage["name"] for stage in json.loads(out)["stages"]} >= {"pretrain", "finetune", "register"}


def test_two_machines_train_by_torchrun(hosts, tiny):
    alpha, beta = hosts
    with (alpha.folder / "join.log").open("w") as log:
        other = beta.start(COMMAND, "join", stderr=log)
    train(alpha, tiny, "compute.engine=torchrun", "compute.address=10.99.0.1:29500")
    other.terminate()
    assert other.wait(60) == 0
    said = (alpha.folder / "join.log").read_text()
    assert said.count("joins pretrain-") == said.count("joins finetune-") == 1, said


def test_two_machines_train_by_ray(hosts, tiny):
    pytest.importorskip("ray")
    alpha, beta = hosts
    node = ("--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block")
    with (alpha.folder / "ray.log").open("w") as log:
        alpha.start(BIN / "ray", "start", "--head", "--port=6379", "--node-ip-address=10.99.0.1", "--include-dashboard=false", *node, stdout=log, stderr=log)
        beta.start("sh", "-c", f"until {BIN / 'ray'} start --address=10.99.0.1:6379 --node-ip-address=10.99.0.2 {' '.join(node)}; do sleep 1; done", stdout=log, stderr=log)
    alpha.run(sys.executable, "-c", "import ray, time; ray.init('10.99.0.1:6379', logging_level='error')\nwhile len(ray.nodes()) < 2: time.sleep(0.5)")
    train(alpha, tiny, "compute.engine=ray", "compute.address=10.99.0.1:6379")
