"""What tracking costs a training: `python -m benchmarks.tracking`.

    python -m benchmarks.tracking --output tracking.json                  # the measurement
    python -m benchmarks.tracking --pairs 2 --steps 300 --megabytes 5    # does it work?

A step is arithmetic of some 5 ms; after each, one metric is reported: 10,000 in all. `none` reports nothing, `ours` reports through a stage's run, to whose end
(all rows in MLflow) it is timed, and whose rows are counted then; `synchronous` calls mlflow.log_metric. All do the same arithmetic, in turns, against a
SQLite database. The model is a file of 50 MB: `ours` from torch.save until the artifact is in the store, read back and compared, `plain` is torch.save, a copy,
and fsync of both. Fresh processes, fixed threads, the order turned from round to round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import arguments, machine, median, run

ARMS = ("none", "ours", "synchronous")
SHARE_GOAL, MODEL_GOAL = 0.005, 1.5
STEP_SECONDS, SIZE = 0.005, 128


def main() -> None:
    parser = arguments("tracking", __doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="steps, and so metrics, of each training")
    parser.add_argument("--megabytes", type=int, default=50, help="size of the model")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "PRODUCTS"), help=argparse.SUPPRESS)  # one arm, in a process of its own
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(_one(given.one[0], int(given.one[1]), given)))
        return
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    result: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "arguments": sys.argv[1:], "machine": machine(given.threads)}
    result["machine"]["load"] = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory(prefix="tracking-") as temporary:
        ready = Path(temporary) / "ready"
        ready.mkdir()
        run([sys.executable, "-c", "from tasks.tracking.database import prepare; prepare()"], ready)

        def child(arm: str, number: int) -> Any:
            folder = Path(temporary) / f"{arm}-{number}"
            folder.mkdir()
            shutil.copy(ready / "mlflow.db", folder / "mlflow.db")
            options = ["--steps", given.steps, "--megabytes", given.megabytes, "--threads", given.threads]
            found = json.loads(run([str(one) for one in (sys.executable, "-m", "benchmarks.tracking", "--one", arm, products, *options)], folder)[1])
            shutil.rmtree(folder)
            return found

        products, rounds = calibrated(), []
        for number in range(given.pairs):
            turned = number % len(ARMS)
            rounds.append({arm: child(arm, number) for arm in (*ARMS[turned:], *ARMS[:turned], "model")})
            print(f"{number + 1} of {given.pairs}: {rounds[-1]}", file=sys.stderr, flush=True)
    result |= {"figures": figures(rounds), "rows": [one["ours"]["rows"] for one in rounds], "rounds": rounds}
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result, given.steps))


def calibrated() -> int:
    """How many products make up a step of 5 ms here."""
    one = torch.ones(SIZE, SIZE)
    taken = []
    for _ in range(300):
        began = time.perf_counter()
        one @ one
        taken.append(time.perf_counter() - began)
    return max(1, round(STEP_SECONDS / sorted(taken)[150]))


def _one(arm: str, products: int, given: argparse.Namespace) -> dict[str, Any]:
    from tasks import collector
    from tasks.tracking import database, runs
    from tasks.tracking.stages import run_stage

    collector.pause()  # as the command does
    database.prepare()
    collector.resume()
    found: dict[str, Any] = {}

    def body(stage: Any) -> dict[str, Any]:
        import mlflow

        if arm == "model":
            found.update(model(stage, given.megabytes))
            return {}
        reports: dict[str, Callable[[int], object]] = {
            "none": lambda step: None,
            "ours": lambda step: stage.report({"train/loss": 1.0 / step}, step),
            "synchronous": lambda step: mlflow.log_metric("train/loss", 1.0 / step, step=step, run_id=stage.run_id),
        }
        report, began, cpu = reports[arm], time.perf_counter(), time.process_time()
        reported = train(products, given.steps, report)
        loop = time.perf_counter() - began
        if arm == "ours":
            stage.send_all(60.0)
        found.update({"loop": loop, "reports": reported, "all": time.perf_counter() - began, "cpu": time.process_time() - cpu})
        return {}

    with runs.pipeline_run("tracking", "{}") as tracked:
        stage = run_stage(tracked, "pretrain", key=f"{0:064x}", params={}, inputs={}, workroot=Path("work").resolve(), body=body)
    found["rows"] = len(database.client().get_metric_history(stage.run_id, "train/loss"))
    return found


def train(products: int, steps: int, report: Callable[[int], object]) -> float:
    """Steps of equal arithmetic, each reported; the seconds that the reports took on their own."""
    one, reported = torch.full((SIZE, SIZE), 1 / SIZE), 0.0
    for step in range(1, steps + 1):
        value = one
        for _ in range(products):
            value = value @ one
        began = time.perf_counter()
        report(step)
        reported += time.perf_counter() - began
    return reported


def model(stage: Any, megabytes: int) -> dict[str, float]:
    """Seconds until a model's file is an artifact that was compared, and of a plain save, copy and fsync of as many bytes."""
    weights = {"weights": torch.randn(megabytes * 250_000)}

    def ours(number: int) -> None:
        torch.save(weights, stage.workdir / f"model-{number}.pt")
        stage.log_artifact(stage.workdir / f"model-{number}.pt", "model")
        while stage.outbox.send():
            pass

    def plain(number: int) -> None:
        source, target = stage.workdir / f"plain-{number}.pt", stage.workdir / f"copy-{number}.pt"
        torch.save(weights, source)
        shutil.copyfile(source, target)
        for path in (source, target):
            with path.open("rb+") as file:
                os.fsync(file.fileno())

    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(6):
        for name, call in ((("ours", ours), ("plain", plain)) if number % 2 else (("plain", plain), ("ours", ours))):
            began = time.perf_counter()
            call(number)
            taken[name].append(time.perf_counter() - began)
    return {name: sorted(values[1:])[2] for name, values in taken.items()}


