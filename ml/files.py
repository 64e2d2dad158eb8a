"""Folders of files, local or behind an fsspec URL: list them, read them, never step outside.

Local links are followed only where they stay within the folder; one that leads out becomes an item with a reason, unread.
"""

from __future__ import annotations

import copy
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec

from ml.contracts import InputError, Raw

MAX_ITEM_BYTES = 256 * 2**20
"""Larger files are not read at all; a modality's own limit is usually far lower."""

LINK_REASON = "a link that leads out of the folder"


@dataclass(frozen=True)
class Item:
    """One file: its posix path within the folder, size in bytes, what tells a change, or why it cannot be read."""

    path: str
    size: int = 0
    stamp: str = ""
    reason: str = ""


class Folder:
    """A local folder, or one behind an fsspec URL such as s3://bucket/set."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if "\0" in text:
            raise InputError(f"the path {text!r} holds a null character")
        self.remote = is_remote(text)
        if self.remote:
            self._fs, root = _filesystem(text)
            self.root = root.rstrip("/")
        else:
            self.root = os.path.realpath(Path(text.removeprefix("file://")).expanduser())

    def within(self, path: str) -> Folder:
        """The folder at `path` in this one; "" is this one."""
        inner = copy.copy(self)
        inner.root = f"{self.root}/{path}" if path else self.root
        return inner

    def list(self) -> tuple[list[Item], list[str]]:
        """All files, links that lead out among them, and all folders within, sorted by path."""
        if self.remote:
            return self._list_remote()
        items: list[Item] = []
        folders: list[str] = []
        self._walk("", frozenset({self.root}), items, folders)
        return sorted(items, key=lambda item: item.path), sorted(folders)

    def read(self, paths: Sequence[str]) -> Iterator[Raw]:
        """The bytes of each file in order, or the reason why there are none."""
        if not self.remote:
            yield from map(self._read_local, paths)
            return
        full = [f"{self.root}/{path}" for path in paths]
        for start in range(0, len(full), 32):  # fetched together, as each waits on the network
            part = full[start : start + 32]
            if len(set(part)) < len(part):
                found = {one: self._fs.cat([one], on_error="return").get(one) for one in part}
            else:
                found = self._fs.cat(part, on_error="return")
            for one in part:
                data = found.get(one)
                yield Raw(data) if isinstance(data, bytes) else Raw(None, f"cannot be read: {type(data).__name__}")

    def open(self, path: str) -> BinaryIO:
        """A file of this folder, open for reading; InputError where that fails."""
        try:
            return self._fs.open(f"{self.root}/{path}", "rb") if self.remote else open(os.path.join(self.root, path), "rb")  # noqa: PTH118, PTH123
        except OSError as error:
            raise InputError(f"cannot open {self.root}/{path}: {error.strerror or error}") from None

    def _read_local(self, path: str) -> Raw:
        if "\0" in path:
            return Raw(None, "a path with a null character")
        full = os.path.realpath(os.path.join(self.root, path))  # noqa: PTH118
        if not full.startswith(self.root.rstrip("/") + "/"):
            return Raw(None, "a path that leads out of the folder")
        try:
            # Not blocking, and a regular file: a pipe with a picture's name must not hang the run.
            with open(os.open(full, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    return Raw(None, "not a regular file")
                if facts.st_size > MAX_ITEM_BYTES:
                    return Raw(None, f"{facts.st_size:,} bytes, above the limit of {MAX_ITEM_BYTES:,}")
                return Raw(file.read())
        except (OSError, ValueError) as error:
            return Raw(None, f"cannot be read: {getattr(error, 'strerror', None) or error}")

    def _walk(self, folder: str, above: frozenset[str], items: list[Item], folders: list[str]) -> None:
        try:
            entries = list(os.scandir(os.path.join(self.root, folder)))  # noqa: PTH118
        except OSError as error:
            items.append(Item(folder, reason=f"cannot be listed: {error.strerror}"))
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not target.startswith(self.root.rstrip("/") + "/"):
                    items.append(Item(path, reason=LINK_REASON))
                    continue
            else:
                target = entry.path
            if entry.is_dir():
                if target not in above and not entry.name.startswith("."):
                    folders.append(path)
                    self._walk(path, above | {target}, items, folders)
                continue
            try:
                facts = entry.stat()
            except OSError as error:
                items.append(Item(path, reason=f"cannot be read: {error.strerror}"))
                continue
            items.append(Item(path, facts.st_size, str(facts.st_mtime_ns)))

    def _list_remote(self) -> tuple[list[Item], list[str]]:
        try:
            found = self._fs.find(self.root, detail=True)
        except Exception as error:
            raise InputError(f"cannot list {self.root}: {type(error).__name__}: {error}") from None
        items, folders = [], set()
        for name, facts in found.items():
            path = name.removeprefix(self.root).lstrip("/")
            stamp = next((str(facts[key]) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created") if facts.get(key)), "")
            items.append(Item(path, int(facts.get("size") or 0), stamp))
            parents = path.split("/")[:-1]
            folders.update("/".join(parents[: depth + 1]) for depth in range(len(parents)))
        return sorted(items, key=lambda item: item.path), sorted(folders)


def is_remote(path: str) -> bool:
    """Whether `path` is a URL for fsspec rather than a local path."""
    return ("://" in path or "::" in path) and not path.startswith("file://")


def locate(path: str) -> tuple[Folder, str | None]:
    """The folder that `path` is, with None, or the one that it lies in, with the file's name; InputError where it is neither."""
    if not path:
        raise InputError("the source's option `path` is empty: set data.source.options.path")
    folder = Folder(path)
    if folder.remote:
        try:
            if folder._fs.isfile(folder.root):
                parent, _, name = path.rpartition("/")
                return Folder(parent), name
            if folder._fs.isdir(folder.root):
                return folder, None
        except Exception as error:
            raise InputError(f"cannot reach {path}: {type(error).__name__}: {error}") from None
    elif Path(folder.root).is_dir():
        return folder, None
    elif Path(folder.root).exists():
        return Folder(Path(folder.root).parent), Path(folder.root).name
    raise InputError(f"there is nothing at {path!r}: set data.source.options.path to a folder or file that exists")


