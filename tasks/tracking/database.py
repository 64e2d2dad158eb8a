"""Where MLflow keeps its records: found, made and checked once, before anything is logged.

SQLite tables are made without a lock by MLflow, so that processes that start at once on an empty folder break each other.
Here they are made in a temporary file, under a file lock, and renamed into place: whole or not there at all.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ml.contracts import InputError
from ml.masking import mask
from tasks.reach import wait_for

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
CHECKED_BYTES = 200 * 2**20  # a larger database is not read through at each start


PATIENCE = "WARMSTART_PATIENCE"
"""The variable with the seconds that MLflow is waited for. Deployments set it: before a scheduled run sits nobody who would start it again."""
TOLD = 10.0  # seconds of waiting after which that is said


class TrackingError(RuntimeError):
    """MLflow could not be used for longer than was waited."""


_log = logging.getLogger(__name__)


def patience(seconds: float) -> float:
    """How long to wait for MLflow: WARMSTART_PATIENCE, or `seconds` where it is not set. Raises InputError for what is no number of seconds."""
    given = os.environ.get(PATIENCE, "").strip()
    if not given:
        return seconds
    if not re.fullmatch(r"\d{1,7}(\.\d+)?", given, re.ASCII):
        raise InputError(f"{PATIENCE}={given}: expected seconds, such as 3600")
    return float(given)


def prepare(seconds: float = 20.0, backup: Callable[[str], object] | None = None) -> str:
    """Makes the tracking database ready and gives its URI, as MLFLOW_TRACKING_URI or MLflow's own default says.

    With `backup`, which is called with the URI before, tables of an older MLflow are migrated. Raises InputError for what cannot be used: a server that is away for longer than
    `patience(seconds)`, a damaged file, a folder that cannot be written.
    """
    _settle_environment()
    import mlflow

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # a server that is away is told once, by `retry`
        logging.getLogger(name).setLevel(logging.ERROR)
    # What its database layer logs with a traceback is raised too, and told here in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    uri = mlflow.get_tracking_uri()
    scheme = uri.split(":", 1)[0]
    if scheme in ("http", "https"):
        _reach(uri, patience(seconds))
    elif scheme.split("+")[0] == "sqlite":
        uri = _sqlite(uri, backup)
    elif scheme.split("+")[0] == "postgresql":
        uri = with_driver(uri)
        _postgresql(uri, backup)
    elif scheme == "file" or "://" not in uri:
        raise InputError(
            f"MLflow's records in the folder {mask(uri)} are of the old file kind, which has no transactions. Move them with `mlflow "
            "migrate-filestore`, or set MLFLOW_TRACKING_URI=sqlite:///mlflow.db, or run in another folder."
        )
    mlflow.set_tracking_uri(uri)
    return uri


def look() -> str:
    """As `prepare`, for commands that only look: InputError where there is no database yet, instead of an empty one."""
    import mlflow
    from sqlalchemy.engine import make_url

    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite"):
        path = Path(make_url(uri).database or "").resolve()
        if not path.is_file():
            raise InputError(f"there is no MLflow database {path} yet. Look from the folder that runs were started in, set MLFLOW_TRACKING_URI, or make a first run with `warmstart run RECIPE`.")
    return prepare()


def uri() -> str:
    """The address of the prepared database, without its secrets."""
    import mlflow

    return mask(mlflow.get_tracking_uri())


def with_driver(uri: str) -> str:
    """A URI of PostgreSQL with the driver that is installed, psycopg 3; any other as it is."""
    scheme, rest = uri.split("://", 1) if "://" in uri else ("", uri)
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else uri


def client() -> MlflowClient:
    """A client of the prepared database."""
    from mlflow import MlflowClient

    return MlflowClient()


def experiment(name: str) -> str:
    """The id of the experiment `name`, made if it is new; safe when many processes ask at once."""
    from mlflow.exceptions import MlflowException

    one = retry(client().get_experiment_by_name, name)
    if one is None:
        try:
            return retry(client().create_experiment, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            one = retry(client().get_experiment_by_name, name)
    if one.lifecycle_stage == "deleted":
        raise InputError(
            f"the experiment {name!r} was deleted. Restore it with `mlflow experiments restore --experiment-id {one.experiment_id}`, or give "
            "the recipe another name (name=...)."
        )
    return one.experiment_id


def experiments() -> dict[str, str]:
    """The names of all experiments by their ids."""
    return {one.experiment_id: one.name for one in pages(client().search_experiments)}


def pages(search: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """All that one of the client's searches finds, page after page."""
    token = None
    while True:
        page = retry(search, *args, page_token=token, **kwargs)
        yield from page
        token = page.token
        if not token:
            return


def retry(call: Callable[..., T], *args: Any, seconds: float | None = None, **kwargs: Any) -> T:
    """`call(*args, **kwargs)`, again while MLflow is away or its database busy; TrackingError after `seconds`, which is `patience(60)` where none are given."""
    seconds = patience(60.0) if seconds is None else seconds
    began, pause, told = time.monotonic(), 0.2, False
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            text = str(error)
            if "database or disk is full" in text or "readonly database" in text:
                raise InputError(f"MLflow's database cannot be written: {first_line(error)}. Make room or permit writing, then run again.") from None
            if not transient(error):
                raise
            waited = time.monotonic() - began
            if waited + pause > seconds:
                raise TrackingError(f"MLflow could not be used for {seconds:.0f} s: {first_line(error)}") from error
            if waited > TOLD and not told:
                _log.warning("MLflow does not answer; waiting up to %.0f s: %s", seconds, first_line(error, 120))
                told = True
        time.sleep(pause)
        pause = min(pause * 2, 3.0)


