"""Texts as a column of CSV, TSV, JSON-lines or Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.labels import split_from_path
from ml.table_files import SUFFIXES, Table
from ml.table_folder import TableFolder, first, frame, lacks

TEXTS = ("text", "sentence", "review", "content", "document", "utterance", "question")
LABELS = ("label_name", "label", "class", "category", "intent", "target", "sentiment")


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
        self._folder = TableFolder(options.path)

    def scan(self) -> pd.DataFrame:
        tables = list(self._folder.tables().values())
        for table in tables:
            self._text(table)  # before anything else is missed in it
        label = self._label(tables)
        found = pd.concat([self._scan_table(table, label) for table in tables], ignore_index=True)
        if not self.options.split and not label:
            found["split"] = "unlabelled"
        elif not self.options.split and found["split"].notna().any():
            found["split"] = found["split"].where(found["split"].notna(), "train")
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
        having = [table for table in tables if label in table.columns]
        for table in tables:
            held_out = having and split_from_path(table.path) in ("validation", "test")
            if label and table not in having and not held_out:
                raise InputError(f"{lacks(table, label, 'label')}, or name the file unlabelled-* if its texts have no labels")
        return label

    def _scan_table(self, table: Table, label: str) -> pd.DataFrame:
        wanted = {name: column for name in ("split", "group", "slice") if (column := getattr(self.options, name))}
        if label in table.columns and split_from_path(table.path) != "unlabelled":
            wanted["label"] = label
        return frame(table, wanted)
