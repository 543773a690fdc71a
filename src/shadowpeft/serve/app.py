"""The HTTP side: routes, and one request from its body to the last byte of its answer."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shadowpeft.serve import answers, limits, openapi, protocol
from shadowpeft.serve.backend import Backend, Piece, Usage
from shadowpeft.serve.errors import RequestError, internal, where_of
from shadowpeft.serve.metrics import Metrics
from shadowpeft.serve.pumps import Pumps

log = logging.getLogger(__name__)
# Seconds of silence in a stream after which a comment says that the server is there, and seconds that the
# headers of a stream wait for the first piece, which may say what they should tell.
PING, HEADERS = 5.0, 1.0
_EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
_ROUTE = "x-shadow-route"


@dataclass(frozen=True)
class Served:
    """A model as callers name it.

    Attributes:
        backend: who answers.
        name: what the backend calls it.
        leaves: the request is sent to a server elsewhere.
        has_roles: edge and cloud stand behind it.
    """

    backend: Backend
    name: str
    leaves: bool = False
    has_roles: bool = False


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        concurrency: requests that are worked on at once.
        queue: requests that may wait beside them.
        body_bytes: the largest body.
        seconds: how long a request may take, with its wait.
    """

    concurrency: int = 64
    queue: int = 256
    body_bytes: int = 1_000_000
    seconds: float = 300.0


