"""How soon the command answers, and how soon it trains: `python -m benchmarks.start`.

Seconds of fresh processes, in turns: `warmstart --help` beside an empty Python; a recipe that is not there; and `warmstart run` up to its first update, against
a running Prefect server and with the data read before, beside a script that imports torch, reads the same store and does the same update.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, WARMSTART, arguments, control, finish, prefect_server, ratios, turns

RECIPE = str(ROOT / "conf" / "image" / "digits.yaml")
BARE = """
import sys
from pathlib import Path
import torch
from ml.feed import Feed, rows_of
from ml.recipe import augmentation, load
from ml.store import Store
recipe = load(sys.argv[1], sys.argv[3:])
store = Store.open(next(Path(sys.argv[2]).glob("*/")))
part = recipe.pretraining
objective = part.objective.make(recipe.backbone.make(store.spec), store.spec)
feed = Feed(store, recipe.data.modality.make(), rows_of(store, "train"), part.fit.batch_size, 0, torch.device("cpu"), augmentation(recipe, part, store.spec), objective.views)
optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
objective.step(next(feed.batches(0))[1][0]).loss.backward()
optimizer.step()
"""
GOALS = {"--help − empty Python, s": "≤ 0.15", "a recipe that is not there − empty Python, s": "≤ 0.3", "first update / bare script": "≤ 1.1"}


def main() -> None:
    given = arguments("start", __doc__).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory(prefix="start-") as scratch, prefect_server(Path(scratch)):
        folder = Path(scratch)
        run = [*WARMSTART, "run", RECIPE, f"compute.threads={given.threads}"]
        seconds(run, folder, crash="pretrain.step:1")
        stores = str(folder / ".warmstart" / "stores")
        arms = {
            "empty": lambda: seconds([sys.executable, "-c", "pass"], folder),
            "help": lambda: seconds([*WARMSTART, "--help"], folder),
            "missing": lambda: seconds([*WARMSTART, "run", "no.yaml"], folder, code=2),
            "first": lambda: seconds([*run, "--from", "pretrain"], folder, crash="pretrain.step:1"),
            "bare": lambda: seconds([sys.executable, "-c", BARE, RECIPE, stores], folder),
        }
        rounds = turns(arms, given.pairs)
    figures = {
        "--help − empty Python, s": [one["help"] - one["empty"] for one in rounds],
        "a recipe that is not there − empty Python, s": [one["missing"] - one["empty"] for one in rounds],
        "first update, s": [one["first"] for one in rounds],
        "first update / bare script": ratios(rounds, "first", "bare"),
        "control: bare / bare": control(rounds, "bare"),
    }
    finish(given, figures, GOALS, rounds=rounds)


def seconds(command: list[str], folder: Path, code: int = 0, crash: str = "") -> float:
    """Of a fresh process, which must end with `code`, or where it is to crash by SIGKILL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"WARMSTART_TESTING": "1", "WARMSTART_CRASH_AT": crash} if crash else {})
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - began
    if done.returncode != (-9 if crash else code):
        raise SystemExit(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return taken


if __name__ == "__main__":
    main()
