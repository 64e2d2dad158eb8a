"""A training that two machines make together: here two launchers that meet at an address of this one."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from ml import engines
from ml.contracts import InputError
from ml.engines.torchrun import command
from ml.joining import join
from ml.plan import Plan
from ml.preprocess import preprocess
from ml.recipe import load
from ml.splitting import split

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["finetuning.fit.optimizer=sgd", "finetuning.fit.epochs=8", "finetuning.fit.batch_size=27", "finetuning.fit.learning_rate=0.05", "finetuning.fit.checkpoint_seconds=0"]
JOIN = "import sys; from flows.cli import command; sys.argv = ['warmstart', 'join']; command()"


@pytest.fixture(scope="module")
def train(tiny, tmp_path_factory):
    """Trains in a work folder with changes to the recipe; gives how it went and the weights."""
    folder = tmp_path_factory.mktemp("store")
    first = load(tiny, [])
    store = preprocess(first.data.source.make(), first.data.modality.make(), first.data, folder / "work", folder / "stores")

    def run(workdir, *changes):
        recipe = load(tiny, [*SETTINGS, *changes])
        plan = Plan("finetune", recipe, store, split(store.table, store.spec.classes, recipe.splitting, recipe.seed))
        workdir.mkdir(parents=True)
        torch.manual_seed(0)
        training, fitted = engines.train(plan, plan.bare(), workdir, lambda metrics, step: None)
        return fitted, training.module.state_dict()

    return run


def machine(home: Path) -> subprocess.Popen:
    """Another machine, which waits for trainings."""
    return subprocess.Popen([sys.executable, "-c", JOIN], env={"WARMSTART_HOME": str(home), "PYTHONPATH": str(ROOT), "PATH": ""}, stderr=subprocess.PIPE, text=True)


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def reached(workdir: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.parent.name.split("-")[1]) for path in workdir.glob("checkpoints/step-*/manifest.json")), default=0)


@pytest.mark.e2e
def test_two_machines_train_what_one_trains_and_one_may_die(train, tmp_path):
    _, expected = train(tmp_path / "one")
    workdir = tmp_path / "home" / "work" / "finetune-two"
    killed, others = threading.Event(), [machine(tmp_path / "home")]

    def kill() -> None:
        while reached(workdir) < 3:
            time.sleep(0.05)
        family = [psutil.Process(others[0].pid), *psutil.Process(others[0].pid).children(recursive=True)]
        for process in family:
            process.kill()
        others[0].communicate()
        killed.set()
        others.append(machine(tmp_path / "home"))

    threading.Thread(target=kill, daemon=True).start()
    changes = ["compute.engine=torchrun", "compute.workers=2", f"compute.address=127.0.0.1:{free()}", "compute.timeout=30", "compute.threads=1"]
    fitted, weights = train(workdir, *changes)
    assert killed.is_set() and fitted.processes == [2]
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    assert not (workdir / "ranks").exists()  # nobody can join any more
    below = psutil.Process(others[1].pid).children(recursive=True)
    others[1].send_signal(signal.SIGTERM)
    said = others[1].communicate(timeout=60)[1]
    assert others[1].returncode == 0 and "joins finetune-two" in said, said
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_plans_that_a_dead_machine_left_or_that_are_for_one_are_passed_over(tiny, tmp_path):
    several = ["compute.engine=torchrun", "compute.workers=2"]
    recipes = {"dead": [*several, f"compute.address=127.0.0.1:{free()}"], "alone": several}
    for name, changes in recipes.items():
        (tmp_path / name / "ranks" / "logs").mkdir(parents=True)
        (tmp_path / name / "ranks" / "job.json").write_text(json.dumps({"recipe": load(tiny, changes).model_dump(mode="json")}))
    (tmp_path / "torn" / "ranks").mkdir(parents=True)
    (tmp_path / "torn" / "ranks" / "job.json").write_text('{"rec')
    looks = iter([False] * 4)
    join(tmp_path, lambda: next(looks, True))
    assert not list(tmp_path.glob("*/ranks/logs/*"))


def test_an_address_that_is_nowhere_is_told(tiny, tmp_path):
    compute = load(tiny, ["compute.engine=torchrun", "compute.address=nowhere.invalid:29500"]).compute
    with pytest.raises(InputError, match=r"nowhere\.invalid:29500 is no place that this machine can reach"):
        command(tmp_path / "ranks", compute)
