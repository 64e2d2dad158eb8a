"""Prefect's server, closed to pages of other origins and to other names than its own, for HTTP and for websockets.

Prefect answers to any Host, and browsers let every page open websockets to this machine: without this, a page in the web could send events to a server on loopback.
"""

from __future__ import annotations

import os
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

HOSTS, ORIGINS = "WARMSTART_PREFECT_HOSTS", "WARMSTART_PREFECT_ORIGINS"
"""Variables that hold the names that it answers to, and the origins of pages that may use it, with commas between."""


class SameOrigin:
    """ASGI middleware that refuses what a page of another origin asks. Programs send no Origin."""

    def __init__(self, app: Any, origins: set[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] in ("http", "websocket") else None
        if origin is None or origin.lower() in self._origins:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008, "pages of other origins may not use this server")(scope, receive, send)
        else:
            await PlainTextResponse("pages of other origins may not use this server", 403)(scope, receive, send)


def create() -> Any:
    """The application, for `uvicorn --factory mlflow_server.prefect_app:create`."""
    from prefect.server.api.server import create_app

    origins = {one.lower() for one in os.environ[ORIGINS].split(",")}
    return TrustedHostMiddleware(SameOrigin(create_app(), origins), allowed_hosts=os.environ[HOSTS].split(","))
