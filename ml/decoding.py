"""Decodes all items of a source into one file of rows, in parallel, in chunks that survive a kill.

Threads serve: image libraries let go of Python's lock while they work. Memory is bounded by a few batches in flight and one
chunk of decoded rows. A chunk counts as done once its facts file is there, which is renamed into place after its rows are on
the disk; the next call with the same plan goes on with the chunks that are missing.

Where the decoding itself happens is for a `Fill` to say: on threads of this process, or elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from ml import progress
from ml.contracts import Decoded, InputError, Modality, Raw, Source
from ml.crash import crash_point
from ml.files import digest
from ml.ragged import Ragged

CHUNK_ROWS = 512
CHUNK_BYTES = 32 * 2**20
RAGGED_ROWS = 1024
"""Rows of a chunk whose rows differ in length."""
LENGTH = "stored"
"""The column of the facts that holds how many bytes a row takes."""
BATCH_ROWS = 16
BATCH_BYTES = 8 * 2**20
SPARE_BYTES = 16 * 2**20
"""Room left on a disk beside what the rows need: tables, manifests, other people's logs."""

Result = tuple[int, Decoded]
"""The bytes an item had, and what became of it."""


@dataclass(frozen=True)
class Decoding:
    """What is to be decoded: the items of `keys`, in chunks of `step` rows, into the files of `folder`."""

    source: Source
    modality: Modality
    keys: Sequence[str]
    step: int
    folder: Path


Fill = Callable[[Decoding], None]
"""Makes the chunks that the folder lacks, by `write_missing`."""


def decode_all(source: Source, modality: Modality, keys: Sequence[str], workdir: Path, fill: Fill) -> tuple[np.ndarray | Ragged, pd.DataFrame]:
    """All items as (rows mapped read-only, facts: content, signature, reason, bytes and the modality's own).

    Rows are (N, *item_shape) where the modality has one, else Ragged. Those of items that could not be decoded hold zeros or
    nothing. The result does not depend on `fill`.
    """
    folder, fixed = workdir / "decoded", modality.item_shape
    item_bytes = int(np.prod(fixed)) if fixed else 0
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // item_bytes)) if fixed else RAGGED_ROWS
    _prepare(folder, digest(source.fingerprint(), modality.options.model_dump_json(), step, *keys), len(keys) * item_bytes)
    starts = range(0, len(keys), step)
    if not all(_facts_path(folder, start).exists() for start in starts):
        fill(Decoding(source, modality, keys, step, folder))
    facts = pd.concat([pd.read_parquet(_facts_path(folder, start)) for start in starts], ignore_index=True)
    lengths = facts.pop(LENGTH).to_numpy(np.int64)
    if fixed:
        return np.memmap(folder / "rows.bin", dtype=np.uint8, mode="r", shape=(len(keys), *fixed)), facts
    end = int(lengths.sum())
    values = np.memmap(folder / "rows.bin", dtype=np.uint8, mode="r", shape=(end,)) if end else np.zeros(0, np.uint8)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)), facts


def on_threads(workers: int) -> Fill:
    """Decodes on threads of this process; 0 takes all cores."""
    threads = workers or len(os.sched_getaffinity(0))
    return lambda decoding: write_missing(decoding, lambda keys: _in_order(decoding.source, decoding.modality, keys, threads))


