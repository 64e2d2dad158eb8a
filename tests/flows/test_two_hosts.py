"""Two machines, each with a network and a name of its own, which at home resolves to 127.0.1.1 as on Debian: here two network namespaces."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from commands import COMMAND, clean_environment

BIN = Path(sys.executable).parent
TRIAL = ["unshare", "--uts", "--mount", "--net", "true"]
MISSING = shutil.which("ip") is None or shutil.which("unshare") is None or subprocess.run(TRIAL, capture_output=True, check=False).returncode != 0
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(MISSING, reason="needs root and iproute2, for network namespaces")]
NAMES = ("alpha", "beta")
CHANGES = ["pretraining.objective=simclr", "finetuning.baseline=false", "finetuning.classical=false", "compute.workers=2", "compute.threads=1", "compute.timeout=60"]
ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


class Hosts:
    """Starts commands on alpha (10.99.0.1) and beta (10.99.0.2)."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment, self.unique = folder, environment, f"ws{os.getpid()}"
        self.spaces = {name: f"{self.unique}-{name}" for name in NAMES}
        self.started: list[subprocess.Popen] = []

    def make(self) -> None:
        links = {name: f"{self.unique}{name[0]}" for name in NAMES}
        for name in NAMES:
            self._ip("netns", "add", self.spaces[name])
        self._ip("link", "add", links["alpha"], "type", "veth", "peer", "name", links["beta"])
        for number, name in enumerate(NAMES, 1):
            other = NAMES[2 - number]
            self._ip("link", "set", links[name], "netns", self.spaces[name])
            for words in (("addr", "add", f"10.99.0.{number}/24", "dev", links[name]), ("link", "set", links[name], "up"), ("link", "set", "lo", "up")):
                self._ip("-n", self.spaces[name], *words)
            (self.folder / f"hosts-{name}").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n10.99.0.{3 - number} {other}\n")

    def start(self, name: str, *command, **pipes) -> subprocess.Popen:
        words = ["ip", "netns", "exec", self.spaces[name], "unshare", "--uts", "--mount", "sh", "-c", ENTER, "sh", name, self.folder / f"hosts-{name}", *command]
        self.started.append(subprocess.Popen([str(word) for word in words], cwd=self.folder, env=self.environment, text=True, **pipes))
        return self.started[-1]

    def remove(self) -> None:
        for space in self.spaces.values():
            for pid in subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        for process in self.started:
            process.communicate()

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path):
    with TemporaryDirectory(prefix="ray-") as short:  # a socket's path must be short
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0"}
        places = {"WARMSTART_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
        found = Hosts(tmp_path, {**clean_environment(), **token, **places})
        try:
            found.make()
            yield found
        finally:
            found.remove()


def trained(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out)


def test_two_machines_train_by_torchrun(hosts, tiny):
    with (hosts.folder / "join.log").open("w") as log:
        other = hosts.start("beta", COMMAND, "join", stderr=log)
    run = hosts.start("alpha", COMMAND, "run", tiny, "--json", *CHANGES, "compute.engine=torchrun", "compute.address=10.99.0.1:29500", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert {stage["name"] for stage in trained(run)["stages"]} >= {"pretrain", "finetune", "register"}
    other.terminate()
    assert other.wait(60) == 0
    said = (hosts.folder / "join.log").read_text()
    assert said.count("joins pretrain-") == said.count("joins finetune-") == 1, said


def test_two_machines_train_by_ray(hosts, tiny):
    pytest.importorskip("ray")
    node = ("--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block")
    with (hosts.folder / "ray.log").open("w") as log:
        hosts.start("alpha", BIN / "ray", "start", "--head", "--port=6379", "--node-ip-address=10.99.0.1", "--include-dashboard=false", *node, stdout=log, stderr=log)
        hosts.start("beta", "sh", "-c", f"until {BIN / 'ray'} start --address=10.99.0.1:6379 --node-ip-address=10.99.0.2 {' '.join(node)}; do sleep 1; done", stdout=log, stderr=log)
    wait = hosts.start("alpha", sys.executable, "-c", "import ray, time; ray.init('10.99.0.1:6379', logging_level='error')\nwhile len(ray.nodes()) < 2: time.sleep(0.5)")
    assert wait.wait(200) == 0, (hosts.folder / "ray.log").read_text()
    run = hosts.start("alpha", COMMAND, "run", tiny, "--json", *CHANGES, "compute.engine=ray", "compute.address=10.99.0.1:6379", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert {stage["name"] for stage in trained(run)["stages"]} >= {"pretrain", "finetune", "register"}
