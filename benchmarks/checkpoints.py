"""What checkpoints cost a training: `python -m benchmarks.checkpoints`.

    python -m benchmarks.checkpoints --output checkpoints.json                      # the measurement
    python -m benchmarks.checkpoints --sizes 10 --pairs 2 --seconds 5 --every 2     # does it work?

The loop of ml/fit.py trains a network whose weights and optimizer have 10, 100 and 500 MB, equal steps in each arm: `none` makes no
checkpoint, `ours` makes one every 10 s as the loop does, `blocking` calls torch.save and fsync at the same moments. Fresh processes, fixed threads,
the order turned from pair to pair. A stall is what a checkpoint holds the loop up, beside a copy of as many bytes into memory that was written before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import arguments, machine, median, run
from ml import fit
from ml.checkpoint_writer import Writer
from ml.contracts import Batch, StepResult
from ml.recipe import Compute, Fit

ARMS = ("none", "ours", "blocking")
STALL_GOAL, SHARE_GOAL = 1.5, 0.01
ROWS, NEVER, REPEATS, PROBED = 16, 1e9, 15, 30


class Timed(Writer):
    """Notes how long each checkpoint holds the training up, and what its write takes of a core."""

    def __init__(self, folder: Path, every: float):
        super().__init__(folder, every)
        self.stalls: list[float] = []
        self.writes: list[float] = []

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.wait()
        began = time.perf_counter()
        self._store(step, state)
        self.stalls.append(time.perf_counter() - began)

    def wait(self) -> None:
        writing = self._writing is not None
        super().wait()
        if writing:
            self.writes.append(self.seconds)

    def _store(self, step: int, state: dict[str, Any]) -> None:
        super().save(step, state)


class Blocking(Timed):
    """What is done without a thread: torch.save, then fsync."""

    def _store(self, step: int, state: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{len(self.stalls) % 2}.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())


class Network(nn.Module):
    """Two square layers: with AdamW's two moments, `megabytes` in all."""

    def __init__(self, megabytes: int):
        super().__init__()
        self.width = round((megabytes * 1e6 / 4 / 3 / 2) ** 0.5)
        self.layers = nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, self.width))

    def step(self, batch: Batch) -> StepResult:
        return StepResult((self.layers(batch.inputs["x"]) - batch.inputs["x"]).square().mean())


class Numbers:
    """As a feed: the same random rows at each of `steps` steps."""

    accumulate, rank, ranks = 1, 0, 1

    def __init__(self, width: int, steps: int):
        self.steps, self.rows, self.seed, self.device = steps, np.arange(steps * ROWS), 0, torch.device("cpu")
        x_BD = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0))
        self._batch = Batch({"x": x_BD}, torch.zeros(ROWS, dtype=torch.long))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        for step in range(start, self.steps):
            yield step, [self._batch]


def main() -> None:
    parser = arguments("checkpoints", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 500], help="MB of a checkpoint")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each training")
    parser.add_argument("--every", type=float, default=10.0, help="fit.checkpoint_seconds")
    parser.add_argument("--one", nargs=3, metavar=("ARM", "MB", "STEPS"), help=argparse.SUPPRESS)  # one training, in a process of its own
    parser.add_argument("--stalls", type=int, metavar="MB", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(train(given.one[0], int(given.one[1]), int(given.one[2]), given.every)))
        return
    if given.stalls:
        print(json.dumps(stalls(given.stalls)))
        return
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    result = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "arguments": sys.argv[1:], "machine": machine(given.threads), "sizes": {}}
    result["machine"]["load"] = round(os.getloadavg()[0], 2)
    for megabytes in given.sizes:
        result["sizes"][megabytes] = _measured(megabytes, given)
        if given.output:
            given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def _measured(megabytes: int, given: argparse.Namespace) -> dict[str, Any]:
    def child(*arguments: object) -> Any:
        command = [sys.executable, "-m", "benchmarks.checkpoints", "--threads", given.threads, "--every", given.every, *arguments]
        return json.loads(run([str(one) for one in command], Path(scratch))[1])

    with tempfile.TemporaryDirectory(prefix="checkpoints-") as scratch:
        probe = child("--one", "none", megabytes, PROBED)
        steps, pairs = max(PROBED, round(PROBED * given.seconds / probe["wall"])), []
        alone = child("--stalls", megabytes)
        for number in range(given.pairs):
            turned = number % len(ARMS)
            pairs.append({arm: child("--one", arm, megabytes, steps) for arm in ARMS[turned:] + ARMS[:turned]})
            print(f"{megabytes} MB, {number + 1} of {given.pairs}: {({arm: round(one['wall'], 1) for arm, one in pairs[-1].items()})}", file=sys.stderr, flush=True)
    return {"steps": steps, "stalls": alone, "pairs": pairs, "figures": figures(alone, pairs)}


