"""Registered models: a version is offered only after all of it is stored and reads back, and an alias moves under a lock.

    upload → read back → READY → version → alias → audit

Killed between any two of these, the same call again goes on from there: a version is known by its key. Aliases: `champion` is
what is used, `challenger` the newest offered, `previous` what rollback returns to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.contracts import InputError
from ml.crash import crash_point
from tasks.tracking import database, lease, runs
from tasks.tracking.artifacts import digest, discard, fetch, local_folder

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

KEY = "warmstart.key"
AUDIT = "warmstart.audit."  # and the milliseconds of the move
FILES = "warmstart.files"  # digest of the files' paths and sums

_log = logging.getLogger(__name__)


class Outrun(InputError):
    """The champion is another than the one that was to be replaced: somebody was faster."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model. `uri` names it for good, `aliases` are those that it had when it was read."""

    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: int
    """Milliseconds since 1970."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register(
    name: str,
    *,
    run_id: str,
    key: str,
    model_folder: Path,
    pyfunc_file: Path,
    code_paths: Sequence[Path],
    signature: ModelSignature,
    example: pd.DataFrame,
    pip_requirements: Sequence[str],
    tags: Mapping[str, str] | None = None,
    check: Callable[[str], None] = lambda uri: None,
) -> Version:
    """The version of `name` that has `key`: found, or stored as a models-from-code pyfunc, verified and made.

    `model_folder` becomes the model's artifact "model". The version takes the alias `challenger`, once `check(uri)` has not
    raised: until then nobody is offered it.
    """
    found = _with_key(name, key)
    if found is None:
        model = _store(run_id, model_folder, pyfunc_file, code_paths, signature, example, pip_requirements)
        crash_point("register.uploaded")
        files = _sums(model.artifact_location)
        found = _create(name, model.artifact_location, run_id, {**(tags or {}), KEY: key, FILES: files}, model.model_id)
    crash_point("register.version")
    check(found.uri)
    if "champion" not in found.aliases:
        database.retry(database.client().set_registered_model_alias, name, "challenger", str(found.version))
    return version(name, found.version)


def register_backbone(name: str, *, run_id: str, key: str) -> Version:
    """The version of `name` for the pretrained backbone that the run stored, as the champion: for `weights: models:/NAME@champion`.

    No gate judges it: what was pretrained last is what is used, and the audit names the run.
    """
    found = _with_key(name, key)
    if found is None:
        root = f"{database.retry(database.client().get_run, run_id).info.artifact_uri}/backbone"
        found = _create(name, root, run_id, {KEY: key, FILES: _sums(root)}, None)
    with _locked(name):
        _notice(name)
        return _promote(name, champion(name), found, {"run": run_id})


def version(name: str, number: int | str) -> Version:
    """One version by its number."""
    return _version(database.retry(database.client().get_model_version, name, str(number)))


def everything() -> list[ModelVersion]:
    """All versions of all registered models."""
    return list(database.pages(database.client().search_model_versions, "", max_results=1000))


def champion(name: str, alias: str = "champion", seconds: float | None = None) -> Version | None:
    """The version that has the alias, None where there is none or no such model; a registry that is away is waited for `seconds`, as `database.retry` does."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(database.retry(database.client().get_model_version_by_alias, name, alias, seconds=seconds))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def promote(name: str, number: int, expected: int | None, evidence: Mapping[str, Any]) -> Version:
    """Makes version `number` the champion in place of version `expected` (None: there was none), recording why.

    Raises Outrun when the champion is neither of the two, and InputError when the version's files are not what was registered;
    the champion stays then. `evidence` is JSON-able: the verdict, the run that gave it.
    """
    with _locked(name):
        now, wanted = champion(name), version(name, number)
        _notice(name)
        if (now.version if now else None) not in (expected, wanted.version):
            raise Outrun(
                f"the champion of {name} is version {now.version if now else 'none'}, not {expected or 'none'} as it was when version {number} "
                "was judged. Run again, to compare with the present champion."
            )
        return _promote(name, now, wanted, evidence)


def rollback(name: str, evidence: Mapping[str, Any]) -> Version:
    """Makes the `previous` version the champion again, and the champion the previous one."""
    with _locked(name):
        now, before = champion(name), champion(name, "previous")
        _notice(name)
        if now is None or before is None or now.version == before.version:
            raise InputError(f"{name} has no version to go back to: its alias `previous` is not set")
        verify(before)
        return _move(name, now, before, "rollback", evidence)


