"""The train-ready store: one folder of arrays, a table about them, and a manifest that vouches for both.

    NAME.npy            (N, ...) one of the arrays that the modality packs, memory-mapped; or, of rows that differ in length,
    NAME.values.npy     (V,) their values, and
    NAME.offsets.npy    (N + 1,) where each row begins
    table.parquet       row i describes row i of each array
    quarantine.parquet  key, reason and bytes of what could not be used
    manifest.json       spec, facts, sha256 and size of each file; written last

The folder's name is the digest of its content (arrays, table, quarantine, spec, facts), whatever the machine and the time.
Folders appear whole, by one rename, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ml.contracts import UNLABELLED, DataSpec, InputError
from ml.crash import crash_point
from ml.label_sets import shown
from ml.partial import partial
from ml.ragged import Ragged

VERSION = 2
TABLE, QUARANTINE, MANIFEST = "table.parquet", "quarantine.parquet", "manifest.json"
SETS = "labels"
"""The table's column of class ids, of data whose rows have several; read as one flat array."""


class Store:
    """An opened store: `arrays`, of which `array` is what models read, `table`, `labels`, `targets`, `spec`, `digest`, `manifest`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.digest: str = manifest["digest"]
        self.spec = _spec(manifest["spec"])

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The store at `path`, checked by version and sizes alone; InputError where it is not whole."""
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version, files = manifest["version"], manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no whole store ({type(error).__name__} at its {MANIFEST}): run the preprocessing again") from None
        if version != VERSION:
            raise InputError(f"the store {path} has version {version}; this program reads {VERSION}: run the preprocessing again")
        for name, facts in files.items():
            size = (path / name).stat().st_size if (path / name).is_file() else -1
            if size != facts["bytes"]:
                raise _damaged(path, f"{name} has {max(size, 0):,} bytes instead of {facts['bytes']:,}")
        return cls(path, manifest)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray | Ragged]:
        """By name, memory-mapped and read-only; the first one is what models read."""
        return {name: self._array(name) for name in self.manifest["arrays"]}

    @property
    def array(self) -> np.ndarray | Ragged:
        """What models read: (N, H, W, C) uint8 for images, Ragged token ids for text."""
        return next(iter(self.arrays.values()))

    def _array(self, name: str) -> np.ndarray | Ragged:
        if (self.path / f"{name}.npy").exists():
            return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        values = np.load(self.path / f"{name}.values.npy", mmap_mode="r", allow_pickle=False)
        return Ragged(values, np.load(self.path / f"{name}.offsets.npy", allow_pickle=False))

    @cached_property
    def table(self) -> pd.DataFrame:
        """row_id, key, label (-1 unlabelled), split, part, group, slice, width, height; one line a row of `array`."""
        return pd.read_parquet(self.path / TABLE, columns=[name for name in pq.read_schema(self.path / TABLE).names if name != SETS])

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 numbers into `strata`, -1 where unlabelled: the class, or where rows have several what they are stratified by."""
        return self.table["label"].to_numpy(np.int64)

    @property
    def strata(self) -> tuple[str, ...]:
        """What `labels` number: the classes, or where rows have several those that are the rarest of some row, and that of no class."""
        return tuple(self.manifest.get("strata", self.spec.classes))

    @cached_property
    def sets(self) -> Ragged | None:
        """Where rows have several labels, the class ids of each."""
        if SETS not in pq.read_schema(self.path / TABLE).names:
            return None
        column = pq.read_table(self.path / TABLE, columns=[SETS])[SETS].combine_chunks()
        return Ragged(column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy().astype(np.int64))

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) int64 class ids of the given rows, or where rows have several (n, K) int8, 1 for those that apply; UNLABELLED where there is none."""
        if self.sets is None:
            return self.labels[numbers]
        chosen = self.sets[numbers]
        targets_NK = np.zeros((len(chosen), len(self.spec.classes)), np.int8)
        targets_NK[np.repeat(np.arange(len(chosen)), chosen.lengths), chosen.values] = 1
        targets_NK[self.labels[numbers] == UNLABELLED] = UNLABELLED
        return targets_NK

    def named(self, numbers: np.ndarray) -> list[str]:
        """The labels of the given rows in words, "" where there is none."""
        classes, labelled = self.spec.classes, (self.labels[numbers] != UNLABELLED) & bool(self.spec.classes)
        found = self.labels[numbers] if self.sets is None else self.sets[numbers]
        return [("" if not known else classes[one] if self.sets is None else shown(tuple(classes[k] for k in one))) for one, known in zip(found, labelled, strict=True)]

    def rows(self, numbers: np.ndarray) -> dict[str, np.ndarray | Ragged]:
        """All arrays at the given rows, by name in their order, and as "label" their targets."""
        return {name: array[numbers] for name, array in self.arrays.items()} | {"label": self.targets(numbers)}

    @property
    def quarantine(self) -> pd.DataFrame:
        """key, reason, bytes of each item that could not be used."""
        return pd.read_parquet(self.path / QUARANTINE)

    def verify(self) -> None:
        """Reads every file and compares its sha256 with the manifest's; InputError where one differs."""
        for name, facts in self.manifest["files"].items():
            if _file_sha256(self.path / name) != facts["sha256"]:
                raise _damaged(self.path, f"the content of {name} has changed")


