"""What stands before the routes: the log, the hosts that are meant, and keys."""

import asyncio
import logging
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request as Http
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a3jax.serve.access import Access
from a3jax.serve.exchange import failed
from a3jax.serve.requests import Refused

logger = logging.getLogger(__name__)


class Guard:
    """Around the application: one line in the log for every request, only hosts that are meant, and only those with a key.

    A web page may have its own name point to this machine (DNS rebinding); the browser then sends that name along.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, access: Access) -> None:
        self.app = app
        self.hosts = hosts
        self.access = access

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
            refused = None
            if self.hosts is not None and _hostname(host) not in self.hosts:
                refused = Refused(f"host '{host}' is not served; use {self.hosts[0]}", http=403)
            elif scope["path"] != "/health" and not self.access.admits(scope["headers"]):
                refused = Refused("send a key of this service: Authorization: Bearer KEY", http=401, code="invalid_api_key")
            app = self.app if refused is None else await failed(Http(scope), refused)
            await app(scope, receive, noting)
        except Exception:  # it is answered and logged already
            status = status or 500
        except asyncio.CancelledError:  # the service has no more time
            if status == 0:
                await (await failed(Http(scope), Refused("the service is stopping", http=503)))(scope, receive, noting)
        finally:
            client, path = (scope.get("client") or ["-"])[0], scope["raw_path"].decode("latin-1")[:200]
            logger.info("%s %s %s %d %.2f s", client, scope["method"], path, status, time.perf_counter() - begin)


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
