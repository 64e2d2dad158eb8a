"""Some of the rows that were asked for, kept with their answers as Parquet files: what a later comparison of served and training data reads.

A file holds rows of one version: the columns time (UTC), model (models:/NAME/VERSION), the modality's fields (bytes or text), then what the
model told. It is written by a thread beside the requests, which never wait for it: what it cannot keep up with is dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ml.contracts import InputError
from ml.predictor import frame_of
from ml.scoring import table_of
from tasks.serve.metrics import Metrics

if TYPE_CHECKING:
    from tasks.serve.model import Loaded

ROWS, BYTES, SECONDS = 4096, 32 * 2**20, 60.0
"""A file is written when it would have so many rows or bytes of inputs, or its first row is so old."""
PENDING = 64 * 2**20
"""Bytes of inputs that wait to be written, at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Piece:
    """Sampled rows of one answer."""

    time: datetime
    model: Loaded
    values: Sequence[Any]
    answers: pd.DataFrame
    size: int


class Samples:
    """Keeps a `share` of the rows (0 to 1) in `folder`, of which the oldest files go once all are longer than `most` bytes."""

    def __init__(self, folder: Path, share: float, most: int, metrics: Metrics):
        self._folder, self._share, self._most, self._metrics = folder, share, most, metrics
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise InputError(f"cannot keep samples in {folder}: {error.strerror}. Name a folder that can be written with --samples.") from None
        self._queue: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._pending, self._lock, self._written = 0, threading.Lock(), 0
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
        self._thread.start()

    def offer(self, model: Loaded, values: Sequence[Any], answers: pd.DataFrame) -> None:
        """Keeps some of these rows, or drops them where too many wait; never waits."""
        chosen = [row for row in range(len(values)) if random.random() < self._share]
        if not chosen:
            return
        kept = [values[row] for row in chosen]
        piece = _Piece(datetime.now(UTC), model, kept, answers.iloc[chosen], sum(map(_size, kept)))
        with self._lock:
            fits = self._pending + piece.size <= PENDING
            self._pending += piece.size if fits else 0
        if fits:
            self._queue.put(piece)
        else:
            self._metrics.dropped.inc(len(chosen))

    def close(self, seconds: float = 30.0) -> None:
        """Writes what waits, for at most so many seconds."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        held: list[_Piece] = []
        deadline = 0.0
        while True:
            try:
                piece = self._queue.get(timeout=max(deadline - time.monotonic(), 0) if held else None)
            except queue.Empty:
                held = self._write(held)
                continue
            if piece is None or (held and piece.model is not held[0].model):
                held = self._write(held)
            if piece is None:
                return
            if not held:
                deadline = time.monotonic() + SECONDS
            held.append(piece)
            if sum(len(one.values) for one in held) >= ROWS or sum(one.size for one in held) >= BYTES or time.monotonic() > deadline:
                held = self._write(held)

    def _write(self, held: list[_Piece]) -> list[_Piece]:
        """Writes the pieces as one file, whole or not at all; gives what is held then, which is nothing."""
        rows = sum(len(one.values) for one in held)
        if not rows:
            return []
        self._written += 1
        path = self._folder / f"samples-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}-{self._written:06d}.parquet"
        part = path.with_name(f".{path.name}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                pq.write_table(_table(held), file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self._metrics.sampled.inc(rows)
            self._prune()
        except Exception as error:  # samples are worth no request: the next file may be written again
            _log.error("%d sampled rows cannot be kept in %s: %s", rows, self._folder, error)
            self._metrics.dropped.inc(rows)
            part.unlink(missing_ok=True)
        with self._lock:
            self._pending -= sum(one.size for one in held)
        return []

    def _prune(self) -> None:
        """Deletes the oldest of this folder's files of samples, and what a killed server left half written, beyond the limit."""
        files = [path for pattern in ("samples-*.parquet", ".samples-*.part") for path in self._folder.glob(pattern)]
        found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in files)
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._most:
                return
            path.unlink(missing_ok=True)
            total -= size


def _table(held: Sequence[_Piece]) -> pa.Table:
    model = held[0].model
    modality, kind = model.modality, pa.binary() if model.modality.column_type == "binary" else pa.string()
    table = table_of(pd.concat([one.answers for one in held], ignore_index=True))
    inputs = frame_of([value for one in held for value in one.values], modality)
    columns = {
        "time": pa.array([one.time for one in held for _ in one.values], pa.timestamp("us", "UTC")),
        "model": pa.array([model.version.uri] * len(inputs), pa.string()),
    } | {name: pa.array([_plain(value, kind, modality) for value in inputs[name].tolist()], kind) for name in inputs}
    for place, (name, column) in enumerate(columns.items()):
        table = table.add_column(place, name, column)
    return table


def _plain(value: Any, kind: pa.DataType, modality: Any) -> Any:
    """A field's value as it is kept: bytes also where CSV brought them as base64, and nothing where there is none."""
    if pa.types.is_binary(kind) and isinstance(value, str):
        try:
            return modality.serve(value, files=False).data
        except InputError:
            return None
    return value if isinstance(value, bytes if pa.types.is_binary(kind) else str) else None


def _size(value: Any) -> int:
    return sum(map(_size, value.values())) if isinstance(value, dict) else len(value) if isinstance(value, bytes | str) else 0
