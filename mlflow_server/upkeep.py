"""`python -m mlflow_server backup | restore | clean`: what keeps records for years, by hand or by a timer."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mlflow_server import in_use
from mlflow_server.tracking import Server
from tasks.tracking.database import with_driver


def main(arguments: list[str]) -> None:
    """One of the three. Raises InputError."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_server")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in {
        "backup": "copy records and artifacts into a new folder, while the server runs",
        "restore": "put a backup back where there are no runs and no artifacts yet",
        "clean": "remove for good the runs that were deleted, but for those that the registry refers to",
    }.items():
        one = commands.add_parser(name, help=words, description=words)
        one.add_argument("--database", default="", help="SQLite or PostgreSQL URI of the records; unset, that of `warmstart up`, MLFLOW_BACKEND_STORE_URI or mlflow.db")
        one.add_argument("--artifacts", default="", help="folder or bucket URI of the artifacts that the server serves; unset, that of `warmstart up` or mlartifacts")
        if name != "clean":
            one.add_argument("folder", type=Path)
    clean = commands.choices["clean"]
    clean.add_argument("--days", type=float, default=30, help="only runs that ended so many days ago (30)")
    clean.add_argument("--dry-run", action="store_true", help="tell what would be removed")
    given = parser.parse_args(arguments)
    database, artifacts = places(given.database, given.artifacts)
    if given.command == "clean":
        from mlflow_server.clean import clean as remove

        removed, kept = remove(database, artifacts, given.days, given.dry_run, _say)
        print(f"{len(removed):,} runs {'would be' if given.dry_run else 'were'} removed; {len(kept):,} deleted runs are kept, which the registry refers to")
        return
    from mlflow_server import backup

    users = (in_use.folder() if in_use.read() else Server().folder) / "users.db"
    done = (backup.backup if given.command == "backup" else backup.restore)(given.folder.resolve(), database, artifacts, users, _say)
    print(f"{given.folder}: {len(done['files']):,} files, of {done['time']}")


def places(database: str, artifacts: str) -> tuple[str, str]:
    """Where records and artifacts are: as given, of the services of this folder, or of the folder itself."""
    found = in_use.read()
    served = found["programs"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"] if found else ""
    database = database or os.environ.get("MLFLOW_BACKEND_STORE_URI") or served or f"sqlite:///{Path('mlflow.db').resolve()}"
    return with_driver(database), artifacts or (found["wanted"]["artifacts"] if found else "mlartifacts")


def _say(words: str) -> None:
    print(words, file=sys.stderr)
