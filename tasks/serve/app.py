"""The routes: /invocations, /ping, /health and /version as `mlflow models serve` has them; /model, /metrics and the page at /."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ml.contracts import InputError
from ml.micro_batch import MicroBatches
from tasks.serve.guard import Access, Guard, problem
from tasks.serve.metrics import Counted, Metrics
from tasks.serve.model import LiveModel
from tasks.serve.samples import Samples
from tasks.tracking import scoring_protocol

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes of its body, rows, seconds until its answer. Of all: how many are under way at once."""

    bytes: int = 32 * 2**20
    rows: int = 1024
    seconds: float = 60.0
    requests: int = 64


class Refused(Exception):
    """A request that is not answered, with the HTTP status and the reason."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


def application(live: LiveModel, batches: MicroBatches, metrics: Metrics, samples: Samples | None, limits: Limits, access: Access) -> FastAPI:
    """The server's application, which ends `live`, `batches` and `samples` with itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        live.stop()
        await asyncio.to_thread(batches.close, limits.seconds)
        if samples:
            await asyncio.to_thread(samples.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    under_way = 0
    metrics.asks(lambda: under_way, lambda: batches.waiting)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        """Predictions for the rows of a request, all from one version, which the answer's header names."""
        nonlocal under_way
        if under_way >= limits.requests:
            return problem(503, f"{limits.requests} requests are under way already: try again", {"Retry-After": "1"})
        under_way += 1
        try:
            async with asyncio.timeout(limits.seconds):
                return await predicted(request)
        except TimeoutError:
            return problem(504, f"no answer within {limits.seconds:g} seconds")
        except Refused as refused:
            return problem(refused.status, str(refused))
        except ClientDisconnect:
            return problem(400, "the request broke off")
        finally:
            under_way -= 1

    async def predicted(request: Request) -> Response:
        body = await _body(request, limits.bytes)
        model = live.current
        try:
            values = await asyncio.to_thread(model.values, body, request.headers.get("content-type", ""))
        except scoring_protocol.UnknownType as error:
            raise Refused(415, str(error)) from None
        except InputError as error:
            raise Refused(400, str(error)) from None
        if len(values) > limits.rows:
            raise Refused(413, f"found {len(values):,} rows; expected at most {limits.rows:,} in a request")
        frame = await asyncio.wrap_future(batches.submit(model.predict, values))
        answer = await asyncio.to_thread(scoring_protocol.answer, frame)
        metrics.rows.inc(len(frame))
        metrics.bad_rows.inc(int(frame["error"].notna().sum()))
        if samples:
            samples.offer(model, values, frame)
        return Response(answer, media_type="application/json", headers={"X-Model-Version": str(model.version.version)})

    @app.get("/ping")
    async def ping() -> Response:
        """200 once a model is loaded; nothing more is told."""
        return Response("\n", media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 once a model is loaded; `problem` says why it is not the one that the alias names, where that is so."""
        return JSONResponse({"status": "ok", "model": live.uri, "version": str(live.current.version.version), "problem": live.problem or None})

    @app.get("/version")
    async def version() -> Response:
        """MLflow's version, as its own server tells it."""
        return Response(scoring_protocol.version(), media_type="application/json")

    @app.get("/model")
    async def model() -> JSONResponse:
        """What the present version takes and gives."""
        return JSONResponse({"model": live.uri, **await asyncio.to_thread(live.current.described)})

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    content = PAGE.read_text(encoding="utf-8")
    policy = content_security_policy(content)

    @app.get("/")
    async def page() -> Response:
        """The page, which holds no word of a model: its script asks /model."""
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": policy, "X-Frame-Options": "DENY"})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return problem(500, "this request cannot be answered; the server's log says why")  # where uvicorn writes it

    paths = frozenset(route.path for route in app.routes)
    app.add_middleware(Guard, access=access)
    app.add_middleware(Counted, metrics=metrics, paths=paths)  # the outermost: what is refused counts too
    return app


def content_security_policy(page: str) -> str:
    """The page's own style and script, known by their sums, and requests to this server; nothing else."""
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1] for tag in ("style", "script"))
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{sums[0]}'; script-src 'sha256-{sums[1]}'; connect-src 'self'; img-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _body(request: Request, most: int) -> bytes:
    """The request's body; of one that is too long as much again is read and thrown away, as a sender that cannot send reads no answer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > 2 * most:
            break
    if size > most:
        raise Refused(413, f"the request is longer than {most:,} bytes")
    return b"".join(parts)
