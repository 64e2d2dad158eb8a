"""Texts with their translations, as two columns of CSV, TSV, JSON-lines or Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.files import MAX_ITEM_BYTES
from ml.labels import split_from_path
from ml.table_files import CHUNK_ROWS, SUFFIXES, Table
from ml.table_folder import Chunks, TableFolder, first, frame, lacks
from ml.text_cleaning import Unreadable, decode_text

SOURCES = ("source", "src", "source_text", "input", "question", "text")
TARGETS = ("target", "tgt", "target_text", "translation", "output", "summary", "answer")


class TextPairs:
    """A CSV, TSV, JSON-lines or Parquet file, or a folder of them: a column of texts, one of their translations, and optional further ones.

    Without a split column, a file named after a part (train.tsv, val.tsv, test_2016.tsv) is that part, and several test files are slices
    of the test. Files named unlabelled-* need no translations: they serve pretraining alone.
    """

    class Options(contracts.Options):
        path: str = Field("", description=f"File ({', '.join(SUFFIXES)}), folder of such files, or fsspec URL of either.")
        source: str = Field("", description=f"Column of texts to translate; unset, the first there is of {', '.join(SOURCES)}.")
        target: str = Field("", description=f"Column of translations; unset, the first there is of {', '.join(TARGETS)}.")
        split: str = Field("", description="Column that says train, validation, test or unlabelled; unset, the files' names tell.")
        group: str = Field("", description="Column of what must stay on one side of a split (document, speaker ...); unset, none.")
        slice: str = Field("", description="Column to report scores by (domain, site ...); unset, the test files' names where there are several.")

    def __init__(self, options: TextPairs.Options) -> None:
        self.options = options
        self._folder = TableFolder(options.path)

    def scan(self) -> pd.DataFrame:
        tables = list(self._folder.tables().values())
        for table in tables:
            self._columns(table)  # before anything else is missed in it
        wanted = {name: column for name in ("split", "group", "slice") if (column := getattr(self.options, name))}
        frames = [frame(table, wanted) for table in tables]
        if not self.options.slice and not self.options.split:
            for name, place in _test_names(tables).items():
                frames[place]["slice"] = name
        found = pd.concat(frames, ignore_index=True)
        if not self.options.split and found["split"].notna().any():
            found["split"] = found["split"].where(found["split"].notna(), "train")
        return found

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        """JSON, {"source": ..., "target": ...}, of each pair."""
        yield from self._folder.read(keys, self._pairs)

    def fingerprint(self) -> str:
        return self._folder.fingerprint("text-pairs", self.options.model_dump_json())

    def _columns(self, table: Table) -> dict[str, str]:
        """The columns of source and target; of the source alone where translations are neither there nor needed."""
        found = {}
        for side, names in (("source", SOURCES), ("target", TARGETS)):
            column = getattr(self.options, side) or first(names, table.columns)
            if column in table.columns:
                found[side] = column
            elif side == "source" or split_from_path(table.path) != "unlabelled":
                raise InputError(lacks(table, column or ", ".join(names), side))
        if len(set(found.values())) < len(found):
            raise InputError(f"the column {found['source']!r} of {table.path!r} cannot be source and target: set data.source.options.target to another")
        return found

    def _pairs(self, table: Table, row: int) -> Chunks:
        columns = self._columns(table)
        # One pass for each side, from the same row on: a damaged part of one may come in chunks of another size.
        sides = [((start + i, raw) for start, raws in table.texts(column, row) for i, raw in enumerate(raws)) for column in columns.values()]
        rows = zip(*sides, strict=True)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            yield chunk[0][0][0], [_pair(dict(zip(columns, (raw for _, raw in one), strict=True))) for one in chunk]


def _pair(sides: dict[str, Raw]) -> Raw:
    found = {}
    for side, raw in sides.items():
        if raw.data is None:
            return Raw(None, raw.reason.replace("the text is missing", f"the {side} is missing"))
        try:
            found[side] = decode_text(raw.data, MAX_ITEM_BYTES)
        except Unreadable as error:
            return Raw(None, f"the {side}: {error}")
    return Raw(json.dumps(found, ensure_ascii=False).encode())


def _test_names(tables: list[Table]) -> dict[str, int]:
    """Where there are several test files: the places of each among the tables, by its name without endings, or by its path where names recur."""
    places = [place for place, table in enumerate(tables) if split_from_path(table.path) == "test"]
    names = [PurePosixPath(tables[place].path).name.partition(".")[0] for place in places]
    if len(set(names)) < len(names):
        names = [tables[place].path for place in places]
    return dict(zip(names, places, strict=True)) if len(places) > 1 else {}
