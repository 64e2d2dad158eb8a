"""Copies of a database while it is used: SQLite's by its own backup, PostgreSQL's by pg_dump and pg_restore."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from ml.contracts import InputError
from ml.masking import mask
from mlflow_server.postgresql import installed


def dump(uri: str, folder: Path) -> Path:
    """Writes one consistent state of the database into the folder and gives the file. Raises InputError."""
    url = make_url(uri)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if url.get_backend_name() == "sqlite":
        file = folder / "database.sqlite"
        with closing(sqlite3.connect(f"file:{Path(url.database).resolve()}?mode=ro", uri=True, timeout=60)) as source, closing(sqlite3.connect(file)) as target:
            source.backup(target)
        return file
    file = folder / "database.dump"
    _run(url, "pg_dump", "--format", "custom", "--file", str(file))
    return file


def load(uri: str, file: Path) -> None:
    """Fills the database with what `dump` wrote, whole or not at all; one that holds runs or models is refused. Raises InputError."""
    url = make_url(uri)
    kind = "sqlite" if url.get_backend_name() == "sqlite" else "dump"
    if file.suffix != f".{kind}":
        raise InputError(f"{file.name} is a copy of another kind of database than {mask(uri)}: restore into one of the same kind")
    refuse_used(uri)
    if kind == "sqlite":
        target = Path(url.database).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(f"file:{file.resolve()}?mode=ro", uri=True)) as source, closing(sqlite3.connect(target, timeout=60)) as copy:
            source.backup(copy)
        return
    _run(url, "pg_restore", "--no-owner", "--clean", "--if-exists", "--exit-on-error", "--single-transaction", str(file))


def refuse_used(uri: str) -> None:
    """Raises InputError where the database holds what a restore would remove."""
    import sqlalchemy

    url = make_url(uri)
    if url.get_backend_name() == "sqlite" and not Path(url.database).exists():
        return
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as connection:
            for table in set(sqlalchemy.inspect(connection).get_table_names()) & {"runs", "registered_models"}:
                if count := connection.execute(sqlalchemy.text(f"select count(*) from {table}")).scalar():
                    raise InputError(f"{mask(uri)} holds {count:,} {table.replace('_', ' ')} already: name an empty database, a restore removes nothing")
    except sqlalchemy.exc.OperationalError as error:
        raise InputError(f"unreachable database {mask(uri)}: {str(error).splitlines()[0]}") from None


def _run(url: URL, program: str, *options: str) -> None:
    """One of PostgreSQL's programs, of the newest version installed; the password goes by the environment, which other users cannot read."""
    found = installed(program)
    if not found:
        raise InputError(f"{program} is not installed, which a copy of {mask(str(url))} needs (`apt install postgresql-client`)")
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    line = [str(found[max(found, key=float)] / program), "--dbname", plain, *options]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{program} of {mask(plain)} failed: {mask(' '.join(done.stderr.split()))[-300:]}")
