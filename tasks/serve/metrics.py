"""What Prometheus is told at /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from tasks.tracking.registry import Version

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The numbers of one server, in a registry of their own: the default one holds those of libraries."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("warmstart_requests", "Requests by path and HTTP status", ["path", "status"], registry=registry)
        self.seconds = Histogram("warmstart_request_seconds", "Seconds from a request's head to its answer, of /invocations", buckets=SECONDS, registry=registry)
        self._under_way = Gauge("warmstart_requests_under_way", "Requests to /invocations that have not been answered", registry=registry)
        self.rows = Counter("warmstart_rows", "Rows that were answered", registry=registry)
        self.bad_rows = Counter("warmstart_bad_rows", "Rows among them that have an error", registry=registry)
        self.batches = Histogram("warmstart_batch_rows", "Rows that the model computed at once", buckets=ROWS, registry=registry)
        self._waiting = Gauge("warmstart_requests_waiting", "Requests that wait for the model", registry=registry)
        self._model = Gauge("warmstart_model_info", "1 for the version that answers", ["name", "version"], registry=registry)
        self.swaps = Counter("warmstart_swaps", "Times that another version took over", registry=registry)
        self.swap_failures = Counter("warmstart_swap_failures", "Times that a version could not be loaded", registry=registry)
        self.registry_failures = Counter("warmstart_registry_failures", "Times that the registry could not be asked", registry=registry)
        self.sampled = Counter("warmstart_sampled_rows", "Rows that were kept as samples", registry=registry)
        self.dropped = Counter("warmstart_dropped_samples", "Rows that were to be kept and were not, as writing did not keep up or failed", registry=registry)

    def serves(self, version: Version) -> None:
        """Which version answers from now on."""
        self._model.clear()
        self._model.labels(version.name, str(version.version)).set(1)

    def asks(self, under_way: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Whom to ask how many requests are under way, and how many of them wait."""
        self._under_way.set_function(under_way)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self._registry)


class Counted:
    """ASGI middleware that counts requests by path and status."""

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"
        began, status = time.perf_counter(), 500

        async def observed(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            if path == "/invocations":
                self._metrics.seconds.observe(time.perf_counter() - began)
