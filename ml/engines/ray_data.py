"""Decodes and scores on a Ray cluster with Ray Data, by the same functions as one process does.

What connects to it is a process of its own, ml/engines/ray_data_driver.py: it writes the files that this process would have written, chunk for chunk.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ml.decoding import Decoding
from ml.launch import RanksFailed, followed, said
from ml.modalities import MODALITIES
from ml.ray_cluster import variables
from ml.ray_workers import described
from ml.recipe import Compute
from ml.scoring import PART
from ml.sources import SOURCES


def fill(decoding: Decoding, compute: Compute) -> None:
    """An `ml.decoding.Fill`: the processes of `compute` decode, a core each."""
    parts = {"source": described(decoding.source, SOURCES), "modality": described(decoding.modality, MODALITIES)}
    job = {"keys": list(decoding.keys), "step": decoding.step, "folder": str(decoding.folder.resolve())}
    _work("preprocess", parts | job, decoding.folder / "ray", compute)


def score(
    folder: Path, engine: str, model: str, inputs: Sequence[str], output: Path, batch_size: int, column: str, compute: Compute, part_rows: int = PART
) -> dict[str, Any]:
    """As `ml.scoring.score`, with the model in `folder`: the processes of `compute` score, a core or a GPU each."""
    job = {"folder": str(folder.resolve()), "engine": engine, "model": model, "inputs": list(inputs), "output": str(output), "batch_size": batch_size}
    with TemporaryDirectory(prefix="predict-") as place:
        return _work("predict", job | {"column": column, "part_rows": part_rows}, Path(place) / "ray", compute)


def _work(stage: str, job: dict[str, Any], folder: Path, compute: Compute) -> Any:
    """What the driver gives for the job; progress is told meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"stage": stage, "compute": compute.model_dump(mode="json"), **job}), encoding="utf-8")
    command = [sys.executable, "-m", "ml.engines.ray_data_driver", str(folder.resolve())]
    outcome = followed(command, variables(compute), folder, stage, lambda metrics, step: None)
    if not outcome:
        raise RanksFailed(f"the Ray driver of {stage} died. The same command goes on with what is done. It said last:\n{said(folder)}")
    shutil.rmtree(folder)
    return outcome["done"]