def train(arm: str, megabytes: int, steps: int, every: float) -> dict[str, Any]:
    """One training of an arm: its seconds, its last loss, and of each checkpoint the stall and the write's CPU seconds."""
    writers: list[Timed] = []

    def made(folder: Path, every: float) -> Timed:
        writers.append((Blocking if arm == "blocking" else Timed)(folder, every))
        return writers[-1]

    torch.manual_seed(0)
    _stepped(Network(1))  # torch loads its compiler at the first step of an optimizer
    network = Network(megabytes)
    losses: list[float] = []
    settings = Fit(epochs=1, batch_size=ROWS, checkpoint_seconds=NEVER if arm == "none" else every, ema=0)
    with tempfile.TemporaryDirectory(dir=".") as workdir:
        fit.Writer = made
        began = time.perf_counter()
        fit.fit(
            network,
            Numbers(network.width, steps),
            settings,
            Compute(precision="float32"),
            stage="benchmark",
            groups=[{"params": list(network.parameters()), "lr": settings.learning_rate}],
            workdir=Path(workdir),
            report=lambda metrics, step: losses.append(metrics["train/loss"]) if "train/loss" in metrics else None,
        )
        return {"wall": time.perf_counter() - began, "steps": steps, "loss": losses[-1], "stalls": writers[0].stalls, "writes": writers[0].writes}


def _stepped(network: Network) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    _, batches = next(Numbers(network.width, 1).batches(0))
    network.step(batches[0]).loss.backward()
    optimizer.step()
    return optimizer


def stalls(megabytes: int) -> dict[str, list[float]]:
    """Seconds of a copy of as many bytes, of what `ours` holds the loop up and of what `blocking` does, in turns and on their own; the first ones warm up."""
    network = Network(megabytes)
    optimizer = _stepped(network)
    state = {"module": network.state_dict(), "optimizer": optimizer.state_dict()}
    bytes_ = sum(3 * value.nbytes for value in network.parameters())
    source, target = np.ones(bytes_, np.uint8), np.zeros(bytes_, np.uint8)
    with tempfile.TemporaryDirectory(dir=".") as folder, Timed(Path(folder) / "ours", 0) as ours, Blocking(Path(folder) / "blocking", 0) as blocking:
        taken: dict[str, list[float]] = {"memcpy": [], "ours": [], "blocking": []}
        calls: dict[str, Callable[[], object]] = {
            "memcpy": lambda: np.copyto(target, source),
            "ours": lambda: ours._store(len(taken["ours"]), state),
            "blocking": lambda: blocking.save(0, state),
        }
        for _ in range(REPEATS + 1):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - began)
                ours.wait()
    return {name: values[1:] for name, values in taken.items()}


def figures(alone: dict[str, list[float]], pairs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians with 95 % bootstrap intervals, over the repeats of a stall and over the pairs of trainings."""
    ours = [pair["ours"] for pair in pairs]
    found = {
        "stall / memcpy": [one / other for one, other in zip(alone["ours"], alone["memcpy"], strict=True)],
        "torch.save and fsync / memcpy": [one / other for one, other in zip(alone["blocking"], alone["memcpy"], strict=True)],
        "stall, ms": [1000 * one for one in alone["ours"]],
        "torch.save and fsync, ms": [1000 * one for one in alone["blocking"]],
        "checkpoints of a training, ours": [float(len(one["stalls"])) for one in ours],
        "share of the time that stalls take": [sum(one["stalls"]) / one["wall"] for one in ours],
        "share with the writes' CPU time": [(sum(one["stalls"]) + sum(one["writes"])) / one["wall"] for one in ours],
        "share, blocking": [sum(pair["blocking"]["stalls"]) / pair["blocking"]["wall"] for pair in pairs],
        "training, ours / none": [pair["ours"]["wall"] / pair["none"]["wall"] for pair in pairs],
        "training, blocking / none": [pair["blocking"]["wall"] / pair["none"]["wall"] for pair in pairs],
    }
    return {name: median(values) for name, values in found.items()}


def table(result: dict[str, Any]) -> str:
    """The figures of all sizes as Markdown, and whether all arms ended with one loss."""
    goals = {"stall / memcpy": f"≤ {STALL_GOAL:g}", "share of the time that stalls take": f"≤ {SHARE_GOAL:g}", "training, ours / none": f"≤ {1 + SHARE_GOAL:g}"}
    lines = ["| MB | figure | median | 95 % interval | n | goal |", "| ---: | --- | ---: | --- | ---: | --- |"]
    for megabytes, one in result["sizes"].items():
        for name, value in one["figures"].items():
            lines.append(f"| {megabytes} | {name} | {value['median']:.4g} | {value['low']:.4g} to {value['high']:.4g} | {value['n']} | {goals.get(name, '')} |")
        losses = {arm["loss"] for pair in one["pairs"] for arm in pair.values()}
        lines.append(f"| {megabytes} | steps of each training; different last losses | {one['steps']}; {len(losses)} | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