def write_store(
    stores: Path,
    chunks: Iterable[Mapping[str, np.ndarray | Ragged]],
    table: pd.DataFrame,
    quarantine: pd.DataFrame,
    spec: DataSpec,
    facts: Mapping[str, Any],
) -> Store:
    """Writes a store under `stores` and opens it; one that is there already and whole is kept.

    `chunks` yields the modality's arrays by name for runs of rows in the table's order. A process killed at any moment leaves at most a hidden
    partial folder, which the next writer removes.
    """
    stores.mkdir(parents=True, exist_ok=True)
    with partial(stores) as folder:
        arrays = _write_arrays(folder, chunks, len(table))
        table.to_parquet(folder / TABLE, index=False)
        quarantine.to_parquet(folder / QUARANTINE, index=False)
        # As JSON knows it, so that what is digested is what is read back.
        described = json.loads(json.dumps({"version": VERSION, "spec": asdict(spec), **facts}))
        content = {"described": described, "arrays": arrays, "table": _table_digest(table), "quarantine": _table_digest(quarantine)}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        files = {name: {"sha256": _file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(path.name for path in folder.iterdir())}
        for name in files:
            sync(folder / name)
        manifest = described | {"arrays": list(arrays), "digest": digest, "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        sync(folder / MANIFEST)
        sync(folder)
        crash_point("preprocess.rename")
        return _publish(folder, stores / digest)


@contextlib.contextmanager
def disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turns a full or read-only disk into an InputError that names the folder and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"the disk of {folder} is full: about {needed / 2**20:,.0f} MiB are needed there. Free some space or choose another folder") from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR):
            raise InputError(f"cannot write to {error.filename or folder}: {error.strerror}. Make {folder} writable or choose another folder") from None
        raise


def _publish(folder: Path, target: Path) -> Store:
    for _ in range(2):
        try:
            folder.replace(target)
            sync(target.parent)
            return Store.open(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            store = Store.open(target)
            store.verify()
            return store
        except InputError:  # a damaged one gives way to the new one
            shutil.rmtree(target)
    return Store.open(target)


def _write_arrays(folder: Path, chunks: Iterable[Mapping[str, np.ndarray | Ragged]], rows: int) -> dict[str, str]:
    """Writes each array by chunks, without a mapping (a full disk would kill a mapping's writer); gives each one's sha256."""
    writers: dict[str, _Writer] = {}
    with contextlib.ExitStack() as files:
        for chunk in chunks:
            for name, array in chunk.items():
                if name not in writers:
                    writers[name] = _Writer(folder, name, array)
                    files.enter_context(writers[name].file)
                writers[name].add(array)
        return {name: writer.close(rows) for name, writer in writers.items()}


class _Writer:
    """One array on its way to its file. The header of an .npy file is written again when the length is known."""

    def __init__(self, folder: Path, name: str, first: np.ndarray | Ragged) -> None:
        self.folder, self.name, self.ragged = folder, name, isinstance(first, Ragged)
        self.descr = np.lib.format.dtype_to_descr(first.dtype)
        self.item = () if self.ragged else first.shape[1:]
        self.lengths: list[np.ndarray] = []
        self.rows = self.values = 0
        self.total = hashlib.sha256(f"{self.descr} {self.item}".encode())
        self.file = (folder / f"{name}{'.values' if self.ragged else ''}.npy").open("wb")
        self._header(0)

    def add(self, array: np.ndarray | Ragged) -> None:
        self.rows += len(array)
        if isinstance(array, Ragged):
            self.lengths.append(array.lengths)
        data = np.ascontiguousarray(array.values if isinstance(array, Ragged) else array)
        self.values += len(data)
        self.total.update(data)
        self.file.write(data)

    def close(self, rows: int) -> str:
        if self.rows != rows:
            raise ValueError(f"{self.rows} rows of {self.name} for a table of {rows}")
        self.file.seek(0)
        self._header(self.values)
        self.file.flush()
        if self.ragged:
            offsets = np.concatenate([np.zeros(1, np.int64), *[lengths.astype(np.int64) for lengths in self.lengths]]).cumsum()
            self.total.update(offsets)
            np.save(self.folder / f"{self.name}.offsets.npy", offsets)
        return self.total.hexdigest()

    def _header(self, length: int) -> None:
        """Always of one size: numpy leaves room for the digits of any length."""
        np.lib.format.write_array_header_1_0(self.file, {"descr": self.descr, "fortran_order": False, "shape": (length, *self.item)})


def _table_digest(table: pd.DataFrame) -> str:
    total = hashlib.sha256(json.dumps(list(table.columns)).encode())
    for start in range(0, len(table), 10_000):
        total.update(table.iloc[start : start + 10_000].to_json(orient="values").encode())
    return total.hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(path.parent, f"{path.name} cannot be read ({error.strerror})") from None


def sync(path: Path) -> None:
    """Makes sure that a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _spec(content: Mapping[str, Any]) -> DataSpec:
    return DataSpec(content["modality"], content["options"], tuple(content["shape"]), tuple(content["classes"]), content["statistics"])


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"the store {path} is damaged: {what}. Remove that folder and run the preprocessing again")