def transient(error: Exception) -> bool:
    """Whether the same call may succeed later: the server is away, restarting or busy, the database is locked."""
    from mlflow.exceptions import MlflowException
    from requests import ConnectionError as NoConnection
    from requests import HTTPError, Timeout

    if "404 Client Error" in str(error):  # a download of what is not there, which MLflow calls an internal error
        return False
    if isinstance(error, MlflowException):
        return error.error_code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED")
    if isinstance(error, HTTPError):
        return error.response is None or error.response.status_code >= 500
    return isinstance(error, NoConnection | Timeout)


def first_line(error: BaseException, length: int = 400) -> str:
    """The first line of an error's message, without secrets, at most `length` characters."""
    lines = str(error).strip().splitlines()
    return mask(lines[0] if lines else type(error).__name__)[:length]


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path` (made if absent, and left there); it ends with the process, however that ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def private_folder() -> Path:
    """A folder of this user alone, the same for all processes of this host: for locks and sockets. Raises PermissionError where it is somebody else's."""
    found = Path(tempfile.gettempdir()) / f"warmstart-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    if found.lstat().st_uid != os.getuid() or found.lstat().st_mode & 0o077:
        raise PermissionError(1, f"{found} is somebody else's or open to others")
    return found


def _settle_environment() -> None:
    # A run id inherited from a parent process would make MLflow log into that run.
    for name in ("MLFLOW_RUN_ID", "MLFLOW_ACTIVE_MODEL_ID"):
        os.environ.pop(name, None)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    for name, value in (
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),  # standard output belongs to our results
        ("MLFLOW_PRINT_MODEL_URLS_ON_CREATION", "false"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # `retry` waits longer, with a limit of its own
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ):
        os.environ.setdefault(name, value)


def _sqlite(uri: str, backup: Callable[[str], object] | None) -> str:
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    if not url.database or url.database == ":memory:":
        raise InputError(f"MLFLOW_TRACKING_URI={uri} keeps nothing. Name a file: sqlite:///mlflow.db")
    path = Path(url.database).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(path.name + ".lock")):
            if not path.exists() or path.stat().st_size == 0:
                _make_sqlite(path)
            _check_sqlite(path)
            uri = url.set(database=str(path)).render_as_string(hide_password=False)
            _open(uri, backup)
    except OSError as error:
        raise InputError(
            f"cannot keep MLflow's database at {path}: {error.strerror}. Run in a folder that can be written, or set MLFLOW_TRACKING_URI."
        ) from None
    return uri


def _make_sqlite(path: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for stray in path.parent.glob(f"{path.name}.new-*"):
        stray.unlink()
    new = path.with_name(f"{path.name}.new-{os.getpid()}")
    store = SqlAlchemyStore(f"sqlite:///{new}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    for log in ("-wal", "-shm", "-journal"):  # of one that was removed without them: SQLite would write it into the new one
        path.with_name(path.name + log).unlink(missing_ok=True)
    new.replace(path)


def _check_sqlite(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
            # With a write-ahead log, readers and a writer do not wait for each other, and a commit costs one sync.
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            if path.stat().st_size <= CHECKED_BYTES:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
    except sqlite3.OperationalError as error:
        raise InputError(f"cannot write to MLflow's database {path}: {error}. Permit writing, or end what holds it.") from None
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"MLflow's database {path} is damaged ({error}). Put a backup in its place, without {path.name}-wal and {path.name}-shm beside it, or move all three away to start with an empty one."
        ) from None


def _postgresql(uri: str, backup: Callable[[str], object] | None) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as connection:
            # Held until the connection closes: one process at a time makes the tables.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('warmstart mlflow tables'))"))
            _open(uri, backup)
    except sqlalchemy.exc.OperationalError as error:
        raise InputError(f"unreachable MLflow database {mask(uri)}: {first_line(error)}. Start it, or set MLFLOW_TRACKING_URI to another.") from None


def _open(uri: str, backup: Callable[[str], object] | None) -> None:
    """Opens the tracking store, which makes tables where there are none, and the default experiment."""
    from mlflow import MlflowClient

    if _of_another_mlflow(uri):  # asked first: where tables are missing MLflow migrates by itself, without a copy
        if backup is None:
            raise InputError(
                f"MLflow's database {mask(uri)} was made by another MLflow. Back it up, then run `mlflow db upgrade {mask(uri)}`; `warmstart up` and "
                "`python -m mlflow_server` do both."
            )
        backup(uri)
        _migrate(uri)
    retry(MlflowClient(uri).search_experiments, max_results=1)


def _of_another_mlflow(uri: str) -> bool:
    """Whether the database has tables of another revision than this MLflow's."""
    import sqlalchemy
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    found = _get_schema_version(engine)
    return found is not None and found != _get_latest_schema_revision()


def _migrate(uri: str) -> None:
    """Takes the tables of an older MLflow to those of this one."""
    from alembic.util.exc import CommandError
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    try:
        _upgrade_db(create_sqlalchemy_engine_with_retry(uri))
    except CommandError as error:
        raise InputError(f"MLflow's database {mask(uri)} was made by a newer MLflow than this one ({first_line(error)}). Install that one.") from None


def _reach(uri: str, seconds: float) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    wait_for(f"{uri.rstrip('/')}/health", f"MLflow at {mask(uri)}", "Start it (`python -m mlflow_server`), or unset MLFLOW_TRACKING_URI to keep records in this folder.", seconds)
    try:
        retry(MlflowClient(uri).search_experiments, max_results=1, seconds=seconds)
    except (MlflowException, TrackingError) as error:
        raise InputError(f"MLflow at {mask(uri)} refuses: {first_line(error)}. Check MLFLOW_TRACKING_URI and its user name and password.") from None
