"""The process of `warmstart serve`: what must hold is checked before the model is loaded, and on SIGTERM what is under way is finished."""

from __future__ import annotations

import logging
import math
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from ml.contracts import InputError
from ml.micro_batch import MicroBatches
from tasks.serve.app import Limits, application
from tasks.serve.guard import access
from tasks.serve.metrics import Metrics
from tasks.serve.model import LiveModel, uri_of
from tasks.serve.samples import Samples
from tasks.tracking import database

BACKLOG = 2048


def serve(
    model: str,
    host: str,
    port: int,
    names: Sequence[str],
    limits: Limits,
    batch_rows: int,
    batch_seconds: float,
    follow: float,
    threads: int,
    share: float,
    folder: Path | None,
    most: int,
) -> None:
    """Serves until SIGTERM or Ctrl-C; prints one line with the address once it answers. InputError where it cannot."""
    _log_to_standard_error()
    permitted = access(host, names)
    if (share > 0) != (folder is not None):
        raise InputError("--sample SHARE and --samples FOLDER belong together: which share of the rows is kept, and where")
    with _bound(host, port) as listener:
        database.prepare()
        metrics = Metrics()
        live = LiveModel(uri_of(model), metrics, threads)
        samples = Samples(folder, share, most, metrics) if folder else None
        batches = MicroBatches(batch_rows, batch_seconds, metrics.batches.observe)
        app = application(live, batches, metrics, samples, limits, permitted)
        live.follow(follow)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(limits.seconds) + 1,
        )
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            raise _taken(host, port, error) from None
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        named = f" ({live.uri.removeprefix('models:/')})" if live.alias else ""
        # The server raises the signal that ended it once more, when all is done: it has served its purpose by then.
        before = {number: signal.signal(number, lambda number, frame: None) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            _Server(config, f"serving {live.current.version.uri}{named} at {address}").run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _log_to_standard_error() -> None:
    """What this server and uvicorn tell, whatever libraries have set up for their own logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("tasks.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _Server(uvicorn.Server):
    """Says that it answers."""

    def __init__(self, config: uvicorn.Config, words: str):
        super().__init__(config)
        self._words = words

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._words, flush=True)


def _bound(host: str, port: int) -> socket.socket:
    """A socket with the address, which does not listen yet: who comes too early is refused instead of left waiting."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host} is no address of this machine: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a server cannot be started again for a minute
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from None
    return listener


def _taken(host: str, port: int, error: OSError) -> InputError:
    return InputError(f"cannot listen on {host}, port {port}: {error.strerror}. Give another --port (0 takes a free one), or end what uses it.")
