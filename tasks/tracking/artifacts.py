"""Files of runs: where they are stored, whether they are whole, and how to get at one."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse
from urllib.request import url2pathname

from ml.contracts import InputError
from tasks.tracking import database


def fetch(uri_or_run_id: str, path: str = "", sha256: str | None = None) -> Path:
    """The local path of a run's file or folder: in place where the store is local, else downloaded into a cache.

    `uri_or_run_id` is a run id, `runs:/ID[/FOLDER]`, `models:/NAME/VERSION`, `models:/NAME@ALIAS` or an artifact URI; `sha256`
    is checked where given (of a file). Raises InputError for what is not there or not whole.
    """
    path = inside(path)
    root = _root(uri_or_run_id)
    folder = local_folder(root)
    found = folder / path if folder is not None else _download(root, path)
    if not found.exists():
        raise InputError(f"there is no {path or 'artifact'} in {database.mask(uri_or_run_id)}. Was it deleted? Run the stage again with --from.")
    if folder is not None and not found.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the artifact {path!r} is a link that leads out of its run")
    if sha256 is not None and digest(found) != sha256:
        if folder is None:
            found.unlink()
        raise InputError(f"the artifact {path} of {database.mask(uri_or_run_id)} is damaged: its sha256 is not {sha256[:12]}…. Run the stage again with --from.")
    return found


def resolve_weights(uri: str) -> Path:
    """The folder with backbone.safetensors that `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID` or `runs:/ID/PATH` names."""
    if uri.startswith("models:/"):
        candidates = ["", "artifacts/model", "model"]
    elif uri.startswith("runs:/"):
        candidates = ["", "backbone"]
    else:
        raise InputError(f"weights {uri!r}: expected models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID or runs:/ID/PATH")
    root = _root(uri)
    for path in candidates:
        try:
            folder = fetch(root, path)
        except InputError:
            continue
        if (folder / "backbone.safetensors").is_file():
            return folder
    raise InputError(f"{uri} holds no backbone.safetensors. Name the run of a pretraining, or a registered backbone.")


def discard(folder: Path) -> bool:
    """Removes what `fetch` downloaded, so that it is downloaded anew; False for what lies in the store itself."""
    downloaded = folder.resolve().is_relative_to(_downloads())
    if downloaded:
        shutil.rmtree(folder.parent)
    return downloaded


def local_folder(uri: str) -> Path | None:
    """The folder behind an artifact URI of this machine's file system, None for one that a server or a bucket holds."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path))
    return Path(uri) if parsed.scheme == "" else None


def sizes(root: str) -> dict[str, int]:
    """Path → bytes of all files under the artifact root `root`."""
    folder = local_folder(root)
    if folder is not None:
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store, found, folders = get_artifact_repository(root), {}, [""]
    while folders:
        for info in database.retry(store.list_artifacts, folders.pop() or None):
            if info.is_dir:
                folders.append(info.path)
            else:
                found[info.path] = info.file_size
    return found


def digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(path: str) -> str:
    """`path` as a relative path without `..`; raises InputError for one that leads out of its run."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise InputError(f"the artifact path {path!r} leads out of its run")
    return "" if str(pure) == "." else str(pure)


def _root(uri_or_run_id: str) -> str:
    """The artifact URI behind a name."""
    from mlflow.exceptions import MlflowException

    if uri_or_run_id.startswith("models:/"):
        return _version_root(uri_or_run_id)
    name, _, below = uri_or_run_id.removeprefix("runs:/").partition("/")
    if not re.fullmatch(r"[0-9a-zA-Z_-]+", name) or (below and not uri_or_run_id.startswith("runs:/")):
        return uri_or_run_id
    try:
        root = database.retry(database.client().get_run, name).info.artifact_uri
    except MlflowException as error:
        raise InputError(f"there is no run {name!r} in MLflow: {database.first_line(error)}") from None
    return f"{root}/{inside(below)}" if below else root


def _version_root(uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name, at, alias = uri.removeprefix("models:/").rpartition("@")
    client = database.client()
    try:
        if at:
            version = database.retry(client.get_model_version_by_alias, name, alias).version
        else:
            name, _, version = uri.removeprefix("models:/").rpartition("/")
        return database.retry(client.get_model_version_download_uri, name, version)
    except MlflowException as error:
        raise InputError(f"{uri} is not in the registry: {database.first_line(error)}. Expected models:/NAME@ALIAS or models:/NAME/VERSION.") from None


def _downloads() -> Path:
    return Path(os.environ.get("WARMSTART_HOME") or ".warmstart").resolve() / "downloads"


def _download(root: str, path: str) -> Path:
    """Downloads into a folder named by the URI, once: a stage's artifacts do not change after it has finished."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    cache = _downloads()
    cache.mkdir(parents=True, exist_ok=True)
    # Under its own name, which a folder that becomes part of a model keeps.
    kept = cache / hashlib.sha256(f"{database.mask(root)}\n{path}".encode()).hexdigest()[:32] / (PurePosixPath(path).name or "artifacts")
    if not kept.exists():
        temporary = Path(tempfile.mkdtemp(dir=cache))
        try:
            got = Path(database.retry(download_artifacts, artifact_uri=f"{root.rstrip('/')}/{path}".rstrip("/"), dst_path=str(temporary)))
            kept.parent.mkdir(exist_ok=True)
            got.rename(kept)
        except (MlflowException, OSError) as error:
            if not kept.exists():  # else another process was faster
                raise InputError(f"cannot download {path or 'the artifacts'} of {database.mask(root)}: {database.first_line(error)}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return kept
