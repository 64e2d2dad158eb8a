"""What pretraining is worth with few labels: `python -m benchmarks.labels`, or with another recipe and its data.

The recipe is run on 1 %, 10 % and all of the labels (at least one a class), with several seeds, each of which draws other labels and other weights; the same network
is fine-tuned from random weights with the same budget. Pretraining is done once for each seed. Differences are in percentage points of the recipe's metric, on the test rows.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, WARMSTART, arguments, finish, prefect_server, run

SHARES = (0.01, 0.1, 1.0)


def main() -> None:
    parser = arguments("labels", __doc__, pairs=3)
    parser.add_argument("--recipe", type=Path, default=ROOT / "conf" / "image" / "digits.yaml")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, KEY=VALUE")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="labels-") as scratch, prefect_server(Path(scratch)):
        for seed in range(given.pairs):
            rounds.append({f"{share:.0%}": gain(Path(scratch), given, seed, share) for share in SHARES})
            print(f"seed {seed}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    figures: dict[str, list[float]] = {}
    for share in rounds[0]:
        found = [one[share] for one in rounds]
        figures |= {f"{share} of the labels: {name}": [one[name] for one in found] for name in ("pretrained", "from scratch", "gain", "gain, lower bound")}
    goals = {f"{share:.0%} of the labels: {name}": goal for share in SHARES for name, goal in goals_of(share).items()}
    finish(given, figures, goals, rounds=rounds, recipe=str(given.recipe), overrides=given.overrides)


def goals_of(share: float) -> dict[str, str]:
    return {"gain": "≥ 0"} if share == 1 else {"gain, lower bound": "> 0"}


def gain(folder: Path, given: Any, seed: int, share: float) -> dict[str, float]:
    """The metric of both arms and their paired difference with its lower bound, in percent."""
    settings = [f"seed={seed}", "splitting.labels_per_class=null", f"splitting.label_fraction={share}", f"compute.threads={given.threads}", "finetuning.baseline=true"]
    command = [*WARMSTART, "run", str(given.recipe.resolve()), *given.overrides, *settings, "--json"]
    result = json.loads(run(command, folder)[1])
    name = next(iter(result["metrics"]))
    difference = result["differences"]["baseline"][name]
    values = {
        "pretrained": result["metrics"][name]["value"], "from scratch": result["baseline"][name]["value"],
        "gain": difference["value"], "gain, lower bound": difference["low"],
    }  # fmt: skip
    return {name: 100 * value for name, value in values.items()}


if __name__ == "__main__":
    main()
