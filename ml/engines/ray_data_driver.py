"""The process that ml/engines/ray_data.py works by: `python -m ml.engines.ray_data_driver FOLDER` connects to a Ray cluster and runs Ray Data on it.

Pieces come back in order and are written here. Ray Data bounds how many wait.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray.data

from ml import progress
from ml.contracts import InputError
from ml.decoding import CHUNK_BYTES, Decoding, Result, write_missing
from ml.launched import Reports
from ml.ray_cluster import OBJECTS, found, serve
from ml.ray_workers import Decoder, made, row, unpacked
from ml.recipe import Compute

AHEAD = 4
"""Chunks of each process for which there is room in Ray's object store."""


def main(folder: Path) -> None:
    """Does the job in `folder`."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    compute = Compute.model_validate(job.pop("compute"))
    progress.listen(Reports(folder / "reports.jsonl"))
    serve(folder, partial(JOBS[job.pop("stage")], compute, **job), compute, OBJECTS + AHEAD * CHUNK_BYTES * compute.processes)


def _decode(compute: Compute, described: str, keys: list[str], step: int, folder: str) -> dict[str, Any]:
    source, modality = made(described)
    compute = compute.model_copy(update={"device": "cpu"})

    def results(pending: Sequence[str]) -> Iterator[Result]:
        pieces = [row(json.dumps(pending[start : start + step]).encode()) for start in range(0, len(pending), step)]
        for piece in _mapped(ray.data.from_arrow(pieces), Decoder, (described, source.fingerprint()), compute):
            yield from unpacked(piece)

    write_missing(Decoding(source, modality, keys, step, Path(folder)), results)
    return {}


def _mapped(pieces: ray.data.Dataset, worker: type, arguments: Sequence[Any], compute: Compute) -> Iterator[bytes]:
    """What workers of the cluster make of the pieces, in their order."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    device = {"num_gpus": 1} if found(compute).type == "cuda" else {}
    made = pieces.map_batches(
        worker, fn_constructor_args=(os.getcwd(), *arguments), batch_size=1, batch_format="pyarrow", concurrency=compute.processes, num_cpus=1, **device
    )
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        for one in batch.to_pylist():
            if one["error"] is not None:
                raise InputError(one["error"])
            yield one["piece"]


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"preprocess": _decode}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
