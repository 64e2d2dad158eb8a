"""Batch scoring of files, folders, Parquet and CSV into one Parquet file, in parts that survive an interruption.

Each part is a file of at most PART rows in `OUTPUT.parts`, written whole or not at all; at the end the parts become OUTPUT by one
rename. Memory holds one part at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
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
from ml.predictor import Predictor

PART = 2048
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
COLUMNS = ("image", "path", "file", "filename")


@dataclass(frozen=True)
class Item:
    """One item to score: where it was listed, its name there, and the bytes or the path."""

    source: str
    key: str
    value: Any


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that the inputs name, folders searched for pictures; InputError for what cannot be scored."""
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in PICTURES and one.is_file() and not one.name.startswith("."))
            if not inside:
                raise InputError(f"the folder {given} holds no picture ({', '.join(sorted(PICTURES))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"there is nothing at {given!r}: give pictures, folders of pictures, Parquet or CSV files")
    return found


def items(files: Sequence[Path], column: str = "") -> Iterator[Item]:
    """Yields what is to be scored, in the order of the files, a few rows in memory at a time."""
    for path in files:
        suffix = path.suffix.lower()
        if suffix in (".parquet", ".pq"):
            yield from _parquet_items(path, column)
        elif suffix == ".csv":
            yield from _csv_items(path, column)
        else:
            yield Item(str(path), path.name, path)


def identity(model: str, files: Sequence[Path], column: str) -> str:
    """A digest of all that decides the result: an interrupted scoring goes on only where it is the same."""
    listing = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([model, listing, column, PART]).encode()).hexdigest()


def score(predictor: Predictor, model: str, inputs: Sequence[str], output: Path, batch_size: int, column: str = "") -> dict[str, Any]:
    """Scores everything into `output`; gives counts. Columns: source, key, those of `Predictor.predict`."""
    files = find_inputs(inputs)
    if output.suffix != ".parquet":
        raise InputError(f"the output must be a .parquet file, found {str(output)!r}")
    if output.resolve() in {path.resolve() for path in files}:
        raise InputError(f"the output {output} is one of the inputs")
    folder = output.with_name(output.name + ".parts")
    try:
        done = _begin(folder, identity(model, files, column))
        rows = sum(pq.read_metadata(part).num_rows for part in done)
        total = _count(files)
        remaining = islice(items(files, column), rows, None)
        number = len(done)
        while chunk := list(islice(remaining, PART)):
            frame = predictor.predict([item.value for item in chunk], batch_size)
            frame.insert(0, "source", [item.source for item in chunk])
            frame.insert(1, "key", [item.key for item in chunk])
            part = folder / f"part-{number:06d}.parquet"
            _write(frame, part)
            crash_point(f"predict.part:{number}")
            number, rows = number + 1, rows + len(chunk)
            progress.update("predict", rows, max(total, rows))
        if rows == 0:
            raise InputError(f"there is nothing to score in {', '.join(map(str, inputs[:3]))}")
        failed = _merge(folder, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise InputError(f"cannot write {output}: {error.strerror}. Put that right and run the same command again: it goes on where it was.") from None
        raise
    return {"output": str(output), "rows": rows, "scored": rows - failed, "failed": failed, "resumed_parts": len(done)}


def _begin(folder: Path, wanted: str) -> list[Path]:
    """The parts that an earlier, equal scoring left whole; a different one's are removed."""
    note = folder / "identity.json"
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8") or "{}").get("identity") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(note, json.dumps({"identity": wanted}))
    for stray in folder.glob(".*"):
        stray.unlink()
    return sorted(folder.glob("part-*.parquet"))


def _write(frame: pd.DataFrame, path: Path) -> None:
    """The error column is text even where every item is good, so that all parts have one schema."""
    frame = frame.astype({"error": "string", "label": "string"})
    temporary = path.with_name("." + path.name)
    frame.to_parquet(temporary, index=False)
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
    return sum(pq.read_metadata(path).num_rows if path.suffix.lower() in (".parquet", ".pq") else 1 for path in files)


def _parquet_items(path: Path, column: str) -> Iterator[Item]:
    try:
        with pq.ParquetFile(path) as file:
            name = _column(path, column, file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(256, columns=[name]):
                for value in batch.column(0).to_pylist():
                    yield Item(str(path), str(row), _value(value, path.parent))
                    row += 1
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())[:160]}") from None


def _csv_items(path: Path, column: str) -> Iterator[Item]:
    try:
        row = 0
        for chunk in pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=4096):
            name = _column(path, column, list(chunk.columns))
            for value in chunk[name]:
                yield Item(str(path), str(row), _value(value, path.parent))
                row += 1
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read as CSV: {' '.join(str(error).split())[:160]}") from None


def _column(path: Path, column: str, there: list[str]) -> str:
    for name in (column,) if column else COLUMNS:
        if name in there:
            return name
    raise InputError(f"{path} has no column {column or ' or '.join(COLUMNS)}; it has {', '.join(there)}. Name it with --column.")


def _value(value: Any, folder: Path) -> Any:
    """Bytes as they are; text as a path beside the file that names it."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value and (folder / value).is_file():
        return folder / value
    return value if value is not None else b""
