"""Rows of CSV, TSV, JSON-lines and Parquet files, read the same way: `columns`, `values(columns)`, `texts(column, first)`.

Files are read forwards, in chunks; only `values`, meant for labels and the like, holds whole columns. What is damaged is an InputError
that names the file, and the line where there are lines.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, BinaryIO, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ml.contracts import InputError, Raw
from ml.files import Folder, short
from ml.labels import class_names

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".pq")
CHUNK_ROWS = 256
"""Rows of texts in memory at a time."""
LONGEST = 2**24
"""Characters of a field of CSV, bytes of a line of JSON: what seems longer has lost its end."""
csv.field_size_limit(LONGEST)  # a process has one limit, and its default of 131,072 is shorter than texts are


class Table(Protocol):
    """One file. `values` gives whole columns, of which those in `listed` may hold lists; `texts` gives chunks of a column's texts, each with the number of its first row, from row `first` at the latest; `objects` alike JSON of the rows' values by column."""

    path: str

    @property
    def columns(self) -> list[str]: ...
    def values(self, columns: list[str], listed: Sequence[str] = ()) -> pd.DataFrame: ...
    def texts(self, column: str, first: int) -> Iterator[tuple[int, list[Raw]]]: ...
    def objects(self, columns: list[str], first: int) -> Iterator[tuple[int, list[Raw]]]: ...


def open_table(folder: Folder, path: str) -> Table:
    """The table that a file of one of the SUFFIXES holds."""
    suffix = path.lower().removesuffix(".gz").rpartition(".")[2]
    return {"csv": Delimited, "tsv": Delimited, "jsonl": JsonLines}.get(suffix, Parquet)(folder, path)


class Lines:
    """A file of lines, perhaps compressed by gzip. Its heirs give `columns`, and `rows()`: (number of the line, values by column)."""

    def __init__(self, folder: Folder, path: str) -> None:
        self.folder, self.path = folder, path

    def values(self, columns: list[str], listed: Sequence[str] = ()) -> pd.DataFrame:
        found = []
        for line, row in self.rows():
            found.append([row.get(column) for column in columns])
            for column, value in zip(columns, found[-1], strict=True):
                parts = value if isinstance(value, list) and column in listed else [value]
                if any(isinstance(one, list | dict) for one in parts):
                    raise InputError(f"{self.path!r} holds {value!r:.60} as {column!r} in line {line}; {_expected(column in listed)}")
        return pd.DataFrame(found, columns=columns, index=range(len(found)), dtype=object)

    def texts(self, column: str, first: int) -> Iterator[tuple[int, list[Raw]]]:
        return self._chunks(lambda row: text_of(row.get(column)))

    def objects(self, columns: list[str], first: int) -> Iterator[tuple[int, list[Raw]]]:
        return self._chunks(lambda row: _object({column: row.get(column) for column in columns}))

    def _chunks(self, item: Callable[[dict[str, Any]], Raw]) -> Iterator[tuple[int, list[Raw]]]:
        start, chunk = 0, []
        for _, row in self.rows():
            chunk.append(item(row))
            if len(chunk) == CHUNK_ROWS:
                yield start, chunk
                start, chunk = start + len(chunk), []
        yield start, chunk

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        with self.folder.open(self.path) as stored:
            try:
                with gzip.GzipFile(fileobj=stored) if self.path.lower().endswith(".gz") else contextlib.nullcontext(stored) as file:
                    yield file
            except (EOFError, OSError, zlib.error) as error:
                raise InputError(f"{self.path!r} in {self.folder.root} cannot be read to its end: {short(error)}. Fetch or write it again") from None


class JsonLines(Lines):
    """One JSON object a line."""

    @cached_property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for _, row in self.rows() for name in row))

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._opened() as file:
            for line, data in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                if not data.strip():
                    continue
                try:
                    row = json.loads(_utf8(data))
                except UnicodeError:
                    raise InputError(f"{self.path!r} is no UTF-8 in line {line}, which JSON is written in, or no text at all: save it as UTF-8") from None
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{self.path!r} is damaged in line {line}: {short(error)}. Mend or remove that line") from None
                if not isinstance(row, dict):
                    raise InputError(f"{self.path!r} holds {data[:40]!r} in line {line}; one JSON object a line is expected, such as {{\"text\": ...}}")
                yield line, row


class Delimited(Lines):
    """CSV with a header, or its kin with tabs, semicolons or bars; in UTF-8, or in what it is likely to be in."""

    @property
    def columns(self) -> list[str]:
        return self._format[2]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        separator, quoting, columns = self._format
        records = self._records(separator, quoting)
        next(records, None)
        for line, fields in records:
            if len(fields) != len(columns):
                raise InputError(
                    f"{self.path!r} has {len(fields)} fields up to line {line}, but {len(columns)} in its header: the file was cut short there, "
                    f"or a text holds {separator!r} without quotes around it"
                )
            yield line, dict(zip(reversed(columns), reversed(fields), strict=True))  # of columns of one name, the first counts

    @cached_property
    def _format(self) -> tuple[str, int, list[str]]:
        """What stands between two fields, whether quotes mean anything, and the names in the header."""
        with self._lines() as lines:
            header = lines.readline(LONGEST)
        tabs = self.path.lower().removesuffix(".gz").endswith(".tsv")
        separator = "\t" if tabs else next((one for one in "\t,;|" if one in header), ",")
        quoting = csv.QUOTE_MINIMAL
        if separator == "\t" and not self._agrees(separator, quoting):
            quoting = csv.QUOTE_NONE  # many write texts between tabs as they are, and a quote in one means nothing
        return separator, quoting, next(self._records(separator, quoting), (1, []))[1]

    def _agrees(self, separator: str, quoting: int) -> bool:
        """Whether every record has as many fields as the first."""
        try:
            return len({len(fields) for _, fields in self._records(separator, quoting)}) == 1
        except InputError:
            return False

    def _records(self, separator: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
        with self._lines() as lines:
            reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
            try:
                yield from ((reader.line_num, fields) for fields in reader if fields)
            except csv.Error as error:
                raise InputError(f"{self.path!r} is damaged in line {reader.line_num}, or in a quoted text that begins above it: {error}") from None

    @contextlib.contextmanager
    def _lines(self) -> Iterator[io.TextIOWrapper]:
        encoding = self._encoding
        with self._opened() as file, io.TextIOWrapper(file, encoding, errors="replace", newline="") as lines:
            yield lines

    @cached_property
    def _encoding(self) -> str:
        decoder, sample, first = codecs.getincrementaldecoder("utf-8")(), b"", True
        with self._opened() as file:
            while block := file.read(2**20):
                if first and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    return "utf-16"
                if b"\0" in block:
                    raise InputError(f"{self.path!r} is a binary file, whatever its name says: it holds zero bytes. Expected text, best saved as UTF-8")
                try:
                    if not sample:
                        decoder.decode(block)
                except UnicodeDecodeError as error:
                    sample = block[max(0, error.start - 2**15) : error.start + 2**15]
                first = False
        return self._likely_encoding(sample) if sample else "utf-8-sig"

    def _likely_encoding(self, sample: bytes) -> str:
        try:
            from charset_normalizer import from_bytes  # comes with requests, which nothing here promises
        except ImportError:
            found = []
        else:
            found = list(from_bytes(sample))
        if not found:
            raise InputError(f"{self.path!r} is not UTF-8, nor in an encoding that can be told from its bytes: save it as UTF-8")
        # Few bytes fit many encodings equally well: of those, Western Europe's is by far the most common.
        western = any("cp1252" in one.could_be_from_charset and one.chaos <= found[0].chaos for one in found)
        return "cp1252" if western else found[0].encoding


class Parquet:
    """A Parquet file."""

    def __init__(self, folder: Folder, path: str) -> None:
        self.folder, self.path = folder, path

    @cached_property
    def columns(self) -> list[str]:
        with self._opened() as file:
            return file.schema_arrow.names

    def values(self, columns: list[str], listed: Sequence[str] = ()) -> pd.DataFrame:
        with self._opened() as file:
            schema = file.schema_arrow
            for column in columns:
                kind = schema.field(column).type
                if pa.types.is_nested(kind) and not (column in listed and is_list(kind)):
                    raise InputError(f"{self.path!r} holds {kind} as {column!r}; {_expected(column in listed)}")
            try:
                table = file.read(columns=columns)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.path!r} in {self.folder.root} is damaged: {short(error)}") from None
            found = {column: class_names(table.column(column).to_pandas(), column, schema.metadata) for column in columns}
            return pd.DataFrame(found, index=range(file.metadata.num_rows))

    def texts(self, column: str, first: int) -> Iterator[tuple[int, list[Raw]]]:
        return self._chunks([column], first, lambda batch: [text_of(value) for value in undecoded(batch.column(0)).to_pylist()])

    def objects(self, columns: list[str], first: int) -> Iterator[tuple[int, list[Raw]]]:
        return self._chunks(list(dict.fromkeys(columns)), first, _objects)

    def _chunks(self, columns: list[str], first: int, items: Callable[[pa.RecordBatch], list[Raw]]) -> Iterator[tuple[int, list[Raw]]]:
        """Where a page is damaged, the rest of its row group becomes reasons."""
        with self._opened() as file:
            end = 0
            for group in range(file.num_row_groups):
                position, end = end, end + file.metadata.row_group(group).num_rows
                if end <= first:
                    continue
                try:
                    for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=columns):
                        yield position, items(batch)
                        position += len(batch)
                except (pa.ArrowException, OSError) as error:
                    yield position, [Raw(None, f"its part of the Parquet file is damaged: {short(error)}")] * (end - position)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with self.folder.open(self.path) as handle:
            try:
                file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**20)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.path!r} in {self.folder.root} is not a whole Parquet file: {short(error)}") from None
            yield file


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts or numbers."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(one(kind) for one in lists) and not pa.types.is_nested(kind.value_type)


def _expected(listed: bool) -> str:
    return f"a text or a number is expected{', or a list of those where a row has several' * listed}"


def _utf8(data: bytes) -> str:
    """The text of bytes in UTF-8, which zero bytes tell that others are not; raises UnicodeError."""
    if b"\0" in data:
        raise UnicodeError("zero bytes")
    return data.decode("utf-8-sig")


def undecoded(values: pa.Array) -> pa.Array:
    """Texts as the bytes that they are stored as: those that are not UTF-8 are for the modality to judge."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.cast(pa.large_binary())
    return values


