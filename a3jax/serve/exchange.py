"""What every route needs of HTTP: bodies that are read up to a limit, clients that go away, and errors as answers."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response

from a3jax.errors import first_line
from a3jax.generate.infill import Infilled
from a3jax.serve import answers
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def body_of(http: Http, limits: Limits) -> bytes:
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


async def all_of(results: Sequence[asyncio.Future[Infilled]]) -> list[Infilled]:
    """All results; they are cancelled where one of them fails, or nobody waits any more."""
    try:
        return await asyncio.gather(*results)
    finally:
        for result in results:
            result.cancel()


async def unless_gone(http: Http, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled where the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(http.receive())
    gone.add_done_callback(lambda _: task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if not gone.done():
            raise
        raise ClientDisconnect from None
    finally:
        gone.cancel()
        task.cancel()


async def failed(_: Http, error: Exception) -> Response:
    """The answer to a request that failed."""
    if not isinstance(error, Refused):
        logger.error("%s", first_line(error))
    status, body, headers = answers.failure(error)
    return JSONResponse(body, status, {**headers, "Connection": "close"} if status in (401, 408, 413) else headers)


async def not_found(http: Http, error: Exception) -> Response:
    """The answer where no route, or none of this method, is."""
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    return JSONResponse(answers.error_body(message, "invalid_request_error"), error.status_code, error.headers)


async def gone(_: Http, __: Exception) -> Response:
    """The answer to a client that went away."""
    return Response(status_code=499)  # nobody reads it; nginx logs it so
