"""The servers that commands in this folder use: those of `warmstart up`, unless the environment names others.

Read at the start of every command: only the standard library is imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Where the services of the working folder are kept."""
    return Path(os.environ.get("WARMSTART_HOME") or ".warmstart").resolve() / "services"


def read() -> dict[str, Any] | None:
    """What runs there, or ran until `warmstart down`; None where nothing did, or what is written cannot be used."""
    try:
        found = json.loads((folder() / "services.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"clients", "programs"} <= found.keys() else None


def adopt() -> None:
    """Lets this process and its children use the services of the folder. Raises InputError where they should run and do not."""
    found = read()
    if found is None or found.get("down"):
        return
    clients = {name: value for name, value in found["clients"].items() if name not in os.environ}
    if "MLFLOW_TRACKING_URI" not in clients:  # another server's passwords are not ours to give
        clients = {name: value for name, value in clients.items() if not name.startswith("MLFLOW_")}
    if "PREFECT_API_URL" not in clients:
        clients = {name: value for name, value in clients.items() if not name.startswith("PREFECT_")}
    from mlflow_server import supervision

    if clients and not supervision.running(folder()):
        from ml.contracts import InputError

        raise InputError(
            "the services of this folder do not run (was the machine restarted?). `warmstart up` starts them again; after `warmstart down` "
            "runs are recorded in this folder's own files."
        )
    os.environ |= clients

