"""What training together costs: `python -m benchmarks.scaling`.

    python -m benchmarks.scaling --output scaling.json       # the measurement
    python -m benchmarks.scaling --rounds 1 --samples 5800   # does it work?
    python -m benchmarks.scaling --rounds 4 --samples 12000 data.modality.name=image data.modality.options.size=32   # larger pictures
    python -m benchmarks.scaling --recipe conf/text/python-tokens.yaml --batch 64 --samples 11136   # another network

Two comparisons, fresh processes with fixed threads, the two arms of each in turns A B B A:

    coupled / uncoupled   two ranks, by torchrun or Ray, that share each batch, beside two processes at once that train alone on half of it
    launched / local      one rank by the same, beside this process itself

The demo's pretraining (simclr on digits), or another recipe's; the two arms must have made equally many steps. `loop` is the time within the training loop, `whole` that of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.harness import ROOT, machine, median, run

RECIPE = ROOT / "conf" / "image" / "digits.yaml"
Taken = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="times that each arm is run")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--samples", type=int, default=40_000, help="rows that are trained on, one after another")
    parser.add_argument("--batch", type=int, default=240, help="rows of a batch; of the demo, 240 and half of them make equally many steps")
    parser.add_argument("--engine", choices=["torchrun", "ray"], default="torchrun", help="what starts the ranks")
    parser.add_argument("--output", type=Path, help="JSON file for all measurements")
    parser.add_argument("--arm", nargs=2, metavar=("FOLDER", "OVERRIDES"), help=argparse.SUPPRESS)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="what is other than in the recipe")
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(arm(Path(given.arm[0]), json.loads(given.arm[1]))))
        return
    os.environ["OMP_NUM_THREADS"], engine = "1", f"compute.engine={given.engine}"
    with tempfile.TemporaryDirectory(prefix="scaling-") as temporary:
        scratch, numbers = Path(temporary), iter(range(10**6))

        def trained(share: int, *changes: str) -> Taken:
            sizes = [f"pretraining.fit.batch_size={given.batch // share}", f"pretraining.fit.samples={given.samples // share}"]
            folder = scratch / str(next(numbers))
            folder.mkdir()
            command = [sys.executable, "-m", "benchmarks.scaling", "--arm", str(folder), json.dumps([str(given.recipe.resolve()), *given.changes, *sizes, *changes])]
            taken, said = run(command, folder)
            return {"loop": json.loads(said)["seconds"], "steps": json.loads(said)["steps"], "whole": taken["wall"]}

        def at_once() -> Taken:
            with ThreadPoolExecutor(2) as two:
                pair = [one.result() for one in [two.submit(trained, 2) for _ in range(2)]]
            return {name: max(one[name] for one in pair) for name in pair[0]}

        comparisons: dict[str, tuple[Callable[[], Taken], Callable[[], Taken]]] = {
            "coupled / uncoupled": (lambda: trained(1, engine, "compute.workers=2"), at_once),
            "launched / local": (lambda: trained(1, engine), lambda: trained(1)),
        }
        rounds: dict[str, list[tuple[Taken, Taken]]] = {name: [] for name in comparisons}
        trained(1)  # fills the file cache
        for number in range(given.rounds):
            for name, arms in comparisons.items():
                order = (0, 1) if number % 2 == 0 else (1, 0)
                found = {index: arms[index]() for index in order}
                if found[0]["steps"] != found[1]["steps"]:  # trainings are rounded to whole passes over the rows
                    raise SystemExit(f"{name}: {found[0]['steps']} and {found[1]['steps']} steps. Choose --samples and --batch so that they are equal.")
                rounds[name].append((found[0], found[1]))
                print(f"round {number + 1}: {name} = {found[0]['loop']:.2f} s / {found[1]['loop']:.2f} s", file=sys.stderr, flush=True)
    figures = {}
    for name, pairs in rounds.items():
        figures[f"{name}, loop"] = median([one["loop"] / other["loop"] for one, other in pairs])
        figures[f"{name}, whole − whole, s"] = median([one["whole"] - other["whole"] for one, other in pairs])
    result = {"arguments": sys.argv[1:], "machine": machine(1), "figures": figures, "rounds": rounds}
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, one in figures.items():
        print(f"{name:40} {one['median']:7.2f}  [{one['low']:.2f}, {one['high']:.2f}]  n = {one['n']}")


def arm(folder: Path, recipe_and_overrides: list[str]) -> Taken:
    """One pretraining; seconds within its loop, and its steps."""
    from ml.engines import train
    from ml.plan import Plan
    from ml.preprocess import preprocess
    from ml.recipe import load

    path, *overrides = recipe_and_overrides
    recipe = load(path, [*overrides, "compute.threads=1", "pretraining.probe=false", "pretraining.fit.checkpoint_seconds=1000"])
    head = recipe.finetuning.head.chosen
    store = preprocess(recipe.data.source.make(), recipe.data.modality.make(), recipe.data, folder / "work", folder / "stores", head.labels, head.several)
    torch.manual_seed(0)
    _, fitted = train(Plan("pretrain", recipe, store), recipe.backbone.make(store.spec), folder, lambda metrics, step: None)
    return {"seconds": fitted.seconds, "steps": fitted.steps}


if __name__ == "__main__":
    main()