def figures(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds with 95 % bootstrap intervals."""
    found = {
        "training, ours / none": [one["ours"]["loop"] / one["none"]["loop"] for one in rounds],
        "until all rows are there, ours / none": [one["ours"]["all"] / one["none"]["loop"] for one in rounds],
        "training, synchronous / none": [one["synchronous"]["loop"] / one["none"]["loop"] for one in rounds],
        "share of the time within reports, ours": [one["ours"]["reports"] / one["ours"]["loop"] for one in rounds],
        "share of the time within reports, synchronous": [one["synchronous"]["reports"] / one["synchronous"]["loop"] for one in rounds],
        "CPU time, ours − none, as a share of none's": [one["ours"]["cpu"] / one["none"]["cpu"] - 1 for one in rounds],
        "training, none, s": [one["none"]["loop"] for one in rounds],
        "model, ours / save + copy + fsync": [one["model"]["ours"] / one["model"]["plain"] for one in rounds],
        "model, ours, s": [one["model"]["ours"] for one in rounds],
    }
    return {name: median(values) for name, values in found.items()}


def table(result: dict[str, Any], steps: int) -> str:
    """The figures as Markdown, and how many of the rows are there."""
    goals = {"training, ours / none": f"≤ {1 + SHARE_GOAL:g}", "model, ours / save + copy + fsync": f"≤ {MODEL_GOAL:g}"}
    lines = ["| figure | median | 95 % interval | n | goal |", "| --- | ---: | --- | ---: | --- |"]
    for name, one in result["figures"].items():
        lines.append(f"| {name} | {one['median']:.4g} | {one['low']:.4g} to {one['high']:.4g} | {one['n']} | {goals.get(name, '')} |")
    return "\n".join([*lines, "", f"Rows in MLflow of {steps:,}: {', '.join(f'{count:,}' for count in result['rows'])}."])


if __name__ == "__main__":
    main()
