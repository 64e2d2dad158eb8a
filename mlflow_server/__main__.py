"""Starts a tracking server for several machines or many processes, on this machine's loopback unless it has passwords; copies, restores and clears it.

    python -m mlflow_server                                             # SQLite and files in the working folder
    python -m mlflow_server --database postgresql://user@host/mlflow --artifacts s3://bucket
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 warmstart run ...
    python -m mlflow_server backup FOLDER | restore FOLDER | clean      # each with --help

`warmstart up` starts it with all that belongs to it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ml.contracts import InputError
from ml.masking import mask
from mlflow_server.tracking import Server


def server(arguments: list[str]) -> Server:
    """What the command line asks for, checked. Raises InputError."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; one beyond loopback needs --auth")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1, help="processes that answer; above 1 needs PostgreSQL")
    parser.add_argument("--auth", action="store_true", help="ask for user and password; the administrator's are made once, or MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD")
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a name by which browsers may call it, beside the address; again for more")
    parser.add_argument("--allowed-origin", action="append", default=[], metavar="URL", help="a page's origin that may use it, beside its own; again for more")
    parser.add_argument("--folder", type=Path, help="where its secrets are kept (.warmstart/server)")
    given = parser.parse_args(arguments)
    kept = {"folder": given.folder.resolve()} if given.folder else {}
    found = Server(given.host, given.port, given.database, given.artifacts, given.workers, given.auth, tuple(given.allowed_host), tuple(given.allowed_origin), **kept)
    found.check()
    return found


def places(parser: argparse.ArgumentParser) -> None:
    """Where the records and the artifacts are."""
    kept = os.environ.get("MLFLOW_BACKEND_STORE_URI", "sqlite:///mlflow.db")
    parser.add_argument("--database", default=kept, help="SQLite or PostgreSQL URI of the records; with a password in it, better as MLFLOW_BACKEND_STORE_URI, which other users cannot see")
    parser.add_argument("--artifacts", default="mlartifacts", help="folder or bucket URI of the artifacts, which the server serves")


def main() -> None:
    try:
        if sys.argv[1:2] in (["backup"], ["restore"], ["clean"]):
            from mlflow_server import upkeep

            upkeep.main(sys.argv[1:])
            return
        one = server(sys.argv[1:])
        one.prepare()
        environment = one.environment()
    except InputError as error:
        sys.exit(f"error: {mask(str(error))}")
    line = one.command()
    os.execve(line[0], line, {**os.environ, **environment})


if __name__ == "__main__":
    main()
