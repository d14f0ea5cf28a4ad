"""The service as an ASGI application: its routes, and what goes around them."""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a3jax.errors import first_line
from a3jax.generate.filling import Tokens
from a3jax.generate.infill import Infilled
from a3jax.serve import answers
from a3jax.serve.batching import Batcher
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Completion, Infill, Refused, Request, Text, check, read_request
from a3jax.weights.loading import Model

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Request)


class Service:
    """The routes of one model."""

    def __init__(self, model: Model, name: str, batcher: Batcher) -> None:
        self.model = model
        self.name = name
        self.batcher = batcher
        self.created = int(time.time())
        self.fillable_V = np.asarray(model.fillable)
        self.reader = ThreadPoolExecutor(1, "reader")

    def app(self) -> Starlette:
        """The service as an ASGI application, which fills batches as long as it is up."""

        @contextlib.asynccontextmanager
        async def filling(_: Starlette) -> AsyncIterator[None]:
            worker = asyncio.create_task(self.batcher.run())
            yield
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            self.reader.shutdown(wait=False, cancel_futures=True)

        app = Starlette(
            routes=[
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/infill", self.infill, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
            ],
            exception_handlers={Refused: _failed, HTTPException: _not_found, ClientDisconnect: _gone, Exception: _failed},
            lifespan=filling,
        )
        app.router.redirect_slashes = False
        return app

    async def complete(self, http: Http) -> Response:
        """POST /v1/completions."""
        request, texts = await self._read(http, Completion)
        head = self._head("cmpl", "text_completion")
        if request.stream:
            updates = Updates()
            results = self.batcher.submit(texts, updates.put)
            echoed = [text.template.pieces[0] if request.echo else "" for text in texts]
            return StreamingResponse(self._events(request, results, updates, head, echoed), media_type="text/event-stream")
        filled = await _unless_gone(http, self.batcher.submit(texts))
        choices = [
            await asyncio.to_thread(answers.completion_choice, self.model.codec, one, request, i)
            for i, one in enumerate(filled)
        ]
        return JSONResponse({**head, "choices": choices, "usage": answers.usage(filled, request.n)})

    async def infill(self, http: Http) -> Response:
        """POST /v1/infill."""
        request, texts = await self._read(http, Infill)
        filled = await _unless_gone(http, self.batcher.submit(texts))
        choices = [answers.infill_choice(one, i, request.logprobs is not None) for i, one in enumerate(filled)]
        head = self._head("fill", "infill")
        return JSONResponse({**head, "choices": choices, "usage": answers.usage(filled, request.n)})

    async def models(self, _: Http) -> Response:
        """GET /v1/models."""
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "a3jax"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Http) -> Response:
        """GET /health: 200 once the model has filled something."""
        return JSONResponse({"status": "ok" if self.batcher.warm else "warming"}, 200 if self.batcher.warm else 503)

    async def _read(self, http: Http, kind: type[R]) -> tuple[R, list[Text]]:
        """A request and its texts, found to be fit for a batch. Long ones take seconds, one after the other in a thread."""
        body = await _body(http, self.batcher.limits)
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._understood, kind, body)

    def _understood(self, kind: type[R], body: bytes) -> tuple[R, list[Text]]:
        blanks_end = self.model.record.blanks_end
        request = read_request(kind, body, blanks_end)
        if request.model not in (None, self.name):
            raise Refused(f"model '{request.model}' is not served here; '{self.name}' is", "model", 404, "model_not_found")
        texts = request.texts(self.batcher.limits, blanks_end)
        for text in texts[:: request.n]:
            check(self.model, text.template, request.given, text.decoding)
        return request, texts

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.name}

    async def _events(
        self,
        request: Completion,
        results: Sequence[asyncio.Future[Infilled]],
        updates: "Updates",
        head: dict[str, Any],
        echoed: Sequence[str],
    ) -> AsyncIterator[str]:
        """Server-sent events: each text grows by what is certain of it after every pass."""
        for i, result in enumerate(results):
            result.add_done_callback(lambda _, i=i: updates.put(i, None))  # type: ignore[misc]
        sent, left = [0] * len(results), len(results)
        stops = (request.stop,) if isinstance(request.stop, str) else request.stop
        try:
            while left:
                i, tokens = await updates.get()
                if tokens is None:
                    filled, left = results[i].result(), left - 1
                    text, finished = answers.completed(filled, request.echo), filled.finished
                else:
                    text = answers.begun(self.model.codec, self.fillable_V, tokens, stops, echoed[i])
                    finished = None
                if finished or len(text) > sent[i]:
                    yield _event({**head, "choices": [answers.choice(text[sent[i] :], i, finished)]})
                    sent[i] = max(sent[i], len(text))
            yield "data: [DONE]\n\n"
        except Exception as error:
            logger.error("%s", first_line(error))
            yield _event(answers.failure(error)[1])
        finally:
            for result in results:
                result.cancel()


