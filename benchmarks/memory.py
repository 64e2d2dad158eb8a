"""Memory as the data grow: `python -m benchmarks.memory`.

The most memory of their own (without pages of files) that the processes of `warmstart run` hold on 1, 4 and 16 times as many pictures, drawn for it, each in a fresh
folder: preprocessing, 100 updates of pretraining, a short fine-tuning, evaluation and registration. Read from the kernel twenty times a second.
"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.harness import ROOT, WARMSTART, arguments, finish, prefect_server, turns

ROWS, TIMES, TEST = 3_000, (1, 4, 16), 500
SETTINGS = [
    "data.source={name: parquet, options: {path: data}}",
    "data.near_duplicates=true",
    "data.modality={name: image, options: {size: 32}}",
    "pretraining.fit={samples: 12800, batch_size: 128}",
    "splitting={labels_per_class: 10}",
    "finetuning.fit={epochs: 2, batch_size: 20}",
    "evaluation.bootstrap=100",
]


def main() -> None:
    given = arguments("memory", __doc__, pairs=1).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch, prefect_server(Path(scratch)):
        for times in TIMES:
            draw(Path(scratch) / str(times) / "data", ROWS * times)
        arms = {f"{times}": lambda times=times: peak(Path(scratch) / str(times), given.threads) for times in TIMES}
        rounds = turns(arms, given.pairs)
    figures = {f"{ROWS * times:,} pictures, MB": [one[f"{times}"] for one in rounds] for times in TIMES}
    figures |= {f"{times} times the data / once": [one[f"{times}"] / one["1"] for one in rounds] for times in TIMES[1:]}
    finish(given, figures, {f"{times} times the data / once": "≤ 1.1" for times in TIMES[1:]}, rounds=rounds)


def draw(folder: Path, rows: int) -> None:
    """Parquet files of PNG pictures, 32 by 32, of two classes, and test rows that do not grow."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", rows), ("test", TEST)):
        for start in range(0, count, ROWS):
            labels = random.integers(0, 2, min(ROWS, count - start))
            pictures = [picture(random, label) for label in labels]
            pd.DataFrame({"image": pictures, "label": [f"c{label}" for label in labels], "split": part}).to_parquet(folder / f"{part}-{start:06d}.parquet")


def picture(random: np.random.Generator, label: int) -> bytes:
    pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
    pixels[8:24, 8:24, label] = 255
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


def peak(folder: Path, threads: int) -> float:
    """MB that the command and its children hold at most."""
    for old in ("mlflow.db", ".warmstart", "mlruns"):
        subprocess.run(["rm", "-rf", str(folder / old)], check=True)
    command = [*WARMSTART, "run", str(ROOT / "conf" / "image" / "digits.yaml"), *SETTINGS, f"compute.threads={threads}", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        most = 0
        while process.poll() is None:
            most = max(most, held(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit((folder / "errors").read_text()[-3000:])
    return most / 1e6


def held(process: int | None) -> int:
    """Bytes of a process (None: this one) and all below it that no file backs."""
    process = process or os.getpid()
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")) + sum(held(int(child)) for child in children)


if __name__ == "__main__":
    main()
