"""The process that serves: it listens, logs, and stops when it is told to."""

import asyncio
import contextlib
import logging
import signal
import socket
from pathlib import Path
from types import FrameType

from jax.sharding import Mesh

from a3jax.devices.writing import by_first
from a3jax.errors import UserError, first_line
from a3jax.model.cache import bytes_of_slot
from a3jax.outside_text import printable
from a3jax.serve.access import Access, is_loopback
from a3jax.serve.batching import Batcher
from a3jax.serve.limits import Limits
from a3jax.serve.told import follow, tell_end
from a3jax.weights.loading import Model, load

try:
    import uvicorn

    from a3jax.serve.app import Service
    from a3jax.serve.connections import Connection, room
    from a3jax.serve.guard import Guard
except ModuleNotFoundError as error:
    raise UserError(f"the service needs the package {error.name}; pip install 'a3jax[serve]'") from None

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Names by which clients on this machine speak of it."""
READING_SECONDS = 2
"""What a request that is being read may take beyond the end, when the service stops."""


class Server(uvicorn.Server):
    """A server that finishes what is soon done when it is told to stop, and stops at once when it is told again."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher) -> None:
        super().__init__(config)
        self.batcher = batcher

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one does what it would do to any process."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, then close every connection as soon as it is answered, and before long in any case."""
        seconds = self.batcher.limits.max_stop_seconds
        logger.info("stopping: what runs has %g s to finish; a second signal ends it at once", seconds)
        self.batcher.close()
        asyncio.get_running_loop().call_later(seconds, self._give_up)
        await super().shutdown(sockets)

    def _give_up(self) -> None:
        self.batcher.give_up()
        for connection in self.server_state.connections:
            if isinstance(connection, Connection) and connection.waits:
                connection.transport.abort()


class Lines(logging.Formatter):
    """One line for each record, whatever a client has put into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: D102
        return printable(super().formatMessage(record)).replace("\n", "\u240a")


def serve(
    checkpoint: Path,
    host: str,
    port: int,
    dtype: str,
    step: int | None,
    limits: Limits,
    access: Access,
    mesh: Mesh | None = None,
) -> dict[str, int]:
    """Load a model and serve it until a signal comes; texts filled, and passes made. Of several processes the first listens.

    Where a pass is still being compiled then, the thread "model" is left behind at work. Raises `UserError` where the
    address cannot be used, or lets in more than `access` does, and for what `a3jax.load` does not take.
    """
    _log_to_stderr()
    connections = room(limits.max_connections)
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        # Before the model is loaded, which may take long.
        by_first(lambda: sockets.append(opened.enter_context(_listen(host, port, access))))
        model, name = load(checkpoint, dtype, step, mesh), checkpoint.resolve().name
        if not sockets:
            return {"passes": follow(model, limits.max_batch)}
        opened.callback(tell_end)
        batcher = Batcher(model, limits, mesh)
        app = Guard(Service(model, name, batcher).app(), _hosts(name, sockets[0], access), access)
        _say_memory(model, limits.max_batch)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=access.trusted_proxy is not None,
            forwarded_allow_ips=access.trusted_proxy,
            limit_concurrency=connections + 1,
            backlog=connections,
            timeout_keep_alive=limits.max_client_seconds,  # type: ignore[arg-type]  # whole seconds or not
            timeout_graceful_shutdown=limits.max_stop_seconds + READING_SECONDS,  # type: ignore[arg-type]
        )
        Server(config, batcher).run(sockets=sockets)
    return {"texts": batcher.texts, "passes": batcher.passes}


def _say_memory(model: Model, most: int) -> None:
    """What texts take, beside the weights."""
    slot = bytes_of_slot(model.config, model.compute.dtype)
    full = slot * most * model.config.context / 2**20
    message = "up to %d texts at once: keys and values take %.4g KiB a token, %.4g MiB where all fill the context of %d"
    logger.info(message, most, slot / 2**10, full, model.config.context)


def _hosts(name: str, listening: socket.socket, access: Access) -> tuple[str, ...] | None:
    """Say where `name` is served; the hosts that requests may name, None for any."""
    address, port = listening.getsockname()[:2]
    logger.info("serving %s at http://%s:%d", name, f"[{address}]" if ":" in address else address, port)
    if is_loopback(address):
        return (address, *LOOPBACK)
    who = "everyone who has a key and" if access.keys else "everyone who"
    logger.warning("%s reaches %s can use this service; nothing is encrypted", who, address)
    return None


def _listen(host: str, port: int, access: Access) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}; it must be from 0 (any that is free) to {2**16 - 1}")
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot listen at {host} port {port}: {first_line(error)}; choose another --host or --port"
        ) from None
    try:
        access.check_address(listening.getsockname()[0])
    except UserError:
        listening.close()
        raise
    return listening


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(asctime)s %(message)s"))
    for name, level in {"a3jax.serve": logging.INFO, "uvicorn": logging.WARNING}.items():
        package = logging.getLogger(name)
        package.addHandler(handler)
        package.setLevel(level)
        package.propagate = False
