"""Two ranks learn what one process learns: the same losses and weights but for rounding, whatever couples the rows of a batch."""

import json
import os
import socket
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ml.plan import Plan, save_weights
from ml.preprocess import preprocess
from ml.recipe import Strategy, load
from ml.splitting import split

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
SGD = ["fit.optimizer=sgd", "fit.epochs=2"]
"""Adam makes large steps of gradients that are nothing but rounding, which would hide what is compared."""

# The stage, the recipe, and what is changed in that. Batch sizes are odd, so that shares are unequal.
CASES = {
    "images": ("finetune", "image", ["fit.batch_size=27", "fit.learning_rate=0.05", "fit.ema=0.9", "balance=weights", "augmentation={mixup: 0.4, noise: 0.1}"]),
    "accumulated": ("finetune", "image", ["fit.batch_size=27", "fit.learning_rate=0.05", "fit.accumulate=3"]),
    "unfreezing": ("finetune", "image", ["fit.batch_size=27", "fit.learning_rate=0.05", "fit.epochs=4", "fit.ema=0.9", "method=gradual-unfreezing", "fit.checkpoint_seconds=0"]),
    "probe": ("finetune", "image", ["fit.batch_size=27", "fit.learning_rate=0.05", "method=linear-probe", "augmentation.preset=none"]),
    "texts": ("finetune", "text", ["fit.batch_size=27", "fit.learning_rate=0.1"]),
    "language-model": ("finetune", "language-model", ["fit.batch_size=7", "fit.learning_rate=0.1"]),
    "simclr": ("pretrain", "image", ["objective=simclr", "fit.batch_size=31", "fit.learning_rate=0.05", "probe=true"]),
    "vicreg": ("pretrain", "image", ["objective=vicreg", "fit.batch_size=31", "fit.learning_rate=0.001"]),
    "pairs": ("pretrain", "embedding", ["objective=pairs", "fit.batch_size=7", "fit.learning_rate=0.05"]),
}
# A case, and who trains it one after the other: each for three steps, the last to the end.
WAYS = {
    "1 then 2": ("simclr", [(1, "ddp"), (2, "ddp")]),
    "2 then 1": ("simclr", [(2, "ddp"), (1, "ddp")]),
    "1, divided, 2, 1": ("unfreezing", [(1, "ddp"), (2, "fsdp"), (2, "ddp"), (1, "ddp")]),
    "divided, 1, divided": ("unfreezing", [(2, "fsdp"), (1, "ddp"), (2, "fsdp")]),
}
TWO = {"ddp": ("ddp", False), "fsdp": ("fsdp", False), "apart": ("ddp", True)}
"""How two ranks train: the strategy, and whether each is on a machine of its own, so that torch's parallelism exchanges what sockets do otherwise."""
STOP = 3
POISONED = {"unfreezing": 5, "accumulated": 11}
"""Cases trained once more, in which one rank's loss is not finite at this call: the first returns to a checkpoint, the other to the first weights."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny, tiny_text, tiny_heads):
    """A folder in which every case was trained by one and by two processes, and some by several in turn."""
    paths, folder, stores = {"image": tiny, "text": tiny_text, **tiny_heads}, tmp_path_factory.mktemp("trained"), {}
    for name, (stage, which, changes) in CASES.items():
        part = "pretraining" if stage == "pretrain" else "finetuning"
        still = [] if which == "image" else ["backbone.options.dropout=0"]  # each rank drops its own
        recipe = load(paths[which], [*still, *[f"{part}.{one}" for one in [*SGD, *changes]]])
        if which not in stores:
            head, home = recipe.finetuning.head.chosen, folder / "stores" / which
            stores[which] = preprocess(recipe.data.source.make(), recipe.data.modality.make(), recipe.data, home / "work", home / "stores", head.labels, head.several)
        store = stores[which]
        rows = split(store.table, store.spec.classes, recipe.splitting, recipe.seed) if stage == "finetune" else None
        plan, place = Plan(stage, recipe, store, rows), folder / name
        place.mkdir()
        plan.write(place)
        torch.manual_seed(0)
        save_weights(plan.bare(), place / "given.safetensors")

    def action(case, workdir, **more):
        (folder / case / workdir).mkdir(exist_ok=True)
        return {"plan": str(folder / case), "workdir": str(folder / case / workdir), **more}

    def bad(case, way):
        return action(case, f"{way} poisoned", strategy=TWO.get(way, ("ddp",))[0], poisoned=POISONED[case])

    def group(ranks, *actions, apart=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return {"ranks": ranks, "port": str(free.getsockname()[1]), "actions": actions, "apart": apart}

    def turns(number):
        for way, (case, who) in WAYS.items():
            if number < len(who):
                last = number == len(who) - 1
                yield who[number][0], action(case, way, stop=0 if last else STOP * (number + 1), strategy=who[number][1])

    phases = [[group(ranks, *[one for wanted, one in turns(number) if wanted == ranks]) for ranks in (1, 2)] for number in range(4)]
    phases[0] += [
        group(1, *[action(case, "1") for case in CASES], *[bad(case, "1") for case in POISONED]),
        *[
            group(2, *[action(case, way, strategy=strategy) for case in CASES], *[bad(case, way) for case in POISONED], apart=apart)
            for way, (strategy, apart) in TWO.items()
        ],
    ]
    (folder / "jobs.json").write_text(json.dumps(phases))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("rank_program.py")), str(folder / "jobs.json")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def curve(folder: Path) -> dict[int, dict[str, float]]:
    """What was reported at each step, but for what the clock decides."""
    content = json.loads((folder / "curve.json").read_text())
    machinery = ("train/learning_rate", "train/rows_per_second", "train/data_share")  # as often as the clock says
    return {int(step): {name: value for name, value in metrics.items() if name not in machinery} for step, metrics in content.items() if step.isdigit()}


def same(one: Path, other: Path) -> None:
    curves, weights = [], []
    for place in (one, other):
        curves.append({(step, name): value for step, metrics in curve(place).items() for name, value in metrics.items()})
        weights.append(safetensors.torch.load_file(place / "weights.safetensors"))
    assert len(curves[0]) > 8
    assert curves[0].keys() == curves[1].keys()
    for name, value in curves[0].items():
        # Classes' weights weigh the accuracy of a rank's rows too.
        assert curves[1][name] == (pytest.approx(value, abs=5e-3) if "accuracy" in name[1] else pytest.approx(value, rel=1e-4)), name
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_every_strategy_is_tried():
    assert {strategy for strategy, _ in TWO.values()} == {one.value for one in Strategy}


@pytest.mark.parametrize("way", TWO)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(case, way, trained):
    same(trained / case / "1", trained / case / way)
    losses = [metrics["train/loss"] for _, metrics in sorted(curve(trained / case / "1").items()) if "train/loss" in metrics]
    assert max(losses) > 1.001 * min(losses), "nothing was learnt"


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_one_number_of_ranks_goes_on_with_another(way, trained):
    case, who = WAYS[way]
    same(trained / case / "1", trained / case / way)
    assert json.loads((trained / case / way / "curve.json").read_text())["processes"] == [number for number, _ in groupby(ranks for ranks, _ in who)]


@pytest.mark.parametrize("way", TWO)
@pytest.mark.parametrize("case", POISONED)
def test_a_loss_that_is_not_finite_in_one_rank_takes_all_of_them_back(case, way, trained):
    same(trained / case / "1 poisoned", trained / case / f"{way} poisoned")
    returns = [step for step, metrics in curve(trained / case / "1 poisoned").items() if "train/returns" in metrics]
    assert len(returns) == 1
