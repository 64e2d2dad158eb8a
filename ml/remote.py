"""Folders kept where all machines reach them: behind an fsspec URL such as s3://bucket/warmstart, or in a folder that all mount.

    NAME/SHA256-FILE    each file of the folder NAME, by its content: who publishes the same folder at once writes the same, or beside it
    NAME/index.json     sha256 and size of each; written last, so that a copy that is not whole has none

What is fetched is compared with its index before it counts. A damaged object is taken out of the copy, and whoever publishes next mends it.
Credentials come from the environment, as each file system's own library reads them, and never stand in a URL.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from ml import progress
from ml.contracts import InputError
from ml.files import short
from ml.masking import mask
from ml.partial import partial
from ml.store import disk_errors, sync

INDEX = "index.json"
PROTOCOLS = ("s3", "gs", "az", "file", "memory")
LIBRARIES = {"s3": "warmstart[s3]", "gs": "gcsfs", "az": "adlfs"}
"""What brings a protocol's library."""
OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    "s3": {"config_kwargs": {"connect_timeout": 5, "retries": {"max_attempts": 1}}},  # beside s3fs's own five
}
AWAY = 30.0  # seconds for which a storage that could not be used is not asked again
OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(RuntimeError):
    """The storage could not be used; later it may be."""


class Missing(StorageError):
    """The storage holds no whole copy of a folder."""


class Damaged(Missing):
    """Its copy is not what was published."""


@dataclass
class _State:
    """What all views of one storage know of it."""

    away_until: float = 0.0
    why: str = ""
    told: bool = False


