"""What the pipeline costs beside the same training in bare torch: `python -m benchmarks.overhead`.

    python -m benchmarks.overhead --output overhead.json      # the measurement
    python -m benchmarks.overhead --pairs 2 --scale 0.1       # does it work? a tenth of the steps, where fixed costs weigh most

A is `warmstart run conf/image/digits.yaml` in a new folder, against a running `prefect server start` and a database that has its
tables; B is benchmarks/bare.py, the same job as a plain script. Fresh processes, fixed threads, in turns A B B A.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import ROOT, WARMSTART, arguments, control, finish, prefect_server, run, turns

RECIPE = str(ROOT / "conf" / "image" / "digits.yaml")
TRAINED = ("pretrain", "finetune", "baseline")
GOALS = {"training stages / bare loop": "≤ 1.05", "whole command − bare script, s": "≤ 1.5"}


def main() -> None:
    parser = arguments("overhead", __doc__, pairs=8)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the demo's training steps")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    overrides = [f"compute.threads={given.threads}", *shortened(given.scale)]
    with tempfile.TemporaryDirectory(prefix="overhead-") as temporary:
        scratch = Path(temporary)
        (scratch / "ready").mkdir()
        run([sys.executable, "-c", "from tasks.tracking.database import prepare; prepare()"], scratch / "ready")
        with prefect_server(scratch):
            pipeline(scratch, "first", overrides)  # fills the file cache
            number = count()
            arms = {"A": lambda: pipeline(scratch, f"run-{next(number)}", overrides), "B": lambda: bare(overrides)}
            pairs = turns(arms, given.pairs)
    finish(given, figures(pairs), GOALS, equal_work=equal_work(pairs), pairs=pairs)
    print(table(equal_work(pairs)))


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


def figures(pairs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What is told of each pair."""

    def loop(one: dict[str, Any]) -> float:
        return sum(one["stages"][name]["loop_seconds"] for name in TRAINED)

    bares = [pair["B"] for pair in pairs]
    return {
        "training stages / bare loop": [trained(pair["A"]) / trained(pair["B"]) for pair in pairs],
        "within the fit loop / bare loop": [loop(pair["A"]) / trained(pair["B"]) for pair in pairs],
        "training stages, s": [trained(pair["A"]) for pair in pairs],
        "bare loop, s": [trained(one) for one in bares],
        "whole command − bare script, s": [pair["A"]["wall"] - pair["B"]["wall"] for pair in pairs],
        "whole command − its training stages, s": [pair["A"]["wall"] - trained(pair["A"]) for pair in pairs],
        "whole command − bare script, CPU s": [pair["A"]["cpu"] - pair["B"]["cpu"] for pair in pairs],
        "whole command, s": [pair["A"]["wall"] for pair in pairs],
        "bare script, s": [one["wall"] for one in bares],
        "control: bare / bare": control([{"B": trained(one)} for one in bares], "B"),
    }


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


def table(equal: dict[str, Any]) -> str:
    """The proof of equal work as Markdown."""
    lines = [
        "",
        "| training | steps | rows | parameters | last loss, least and most | different weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in equal.items():
        numbers = " | ".join(", ".join(map(str, one[key])) for key in ("steps", "rows", "parameters"))
        lines.append(f"| {name} | {numbers} | {one['loss'][0]:.6f} {one['loss'][1]:.6f} | {one['weights']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