def files_at(path: str, suffixes: tuple[str, ...], named: bool = True) -> tuple[Folder, list[Item], str | None]:
    """The files with one of the suffixes at `path`, their folder, and the file's name where `path` is one, not a folder.

    Where not `named`, a file that `path` names may be called anything. Raises InputError for a file that cannot be read.
    """
    folder, name = locate(path)
    items = folder.list()[0]
    if name is not None:
        items = [item for item in items if item.path == name]
    else:
        # Names that begin with a dot or an underscore are other tools' notes (_SUCCESS, _metadata).
        items = [item for item in items if not any(part[0] in "._" for part in item.path.split("/"))]
    if named or name is None:
        items = [item for item in items if item.path.lower().endswith(suffixes)]
    for item in items:
        if item.reason:
            raise InputError(f"cannot read {item.path!r} in {path!r}: {item.reason}")
    return folder, items, name


def folder_at(path: str) -> Folder:
    """The folder at `path`; InputError where there is none."""
    folder, name = locate(path)
    if name is not None:
        raise InputError(f"{path!r} is a file; expected a folder")
    return folder


def digest(*parts: object) -> str:
    """sha256 over the parts' texts, each set off from the next."""
    total = hashlib.sha256()
    for part in parts:
        data = str(part).encode("utf-8", "surrogateescape")
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def listing_digest(folder: Folder, items: Sequence[Item]) -> str:
    """Changes when the folder is another, or a file in it appears, goes, or changes in size or time."""
    return digest(folder.root, *(f"{item.path}\0{item.size}\0{item.stamp}\0{item.reason}" for item in items))


def short(error: Exception) -> str:
    """An error's message in one line, for messages of one's own."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot use the URL {url!r}: {error}") from None
