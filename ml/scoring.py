"""Batch scoring of files, folders, Parquet, CSV and JSONL into one Parquet file, in parts that survive an interruption.

Each part is a file of at most PART rows in the folder `OUTPUT.parts`, written whole or not at all; at the end the parts become OUTPUT
by one rename. Memory holds one part at a time. Where the parts are computed is for `Tables` to say.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ml import progress
from ml.checkpoint import write_atomically
from ml.contracts import InputError
from ml.crash import crash_point
from ml.files import locate
from ml.predictor import Predictor, is_text
from ml.table_files import SUFFIXES, open_table

PART = 2048
TABLES = frozenset({".parquet", ".pq"})
LINES = tuple(suffix for suffix in SUFFIXES if suffix not in TABLES)
"""Tables of lines, which are read as those to train on are."""


@dataclass(frozen=True)
class Item:
    """One item to score: where it was listed, its name there, and the bytes or the path."""

    source: str
    key: str
    value: Any


@dataclass(frozen=True)
class Reading:
    """What is to be scored: what the files hold from item `first` on, in parts of `rows`."""

    files: Sequence[Path]
    column: str
    rows: int
    first: int = 0

    def parts(self, modality: Any) -> Iterator[list[Item]]:
        """The items, a part at a time."""
        remaining = islice(items(self.files, modality, self.column), self.first, None)
        while part := list(islice(remaining, self.rows)):
            yield part


Tables = Callable[[Reading], Iterator[pa.Table]]
"""What is written of each part: what `scored` gives."""


def find_inputs(inputs: Sequence[str], modality: Any) -> list[Path]:
    """The files that the inputs name, folders searched for the modality's; InputError for what cannot be scored."""
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in modality.suffixes and one.is_file() and not one.name.startswith("."))
            if not inside:
                raise InputError(f"the folder {given} holds no {modality.noun} ({', '.join(sorted(modality.suffixes))})")
            found += inside
        else:
            found.append(path)
    return found


def items(files: Sequence[Path], modality: Any, column: str = "") -> Iterator[Item]:
    """Yields what is to be scored, in the order of the files, a few rows in memory at a time."""
    for path in files:
        if path.suffix.lower() in TABLES:
            yield from _parquet_items(path, modality, column)
        elif path.name.lower().endswith(LINES):
            yield from _line_items(path, modality, column)
        else:
            yield Item(str(path), path.name, path)


def check_places(inputs: Sequence[str], output: Path) -> None:
    """InputError where an input is not there, or `output` cannot be what is written."""
    for given in inputs:
        if not Path(given).exists():
            raise InputError(f"there is nothing at {given!r}: give files, folders of them, Parquet, CSV or JSONL files")
    if output.suffix != ".parquet" or output.is_dir():
        raise InputError(f"the output must be a .parquet file, found {str(output)!r}")
    if output.resolve() in {Path(given).resolve() for given in inputs}:
        raise InputError(f"the output {output} is one of the inputs")


def identity(model: str, files: Sequence[Path], column: str, part: int) -> str:
    """A digest of all that decides the result: an interrupted scoring goes on only where it is the same."""
    listing = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([model, listing, column, part]).encode()).hexdigest()


def score(
    predictor: Predictor, model: str, inputs: Sequence[str], output: Path, batch_size: int, column: str = "", part_rows: int = PART
) -> dict[str, Any]:
    """Scores everything into `output`; gives counts. Columns: source, key, those of `Predictor.predict`."""
    modality = predictor.modality
    return write(modality, lambda reading: (scored(predictor, part, batch_size) for part in reading.parts(modality)), model, inputs, output, column, part_rows)


def scored(predictor: Predictor, part: Sequence[Item], batch_size: int) -> pa.Table:
    """What is told of the items of a part."""
    frame = predictor.predict([item.value for item in part], batch_size)
    frame.insert(0, "source", [item.source for item in part])
    frame.insert(1, "key", [item.key for item in part])
    return table_of(frame)


