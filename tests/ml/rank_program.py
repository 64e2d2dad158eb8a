"""Trains what is planned in folders, in one process or several that are forked from this one: `python rank_program.py JOBS.json`.

The file holds phases, done one after the other: how many ranks, and what they do. Ranks are forked before anything is computed, since OpenMP
does not survive a fork.
"""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # before the fork: each process would take seconds to import what a training needs
import torch.distributed.fsdp

from ml import neighbours, ranks
from ml.fit import fit
from ml.interruption import Interrupted
from ml.plan import Plan, read_weights, save_weights
from ml.recipe import Strategy


def poison(module: torch.nn.Module, at: int) -> None:
    """The loss of the last rank's call number `at` is not finite."""
    real, calls = module.step, itertools.count(1)

    def step(batch):
        result = real(batch)
        return replace(result, loss=result.loss * float("nan")) if next(calls) == at and ranks.rank() == ranks.count() - 1 else result

    module.step = step


def act(plan: str, workdir: str, stop: int = 0, strategy: str = "ddp", poisoned: int = 0) -> None:
    """One training in `workdir`, stopped at the step `stop`; leaves its curve and its weights there."""
    planned, folder = Plan.read(Path(plan)), Path(workdir)
    given = planned.bare()
    read_weights(given, Path(plan) / "given.safetensors")
    torch.manual_seed(0)  # for what is put around it
    training = planned.build(given, torch.device("cpu"))
    if poisoned:
        poison(training.module, poisoned)
    file = folder / "curve.json"
    curve = json.loads(file.read_text()) if file.exists() else {}

    def report(metrics, step):
        known = str(step) in curve
        curve.setdefault(str(step), {}).update(metrics)
        if step == stop and not known and ranks.rank() == ranks.count() - 1:  # one of them is asked, once: all must stop
            os.kill(os.getpid(), signal.SIGTERM)

    compute = planned.recipe.compute.model_copy(update={"strategy": Strategy(strategy)})
    try:
        fitted = fit(**training.arguments(), compute=compute, workdir=folder, report=report)
    except Interrupted:
        assert stop
    else:
        curve["processes"] = fitted.processes
    if ranks.rank() == 0:
        file.write_text(json.dumps(curve))
    save_weights(training.module, folder / "weights.safetensors")


def enter(rank: int, count: int, store: str, actions: list[dict], apart: bool) -> None:
    torch.set_num_threads(1)
    if count > 1:
        neighbours.MOST = 1 if apart else neighbours.MOST  # as on machines of their own
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store}
        ranks.begin(torch.device("cpu"), 60)
        assert ranks.near(torch.device("cpu")) is not apart
        os.environ.pop("WORLD_SIZE")
    for action in actions:
        act(**action)
    if count > 1:
        ranks.end()


def main(path: str) -> None:
    context = multiprocessing.get_context("fork")
    for phase in json.loads(Path(path).read_text()):
        groups = [
            context.Process(target=enter, args=(rank, group["ranks"], group["port"], group["actions"], group["apart"]))
            for group in phase
            for rank in range(group["ranks"])
        ]
        for process in groups:
            process.start()
        for process in groups:
            process.join()
        codes = [process.exitcode for process in groups]
        assert codes == [0] * len(groups), codes


if __name__ == "__main__":
    main(sys.argv[1])
