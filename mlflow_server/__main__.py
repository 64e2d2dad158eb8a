"""Starts a tracking server for several machines or many processes, on this machine's loopback unless it has passwords.

    python -m mlflow_server                                             # SQLite and files in the working folder
    python -m mlflow_server --database postgresql://user@host/mlflow --artifacts s3://bucket
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 warmstart run ...
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path

from ml.contracts import InputError
from tasks.tracking import database


def command(arguments: list[str]) -> list[str]:
    """The checked command line of `mlflow server`; prepares the database. Raises InputError."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; one beyond loopback needs --auth")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--database", default="sqlite:///mlflow.db", help="SQLite or PostgreSQL URI of the records")
    parser.add_argument("--artifacts", default="mlartifacts", help="folder or bucket URI of the artifacts, which the server serves")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer; above 1 needs PostgreSQL")
    parser.add_argument("--auth", action="store_true", help="ask for user and password: MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD")
    given = parser.parse_args(arguments)
    if not _loopback(given.host) and not given.auth:
        raise InputError(f"--host {given.host} can be reached by others, who could read and change all runs and models. Add --auth, or listen on 127.0.0.1.")
    if given.auth and len(os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")) < 12:
        raise InputError("--auth needs MLFLOW_AUTH_ADMIN_PASSWORD with at least 12 characters (MLflow's own default is public)")
    if given.workers > 1 and given.database.startswith("sqlite"):
        raise InputError("SQLite takes one writer at a time: use --workers 1, or a PostgreSQL --database")
    os.environ["MLFLOW_TRACKING_URI"] = given.database
    uri = database.prepare()
    artifacts = given.artifacts if "://" in given.artifacts else str(Path(given.artifacts).resolve())
    extra = ["--app-name", "basic-auth"] if given.auth else []
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", given.host, "--port", str(given.port), "--workers", str(given.workers)),
        *("--backend-store-uri", uri, "--serve-artifacts", "--artifacts-destination", artifacts, *extra),
    ]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    try:
        line = command(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the server serves its database: it is no client of one
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # its own job queue: processes that we have no use for
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