def _objects(batch: pa.RecordBatch) -> list[Raw]:
    try:
        values = {name: pd.Series(batch.column(name).to_pylist(), dtype=object) for name in batch.schema.names}
    except UnicodeDecodeError:  # Arrow promises strings in UTF-8, and whoever wrote the file need not have kept to that
        if len(batch) == 1:
            return [Raw(None, "a text in it is not UTF-8")]
        return [one for row in range(len(batch)) for one in _objects(batch.slice(row, 1))]
    named = {name: class_names(one, name, batch.schema.metadata) for name, one in values.items()}
    return [_object(dict(zip(named, row, strict=True))) for row in zip(*named.values(), strict=True)]


def _object(row: dict[str, Any]) -> Raw:
    def plain(value: object) -> str:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return Raw(json.dumps(row, default=plain).encode())


def text_of(value: object) -> Raw:
    """The text that a cell holds, or why there is none."""
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")  # JSON can name half a surrogate pair, which no text holds
    if isinstance(value, bytes) and value.strip():
        return Raw(value)
    if value is None or value == b"" or isinstance(value, bytes) or value != value:
        return Raw(None, "the text is missing")
    return Raw(None, f"expected a text, found {type(value).__name__}")


def picture_of(value: object, read: Callable[[str], Raw]) -> Raw:
    """The picture that a cell holds: its bytes, {bytes, path} as Hugging Face writes them, or a path that is left to `read`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Raw(value)
    if isinstance(value, str) and value:
        return read(value)
    return Raw(None, "no picture in this row" if not value else f"expected bytes or a path, found {type(value).__name__}")
