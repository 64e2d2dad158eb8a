"""What Prefect costs a whole pipeline: `python -m benchmarks.orchestration`.

A is the flow of `warmstart run` on a job of a few updates, against a running server; B calls the same stages as plain functions, in the same order and with the same tracking; C is
a flow of as many empty tasks. In turns within one process, each in a folder of its own; seconds without imports.
"""

from __future__ import annotations

import os
import tempfile
import time
from itertools import count
from pathlib import Path

from benchmarks.harness import ROOT, arguments, control, finish, prefect_server, turns

SETTINGS = ["pretraining.fit={epochs: 1, batch_size: 512}", "finetuning.fit={epochs: 2, batch_size: 50}", "evaluation.bootstrap=100", "finetuning.classical=false"]
GOALS = {"flow − plain calls, s": "≤ 1.5", "(flow − plain calls) / empty flow": "≤ 1.5"}


def main() -> None:
    given = arguments("orchestration", __doc__).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory(prefix="orchestration-") as scratch, prefect_server(Path(scratch)):
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        rounds = turns(arms(Path(scratch), given.threads), given.pairs + 1)[1:]  # the first fills caches
    figures = {
        "flow − plain calls, s": [one["flow"] - one["plain"] for one in rounds],
        "empty flow, s": [one["empty"] for one in rounds],
        "(flow − plain calls) / empty flow": [(one["flow"] - one["plain"]) / one["empty"] for one in rounds],
        "plain calls, s": [one["plain"] for one in rounds],
        "control: plain / plain": control(rounds, "plain"),
    }
    finish(given, figures, GOALS, rounds=rounds)


def arms(scratch: Path, threads: int) -> dict:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    from flows.pipeline import pipeline
    from ml.recipe import load
    from tasks.evaluate import evaluate
    from tasks.finetune import baseline, finetune
    from tasks.preprocess import preprocess
    from tasks.pretrain import pretrain
    from tasks.register import register
    from tasks.report import report
    from tasks.split import split
    from tasks.stage import TASK, pipeline_run

    recipe, number = load(ROOT / "conf" / "image" / "digits.yaml", [*SETTINGS, f"compute.threads={threads}"]), count()

    def plain() -> None:
        with pipeline_run(recipe) as run:
            dataset = preprocess.fn(recipe, run)
            backbone = pretrain.fn(dataset, recipe, run)
            splits = split.fn(dataset, recipe, run)
            model = finetune.fn(dataset, backbone, splits, recipe, run)
            scratch_model = baseline.fn(dataset, splits, recipe, run)
            evaluation = evaluate.fn(dataset, backbone, splits, model, scratch_model, None, recipe, run)
            registered = register.fn(dataset, backbone, splits, model, evaluation, recipe, run)
            report.fn(dataset, backbone, splits, model, scratch_model, None, evaluation, registered, recipe, run)

    @task(cache_policy=NO_CACHE, **TASK)
    def nothing() -> None: ...

    @flow(persist_result=False)
    def empty() -> None:
        for _ in range(8):
            nothing()

    def timed(work) -> float:
        folder = scratch / f"run-{next(number)}"
        folder.mkdir()
        os.environ["WARMSTART_HOME"] = str(folder / ".warmstart")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.chdir(folder)
        from tasks.tracking import database

        database.prepare()
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return {"flow": lambda: timed(lambda: pipeline(recipe)), "plain": lambda: timed(plain), "empty": lambda: timed(empty)}


if __name__ == "__main__":
    main()
