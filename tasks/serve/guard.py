"""Who may ask: requests to a name that is not this server's, from pages of others, or without the token are refused.

A name check keeps away pages whose host name was pointed at this machine (DNS rebinding); the origin's, forms and scripts of other pages.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from ml.contracts import InputError
from tasks.hosts import EVERYWHERE, loopback, names

TOKEN = "WARMSTART_SERVE_TOKEN"
SHORTEST = 16
OPEN = frozenset({"/", "/ping"})
"""Paths that need no token: the page, which holds nothing and asks for it, and the sign of life."""
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


@dataclass(frozen=True)
class Access:
    """The names that the server answers to, whether also to each IP address (which nobody can rebind), and the token, "" for none."""

    names: frozenset[str]
    addresses: bool = False
    token: str = ""

    def names_this(self, host: str) -> bool:
        """Whether a Host header names this server."""
        name = _name(host)
        return name in self.names or (self.addresses and _address(name) is not None)


def access(host: str, more: Iterable[str] = ()) -> Access:
    """Who may ask a server that listens on `host`, and is called `more` too; InputError where that would be everybody."""
    token = os.environ.get(TOKEN, "")
    if token and len(token) < SHORTEST:
        raise InputError(f"{TOKEN} has {len(token)} characters: expected {SHORTEST} or more. `openssl rand -hex 16` makes one.")
    if not token and not loopback(host):
        raise InputError(f"--host {host} can be reached by others, who could use the model and read the metrics. Set {TOKEN} to {SHORTEST} characters or more, or listen on 127.0.0.1.")
    return Access(frozenset(name.strip("[]").lower() for name in (host, *names(host), *more)), host in EVERYWHERE, token)


class Guard:
    """ASGI middleware that lets through what `Access` permits, and tells browsers neither to guess nor to keep what is answered."""

    def __init__(self, app: Any, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def hardened(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (self._refused(scope["path"], Headers(scope=scope)) or self._app)(scope, receive, hardened)

    def _refused(self, path: str, headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._access.names_this(host):
            return problem(400, "this server has another name: start it with --allow-host NAME where it is to be called so")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return problem(403, "pages of other origins may not ask this server")
        if self._access.token and path not in OPEN and not self._knows_token(headers.get("authorization", "")):
            return problem(401, "expected the header `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        return None

    def _knows_token(self, given: str) -> bool:
        scheme, _, token = given.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._access.token.encode())


def problem(status: int, words: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as MLflow's servers tell one."""
    codes = {400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "ENDPOINT_NOT_FOUND", 500: "INTERNAL_ERROR", 503: "RESOURCE_EXHAUSTED", 504: "DEADLINE_EXCEEDED"}  # fmt: skip
    return JSONResponse({"error_code": codes.get(status, "BAD_REQUEST"), "message": words}, status, headers)


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "") if not set(host) & set("/?#@\\ ") else ""
    except ValueError:
        return ""


def _address(name: str) -> Any:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
