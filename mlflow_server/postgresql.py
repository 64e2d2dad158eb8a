"""A private PostgreSQL cluster of the system's own binaries, which only this user (and root) can reach, through a socket in the file system.

PostgreSQL refuses to run as root: then it runs as the user `postgres` that its package has made. There is no password, and no port: the
kernel says who is at the other end of the socket (`peer`).
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ml.contracts import InputError

INSTALLED = "/usr/lib/postgresql"  # Debian's place, by major version
DATABASES = ("mlflow", "prefect")
SETTINGS = """
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 128MB
log_destination = 'stderr'
logging_collector = off
"""


@dataclass(frozen=True)
class Cluster:
    """Where a cluster and its socket lie, which binaries run it, and as whom; "" is the caller."""

    binaries: Path
    data: Path
    socket: Path
    user: str

    @property
    def role(self) -> str:
        """Who its databases belong to."""
        return self.user or pwd.getpwuid(os.getuid()).pw_name

    @property
    def command(self) -> list[str]:
        return [str(self.binaries / "postgres"), "-D", str(self.data), "-k", str(self.socket)]

    @property
    def probe(self) -> list[str]:
        """A command that succeeds once the cluster answers."""
        return [str(self.binaries / "pg_isready"), "--quiet", "--host", str(self.socket), "--username", self.role, "--dbname", "postgres"]

    def url(self, database: str, driver: str = "") -> str:
        """SQLAlchemy's URL of one of its databases."""
        return f"postgresql{f'+{driver}' if driver else ''}://{self.role}@/{database}?host={self.socket}"


def cluster(folder: Path) -> Cluster | None:
    """The cluster of a folder, made where there is none yet; None where PostgreSQL is not installed. Raises InputError."""
    user = "postgres" if os.getuid() == 0 else ""
    found = installed()
    if not found or (user and not _known(user)):
        return None
    places = _places(folder, user)
    version = (places / "PG_VERSION").read_text().strip() if (places / "PG_VERSION").exists() else ""
    if version and version not in found:
        raise InputError(f"the database in {places} was made by PostgreSQL {version}, found are {', '.join(found)}. Install it (`apt install postgresql-{version}`).")
    binaries = found[version or max(found, key=float)]
    one = Cluster(binaries, places, _socket(folder, user), user)
    if not version:
        _make(one)
    return one


def _places(folder: Path, user: str) -> Path:
    """The data folder: within `folder`, or in the home of the user that runs PostgreSQL, where that one cannot get there."""
    within = folder / "postgresql"
    if not user or within.exists() or _reaches(user, folder):
        return within
    return Path(pwd.getpwnam(user).pw_dir) / f"warmstart-{_name(folder)}"


def _socket(folder: Path, user: str) -> Path:
    """A private folder with a short name: the path of a socket has at most 107 characters."""
    path = Path(tempfile.gettempdir()) / f"warmstart-postgresql-{_name(folder)}"
    owner = pwd.getpwnam(user).pw_uid if user else os.getuid()
    try:
        path.mkdir(mode=0o700)
        os.chown(path, owner, -1)
    except FileExistsError:
        found = path.lstat()
        if path.is_symlink() or found.st_uid != owner or found.st_mode & 0o077:
            raise InputError(f"{path} is somebody else's or open to others: remove it, the database's socket is made there") from None
    return path


def _make(one: Cluster) -> None:
    """initdb and the databases, whole or not there at all."""
    new = one.data.with_name(one.data.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    _own(new, one.user)
    _run(one, [str(one.binaries / "initdb"), "--pgdata", str(new), "--username", one.role, "--auth", "peer", "--encoding", "UTF8", "--locale", "C.UTF-8"])
    for database in DATABASES:  # by a server of one session, that listens nowhere
        _run(one, [str(one.binaries / "postgres"), "--single", "-D", str(new), "postgres"], f"CREATE DATABASE {database};\n")
    with (new / "postgresql.conf").open("a") as file:
        file.write(SETTINGS)
    (new / "pg_hba.conf").write_text("local all all peer map=warmstart\n")
    users = {one.role, pwd.getpwuid(os.getuid()).pw_name}
    (new / "pg_ident.conf").write_text("".join(f"warmstart {user} {one.role}\n" for user in sorted(users)))
    new.rename(one.data)


def _run(one: Cluster, command: list[str], given: str = "") -> None:
    user = {"user": one.user, "group": one.user, "extra_groups": []} if one.user else {}
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd="/", check=False, **user)
    if done.returncode or "ERROR" in done.stderr:
        raise InputError(f"PostgreSQL's database could not be made: {' '.join(done.stderr.split())[-300:]}")


def installed(program: str = "initdb") -> dict[str, Path]:
    """Major version → folder of the binaries, where they have the program."""
    folders = [path.parent for path in Path(INSTALLED).glob(f"*/bin/{program}")]
    elsewhere = shutil.which(program)
    found = {}
    for folder in [*([Path(elsewhere).parent] if elsewhere else []), *folders]:
        told = subprocess.run([str(folder / program), "--version"], capture_output=True, text=True, check=False).stdout
        if matched := re.search(r"\) (\d+)", told):
            found[matched[1]] = folder
    return found


def _reaches(user: str, folder: Path) -> bool:
    """Whether the user may pass through all folders down to this one."""
    return subprocess.run(["test", "-x", str(folder)], user=user, group=user, extra_groups=[], cwd="/", check=False).returncode == 0


def _own(path: Path, user: str) -> None:
    if user:
        shutil.chown(path, user, user)


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _name(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12]
