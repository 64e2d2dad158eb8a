"""Texts as a column of CSV, TSV, JSON-lines or Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, listing_digest, locate
from ml.labels import label_texts, split_column, split_from_path
from ml.table_files import SUFFIXES, Table, open_table

TEXTS = ("text", "sentence", "review", "content", "document", "utterance", "question")
LABELS = ("label_name", "label", "class", "category", "intent", "target", "sentiment")
BATCH_KEYS = 256
"""Keys that are read together, in the order of their rows."""


class TextTable:
    """A CSV, TSV, JSON-lines or Parquet file, or a folder of them: a column of texts, a label, and optional further columns.

    Without a split column, a file named after a part (train.csv, test/x.jsonl, unsupervised.parquet) is that part. Rows without a
    label serve pretraining alone; so do all rows where no file has a column of labels.
    """

    class Options(contracts.Options):
        path: str = Field("", description=f"File ({', '.join(SUFFIXES)}), folder of such files, or fsspec URL of either.")
        text: str = Field("", description=f"Column of texts; unset, the first there is of {', '.join(TEXTS)}.")
        label: str = Field("", description=f"Column of labels, where an empty one makes a row unlabelled; unset, the first of {', '.join(LABELS)}.")
        split: str = Field("", description="Column that says train, validation, test or unlabelled; unset, the files' names tell.")
        group: str = Field("", description="Column of what must stay on one side of a split (author, conversation ...); unset, none.")
        slice: str = Field("", description="Column to report scores by (language, site ...); unset, none.")

    def __init__(self, options: TextTable.Options) -> None:
        self.options = options
        self._tables: dict[str, Table] = {}

    def scan(self) -> pd.DataFrame:
        tables = list(self._opened().values())
        for table in tables:
            self._text(table)  # before anything else is missed in it
        label = self._label(tables)
        frame = pd.concat([self._scan_table(table, label) for table in tables], ignore_index=True)
        if not self.options.split and not label:
            frame["split"] = "unlabelled"
        elif not self.options.split and frame["split"].notna().any():
            frame["split"] = frame["split"].where(frame["split"].notna(), "train")
        return frame

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        tables = self._opened()
        reader = None
        for start in range(0, len(keys), BATCH_KEYS):
            places = [_place(key) for key in keys[start : start + BATCH_KEYS]]
            found = {}
            for path, row in sorted(set(places)):  # each file forwards, whatever the order of the keys
                if reader is None or reader.path != path or row < reader.start:
                    reader = _Reader(path, self._texts(tables.get(path), path, row))
                found[path, row] = reader.at(row)
            yield from (found[place] for place in places)

    def fingerprint(self) -> str:
        folder, items = self._files()
        return digest("text-table", self.options.model_dump_json(), listing_digest(folder, items))

    def _files(self) -> tuple[Folder, list[Item]]:
        folder, name = locate(self.options.path)
        items = folder.list()[0]
        if name is not None:
            items = [item for item in items if item.path == name]
        else:
            # Names that begin with a dot or an underscore are other tools' notes (_SUCCESS, _metadata).
            items = [item for item in items if not any(part[0] in "._" for part in item.path.split("/"))]
        items = [item for item in items if item.path.lower().endswith(SUFFIXES)]
        if not items:
            found = f"there is no table in {self.options.path!r}" if name is None else f"{self.options.path!r} is no table by its name"
            raise InputError(f"{found}: expected {', '.join(SUFFIXES)}")
        for item in items:
            if item.reason:
                raise InputError(f"cannot read {item.path!r} in {self.options.path!r}: {item.reason}")
        return folder, items

    def _opened(self) -> dict[str, Table]:
        folder, items = self._files()
        return {item.path: self._tables.setdefault(item.path, open_table(folder, item.path)) for item in items}

    def _text(self, table: Table) -> str:
        column = self.options.text or _first(TEXTS, table.columns)
        if column not in table.columns:
            raise InputError(_lacks(table, column or ", ".join(TEXTS), "text"))
        return column

    def _texts(self, table: Table | None, path: str, first: int) -> Iterator[tuple[int, list[Raw]]]:
        if table is None:
            raise InputError(f"there is no file {path!r} in {self.options.path!r}")
        yield from table.texts(self._text(table), first)

    def _label(self, tables: list[Table]) -> str:
        """The column of labels, "" where there is none. Files for training must have it; others may lack it."""
        tables = [table for table in tables if split_from_path(table.path) != "unlabelled"]
        found = {self.options.label or _first(LABELS, table.columns): table.path for table in reversed(tables)}
        found.pop("", None)
        if len(found) > 1:
            listed = " and ".join(f"{column!r} ({path})" for column, path in found.items())
            raise InputError(f"the labels are in different columns, {listed}: set data.source.options.label to one that all the files have")
        label = next(iter(found), "")
        having = [table for table in tables if label in table.columns]
        for table in tables:
            held_out = having and split_from_path(table.path) in ("validation", "test")
            if label and table not in having and not held_out:
                raise InputError(f"{_lacks(table, label, 'label')}, or name the file unlabelled-* if its texts have no labels")
        return label

    def _scan_table(self, table: Table, label: str) -> pd.DataFrame:
        named = split_from_path(table.path)
        wanted = {name: column for name in ("split", "group", "slice") if (column := getattr(self.options, name))}
        for name, column in wanted.items():
            if column not in table.columns:
                raise InputError(_lacks(table, column, name))
        if label in table.columns and named != "unlabelled":
            wanted["label"] = label
        values = table.values(list(dict.fromkeys(wanted.values())))
        frame = pd.DataFrame({"key": [f"{table.path}:{row}" for row in range(len(values))]}, dtype=object)
        for name in ("label", "split", "group", "slice"):
            frame[name] = label_texts(values[wanted[name]]) if name in wanted else None
        frame["split"] = split_column(frame["split"], self.options.split) if self.options.split else named
        return frame.astype(object).where(frame.notna(), None)


class _Reader:
    """Texts of one file, asked for by ascending rows."""

    def __init__(self, path: str, chunks: Iterator[tuple[int, list[Raw]]]) -> None:
        self.path, self.start = path, 0
        self._chunks, self._raws, self._failure = chunks, [], ""

    def at(self, row: int) -> Raw:
        try:
            while not self.start <= row < self.start + len(self._raws):
                self.start, self._raws = next(self._chunks)
        except StopIteration:
            return Raw(None, self._failure or f"the file has no row {row}")
        except (InputError, OSError) as error:
            self._failure = str(error)
            return Raw(None, self._failure)
        return self._raws[row - self.start]


def _place(key: str) -> tuple[str, int]:
    path, _, row = key.rpartition(":")
    return path, int(row) if row.isdecimal() else -1


def _first(names: tuple[str, ...], columns: list[str]) -> str:
    """The column that bears the first of the names, in any case; "" where none does."""
    return next((column for name in names for column in columns if column.strip().lower() == name), "")


def _lacks(table: Table, column: str, option: str) -> str:
    names = ", ".join(f"{name!r:.40}" for name in table.columns[:20]) or "none"
    return f"{table.path!r} has no column {column!r} for `{option}`; it has {names}{', ...' * (len(table.columns) > 20)}. Set data.source.options.{option}"
