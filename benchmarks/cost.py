"""The model of a training's memory beside the memory that it takes: `python -m benchmarks.cost`.

Each training is a process of its own: ten updates with a checkpoint after each, on rows drawn for it. Measured is the most memory without pages of files, less what the process held before
its model was built; modelled is what `warmstart check` tells (ml/cost.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.harness import arguments, finish, run, turns
from benchmarks.memory import held
from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Batch, DataSpec
from ml.cost import kept, training_bytes
from ml.fit import fit
from ml.groups import parameter_groups
from ml.heads import HEADS
from ml.model import Model
from ml.recipe import Compute, Fit

STEPS = 10
IMAGE = {"side": 32}
CASES: dict[str, dict[str, Any]] = {
    "small-cnn, 64 pictures of 32 pixels": {"backbone": "small-cnn", "rows": 64, **IMAGE},
    "small-cnn, 512 pictures": {"backbone": "small-cnn", "rows": 512, **IMAGE},
    "resnet18, 64 pictures": {"backbone": "resnet18", "rows": 64, **IMAGE},
    "resnet18, 64 pictures, recomputed": {"backbone": "resnet18", "rows": 64, "recompute": True, **IMAGE},
    "resnet50, 16 pictures, SGD": {"backbone": "resnet50", "rows": 16, "optimizer": "sgd", **IMAGE},
    "bert mini, 16 texts of 128 tokens": {"backbone": "bert", "rows": 16, "tokens": 128},
    "bert small, 8 texts, moving average": {"backbone": "bert", "options": {"size": "small"}, "rows": 8, "tokens": 128, "ema": 0.99},
}


def main() -> None:
    parser = arguments("cost", __doc__, pairs=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one training, in a process of its own
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(one(**CASES[given.one])))
        return
    with tempfile.TemporaryDirectory(prefix="cost-") as scratch:
        command = [sys.executable, "-m", "benchmarks.cost", "--threads", str(given.threads), "--one"]
        arms = {name: lambda name=name: json.loads(run([*command, name], Path(scratch))[1]) for name in CASES}
        rounds = turns(arms, given.pairs)
    figures = {}
    for name in CASES:
        found = [each[name] for each in rounds]
        figures |= {f"{name}: measured, MB": [each["measured"] for each in found], f"{name}: modelled / measured": [each["modelled"] / each["measured"] for each in found]}
    finish(given, figures, {}, rounds=rounds)


def one(backbone: str, rows: int, side: int = 0, tokens: int = 0, options: Any = None, recompute: bool = False, **settings: Any) -> dict[str, float]:
    """MB that one training takes and that the model says."""
    learn("small-cnn", 4, 16, 0, None, False, {})  # loads what every training needs
    before = held(None)
    module, most, activations, fitted = learn(backbone, rows, side, tokens, options, recompute, settings)
    return {"measured": (most - before) / 1e6, "modelled": training_bytes(module, fitted, True, activations) / 1e6}


def learn(backbone: str, rows: int, side: int, tokens: int, options: Any, recompute: bool, settings: dict[str, Any]) -> tuple[Model, int, int, Fit]:
    torch.manual_seed(0)
    if tokens:
        special = {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}
        spec = DataSpec("text", {"vocabulary": 8000}, (tokens,), ("a", "b"), {"vocabulary": 8000, "tokens": special})
        inputs = {"tokens": torch.randint(5, 8000, (rows, tokens)), "mask": torch.ones(rows, tokens, dtype=torch.bool)}
    else:
        spec = DataSpec("image", {}, (3, side, side), ("a", "b"), {"mean": [0.5] * 3, "std": [0.25] * 3})
        inputs = {"image": torch.rand(rows, 3, side, side)}
    batch = Batch(inputs, torch.arange(rows) % 2)
    module = Model.build(choice("backbone", BACKBONES)(name=backbone, options=options or {}), choice("head", HEADS)(name="classification"), spec)
    if recompute:
        from ml.recompute import recompute as keep_less

        keep_less(module.backbone)
    fitted = Fit(epochs=1, batch_size=rows, checkpoint_seconds=0, **settings)
    feed = SimpleNamespace(
        rows=np.arange(rows * STEPS), steps=STEPS, seed=0, accumulate=1, rank=0, ranks=1, device=torch.device("cpu"),
        batches=lambda epoch, start=0: ((step, [batch]) for step in range(start, STEPS)),
    )  # fmt: skip
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            most[0] = max(most[0], held(None))
            time.sleep(0.002)

    watcher = threading.Thread(target=look)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        groups = parameter_groups(module, fitted.learning_rate, fitted.weight_decay)
        compute = Compute(precision="float32", compile="never")
        validate = {"validate": lambda _: {"validation/x": 0.0}, "metric": "validation/x"}
        fit(module, feed, fitted, compute, stage="cost", groups=groups, workdir=Path(folder) / "work", report=lambda metrics, step: None, **validate)
    done.set()
    watcher.join()
    module.train()
    with kept() as counted:
        module.step(batch)
        activations = counted()
    return module, most[0], activations, fitted


if __name__ == "__main__":
    main()
