"""Copies of all that MLflow holds, records and artifacts, and the way back.

    FOLDER/manifest.json            written last: what was copied from where, with the sha256 of each file
    FOLDER/records/, users/         the databases (dump.py)
    FOLDER/artifacts-0/, ...        the roots of artifacts, folders or buckets

Records are copied before artifacts: what a record names was stored before it was named.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from ml.contracts import InputError
from ml.masking import mask
from mlflow_server.credentials import write
from mlflow_server.dump import dump, load, refuse_used
from tasks.tracking.artifacts import digest, local_folder

FORMAT = 1


def backup(folder: Path, database: str, artifacts: str, users: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Copies records and artifacts into a folder that is not there yet; gives the manifest. Raises InputError."""
    if folder.exists():
        raise InputError(f"{folder} is there already: name a new folder, such as {folder.name}-{time.strftime('%Y%m%d')}")
    new = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    say(f"records of {mask(database)}")
    records = dump(database, new / "records").relative_to(new).as_posix()
    account = dump(f"sqlite:///{users}", new / "users").relative_to(new).as_posix() if users is not None and users.exists() else None
    roots = []
    for number, root in enumerate(root for root in _roots(database, artifacts) if _files(root)):
        say(f"artifacts of {mask(root)}")
        into = new / f"artifacts-{number}"
        _copy(root, into)
        roots.append({"root": root, "folder": into.name, "served": root == _absolute(artifacts)})
    files = {path.relative_to(new).as_posix(): digest(path) for path in sorted(new.rglob("*")) if path.is_file()}
    manifest = {"format": FORMAT, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "records": records, "users": account, "roots": roots, "files": files}
    write(new / "manifest.json", json.dumps(manifest, indent=1))
    new.rename(folder)
    return manifest


def restore(folder: Path, database: str, artifacts: str, users: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Puts a backup back where nothing is; artifacts that a server serves go to `artifacts`, others where they were. Raises InputError."""
    manifest = _read(folder)
    say(f"checking {len(manifest['files']):,} files")
    for name, sum_ in manifest["files"].items():
        if not (folder / name).is_file() or digest(folder / name) != sum_:
            raise InputError(f"the backup {folder} is damaged: {name} is not what was copied. Take another.")
    refuse_used(database)
    targets = {one["folder"]: _absolute(artifacts) if one["served"] else one["root"] for one in manifest["roots"]}
    for root in targets.values():
        if _files(root):
            raise InputError(f"there are artifacts in {mask(root)} already: move them away, a restore changes nothing that is there")
    for name, root in targets.items():
        say(f"artifacts to {mask(root)}")
        _put(folder / name, root)
    say(f"records to {mask(database)}")
    if manifest["users"] and users is not None:
        load(f"sqlite:///{users}", folder / manifest["users"])
    load(database, folder / manifest["records"])  # last: until then no record names what is not there
    return manifest


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        names = [manifest["records"], *([manifest["users"]] if manifest["users"] else []), *manifest["files"], *(one["folder"] for one in manifest["roots"])]
        known = manifest["format"] == FORMAT and all(isinstance(one["root"], str) for one in manifest["roots"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} is no backup: its manifest.json is missing or cannot be read. One that was not finished has none.") from None
    if not known or any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
        raise InputError(f"{folder} is no backup of this version: its manifest names what it cannot hold")
    return manifest


def _roots(database: str, artifacts: str) -> list[str]:
    """Where artifacts are: what the server serves, and the folders and buckets that experiments name themselves."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        locations = [row[0] for row in connection.execute(sqlalchemy.text("select artifact_location from experiments where artifact_location is not null"))]
    found = {_absolute(artifacts)}
    for location in locations:
        if not location.startswith("mlflow-artifacts:"):
            folder = local_folder(location)
            found.add(str(folder.resolve()) if folder is not None else location)
    return sorted(one for one in found if not any(one != other and one.startswith(f"{other.rstrip('/')}/") for other in found))


def _absolute(artifacts: str) -> str:
    folder = local_folder(artifacts)
    return str(folder.resolve()) if folder is not None else artifacts.rstrip("/")


def _copy(root: str, into: Path) -> None:
    folder = local_folder(root)
    into.mkdir()
    if folder is not None:
        if folder.is_dir():
            shutil.copytree(folder, into, dirs_exist_ok=True, symlinks=True)
        return
    files, base = fsspec.url_to_fs(root)
    for path in files.find(base):
        target = into / PurePosixPath(path).relative_to(files._strip_protocol(base)).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(path, str(target))


def _put(source: Path, root: str) -> None:
    folder = local_folder(root)
    if folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, folder, dirs_exist_ok=True, symlinks=True)
        return
    files, base = fsspec.url_to_fs(root)
    for path in source.rglob("*"):
        if path.is_file():
            files.put_file(str(path), f"{base.rstrip('/')}/{path.relative_to(source).as_posix()}")


def _files(root: str) -> bool:
    """Whether anything lies under a root."""
    folder = local_folder(root)
    if folder is not None:
        return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))
    files, base = fsspec.url_to_fs(root)
    return files.exists(base) and bool(files.find(base))
