"""What actors of Ray Data do, somewhere in a cluster: bytes of work in, bytes of results out, one piece a row.

Rows have the columns `piece` and `error`, of which one holds something. Sources, modalities and models are made anew from what describes them. Errors
come back as texts: Ray would wrap and repeat them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from ml.contracts import Decoded, InputError, Modality, Source
from ml.decoding import Result, decoded
from ml.modalities import MODALITIES
from ml.sources import SOURCES

SHARED = "compute.engine=ray and `predict --compute ray` need data, models and WARMSTART_HOME in folders that all nodes of the cluster share under the same path"
FACTS = pa.schema(
    {"bytes": pa.int64(), "content": pa.string(), "signature": pa.uint64(), "reason": pa.string(), "facts": pa.string(), "row": pa.large_binary()}
)
ROW = pa.schema({"piece": pa.large_binary(), "error": pa.string()})


def described(source: Source, modality: Modality) -> str:
    """What `made` makes both of again."""
    parts = (source, SOURCES), (modality, MODALITIES)
    return json.dumps([(name_of(part, table), part.options.model_dump(mode="json", exclude_unset=True)) for part, table in parts])


def made(text: str) -> tuple[Source, Modality]:
    """A source and a modality, as they were described."""
    return tuple(table[name](table[name].Options(**options)) for (name, options), table in zip(json.loads(text), (SOURCES, MODALITIES), strict=True))


def name_of(part: Any, table: Mapping[str, type]) -> str:
    """The name of a part's class in its table."""
    return next(name for name, one in table.items() if one is type(part))


def row(piece: bytes | None, error: str | None = None) -> pa.Table:
    """A piece of work or of results as Ray Data carries it."""
    return pa.table({"piece": [piece], "error": [error]}, schema=ROW)


def enter(folder: str) -> None:
    """Works where the driver does, to which the paths that are given may be relative; a node need not have that folder."""
    with suppress(OSError):
        os.chdir(folder)


class Decoder:
    """Decodes the items of some keys, given in JSON; `fingerprint` is that of the source as the driver sees it."""

    def __init__(self, place: str, description: str, fingerprint: str) -> None:
        enter(place)
        try:
            self._source, self._modality = made(description)
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
    import numpy as np

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