class Remote:
    """The folders below a URL. Raises InputError for a URL that cannot be used, StorageError where the storage does not do what is asked."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        protocol = self.url.partition("://")[0]
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, **OPTIONS.get(protocol, {}))
        except ImportError:
            raise InputError(f"the storage {self.url} takes a library that is not installed: pip install '{LIBRARIES[protocol]}'") from None
        except Exception as error:
            raise InputError(f"the storage {self.url} cannot be used: {type(error).__name__}: {mask(short(error))}") from None
        self._root, self._is_folder = root.rstrip("/"), protocol == "file"
        self._state = _State()

    def within(self, path: str) -> Remote:
        """What lies below `path`."""
        inner = copy.copy(self)
        inner.url, inner._root = f"{self.url}/{path}", f"{self._root}/{path}"
        return inner

    def warn(self, stage: str, words: str) -> None:
        """Tells, once, that the storage cannot be used, and what `stage` does."""
        if not self._state.told:
            self._state.told = True
            progress.warn(stage, words)

    def names(self) -> list[str]:
        """Of the folders, whole or not, ascending."""
        return sorted(self._sizes(""))

    def holds(self, name: str) -> bool:
        """Whether there is a copy of the folder `name` with all its objects, by their sizes."""
        try:
            index, sizes = self._index(name), self._sizes(name)
        except Missing:
            return False
        return all(sizes.get(_object(file, facts)) == facts["bytes"] for file, facts in index.items())

    def publish(self, folder: Path, name: str, sums: Mapping[str, str] | None = None) -> None:
        """Copies the files of `folder` as the folder `name`; objects that are there already are left. `sums` are the sha256 that are known."""
        sums = sums or {}
        files = {path.name: {"sha256": sums.get(path.name) or _sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
        there = self._sizes(name)
        with self._used():
            for file, facts in files.items():
                if there.get(_object(file, facts)) != facts["bytes"]:
                    with self._whole(self._path(name, _object(file, facts))) as place:
                        self._fs.put_file(str(folder / file), place)
            with self._whole(self._path(name, INDEX)) as place:
                self._fs.pipe_file(place, json.dumps({"files": files}, indent=1).encode())

    def fetch(self, name: str, target: Path) -> None:
        """Copies the folder `name` to `target`, where it appears whole or not at all; a folder that is there already is left.

        Raises Missing or Damaged where there is no whole copy, InputError for a full or read-only disk.
        """
        files = self._index(name)
        with disk_errors(target.parent, sum(facts["bytes"] for facts in files.values())):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial(target.parent) as folder:
                for file, facts in files.items():
                    self._get(name, file, facts, folder / file)
                    sync(folder / file)
                sync(folder)
                if not target.exists():  # else another process was faster
                    folder.rename(target)
                    sync(target.parent)

    def remove(self, name: str) -> None:
        """Removes the folder `name`, if it is there."""
        if not name:
            raise ValueError("a name is needed: without one, all would go")
        with self._used(), suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            self._fs.rm(self._path(name), recursive=True)

    @contextmanager
    def _whole(self, place: str) -> Iterator[str]:
        """Where to write what shall appear at `place` in one go; a bucket does that by itself."""
        if not self._is_folder:
            yield place
            return
        hidden = f"{place}.{uuid.uuid4().hex}"
        yield hidden
        self._fs.mv(hidden, place)

    def _get(self, name: str, file: str, facts: Mapping[str, Any], path: Path) -> None:
        place = self._path(name, _object(file, facts))
        with self._used(OWN_DISK):
            try:
                self._fs.get_file(place, str(path))
            except FileNotFoundError:
                problem = f"its {file} is gone"
            else:
                if path.stat().st_size == facts["bytes"] and _sha256(path) == facts["sha256"]:
                    return
                problem = f"the content of its {file} has changed"
        for one in (self._path(name, INDEX), place):  # where that is not permitted, the next reader notices too
            with suppress(Exception):
                self._fs.rm_file(one)
        raise Damaged(f"the copy {self.url}/{name} is damaged: {problem}")

    def _index(self, name: str) -> dict[str, dict[str, Any]]:
        """sha256 and bytes of each file of the folder `name`."""
        with self._used():
            try:
                text = self._fs.cat_file(self._path(name, INDEX))
            except FileNotFoundError:
                raise Missing(f"there is no whole copy of {name} in {self.url}") from None
        try:
            files = json.loads(text)["files"]
            sound = all(_sound(file, **facts) for file, facts in files.items())
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise Damaged(f"the copy {self.url}/{name} is damaged: its {INDEX} cannot be read")
        return files

    def _sizes(self, name: str) -> dict[str, int]:
        """Bytes of each object of the folder `name`, by its name; of "", the folders with 0."""
        with self._used():
            self._fs.invalidate_cache()  # other machines write too
            try:
                found = self._fs.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return {}
        return {one["name"].rstrip("/").rpartition("/")[2]: int(one.get("size") or 0) for one in found}

    def _path(self, *names: str) -> str:
        return "/".join([self._root, *filter(None, names)])

    @contextmanager
    def _used(self, own: tuple[int, ...] = ()) -> Iterator[None]:
        """Turns what a file system raises into a StorageError without secrets; errors of the numbers `own` are this machine's."""
        if time.monotonic() < self._state.away_until:
            raise StorageError(self._state.why)
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in own:
                raise
            self._state.why = mask(f"{self.url} cannot be used ({type(error).__name__}: {short(error)})")
            self._state.away_until = time.monotonic() + AWAY
            raise StorageError(self._state.why) from None


def _checked(url: str) -> str:
    """`url` in its one form; InputError, which never repeats what may hold a secret."""
    if "://" not in url:
        folder = Path(url).expanduser()
        if not folder.is_absolute():
            raise InputError(f"the storage {url!r} is neither a whole path nor a URL: expected /a/folder that all machines mount, or s3://bucket/folder")
        return folder.as_uri()
    protocol, _, place = url.partition("://")
    if protocol not in PROTOCOLS:
        raise InputError(f"the storage has the protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    if "@" in place or re.search(r"[?#]|::", place):
        raise InputError(
            f"the storage's URL ({protocol}://...) holds a user, a query or a second URL: expected {protocol}://bucket/folder alone. "
            "Credentials belong into the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not place.strip("/"):
        raise InputError(f"the storage {url} names no place: expected {protocol}://bucket/folder")
    return url.rstrip("/")


def _object(file: str, facts: Mapping[str, Any]) -> str:
    return f"{facts['sha256']}-{file}"


def _sound(file: str, sha256: str, bytes: int) -> bool:
    """Whether a line of an index is one that is written here; a name with a folder would lead elsewhere."""
    return Path(file).name == file and file not in ("", "..") and re.fullmatch("[0-9a-f]{64}", sha256) is not None and isinstance(bytes, int)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
