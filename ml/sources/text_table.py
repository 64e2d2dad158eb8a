"""Texts as a column of CSV, TSV, JSON-lines or Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.label_sets import label_columns
from ml.labels import LABELS, TEXTS, split_from_path
from ml.table_files import SUFFIXES, Table
from ml.table_folder import TableFolder, first, frame, lacks


class TextTable:
    """A CSV, TSV, JSON-lines or Parquet file, or a folder of them: a column of texts, a label, and optional further columns.

    Without a split column, a file named after a part (train.csv, test/x.jsonl, unsupervised.parquet) is that part. Where labels are
    needed, rows without one serve pretraining alone. A row has several labels where the column holds lists, where `separator` stands
    between them, or where `label` names columns of 0 and 1, one a class.
    """

    class Options(contracts.Options):
        path: str = Field("", description=f"File ({', '.join(SUFFIXES)}), folder of such files, or fsspec URL of either.")
        text: str = Field("", description=f"Column of texts; unset, the first there is of {', '.join(TEXTS)}.")
        label: str = Field("", description=f"Column of labels, where an empty one makes a row unlabelled; or columns of 0 and 1, with commas between; unset, the first of {', '.join(LABELS)}.")
        separator: str = Field("", description="What stands between the labels of a row, where an empty text then means that no class applies; unset, a text is one label.")
        split: str = Field("", description="Column that says train, validation, test or unlabelled; unset, the files' names tell.")
        group: str = Field("", description="Column of what must stay on one side of a split (author, conversation ...); unset, none.")
        slice: str = Field("", description="Column to report scores by (language, site ...); unset, none.")

    def __init__(self, options: TextTable.Options) -> None:
        self.options = options
        self._folder = TableFolder(options.path)

    def scan(self) -> pd.DataFrame:
        tables = list(self._folder.tables().values())
        for table in tables:
            self._text(table)  # before anything else is missed in it
        label = self._label(tables)
        found = pd.concat([self._scan_table(table, label) for table in tables], ignore_index=True)
        if not self.options.split:
            rest = "train" if found["split"].notna().any() else None if label else "unlabelled"
            found["split"] = found["split"].where(found["split"].notna(), rest)
        return found

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        yield from self._folder.read(keys, lambda table, row: table.texts(self._text(table), row))

    def fingerprint(self) -> str:
        return self._folder.fingerprint("text-table", self.options.model_dump_json())

    def _text(self, table: Table) -> str:
        column = self.options.text or first(TEXTS, table.columns)
        if column not in table.columns:
            raise InputError(lacks(table, column or ", ".join(TEXTS), "text"))
        return column

    def _label(self, tables: list[Table]) -> str:
        """The column of labels, "" where there is none. Files for training must have it; others may lack it."""
        tables = [table for table in tables if split_from_path(table.path) != "unlabelled"]
        found = {self.options.label or first(LABELS, table.columns): table.path for table in reversed(tables)}
        found.pop("", None)
        if len(found) > 1:
            listed = " and ".join(f"{column!r} ({path})" for column, path in found.items())
            raise InputError(f"the labels are in different columns, {listed}: set data.source.options.label to one that all the files have")
        label = next(iter(found), "")
        having = [table for table in tables if not _missing(table, label)]
        for table in tables:
            held_out = having and split_from_path(table.path) in ("validation", "test")
            if label and table not in having and not held_out:
                raise InputError(f"{lacks(table, _missing(table, label)[0], 'label')}, or name the file unlabelled-* if its texts have no labels")
        return label

    def _scan_table(self, table: Table, label: str) -> pd.DataFrame:
        wanted = {name: column for name in ("split", "group", "slice") if (column := getattr(self.options, name))}
        if label and not _missing(table, label) and split_from_path(table.path) != "unlabelled":
            wanted["label"] = label
        return frame(table, wanted, self.options.separator)


def _missing(table: Table, label: str) -> list[str]:
    return [column for column in label_columns(label, table.columns) if column not in table.columns]
