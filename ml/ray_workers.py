"""What actors of Ray Data do, somewhere in a cluster: bytes of work in, bytes of results out, one piece a row.

Rows have the columns `piece` and `error`, of which one holds something. Sources, modalities and models are made anew from what describes them. Errors
come back as texts: Ray would wrap and repeat them. Items to score are pickled by our own reader, as Ray does with all that it carries.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ml.contracts import Decoded, InputError
from ml.decoding import Result, decoded
from ml.modalities import MODALITIES
from ml.onnx_graph import Graph
from ml.predictor import Predictor
from ml.scoring import Reading, identity, scored
from ml.sources import SOURCES

SHARED = "compute.engine=ray and `predict --compute ray` need data, models and WARMSTART_HOME in folders that all nodes of the cluster share under the same path"
FACTS = pa.schema(
    {"bytes": pa.int64(), "content": pa.string(), "signature": pa.uint64(), "reason": pa.string(), "facts": pa.string(), "row": pa.large_binary()}
)
ROW = pa.schema({"piece": pa.large_binary(), "error": pa.string()})


def described(part: Any, table: Mapping[str, type]) -> tuple[str, dict[str, Any]]:
    """What `made` makes a source or a modality of again, in JSON too: its name in the table, and its options."""
    return next(name for name, one in table.items() if one is type(part)), part.options.model_dump(mode="json", exclude_unset=True)


def made(description: Sequence[Any], table: Mapping[str, type]) -> Any:
    """The source or the modality that was described."""
    name, options = description
    return table[name](table[name].Options(**options))


def row(piece: bytes | None, error: str | None = None) -> pa.Table:
    """A piece of work or of results as Ray Data carries it."""
    return pa.table({"piece": [piece], "error": [error]}, schema=ROW)


def enter(folder: str) -> None:
    """Works where the driver does, to which the paths that are given may be relative; a node need not have that folder."""
    with suppress(OSError):
        os.chdir(folder)


class Decoder:
    """Decodes the items of some keys, given in JSON; `fingerprint` is that of the source as the driver sees it."""

    def __init__(self, place: str, source: Sequence[Any], modality: Sequence[Any], fingerprint: str) -> None:
        enter(place)
        try:
            self._source, self._modality = made(source, SOURCES), made(modality, MODALITIES)
            self._error = None if self._source.fingerprint() == fingerprint else f"a node of the Ray cluster sees other data than this machine. {SHARED}."
        except InputError as error:
            self._error = f"a node of the Ray cluster cannot read the data: {error}. {SHARED}."

    def __call__(self, work: pa.Table) -> pa.Table:
        if self._error is not None:
            return row(None, self._error)
        keys = json.loads(work.column("piece")[0].as_py())
        try:
            return row(packed([decoded(self._modality, raw) for raw in self._source.read(keys)]))
        except InputError as error:
            return row(None, str(error))


class Scorer:
    """Scores parts of items with the model in `folder`, on a `device`, by torch or the `engine` of one of its graphs."""

    def __init__(self, place: str, folder: str, engine: str, device: str, batch_size: int) -> None:
        enter(place)
        torch.set_num_threads(1)
        self._batch_size, self._error = batch_size, None
        try:
            graph = None if engine == "torch" else Graph(Path(folder), 1, engine)
            self._predictor = Predictor.load(folder, device, graph)
        except InputError as error:
            self._error = f"a node of the Ray cluster cannot load the model: {error}. {SHARED}."

    def __call__(self, work: pa.Table) -> pa.Table:
        error = work.column("error")[0].as_py() or self._error
        if error is not None:
            return row(None, error)
        try:
            return row(stream(scored(self._predictor, pickle.loads(work.column("piece")[0].as_py()), self._batch_size)))
        except InputError as error:
            return row(None, str(error))


def parts(place: str, modality: Sequence[Any], reading: Reading, seen: str) -> Iterator[pa.Table]:
    """The parts that a reading gives, for a Scorer; `seen` is the identity of its files as the driver sees them."""
    enter(place)
    try:
        if state(reading) != seen:
            yield row(None, f"a node of the Ray cluster sees other inputs than this machine. {SHARED}.")
            return
        for part in reading.parts(made(modality, MODALITIES)):
            yield row(pickle.dumps(part))
    except OSError as error:
        yield row(None, f"a node of the Ray cluster cannot read {error.filename}: {error.strerror}. {SHARED}.")
    except InputError as error:
        yield row(None, str(error))


def state(reading: Reading) -> str:
    """Changes when a file of the reading does."""
    return identity("", reading.files, "", 0)


def packed(results: Sequence[Result]) -> bytes:
    """What became of some items, in Arrow's stream format."""
    rows = [
        {
            "bytes": size,
            "content": one.content,
            "signature": int(one.signature),
            "reason": one.reason,
            "facts": json.dumps({name: int(value) for name, value in one.facts.items()}),
            "row": None if one.array is None else one.array.tobytes(),
        }
        for size, one in results
    ]
    return stream(pa.Table.from_pylist(rows, schema=FACTS))


def unpacked(piece: bytes) -> Iterator[Result]:
    """The results again, their arrays flat."""
    for one in table(piece).to_pylist():
        array = None if one["row"] is None else np.frombuffer(one["row"], np.uint8)
        yield one["bytes"], Decoded(array, one["content"], one["signature"], json.loads(one["facts"]), one["reason"])


def stream(one: pa.Table) -> bytes:
    """A table in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, one.schema) as writer:
        writer.write_table(one)
    return sink.getvalue().to_pybytes()


def table(piece: bytes) -> pa.Table:
    """The table again."""
    return pa.ipc.open_stream(piece).read_all()