def write(modality: Any, tables: Tables, model: str, inputs: Sequence[str], output: Path, column: str = "", part_rows: int = PART) -> dict[str, Any]:
    """Writes the parts that `tables` gives and joins them into `output`; gives counts."""
    check_places(inputs, output)
    files = find_inputs(inputs, modality)
    folder = output.with_name(output.name + ".parts")
    total = _count(files)
    try:
        with _owned(folder):
            done = _begin(folder, identity(model, files, column, part_rows))
            rows = sum(pq.read_metadata(part).num_rows for part in done)
            for number, table in enumerate(tables(Reading(files, column, part_rows, rows)), len(done)):
                _write(table, folder / f"part-{number:06d}.parquet")
                crash_point(f"predict.part:{number}")
                rows += len(table)
                progress.update("predict", rows, max(total, rows))
            if rows == 0:
                raise InputError(f"there is nothing to score in {', '.join(map(str, inputs[:3]))}")
            failed = _merge(folder, output)
    except OSError as error:
        raise InputError(
            f"cannot score into {output}: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}. Put that right and run the "
            "same command again: it goes on where it was."
        ) from error
    return {"output": str(output), "rows": rows, "scored": rows - failed, "failed": failed, "resumed_parts": len(done)}


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Makes the folder of parts and keeps other processes out of it; the lock ends with the process."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "lock").exists():
        raise InputError(
            f"the folder {folder} is in the way: parts of an unfinished scoring would go there. Move it, or name another output."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is scoring into {folder}. Wait for it, or name another output.") from None
        yield


def _begin(folder: Path, wanted: str) -> list[Path]:
    """The parts that an earlier, equal scoring left whole; a different one's are removed."""
    note = folder / "identity"
    if not note.is_file() or note.read_text(encoding="utf-8") != wanted:
        for old in folder.glob("part-*.parquet"):
            old.unlink()
        write_atomically(note, wanted)
    for stray in folder.glob(".*"):
        stray.unlink()
    return sorted(folder.glob("part-*.parquet"))


def table_of(frame: pd.DataFrame) -> pa.Table:
    """Columns of text are text even where every item is good, or bad, so that all parts have one schema."""
    frame = frame.astype({name: "string" for name in frame if is_text(frame[name].dtype)})
    typed = [name for name in frame if isinstance(frame[name].dtype, pd.ArrowDtype)]
    table = pa.Table.from_pandas(frame.drop(columns=typed), preserve_index=False)
    for name in typed:  # beside what pandas notes of its own types, as it could not read its note of these
        table = table.add_column(frame.columns.get_loc(name), name, pa.chunked_array(frame[name].array.__arrow_array__()))
    return table


def _write(table: pa.Table, path: Path) -> None:
    temporary = path.with_name("." + path.name)
    pq.write_table(table, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _merge(folder: Path, output: Path) -> int:
    """Joins the parts into `output`, a part in memory at a time; gives the number of rows with an error."""
    parts = sorted(folder.glob("part-*.parquet"))
    temporary, failed = folder / ".merged", 0
    with pq.ParquetWriter(temporary, pq.read_schema(parts[0])) as writer:
        for part in parts:
            table = pq.read_table(part)
            failed += len(table) - table["error"].null_count
            writer.write_table(table)
    temporary.replace(output)
    shutil.rmtree(folder)
    return failed


def _count(files: Sequence[Path]) -> int:
    """Items to come, for the progress bar alone: a CSV's are known only when it is read."""
    return sum(_parquet_rows(path) if path.suffix.lower() in TABLES else 1 for path in files)


def _parquet_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except pa.ArrowException as error:
        raise _no_parquet(path, error) from None


def _no_parquet(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())[:160]}")


def _parquet_items(path: Path, modality: Any, column: str) -> Iterator[Item]:
    try:
        with pq.ParquetFile(path) as file:
            names = _columns(path, modality, column, file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(256, columns=list(names)):
                for values in zip(*(_pylist(batch.column(name)) for name in names), strict=True):
                    yield Item(str(path), str(row), _value(modality, names, values, path.parent))
                    row += 1
    except pa.ArrowException as error:
        raise _no_parquet(path, error) from None


def _line_items(path: Path, modality: Any, column: str) -> Iterator[Item]:
    table = open_table(*locate(str(path)))
    names = _columns(path, modality, column, table.columns)
    for row, (_, values) in enumerate(table.rows()):
        yield Item(str(path), str(row), _value(modality, names, [values.get(name) for name in names], path.parent))


def _columns(path: Path, modality: Any, column: str, there: list[str]) -> dict[str, str]:
    """The columns to read, and which of the modality's fields each is; one that holds a whole item is none."""
    if column:
        found = {column: ""} if column in there else {}
    else:
        own = {field: one for field in modality.fields for one in there if one.strip().lower() == field}
        found = {one: field for field, one in own.items()} if len(own) == len(modality.fields) > 1 else {}
        found = found or {one: "" for name in modality.columns for one in there if one.strip().lower() == name}
        found = found if all(found.values()) else dict(list(found.items())[:1])
    if not found:
        wanted = column or " or ".join([" and ".join(modality.fields)] * (len(modality.fields) > 1) + list(modality.columns))
        raise InputError(f"{path} has no column {wanted}; it has {', '.join(there) or 'none'}. Name it with --column.")
    return found


def _value(modality: Any, names: dict[str, str], values: Sequence[Any], folder: Path) -> Any:
    """What one row holds, as the modality serves it."""
    cells = [modality.cell(value, folder) for value in values]
    return dict(zip(names.values(), cells, strict=True)) if all(names.values()) else cells[0]


def _pylist(values: pa.Array) -> list[Any]:
    try:
        return values.to_pylist()
    except UnicodeDecodeError:  # Arrow promises strings in UTF-8, and whoever wrote the file need not have kept to that
        return values.cast(pa.large_binary()).to_pylist()