def write_missing(decoding: Decoding, results: Callable[[Sequence[str]], Iterator[Result]]) -> None:
    """Writes, in order, the chunks that are missing of what `results` gives for their keys."""
    folder, keys, step = decoding.folder, decoding.keys, decoding.step
    starts = list(range(0, len(keys), step))
    there = sum(1 for _ in takewhile(lambda start: _facts_path(folder, start).exists(), starts))
    end = sum(int(pd.read_parquet(_facts_path(folder, start), columns=[LENGTH])[LENGTH].sum()) for start in starts[:there])
    done = min(there * step, len(keys))
    pending, began = keys[done:], time.monotonic()
    progress.update("preprocess", done, len(keys))
    with (folder / "rows.bin").open("r+b") as file, warnings.catch_warnings():
        # Pillow warns about odd metadata; what matters of it is in the quarantine's reasons.
        warnings.filterwarnings("ignore", module="PIL")
        coming = results(pending)
        for start in starts[there:]:
            count = min(step, len(keys) - start)
            end += _write_chunk(folder, file, start, end, list(islice(coming, count)), decoding.modality.item_shape)
            crash_point("preprocess.chunk")
            done += count
            seconds = max(time.monotonic() - began, 1e-9)
            progress.update("preprocess", done, len(keys), items_per_second=(done - len(keys) + len(pending)) / seconds)


def discard(workdir: Path) -> None:
    """Removes the decoded rows, once a store holds them."""
    shutil.rmtree(workdir / "decoded", ignore_errors=True)


def reserved(workdir: Path) -> int:
    """The bytes that an earlier call has already taken for its rows."""
    rows = workdir / "decoded" / "rows.bin"
    return rows.stat().st_size if rows.is_file() else 0


def require_space(needs: Iterable[tuple[Path, int]]) -> None:
    """InputError where the disks of the folders lack the bytes that are needed on each."""
    total: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        folder.mkdir(parents=True, exist_ok=True)
        device = folder.stat().st_dev
        total[device] = (folder, total.get(device, (folder, SPARE_BYTES))[1] + size)
    for folder, size in total.values():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise InputError(f"the disk of {folder} has {free / 2**20:,.0f} MiB free, but {size / 2**20:,.0f} MiB are needed there. Free some space or choose another folder")


def _prepare(folder: Path, plan: str, size: int) -> None:
    """Keeps the chunks of an earlier call with the same plan, and starts anew otherwise."""
    marker = folder / "plan.json"
    if marker.is_file() and marker.read_text() == json.dumps(plan):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "rows.bin").open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows here, not half way
    _replace(marker, json.dumps(plan).encode())


def _in_order(source: Source, modality: Modality, keys: Sequence[str], workers: int) -> Iterator[Result]:
    """Yields the results in the order of `keys`, a bounded number of batches ahead."""
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[list[Result]]] = deque()
        for batch in _batches(source.read(keys)):
            waiting.append(pool.submit(lambda raws: [decoded(modality, raw) for raw in raws], batch))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def decoded(modality: Modality, raw: Raw) -> Result:
    """What becomes of one item."""
    return len(raw.data or b""), modality.decode(raw)


def _batches(raws: Iterable[Raw]) -> Iterator[list[Raw]]:
    batch: list[Raw] = []
    size = 0
    for raw in raws:
        batch.append(raw)
        size += len(raw.data or b"")
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_chunk(folder: Path, file, start: int, place: int, results: list[Result], fixed: tuple[int, ...] | None) -> int:
    """Writes the rows at byte `place`, then their facts; gives the bytes that the rows take."""
    facts, rows = [], []
    for size, one in results:
        row = one.array if one.array is not None else np.zeros(fixed or 0, dtype=np.uint8)
        rows.append(np.ascontiguousarray(row, dtype=np.uint8).ravel())
        facts.append(
            {"content": one.content, "signature": np.uint64(one.signature), "reason": one.reason, "bytes": size, LENGTH: len(rows[-1]), **one.facts}
        )
    block = np.concatenate(rows)
    file.seek(place)
    file.write(block)
    file.flush()
    os.fsync(file.fileno())
    path = _facts_path(folder, start)
    temporary = path.with_suffix(".tmp")
    pd.DataFrame(facts).astype({"signature": np.uint64}).to_parquet(temporary, index=False)
    _replace(path, temporary.read_bytes())
    return len(block)


def _facts_path(folder: Path, start: int) -> Path:
    return folder / f"facts-{start:012d}.parquet"


def _replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
