"""MLflow's tracking server with settings that are safe to start with: what is run, and in which environment."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ml.contracts import InputError
from mlflow_server import credentials
from mlflow_server.dump import dump
from tasks.hosts import EVERYWHERE, bracketed, loopback, names
from tasks.tracking import database

ADMIN = "admin"
KNOWN = 30
"""Seconds that a user who has shown a password is known: to look at it each time takes longer than most requests. Whoever is removed is out as late."""


@dataclass(frozen=True)
class Server:
    """What a tracking server is started with. `folder` holds its secrets; `hosts` and `origins` are those a browser may name beside its own."""

    host: str = "127.0.0.1"
    port: int = 5000
    database: str = "sqlite:///mlflow.db"
    artifacts: str = "mlartifacts"
    workers: int = 1
    auth: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    folder: Path = field(default_factory=lambda: Path(os.environ.get("WARMSTART_HOME") or ".warmstart").resolve() / "server")

    def __post_init__(self) -> None:
        object.__setattr__(self, "database", database.with_driver(self.database))

    def check(self) -> None:
        """Raises InputError for settings that are not safe, or cannot work."""
        if not loopback(self.host) and not self.auth:
            raise InputError(f"--host {self.host} can be reached by others, who could read and change all runs and models. Add --auth, or listen on 127.0.0.1.")
        if self.workers > 1 and self.database.startswith("sqlite"):
            raise InputError("SQLite takes one writer at a time: use --workers 1, or a PostgreSQL --database")
        if "*" in (*self.hosts, *self.origins):
            raise InputError("a host or an origin `*` lets every page in the web use this server from a browser: name them")
        if self.auth:
            self._secrets()

    def command(self) -> list[str]:
        """The command line, which holds no secret."""
        artifacts = self.artifacts if "://" in self.artifacts else str(Path(self.artifacts).resolve())
        extra = ["--app-name", "basic-auth"] if self.auth else []
        hosts = dict.fromkeys(name for host in (*names(self.host), *self.hosts) for name in (host, f"{host}:*"))  # any port: a tunnel's is another
        origins = ["--cors-allowed-origins", ",".join(self.origins)] if self.origins else []
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port), "--workers", str(self.workers)),
            *("--serve-artifacts", "--artifacts-destination", artifacts, "--allowed-hosts", ",".join(hosts), *origins, *extra),
        ]

    def environment(self) -> dict[str, str]:
        """What it needs in its environment, secrets among it."""
        found = {"MLFLOW_BACKEND_STORE_URI": self.database, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        if not self.auth:
            return found
        key, admin = self._secrets()
        settings = self.folder / "auth.ini"
        users = f"sqlite:///{self.folder / 'users.db'}" if self.database.startswith("sqlite") else self.database
        credentials.write(
            settings,
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users.replace('%', '%%')}\nadmin_username = {ADMIN}\n"
            f"authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = {KNOWN}\n",
        )
        return found | {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_USERNAME": os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", ADMIN),
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
        }

    def client(self) -> dict[str, str]:
        """What clients on this machine need in their environment."""
        found = {"MLFLOW_TRACKING_URI": f"http://{'127.0.0.1' if self.host in EVERYWHERE else bracketed(self.host)}:{self.port}"}
        if self.auth:
            _, admin = self._secrets()
            found |= {"MLFLOW_TRACKING_USERNAME": os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", ADMIN), "MLFLOW_TRACKING_PASSWORD": admin}
        return found

    def prepare(self) -> None:
        """Makes the database's tables, or takes those of an older MLflow to this one's, after a backup of it. Raises InputError."""
        os.environ["MLFLOW_TRACKING_URI"] = self.database
        try:
            database.prepare(backup=lambda uri: dump(uri, self.folder / f"before-upgrade-{time.strftime('%Y%m%d-%H%M%S')}"))
        finally:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # the server serves its database: it is no client of one

    def _secrets(self) -> tuple[str, str]:
        """The key of its forms and the administrator's password."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = credentials.password(self.folder, "MLFLOW_FLASK_SERVER_SECRET_KEY", "secret-key")
        return key, credentials.password(self.folder, "MLFLOW_AUTH_ADMIN_PASSWORD", "admin-password")
