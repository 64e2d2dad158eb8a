"""What a flow run shows in Prefect's UI: a bar for each stage while it works, a summary with links to MLflow when it is done.

Only where a server stays that people look at: a temporary one (prefect_server.py) has no UI.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ml import progress
from ml.contracts import InputError
from tasks import prefect_server

ATTEMPTS = 6
"""Times that a flow run is started, whose process died each time."""
EVERY = 5.0  # seconds between two updates of a bar

_log = logging.getLogger(__name__)


def tags() -> dict[str, str]:
    """What leads from a run in MLflow to this flow run in Prefect's UI; nothing outside one, and where nobody can look."""
    from prefect.utilities.urls import url_for

    run = _run()
    where = url_for(run) if run is not None and prefect_server.lasting() else None
    return {"warmstart.prefect": where, "mlflow.note.content": f"[This run in Prefect]({where})"} if where else {}


@contextmanager
def followed() -> Iterator[None]:
    """Shows the progress of what a worker runs; refuses a run that died too often. Raises InputError."""
    run = _run()
    if run is not None and run.run_count > ATTEMPTS:
        raise InputError(f"this run's process died {run.run_count - 1} times: it is not started again. The log of the worker says how it ended; not enough memory, perhaps.")
    if run is None or run.deployment_id is None:  # else the command line shows it
        yield
        return
    bars = Bars()
    progress.listen(bars)
    try:
        yield
    finally:
        progress.listen(None)
        bars.close()


def summarise(name: str, markdown: str) -> None:
    """Puts a summary beside the flow run, under the name that all runs of its kind share. What Prefect refuses costs no run."""
    from prefect.artifacts import create_markdown_artifact

    if _run() is not None and prefect_server.lasting():
        try:
            create_markdown_artifact(markdown, key=_key(name))
        except Exception as error:
            _log.warning("the summary is not in Prefect: %s", error)


def table(rows: Mapping[str, Any]) -> str:
    """Names and values as Markdown."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {plain(name)} | {plain(value)} |" for name, value in rows.items())])


def plain(value: Any) -> str:
    """A value that is nothing but text in Markdown, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", " ".join(str(value).split()))


class Bars:
    """Sends each stage's progress from a thread of its own, the latest of what was told in EVERY seconds."""

    def __init__(self) -> None:
        from prefect.context import FlowRunContext

        self._context = FlowRunContext.get()
        self._latest: dict[str, tuple[float, str]] = {}
        self._known: dict[str, Any] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
        self._thread.start()

    def update(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        words = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
        self._tell(stage, 100 * done / max(total, 1), f"{stage}: {done:,} of {total:,} {words}")

    def finish(self, stage: str, words: str) -> None:
        _log.info("%s %s", stage, words)
        self._tell(stage, 100.0, f"{stage}: {words}")

    def warn(self, stage: str, words: str) -> None:
        _log.warning("%s %s", stage, words)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10)

    def _tell(self, stage: str, share: float, words: str) -> None:
        with self._lock:
            self._latest[stage] = (min(share, 100.0), words)

    def _work(self) -> None:
        while not self._closed.wait(EVERY):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            told, self._latest = self._latest, {}
        try:
            from prefect.client.orchestration import get_client
            from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

            with get_client(sync_client=True) as client:
                for stage, (share, words) in told.items():
                    if stage in self._known:
                        client.update_artifact(self._known[stage], ArtifactUpdate(data=share, description=words))
                    else:
                        made = client.create_artifact(ArtifactCreate(type="progress", key=_key(stage), data=share, description=words, flow_run_id=self._context.flow_run.id))
                        self._known[stage] = made.id
        except Exception as error:  # nobody's run fails for want of a bar
            _log.debug("progress is not in Prefect: %s", error)


def _run() -> Any:
    """The flow run that this is a part of; None outside one."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def _key(name: str) -> str:
    """A name as Prefect's artifacts have it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
