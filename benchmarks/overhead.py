"""What the pipeline costs beside the same training in bare torch: `python -m benchmarks.overhead`.

    python -m benchmarks.overhead --output overhead.json      # the measurement
    python -m benchmarks.overhead --pairs 2 --scale 0.1       # does it work? a tenth of the steps, where fixed costs weigh most

A is `warmstart run conf/image/digits.yaml` in a new folder, against a running `prefect server start` and a database that has its
tables; B is benchmarks/bare.py, the same job as a plain script. Fresh processes, fixed threads, in turns A B B A.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import ROOT, WARMSTART, machine, median, prefect_server, run

RECIPE = str(ROOT / "conf" / "image" / "digits.yaml")
TRAINED = ("pretrain", "finetune", "baseline")
RATIO_GOAL, SECONDS_GOAL = 1.10, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8, help="pairs of A and B")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the demo's training steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each process")
    parser.add_argument("--output", type=Path, help="JSON file for all measurements")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    overrides = [f"compute.threads={given.threads}", *shortened(given.scale)]
    with tempfile.TemporaryDirectory(prefix="overhead-") as temporary:
        scratch = Path(temporary)
        (scratch / "ready").mkdir()
        run([sys.executable, "-c", "from tasks.tracking.database import prepare; prepare()"], scratch / "ready")
        with prefect_server(scratch):
            pipeline(scratch, "first", overrides)  # fills the file cache
            pairs = []
            for number in range(given.pairs):
                arms: dict[str, Callable[[], dict[str, Any]]] = {
                    "A": lambda n=number: pipeline(scratch, f"run-{n}", overrides),
                    "B": lambda: bare(overrides),
                }
                pair: dict[str, Any] = {"order": "AB" if number % 2 == 0 else "BA", "load": round(os.getloadavg()[0], 2)}
                pairs.append(pair | {arm: arms[arm]() for arm in pair["order"]})
                print(
                    f"pair {number + 1} of {given.pairs}: training {trained(pairs[-1]['A']):.2f} s and {trained(pairs[-1]['B']):.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
    result = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "arguments": sys.argv[1:], "machine": machine(given.threads)}
    result |= {"figures": figures(pairs), "equal_work": equal_work(pairs), "pairs": pairs}
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def shortened(scale: float) -> list[str]:
    """Overrides that make both trainings `scale` times as long as the recipe's."""
    recipe = yaml.safe_load(Path(RECIPE).read_text(encoding="utf-8"))
    samples, epochs = recipe["pretraining"]["fit"]["samples"], recipe["finetuning"]["fit"]["epochs"]
    return [f"pretraining.fit.samples={max(1, round(samples * scale))}", f"finetuning.fit.epochs={max(1, round(epochs * scale))}"]


def pipeline(scratch: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """One `warmstart run` in a new folder: seconds of the process, and of each stage what it took and what it gave."""
    folder = scratch / name
    folder.mkdir()
    shutil.copy(scratch / "ready" / "mlflow.db", folder / "mlflow.db")
    command = [*WARMSTART, "run", RECIPE, *overrides, "--json"]
    taken, output = run(command, folder)
    result = json.loads(output)
    stages = {stage["name"]: {"seconds": stage["seconds"]} for stage in result["stages"]}
    if any(stage["cached"] for stage in result["stages"]):
        raise SystemExit("a stage was reused: nothing was measured")
    with closing(sqlite3.connect(folder / "mlflow.db")) as records:
        for stage in result["stages"]:
            if stage["name"] in TRAINED:
                stages[stage["name"]] |= _recorded(records, folder, stage["run_id"])
    return {**taken, "stages": stages}


def _recorded(records: sqlite3.Connection, folder: Path, run_id: str) -> dict[str, Any]:
    """What the stage says in MLflow: steps, rows, last loss, seconds within the loop; and the digest of its weights."""
    params = dict(records.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)))
    metrics = dict(records.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (run_id,)))
    weights = next(folder.glob(f"mlruns/*/{run_id}/artifacts/*/*.safetensors"))
    facts = {"steps": int(params["steps"]), "rows": int(params["rows"]), "loss": metrics["train/loss"], "loop_seconds": metrics["seconds"]}
    return facts | {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def bare(overrides: list[str]) -> dict[str, Any]:
    """One run of the bare loop: seconds of the process, and what each training took and gave."""
    taken, output = run([sys.executable, "-m", "benchmarks.bare", RECIPE, *overrides], ROOT)
    return {**taken, "stages": json.loads(output)}


def trained(one: dict[str, Any]) -> float:
    """Seconds of the three trainings."""
    return sum(one["stages"][name]["seconds"] for name in TRAINED)


def figures(pairs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the pairs with 95 % bootstrap intervals."""

    def loop(one: dict[str, Any]) -> float:
        return sum(one["stages"][name]["loop_seconds"] for name in TRAINED)

    bares = [pair["B"] for pair in pairs]
    found = {
        "training stages / bare loop": [trained(pair["A"]) / trained(pair["B"]) for pair in pairs],
        "within the fit loop / bare loop": [loop(pair["A"]) / trained(pair["B"]) for pair in pairs],
        "training stages, s": [trained(pair["A"]) for pair in pairs],
        "bare loop, s": [trained(one) for one in bares],
        "whole command − bare script, s": [pair["A"]["wall"] - pair["B"]["wall"] for pair in pairs],
        "whole command − its training stages, s": [pair["A"]["wall"] - trained(pair["A"]) for pair in pairs],
        "whole command − bare script, CPU s": [pair["A"]["cpu"] - pair["B"]["cpu"] for pair in pairs],
        "whole command, s": [pair["A"]["wall"] for pair in pairs],
        "bare script, s": [one["wall"] for one in bares],
        "control: bare / bare": [trained(one) / trained(other) for one, other in zip(bares[:-1:2], bares[1::2], strict=False)],
    }
    return {name: median(values) for name, values in found.items() if values}


def equal_work(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each training: steps, rows and parameters, and whether losses and weights of all runs are equal."""
    found = {}
    for name in TRAINED:
        runs = [pair[arm]["stages"][name] for pair in pairs for arm in "AB"]
        found[name] = {
            **{key: sorted({one[key] for one in runs if key in one}) for key in ("steps", "rows", "parameters")},
            "loss": [min(one["loss"] for one in runs), max(one["loss"] for one in runs)],
            "weights": len({one["weights"] for one in runs}),
        }
    return found


def table(result: dict[str, Any]) -> str:
    """The figures and the proof of equal work as Markdown."""
    lines = ["| figure | median | 95 % interval | n | goal |", "| --- | ---: | --- | ---: | --- |"]
    goals = {"training stages / bare loop": f"≤ {RATIO_GOAL:.2f}", "whole command − bare script, s": f"≤ {SECONDS_GOAL:g}"}
    for name, one in result["figures"].items():
        lines.append(f"| {name} | {one['median']:.3f} | {one['low']:.3f} to {one['high']:.3f} | {one['n']} | {goals.get(name, '')} |")
    lines += [
        "",
        "| training | steps | rows | parameters | last loss, least and most | different weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in result["equal_work"].items():
        numbers = " | ".join(", ".join(map(str, one[key])) for key in ("steps", "rows", "parameters"))
        lines.append(f"| {name} | {numbers} | {one['loss'][0]:.6f} {one['loss'][1]:.6f} | {one['weights']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