def audit(name: str) -> list[dict[str, Any]]:
    """All moves of the champion, oldest first: what, when, who, from and to which version, on which evidence."""
    entries = []
    for one in database.retry(database.client().search_model_versions, f"name = '{name}'"):
        entries += [json.loads(text) for tag, text in one.tags.items() if tag.startswith(AUDIT)]
    return sorted(entries, key=lambda entry: entry["time"])


def moved_by_hand(name: str) -> dict[str, Any] | None:
    """Where the champion is not what the audit says: `from` and `to` which version (None: none) somebody moved it, and `after` which time.

    A move that was killed before it was marked as done is no such. None too for a model of whose champion there is no audit.
    """
    log = audit(name)
    done = [number for number, entry in enumerate(log) if entry.get("done")]
    if not done:
        return None
    now, last = champion(name), log[done[-1]]
    found = now.version if now else None
    return None if found in {entry["to"] for entry in log[done[-1] :]} else {"from": last["to"], "to": found, "after": last["time"]}


def _notice(name: str) -> None:
    """Adds to the audit that the alias was moved by hand, where it was."""
    moved = moved_by_hand(name)
    if moved is not None:
        entry = {"action": "noticed", "time": time.time(), "user": "unknown", "from": moved["from"], "to": moved["to"], "evidence": {"after": moved["after"]}, "done": True}
        tag = f"{AUDIT}{int(entry['time'] * 1000)}.noticed"  # of a name that the move after it, in the same millisecond, does not have
        database.retry(database.client().set_model_version_tag, name, str(moved["to"] or moved["from"]), tag, json.dumps(entry))


def verify(one: Version, folder: Path | None = None) -> None:
    """Raises InputError unless the version is READY and its files, as the store gives them now or as they are in `folder`, are those that were registered."""
    found = database.retry(database.client().get_model_version, one.name, str(one.version))
    if found.status != "READY":
        raise InputError(f"{one.uri} is {found.status}, not READY")
    root = str(folder) if folder else database.retry(database.client().get_model_version_download_uri, one.name, str(one.version))
    if one.tags.get(FILES) and _sums(root) != one.tags[FILES]:
        raise InputError(f"{one.uri} is damaged: its files{f' in {folder}' if folder else ''} are not those that were registered. Register it again.")


def files(one: Version) -> Path:
    """The folder of all the version's files, which are those that were registered; a damaged download is made anew. Raises InputError."""
    folder = fetch(one.uri)
    try:
        verify(one, folder)
    except InputError:
        if not discard(folder):
            raise
        folder = fetch(one.uri)
        verify(one, folder)
    return folder


def move(name: str, number: int | None, reason: str) -> tuple[Version | None, Version]:
    """Makes version `number` the champion, or where it is None the previous one again, as somebody asked for; gives the champion before and now."""
    now = champion(name)
    if number is None:
        return now, rollback(name, {"reason": reason})
    if number < 1:
        raise InputError(f"version {number} of {name}: versions are counted from 1")
    return now, promote(name, number, now.version if now else None, {"reason": reason})


def _promote(name: str, now: Version | None, wanted: Version, evidence: Mapping[str, Any]) -> Version:
    """Moves the champion under the lock, or ends the move that was killed; nothing where it is the champion by a move that is done."""
    verify(wanted)
    before = now
    if now is not None and now.version == wanted.version:
        last = audit(name)[-1:]
        noticed = bool(last) and last[0]["action"] == "noticed"
        if last and last[0]["to"] == wanted.version and last[0].get("done") and not noticed:
            return now
        before = version(name, last[0]["from"]) if noticed and last[0]["from"] else champion(name, "previous")
    return _move(name, before, wanted, "promote", evidence)


