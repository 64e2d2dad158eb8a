"""Pictures trained on in a second, beside Lightning, torchvision's reference script and timm: `python -m benchmarks.images`.

    python -m benchmarks.images --output images.json   # the measurement
    python -m benchmarks.images --small                # does it work?

A is `ml.fit.fit` on a store: all of it as in a run, but for tracking. B are the peers, each with no and with one worker that stays, of which the faster counts:
Lightning's `Trainer(barebones=True)`; the loop of torchvision's references/classification/train.py with its tensor backend; and timm's create_loader (with
prefetcher and one iterator for all epochs), optimizer and scheduler in the loop of its train.py. Pictures of 32 pixels lie in memory, as torchvision's CIFAR10
has them; those of 256 are JPEGs in folders. All train one network from the same weights, channels last, in float32, with AdamW (fused), a gradient clipped to 1 and a
cosine with warm-up, on pictures that are shifted (32 pixels) or cropped and resized (224), and flipped. None logs, validates or shows progress.

Pictures a second are taken from the second epoch on, between calls of the network's last layer. "With first pass" adds the seconds in which the store is made from files,
duplicates and statistics included, and counts all epochs. Each arm is a fresh process. Equal work: updates, rows, parameters, and the loss on the same pictures, by one function.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import ROOT, arguments, control, equal_work, finish, require, run, turns, work_table
from benchmarks.image_arms import ARMS, CASES, CLASSES, Case

SMALL = 0.2  # of pictures and epochs


def main() -> None:
    parser = arguments("images", __doc__, pairs=5)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="networks; all unless given")
    parser.add_argument("--small", action="store_true", help="one round of the first network on few pictures, without workers")
    given = parser.parse_args()
    require("lightning", "timm")
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    names, share, pairs = (list(CASES)[:1], SMALL, 1) if given.small else (given.only, 1.0, given.pairs)
    figures, goals, rounds = {}, {}, {}
    for name in names:
        case = CASES[name].shortened(share)
        with tempfile.TemporaryDirectory(prefix="images-") as scratch:
            draw(case, Path(scratch) / "data")
            arms = {arm: partial(one, name, arm, scratch, share) for arm in ARMS if not (given.small and arm.endswith("1 worker"))}
            rounds[name] = turns(arms, pairs)
        figures |= {f"{name}: {figure}": values for figure, values in told(rounds[name], case).items()}
        goals[f"{name}: ours / fastest peer"] = "≥ 1.0"
    work = {name: equal_work(found) for name, found in rounds.items()}
    finish(given, figures, goals, equal_work=work, rounds=rounds)
    print(work_table(work))


def one(name: str, arm: str, scratch: str, share: float) -> dict[str, Any]:
    """What a fresh process says that has an arm for its own."""
    return json.loads(run([sys.executable, "-m", "benchmarks.image_arms", name, arm, scratch, str(share)], ROOT)[1].splitlines()[-1])


def told(rounds: Sequence[dict[str, Any]], case: Case) -> dict[str, list[float]]:
    """What is told of a case: ratios within each round, pictures a second.

    The fastest peer is the arm with the highest median. The fastest of each round is the luckiest of six as well: beside equals its ratio lies below 1.
    """
    peers = sorted({arm.partition(",")[0] for arm in rounds[0]} - {"ours"})

    def best(one: dict[str, Any], peer: str = "") -> float:
        return max(found["speed"] for arm, found in one.items() if arm != "ours" and arm.startswith(peer))

    def whole(one: dict[str, Any]) -> float:
        rows = case.rows * case.epochs
        return rows / (one["first_pass"] + rows / one["speed"])

    fastest = max((arm for arm in rounds[0] if arm != "ours"), key=lambda arm: float(np.median([one[arm]["speed"] for one in rounds])))
    return {
        "ours / fastest peer": [one["ours"]["speed"] / one[fastest]["speed"] for one in rounds],
        "ours / fastest peer of each round": [one["ours"]["speed"] / best(one) for one in rounds],
        **{f"ours / {peer}": [one["ours"]["speed"] / best(one, peer) for one in rounds] for peer in peers},
        f"ours with first pass, {case.epochs} epochs / fastest peer": [whole(one["ours"]) / one[fastest]["speed"] for one in rounds],
        "ours, pictures/s": [one["ours"]["speed"] for one in rounds],
        **{f"{arm}, pictures/s": [one[arm]["speed"] for one in rounds] for arm in rounds[0] if arm != "ours"},
        "first pass, pictures/s": [case.rows / one["ours"]["first_pass"] for one in rounds],
        "control: ours / ours": control([{"ours": one["ours"]["speed"]} for one in rounds], "ours"),
    }


def draw(case: Case, folder: Path) -> None:
    """Pictures of smooth noise, of which class k has a bright band at the k-th eighth of the height; and a few for the test that a store wants."""
    random = np.random.default_rng(0)
    for number in range(case.rows + 2 * CLASSES):
        small_HWC, k = random.integers(0, 256, (CLASSES, CLASSES, 3)) // 2, number % CLASSES
        small_HWC[k] += 128
        path = folder / ("train" if number < case.rows else "test") / f"c{k}" / f"{number:05d}.{case.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small_HWC.astype(np.uint8)).resize((case.side, case.side), Image.Resampling.BICUBIC).save(path, quality=90)


if __name__ == "__main__":
    main()
