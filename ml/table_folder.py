"""A table, or a folder of tables, as one list of rows whose keys are FILE:ROW. What sources of texts in tables share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, files_at, listing_digest
from ml.label_sets import label_columns, labels_of
from ml.labels import label_texts, split_column, split_from_path
from ml.table_files import SUFFIXES, Table, open_table

BATCH_KEYS = 256
"""Keys that are read together, in the order of their rows."""

Chunks = Iterator[tuple[int, list[Raw]]]
"""Items of a file, each chunk with the number of its first row."""


class TableFolder:
    """The tables at a path, a file or a folder, local or an fsspec URL; each is opened once."""

    def __init__(self, path: str, suffixes: tuple[str, ...] = SUFFIXES, opened: Callable[[Folder, str], Table] = open_table) -> None:
        self.path, self._suffixes, self._opened = path, suffixes, opened
        self._tables: dict[str, Table] = {}

    def tables(self) -> dict[str, Table]:
        """By their paths within the folder, in that order; InputError where there is none."""
        folder, items = self._files()
        return {item.path: self._tables.setdefault(item.path, self._opened(folder, item.path)) for item in items}

    def fingerprint(self, name: str, options: str) -> str:
        """Changes with the source's name and options and with the files."""
        return digest(name, options, listing_digest(*self._files()))

    def read(self, keys: Sequence[str], items: Callable[[Table, int], Chunks]) -> Iterator[Raw]:
        """The item of each key in order; `items(table, first)` gives those of a table from row `first` at the latest."""
        tables, reader = self.tables(), None
        for start in range(0, len(keys), BATCH_KEYS):
            places = [_place(key) for key in keys[start : start + BATCH_KEYS]]
            found = {}
            for path, row in sorted(set(places)):  # each file forwards, whatever the order of the keys
                if reader is None or reader.path != path or row < reader.start:
                    reader = _Reader(path, self._items(tables.get(path), path, row, items))
                found[path, row] = reader.at(row)
            yield from (found[place] for place in places)

    def _files(self) -> tuple[Folder, list[Item]]:
        folder, items, name = files_at(self.path, self._suffixes)
        if not items:
            found = f"there is no table in {self.path!r}" if name is None else f"{self.path!r} is no table by its name"
            raise InputError(f"{found}: expected {', '.join(self._suffixes)}")
        return folder, items

    def _items(self, table: Table | None, path: str, first: int, items: Callable[[Table, int], Chunks]) -> Chunks:
        if table is None:
            raise InputError(f"there is no file {path!r} in {self.path!r}")
        yield from items(table, first)


class _Reader:
    """Items of one file, asked for by ascending rows."""

    def __init__(self, path: str, chunks: Chunks) -> None:
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


def frame(table: Table, wanted: Mapping[str, str], separator: str = "") -> pd.DataFrame:
    """key, label, split, group and slice of a table's rows, of which `wanted` names the columns of those that have one.

    Without a column of splits, the file's name tells. Labels may be several a row, as `labels_of` reads them. Raises InputError where a column
    is missing.
    """
    labels = label_columns(wanted["label"], table.columns) if "label" in wanted else []
    others = {name: column for name, column in wanted.items() if name != "label"}
    for name, column in (*(("label", column) for column in labels), *others.items()):
        if column not in table.columns:
            raise InputError(lacks(table, column, name))
    values = table.values(list(dict.fromkeys([*labels, *others.values()])), listed=labels)
    found = pd.DataFrame({"key": [f"{table.path}:{row}" for row in range(len(values))]}, dtype=object)
    found["label"] = labels_of(values[labels], separator) if labels else None
    for name in ("split", "group", "slice"):
        found[name] = label_texts(values[others[name]]) if name in others else None
    found["split"] = split_column(found["split"], wanted["split"]) if "split" in wanted else split_from_path(table.path)
    return found.astype(object).where(found.notna(), None)


def first(names: tuple[str, ...], columns: list[str]) -> str:
    """The column that bears the first of the names, in any case; "" where none does."""
    return next((column for name in names for column in columns if column.strip().lower() == name), "")


def lacks(table: Table, column: str, option: str) -> str:
    """What to say where a table has no such column."""
    names = ", ".join(f"{name!r:.40}" for name in table.columns[:20]) or "none"
    return f"{table.path!r} has no column {column!r} for `{option}`; it has {names}{', ...' * (len(table.columns) > 20)}. Set data.source.options.{option}"


def _place(key: str) -> tuple[str, int]:
    path, _, row = key.rpartition(":")
    return path, int(row) if row.isdecimal() else -1
