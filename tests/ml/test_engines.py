"""Every engine with several processes trains what one process trains; what is wrong with a recipe comes out as it does there."""

import threading
import time

import psutil
import pytest
import torch

from ml import engines
from ml.contracts import InputError
from ml.engines import ENGINES
from ml.plan import Plan
from ml.preprocess import preprocess
from ml.recipe import Strategy, load
from ml.splitting import split

pytestmark = pytest.mark.e2e

SGD = ["finetuning.fit.optimizer=sgd", "finetuning.fit.epochs=2", "finetuning.fit.batch_size=27", "finetuning.fit.learning_rate=0.05"]


@pytest.fixture(scope="module")
def two(engine, request):
    """Two processes of an engine: on a cluster that runs, where it needs one."""
    address = [f"compute.address={request.getfixturevalue('cluster')}"] if ENGINES[engine].needs else []
    return [f"compute.engine={engine}", "compute.workers=2", "compute.timeout=60", *address]


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny):
    recipe, home = load(tiny, []), tmp_path_factory.mktemp("store")
    head = recipe.finetuning.head.chosen
    return preprocess(recipe.data.source.make(), recipe.data.modality.make(), recipe.data, home / "work", home / "stores", head.labels, head.several)


@pytest.fixture(scope="module")
def train(store, tiny):
    """Trains with changes to the recipe in a folder; gives how it went, the weights, and the curve by step."""

    def run(folder, *changes):
        recipe = load(tiny, [*SGD, *changes])
        plan, curve = Plan("finetune", recipe, store, split(store.table, store.spec.classes, recipe.splitting, recipe.seed)), {}
        torch.manual_seed(0)
        training, fitted = engines.train(plan, plan.bare(), folder, lambda metrics, step: curve.setdefault(step, {}).update(metrics))
        return fitted, training.module.state_dict(), {step: metrics["train/loss"] for step, metrics in curve.items() if "train/loss" in metrics}

    return run


@pytest.fixture(scope="module")
def one(train, tmp_path_factory):
    """What one process trains."""
    return train(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("strategy", Strategy)
def test_two_processes_train_what_one_trains(two, engine, strategy, one, train, tmp_path):
    if ENGINES[engine].needs and strategy is Strategy.ddp:
        pytest.skip("takes long, and tests/flows/test_several_processes.py trains so")
    (tmp_path / "two").mkdir()
    fitted, weights, losses = one
    fitted_two, weights_two, losses_two = train(tmp_path / "two", *two, f"compute.strategy={strategy.value}")
    assert (fitted.processes, fitted_two.processes) == ([1], [2])
    assert losses_two == pytest.approx(losses, rel=1e-4) and len(losses) > 4
    assert fitted_two.metrics == pytest.approx(fitted.metrics, rel=1e-3)
    for name, value in weights.items():
        torch.testing.assert_close(weights_two[name], value, rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "two" / "ranks").exists()


def test_a_process_that_hangs_is_noticed_and_replaced(two, engine, train, tmp_path):
    if ENGINES[engine].needs:
        pytest.skip("takes four minutes: a cluster looks for hung processes seldom")
    hung = []

    def hang() -> None:
        while not list(tmp_path.glob("checkpoints/step-*/manifest.json")):
            time.sleep(0.05)
        ranks = [process for process in psutil.process_iter(["cmdline"]) if is_rank(process.info["cmdline"] or [""], str(tmp_path))]
        hung.append(ranks[0])
        ranks[0].suspend()

    threading.Thread(target=hang, daemon=True).start()
    fitted, _, losses = train(tmp_path, *two, "compute.timeout=10", "finetuning.fit.epochs=12", "finetuning.fit.checkpoint_seconds=0")
    assert fitted.epochs == 12 and len(losses) == fitted.steps
    assert psutil.wait_procs(hung, 60)[1] == []


def is_rank(words: list[str], folder: str) -> bool:
    """Whether these are the words of a process that trains in the folder."""
    return "ml.engines.rank" in words and "torch.distributed.run" not in words and any(word.startswith(folder) for word in words)


def test_what_a_process_finds_wrong_comes_out(two, train, tmp_path):
    with pytest.raises(InputError, match="which 2 processes cannot share"):
        train(tmp_path, *two, "finetuning.fit.accumulate=27")
