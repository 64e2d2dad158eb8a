"""The ports of a group: those that were asked for, those that it had, or free ones, and none that belongs to another group of this user.

A group keeps its ports while it runs, also that of a service which has just died and is about to be started again: nothing listens there then.
"""

import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ml.contracts import InputError
from mlflow_server import credentials, supervision
from tasks.tracking.database import private_folder


def choose(host: str, asked: int, usual: int, option: str, taken: Iterable[int]) -> int:
    """The port that was asked for, the usual one, or a free one. Raises InputError where the one asked for is in use or taken."""
    if asked in taken:
        raise InputError(f"{option} {asked}: the services of another folder, or another of this one's, have it. Give another, or leave it out to get a free one.")
    for port in (asked,) if asked else (usual, *[0] * 100):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), port))
            except OSError as error:
                if asked:
                    raise InputError(f"{option} {asked} on {host}: {error.strerror}. Give another, or leave it out to get a free one.") from None
                continue
            if probe.getsockname()[1] not in taken:
                return probe.getsockname()[1]
    raise InputError(f"no port is free on {host} for {option}")


def of_others(folder: Path) -> set[int]:
    """The ports of the groups that run in this user's other folders."""
    return {port for other, ports in _kept().items() if other != str(folder) for port in ports}


def keep(folder: Path, ports: Iterable[int]) -> None:
    """Notes the ports of a folder's group, and forgets those of groups that have ended."""
    credentials.write(_file(), json.dumps({**_kept(), str(folder): sorted(ports)}))


def _kept() -> dict[str, list[int]]:
    with suppress(OSError, ValueError):
        return {folder: ports for folder, ports in json.loads(_file().read_text()).items() if supervision.running(Path(folder))}
    return {}


def _file() -> Path:
    return private_folder() / "ports.json"
