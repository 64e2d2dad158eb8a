"""Pictures as a column of Parquet files."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, files_at, folder_at, listing_digest, short
from ml.label_sets import label_columns, labels_of
from ml.labels import class_names, label_texts, split_column, split_from_path
from ml.table_files import picture_of

BATCH_ROWS = 64
"""Rows of pictures in memory at a time."""


class Parquet:
    """A Parquet file, or a folder of them: a column of image bytes (or paths), a label, and optional further columns.

    Without a split column, a file named after a part (train-0001.parquet, test/x.parquet, unsupervised.parquet) is that part. Bytes
    may stand in a struct with a field `bytes`, as Hugging Face writes them; its names of classes are used too. A row has several labels where
    the column holds lists, where `separator` stands between them, or where `label` names columns of 0 and 1, one a class.
    """

    class Options(contracts.Options):
        path: str = Field("", description="Parquet file, folder of such files, or fsspec URL of either.")
        image: str = Field("image", description="Column of image bytes, {bytes, path} structs, or paths.")
        label: str = Field("label", description="Column of labels, or of lists of them; missing or empty ones make a row unlabelled; or columns of 0 and 1, with commas between.")
        label_name: str | None = Field(None, description="Column of readable class names, taken instead of `label`.")
        separator: str = Field("", description="What stands between the labels of a row, where an empty text then means that no class applies; unset, a text is one label.")
        split: str | None = Field(None, description="Column that says train, validation, test or unlabelled.")
        group: str | None = Field(None, description="Column of what must stay on one side of a split (patient, video ...).")
        slice: str | None = Field(None, description="Column to report scores by (site, camera ...).")
        root: str | None = Field(None, description="Folder that paths in the image column are relative to; unset, that of the Parquet file.")

    def __init__(self, options: Parquet.Options) -> None:
        self.options = options

    def scan(self) -> pd.DataFrame:
        folder, items = self._files()
        frames = [self._scan_file(folder, item.path) for item in items]
        frame = pd.concat(frames, ignore_index=True)
        if self.options.split is None and len(items) > 1 and frame["split"].isna().any() and frame["split"].notna().any():
            frame["split"] = frame["split"].where(frame["split"].notna(), "train")
        return frame

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        folder, _ = self._files()
        for path, part in groupby(keys, key=lambda key: key.rpartition("#")[0]):
            yield from self._read_file(folder, path, [int(key.rpartition("#")[2]) for key in part])

    def fingerprint(self) -> str:
        folder, items = self._files()
        return digest("parquet", self.options.model_dump_json(), listing_digest(folder, items))

    def _files(self) -> tuple[Folder, list[Item]]:
        folder, items, _ = files_at(self.options.path, (".parquet", ".pq"), named=False)
        if not items:
            raise InputError(f"there is no Parquet file (*.parquet, *.pq) in {self.options.path!r}")
        return folder, items

    @contextlib.contextmanager
    def _opened(self, folder: Folder, path: str) -> Iterator[pq.ParquetFile]:
        with folder.open(path) as handle:
            try:
                file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**20)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path!r} in {folder.root} is not a whole Parquet file: {short(error)}") from None
            yield file

    def _scan_file(self, folder: Folder, path: str) -> pd.DataFrame:
        part = split_from_path(path) if self.options.split is None else None
        with self._opened(folder, path) as file:
            there = file.schema_arrow.names
            labels = label_columns(self.options.label_name or self.options.label, there)
            others = {name: getattr(self.options, name) for name in ("split", "group", "slice")}
            wanted = [*labels, *others.values()]
            for option, column in (*(("label", column) for column in labels), *others.items(), ("image", self.options.image)):
                if column is not None and column not in there and not (option == "label" and part == "unlabelled"):
                    raise InputError(
                        f"{path!r} has no column {column!r} for `{option}`; it has {', '.join(map(repr, there))}. Set data.source.options.{option}"
                    )
            try:
                table = file.read(columns=[column for column in dict.fromkeys(wanted) if column in there])
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path!r} in {folder.root} is damaged: {short(error)}") from None
            count, schema = file.metadata.num_rows, file.schema_arrow
        frame = pd.DataFrame({"key": [f"{path}#{row}" for row in range(count)]}, dtype=object)
        named = {column: class_names(table.column(column).to_pandas(), column, schema.metadata) for column in labels if column in there}
        frame["label"] = labels_of(pd.DataFrame(named), self.options.separator) if len(named) == len(labels) else None
        frame["split"] = split_column(table.column(self.options.split).to_pandas(), self.options.split) if self.options.split else part
        for name in ("group", "slice"):
            column = getattr(self.options, name)
            frame[name] = label_texts(table.column(column).to_pandas()) if column else None
        return frame.astype(object)

    def _read_file(self, folder: Folder, path: str, rows: list[int]) -> Iterator[Raw]:
        """The pictures in the given rows, in that order; rows that ascend are read in one pass, in small batches."""
        done = 0
        root = folder_at(self.options.root) if self.options.root else folder.within(posixpath.dirname(path))
        while done < len(rows):
            end = 0
            try:
                with self._opened(folder, path) as file:
                    end = _group_end(file, rows[done])
                    for raw in _ascending(file, self.options.image, rows[done:], root):
                        done += 1
                        yield raw
                        end = _group_end(file, rows[done]) if done < len(rows) else 0
            except (pa.ArrowException, OSError, InputError) as error:
                # A damaged page spoils the rest of its row group, which is given up; the next one is tried.
                first = done
                while done < len(rows) and (done == first or rows[done - 1] < rows[done] < end):
                    done += 1
                    yield Raw(None, f"its part of the Parquet file is damaged: {short(error)}")


def _group_end(file: pq.ParquetFile, row: int) -> int:
    """The first row after the row group of `row`."""
    end = 0
    for group in range(file.num_row_groups):
        end += file.metadata.row_group(group).num_rows
        if row < end:
            break
    return end


def _ascending(file: pq.ParquetFile, column: str, rows: list[int], root: Folder) -> Iterator[Raw]:
    """The pictures of `rows` as far as they ascend."""
    wanted = iter(rows)
    row = next(wanted, None)
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        position = start
        if row is not None and start <= row < end:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column]):
                values = batch.column(0)
                while row is not None and position <= row < position + len(values):
                    yield picture_of(values[row - position].as_py(), lambda path: next(root.read([path])))
                    last, row = row, next(wanted, None)
                    if row is not None and row < last:
                        return
                position += len(values)
                if row is None or row >= end:
                    break
        start = end
    if row is not None and row >= start:
        yield Raw(None, f"the file has no row {row}")