class Updates:
    """How each text of a stream stands, the newest only, however slowly the client takes it."""

    def __init__(self) -> None:
        self._newest: dict[int, Tokens | None] = {}
        self._some = asyncio.Event()

    def put(self, number: int, tokens: Tokens | None) -> None:
        """A text has grown, or is filled where `tokens` is None."""
        self._newest[number] = tokens
        self._some.set()

    async def get(self) -> tuple[int, Tokens | None]:
        """A text that has grown since it was last asked for."""
        await self._some.wait()
        number, tokens = self._newest.popitem()
        if not self._newest:
            self._some.clear()
        return number, tokens


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _body(http: Http, limits: Limits) -> bytes:
    """The body of a request; a large one is not kept, but read up to a point, so that the client sees why."""
    most, seconds = limits.max_body_bytes, limits.max_client_seconds
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # with which no web page sends anything elsewhere unasked
        raise Refused("send the header Content-Type: application/json", http=415)
    declared = http.headers.get("content-length", "")
    too_large = Refused(f"the body has more than {most} bytes", http=413)
    if declared.isdecimal() and int(declared[:18]) > 16 * most:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in http.stream():
                size += len(chunk)
                if size <= most:
                    body += chunk
                elif size > 16 * most:
                    break
    except TimeoutError:
        raise Refused(f"the body was not there after {seconds:g} s", http=408) from None
    if size > most:
        raise too_large
    return bytes(body)


async def _unless_gone(http: Http, results: Sequence[asyncio.Future[Infilled]]) -> list[Infilled]:
    """All results; they are cancelled where the client goes away, or where one of them fails."""
    everything = asyncio.gather(*results)
    gone = asyncio.ensure_future(http.receive())
    gone.add_done_callback(lambda _: everything.cancel())
    try:
        return await everything
    except asyncio.CancelledError:
        if not gone.done():
            raise
        raise ClientDisconnect from None
    finally:
        gone.cancel()
        for result in results:
            result.cancel()


async def _failed(_: Http, error: Exception) -> Response:
    if not isinstance(error, Refused):
        logger.error("%s", first_line(error))
    status, body, headers = answers.failure(error)
    return JSONResponse(body, status, {**headers, "Connection": "close"} if status in (408, 413) else headers)


async def _not_found(http: Http, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    return JSONResponse(answers.error_body(message, "invalid_request_error"), error.status_code, error.headers)


async def _gone(_: Http, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx logs it so


class Guard:
    """Around the application: one line in the log for every request, and only hosts that are meant.

    A web page may have its own name point to this machine (DNS rebinding); the browser then sends that name along.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application like the one inside."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if self.hosts is not None and _hostname(host) not in self.hosts:
                refused = Refused(f"host '{host}' is not served; use {self.hosts[0]}", http=403)
                await (await _failed(Http(scope), refused))(scope, receive, noting)
            else:
                await self.app(scope, receive, noting)
        except Exception:  # it is answered and logged already
            status = status or 500
        except asyncio.CancelledError:  # the service has no more time
            if status == 0:
                await (await _failed(Http(scope), Refused("the service is stopping", http=503)))(scope, receive, noting)
        finally:
            client, path = (scope.get("client") or ["-"])[0], scope["raw_path"].decode("latin-1")[:200]
            logger.info("%s %s %s %d %.2f s", client, scope["method"], path, status, time.perf_counter() - begin)


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