def _move(name: str, now: Version | None, wanted: Version, action: str, evidence: Mapping[str, Any]) -> Version:
    client = database.client()
    entry = {"action": action, "time": time.time(), "user": runs.user(), "from": now.version if now else None, "to": wanted.version, "evidence": dict(evidence)}
    # Said before it is done, so that a kill between the two loses no move from the log.
    tag = f"{AUDIT}{int(entry['time'] * 1000)}"
    database.retry(client.set_model_version_tag, name, str(wanted.version), tag, json.dumps(entry))
    if now is not None:
        database.retry(client.set_registered_model_alias, name, "previous", str(now.version))
    database.retry(client.set_registered_model_alias, name, "champion", str(wanted.version))
    crash_point(f"register.alias.{name}")
    if _shared():  # the lock is of this host: another's move would be seen by now, and the last one has it
        time.sleep(lease.SETTLE)
    after = champion(name)
    if after is None or after.version != wanted.version:
        raise Outrun(f"another host made version {after and after.version} the champion of {name} at the same moment as this one version {wanted.version}")
    if "challenger" in after.aliases:
        database.retry(client.delete_registered_model_alias, name, "challenger")
    database.retry(client.set_model_version_tag, name, str(wanted.version), tag, json.dumps({**entry, "done": True}))
    return version(name, wanted.version)


def _store(
    run_id: str,
    model_folder: Path,
    pyfunc_file: Path,
    code_paths: Sequence[Path],
    signature: ModelSignature,
    example: pd.DataFrame,
    pip_requirements: Sequence[str],
) -> Any:
    """Stores a pyfunc as a logged model of the run, READY only after what is stored has the sums of what was written."""
    from mlflow.models import Model

    client = database.client()
    run = database.retry(client.get_run, run_id)
    model = database.retry(client.create_logged_model, run.info.experiment_id, name="model", source_run_id=run_id, model_type="warmstart")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own type hints, and of its own use of pandas
            import mlflow.pyfunc

            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(pyfunc_file),
                artifacts={"model": str(model_folder)},
                code_paths=[str(path) for path in code_paths],
                signature=signature,
                input_example=example,
                pip_requirements=list(pip_requirements),
                mlflow_model=Model(artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id),
            )
        for compiled in list(folder.rglob("__pycache__")):
            shutil.rmtree(compiled)
        database.retry(client.log_model_artifacts, model.model_id, str(folder))
        if _sums(model.artifact_location) != _sums(str(folder)):
            database.retry(client.finalize_logged_model, model.model_id, "FAILED")
            raise database.TrackingError(f"the model in {database.mask(model.artifact_location)} reads back differently from what was written. Run again.")
    return database.retry(client.finalize_logged_model, model.model_id, "READY")


def _create(name: str, source: str, run_id: str, tags: Mapping[str, str], model_id: str | None) -> Version:
    from mlflow.exceptions import MlflowException

    client = database.client()
    try:
        database.retry(client.create_registered_model, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with _locked(name):
        # Asked again at each try: a request that failed may have come through, and others may have the same key.
        return database.retry(lambda: _with_key(name, tags[KEY]) or _version(client.create_model_version(name, source, run_id, dict(tags), model_id=model_id)))


def _with_key(name: str, key: str) -> Version | None:
    for found in database.retry(database.client().search_model_versions, f"name = '{name}'"):
        if found.tags.get(KEY) == key and found.status == "READY":
            one = version(name, found.version)
            try:
                verify(one)
            except InputError as error:
                _log.warning("%s is not used again: %s", one.uri, error)
                continue
            return one
    return None


def _sums(root: str) -> str:
    """One digest of all files under an artifact root: their paths and sha256 sums, as the store gives them now."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as temporary:
        folder = local_folder(root) or Path(database.retry(download_artifacts, artifact_uri=root, dst_path=temporary))
        # Where the store is a local folder, loading a model leaves these two kinds of files in it.
        made = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name != "registered_model_meta"]
        files = sorted(path.relative_to(folder).as_posix() for path in made)
        return hashlib.sha256("".join(f"{path} {digest(folder / path)}\n" for path in files).encode()).hexdigest()


def _version(found: ModelVersion) -> Version:
    return Version(found.name, int(found.version), found.run_id or "", tuple(found.aliases), dict(found.tags), found.creation_timestamp)


def _shared() -> bool:
    """Whether other hosts may use the registry too."""
    import mlflow

    return not mlflow.get_registry_uri().startswith("sqlite")


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One move at a time of a model's aliases, among the processes of this host."""
    import mlflow

    mark = hashlib.sha256(f"{mlflow.get_registry_uri()}\n{name}".encode()).hexdigest()[:24]
    with database.file_lock(database.private_folder() / f"registry-{mark}.lock"):
        yield