@dataclass
class Gateway:
    """What a server is made of.

    Attributes:
        served: the models by the names that callers give, the default first.
        limits: what it takes on.
        keys: what callers must show one of; none for a server that asks nobody.
        metrics: its counts.
        about: what `/v1/shadow` tells: roles and policy.
        routes: more routes, such as those of the page.
        is_well: asked by `/health`.
    """

    served: dict[str, Served]
    limits: Limits = field(default_factory=Limits)
    keys: Sequence[str] = ()
    metrics: Metrics = field(default_factory=Metrics)
    about: Callable[[], dict[str, Any]] = dict
    routes: Sequence[Route] = ()
    is_well: Callable[[], bool] = lambda: True

    def __post_init__(self) -> None:
        self.gate = limits.Gate(self.limits.concurrency, self.limits.queue)
        self.metrics.watch("requests_inside", "Requests that are being answered.", lambda: self.gate.inside)
        self.metrics.watch("requests_waiting", "Requests that wait.", lambda: self.gate.waiting)
        self._started = int(time.time())

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", Asked(self, protocol.read_chat), methods=["POST"]),
                Route("/v1/completions", Asked(self, protocol.read_completion), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/shadow", self._about),
                Route("/health", self._health),
                Route("/openapi.json", self._openapi),
                Route("/metrics", self._metrics),
                *self.routes,
            ],
            exception_handlers={HTTPException: _http_error, RequestError: _refusal},
        )

    def find(self, name: str | None) -> tuple[str, Served]:
        """Return the model that a caller names, or the default.

        Raises:
            RequestError: there is none of that name.
        """
        name = name or next(iter(self.served))
        if name not in self.served:
            raise RequestError(
                f"there is no model {name[:64]!r} here; there are: {', '.join(self.served)}",
                404,
                param="model",
                code="model_not_found",
            )
        return name, self.served[name]

    async def _models(self, request: Request) -> Response:
        limits.require_key(request, self.keys)
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self.served]})

    async def _model(self, request: Request) -> Response:
        limits.require_key(request, self.keys)
        return JSONResponse(self._described(self.find(request.path_params["name"])[0]))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "shadowpeft"}

    async def _about(self, request: Request) -> Response:
        limits.require_key(request, self.keys)
        return JSONResponse({"models": list(self.served), **self.about()})

    async def _health(self, request: Request) -> Response:
        if self.gate.closing:
            return JSONResponse({"status": "shutting down"}, 503)
        return JSONResponse({"status": "ok" if self.is_well() else "degraded"})

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.description())

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Asked:
    """An endpoint that answers, as an ASGI application.

    Args:
        gateway: what it belongs to.
        read: reads its bodies.
    """

    def __init__(self, gateway: Gateway, read: Callable[[bytes], protocol.Request]) -> None:
        self._gateway, self._read = gateway, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; stop the work if the caller leaves or the time is over."""
        call = _Call(self._gateway, self._read, scope, send)
        try:
            body = await asyncio.wait_for(call.body(receive), self._gateway.limits.seconds)
        except RequestError as error:
            await call.refuse(error)
            call.end()
            return
        except (ClientDisconnect, asyncio.TimeoutError):
            self._gateway.metrics.left.inc()
            return
        work = asyncio.create_task(call.answer(body))
        left = asyncio.create_task(_until_left(receive))
        try:
            await asyncio.wait(
                {work, left}, timeout=self._gateway.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            left.cancel()
            is_late = not work.done() and not left.done()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        if left.done() and not left.cancelled() and work.cancelled():
            self._gateway.metrics.left.inc()
        elif is_late:
            seconds = f"{self._gateway.limits.seconds:g}"
            await call.refuse(RequestError(f"the answer took longer than {seconds} s", 504, code="timeout"))
        call.end()


class _Call:
    """One request and its reply."""

    def __init__(
        self, gateway: Gateway, read: Callable[[bytes], protocol.Request], scope: Scope, send: Send
    ) -> None:
        self._gateway, self._read, self._scope, self._send = gateway, read, scope, send
        self._began = time.perf_counter()
        self._path: str = scope["path"]
        self._model, self._status, self._is_stream = "", 0, False
        self._has_piece = False

    async def body(self, receive: Receive) -> bytes:
        """Return the body, once the caller has shown a key."""
        request = Request(self._scope, receive)
        limits.require_key(request, self._gateway.keys)
        return await limits.body_of(request, self._gateway.limits.body_bytes)

    async def answer(self, body: bytes) -> None:
        """Answer, or say why not."""
        try:
            asked, served = self._asked(body)
            async with self._gateway.gate.enter():
                runs = [served.backend.answer(ask) for ask in asked.asks]
                reply = answers.Reply(
                    asked.first.is_chat,
                    self._model,
                    tells_tokens=asked.first.top is not None,
                    n=asked.n,
                    include_usage=asked.include_usage,
                )
                async with Pumps(runs) as pumps:
                    if asked.first.stream:
                        await self._stream(pumps, reply, len(runs))
                    else:
                        await self._whole(pumps, reply, len(runs))
        except RequestError as error:
            await self.refuse(error)
        except Exception as error:
            log.error("a request failed: %s", where_of(error))
            await self.refuse(internal())

    async def refuse(self, error: RequestError) -> None:
        """Say why there is no answer, or no more of it."""
        if self._is_stream:
            await self._part(answers.event(error.body()) + answers.DONE, more=False)
            self._status = error.status
        elif not self._status:
            response = JSONResponse(error.body(), error.status, {**self._times(), **error.headers()})
            self._status = error.status
            await response(self._scope, _nothing, self._send)

    def end(self) -> None:
        """Count the request, and tell the log; of its text it gets nothing."""
        seconds, metrics = time.perf_counter() - self._began, self._gateway.metrics
        metrics.requests.labels(self._path, self._model, str(self._status or "left")).inc()
        metrics.seconds.labels(self._path).observe(seconds)
        log.info("%s %s %s %.0f ms", self._path, self._model or "-", self._status or "left", 1000 * seconds)

    def _asked(self, body: bytes) -> tuple[protocol.Request, Served]:
        asked = self._read(body)
        self._model, served = self._gateway.find(asked.first.model)
        route = _route_of(self._scope, served)
        asks = tuple(replace(ask, model=served.name, route=route) for ask in asked.asks)
        return replace(asked, asks=asks), served

    async def _whole(self, pumps: Pumps, reply: answers.Reply, count: int) -> None:
        """Reply by one body."""
        pieces: dict[int, list[Piece]] = {index: [] for index in range(count)}
        left = count
        while left:
            for index, item in await pumps.events():
                if isinstance(item, RequestError):
                    raise item
                pieces[index].append(item)
                left -= item.finish is not None
                self._first()
        whole = [answers.joined(pieces[index]) for index in range(count)]
        for answer in whole:
            self._count(answer)
        notes = [answer.notes for answer in whole]
        response = JSONResponse(reply.body(whole), headers={**_told(notes), **self._times()})
        self._status = 200
        await response(self._scope, _nothing, self._send)

    async def _stream(self, pumps: Pumps, reply: answers.Reply, count: int) -> None:
        """Reply piece by piece."""
        usages: dict[int, Usage] = {}
        # The headers wait a little for what they are to tell, and never long: callers give up on silence.
        seconds = HEADERS
        while len(usages) < count:
            events = await pumps.events(seconds)
            if not self._is_stream:
                # An error that comes first is a status of its own.
                if events and isinstance(events[0][1], RequestError):
                    raise events[0][1]
                notes = [item.notes for _, item in events if isinstance(item, Piece)]
                await self._open({**_told(notes), **self._times()})
                seconds = PING
            data = b"" if events else b": ping\n\n"
            for index, item in events:
                if isinstance(item, RequestError):
                    if data:
                        await self._part(data)
                    raise item
                self._first()
                data += reply.chunk(index, item)
                if item.usage is not None:
                    usages[index] = item.usage
                    self._count(item)
            await self._part(data)
        end = b""
        if reply.include_usage:
            end = reply.usage_chunk([usages[index] for index in range(count)])
        await self._part(end + answers.DONE, more=False)

    async def _open(self, headers: dict[str, str]) -> None:
        self._status, self._is_stream = 200, True
        sent = [(name.encode(), value.encode()) for name, value in {**_EVENTS, **headers}.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": sent})

    async def _part(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _first(self) -> None:
        if not self._has_piece:
            self._has_piece = True
            self._gateway.metrics.first.labels(self._path).observe(time.perf_counter() - self._began)

    def _count(self, answer: Piece) -> None:
        if answer.usage is not None:
            self._gateway.metrics.tokens.labels("prompt").inc(answer.usage.prompt)
            self._gateway.metrics.tokens.labels("completion").inc(answer.usage.completion)

    def _times(self) -> dict[str, str]:
        return {"x-shadow-milliseconds": f"{1000 * (time.perf_counter() - self._began):.1f}"}


def _route_of(scope: Scope, served: Served) -> protocol.Route:
    """Return who may answer, as the caller's header says.

    Raises:
        RequestError: there is no such route, or not for this model.
    """
    given = next(
        (value.decode("latin-1") for name, value in scope["headers"] if name == _ROUTE.encode()), "auto"
    )
    route = next((each for each in protocol.ROUTES if each == given.strip().lower()), None)
    if route is None:
        raise RequestError(
            f"{_ROUTE} must be one of {', '.join(protocol.ROUTES)}, got {given[:32]!r}", param=_ROUTE
        )
    if route in ("edge", "cloud") and not served.has_roles:
        raise RequestError(
            f"{_ROUTE}: {route} needs a model with edge and cloud behind it, such as routed", param=_ROUTE
        )
    if route == "local-only" and served.leaves:
        raise RequestError(f"{_ROUTE}: local-only, and this model is answered elsewhere", param=_ROUTE)
    return route


def _told(notes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return what is told of the answers as headers; where they differ, `mixed`."""
    told: dict[str, str] = {}
    for name in sorted({name for each in notes for name in each}):
        values = {str(each[name]) for each in notes if name in each}
        value = values.pop() if len(values) == 1 else "mixed"
        told[f"x-shadow-{name.replace('_', '-')}"] = value.encode("ascii", "replace").decode()
    return told


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Any:
    await asyncio.Event().wait()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = RequestError(f"{request.method} {request.url.path[:128]}: {error.detail}", error.status_code)
    return JSONResponse(refusal.body(), error.status_code, headers=error.headers)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.status, headers=error.headers())
