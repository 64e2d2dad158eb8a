"""The process that ml/engines/ray_data.py works by: `python -m ml.engines.ray_data_driver FOLDER` connects to a Ray cluster and runs Ray Data on it.

Pieces come back in order and are written here. Ray Data bounds how many wait.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata

from ml import progress
from ml.contracts import InputError
from ml.decoding import CHUNK_BYTES, Decoding, Result, write_missing
from ml.launched import Reports
from ml.modalities import MODALITIES
from ml.predictor import Predictor
from ml.ray_cluster import OBJECTS, found, serve
from ml.ray_workers import Decoder, Scorer, described, made, parts, row, state, table, unpacked
from ml.recipe import Compute
from ml.scoring import Reading, write
from ml.sources import SOURCES

AHEAD = 4
"""Chunks of each process for which there is room in Ray's object store."""


def main(folder: Path) -> None:
    """Does the job in `folder`."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    compute = Compute.model_validate(job.pop("compute"))
    progress.listen(Reports(folder / "reports.jsonl"))
    # Here, as a data set keeps the context that it was made with.
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    serve(folder, partial(JOBS[job.pop("stage")], compute, **job), compute, OBJECTS + AHEAD * CHUNK_BYTES * compute.processes)


def _decode(compute: Compute, source: list[Any], modality: list[Any], keys: list[str], step: int, folder: str) -> dict[str, Any]:
    decoding = Decoding(made(source, SOURCES), made(modality, MODALITIES), keys, step, Path(folder))
    compute = compute.model_copy(update={"device": "cpu"})

    def results(pending: Sequence[str]) -> Iterator[Result]:
        pieces = [row(json.dumps(pending[start : start + step]).encode()) for start in range(0, len(pending), step)]
        for piece in _mapped(ray.data.from_arrow(pieces), Decoder, (source, modality, decoding.source.fingerprint()), compute):
            yield from unpacked(piece)

    write_missing(decoding, results)
    return {}


def _score(
    compute: Compute, folder: str, engine: str, model: str, inputs: list[str], output: str, batch_size: int, column: str, part_rows: int
) -> dict[str, Any]:
    modality = Predictor.load(folder).modality

    def tables(reading: Reading) -> Iterator[pa.Table]:
        # No core is asked for: one reader at a time waits for the scorers, most of the time.
        pieces = ray.data.read_datasource(_Parts(modality, reading), override_num_blocks=1, num_cpus=0)
        for piece in _mapped(pieces, Scorer, (folder, engine, found(compute).type, batch_size), compute):
            yield table(piece)

    return write(modality, tables, model, inputs, Path(output), column, part_rows)


class _Parts(ray.data.Datasource):
    """The parts of a reading, which one task reads on and on, as fast as they are scored."""

    def __init__(self, modality: Any, reading: Reading) -> None:
        super().__init__()
        self._read = partial(parts, str(Path.cwd()), described(modality, MODALITIES), reading, state(reading))

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ray.data.ReadTask]:
        return [ray.data.ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None))]


def _mapped(pieces: ray.data.Dataset, worker: type, arguments: Sequence[Any], compute: Compute) -> Iterator[bytes]:
    """What workers of the cluster make of the pieces, in their order."""
    resources = {"num_cpus": 1} | ({"num_gpus": 1} if found(compute).type == "cuda" else {})
    results = pieces.map_batches(
        worker,
        fn_constructor_args=(str(Path.cwd()), *arguments),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=compute.processes),
        max_restarts=compute.max_restarts,  # without these two Ray would try for ever
        max_task_retries=compute.max_restarts,
        **resources,
    )
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        for one in batch.to_pylist():
            if one["error"] is not None:
                raise InputError(one["error"])
            yield one["piece"]


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"preprocess": _decode, "predict": _score}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
