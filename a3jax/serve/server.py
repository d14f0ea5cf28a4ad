"""The process that serves: it listens, logs, and stops when it is told to."""

import ipaddress
import logging
import signal
import socket
from pathlib import Path
from types import FrameType

from a3jax.errors import UserError, first_line
from a3jax.serve.batching import Batcher
from a3jax.serve.limits import Limits
from a3jax.weights.loading import load

try:
    import uvicorn

    from a3jax.serve.app import Guard, Service
except ModuleNotFoundError as error:
    raise UserError(f"the service needs the package {error.name}; pip install 'a3jax[serve]'") from None

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Names by which clients on this machine speak of it."""


class Server(uvicorn.Server):
    """A server that finishes what runs when it is told to stop, and stops at once when it is told again."""

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
        """Refuse what waits, then close every connection as soon as it is answered."""
        logger.info("stopping: what runs is finished; a second signal ends it at once")
        self.batcher.close()
        await super().shutdown(sockets)


def serve(checkpoint: Path, host: str, port: int, dtype: str, step: int | None, limits: Limits) -> dict[str, int]:
    """Load a model and serve it until a signal comes; texts and batches filled.

    Raises `UserError` where the address cannot be used, and for what `a3jax.load` does not take.
    """
    _log_to_stderr()
    with _listen(host, port) as listening:  # before the model is loaded, which may take long
        model, name = load(checkpoint, dtype, step), checkpoint.resolve().name
        batcher = Batcher(model, limits)
        app = Guard(Service(model, name, batcher).app(), _hosts(name, listening))
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False, server_header=False
        )
        Server(config, batcher).run(sockets=[listening])
    return {"texts": batcher.texts, "batches": batcher.batches}


def _hosts(name: str, listening: socket.socket) -> tuple[str, ...] | None:
    """Say where `name` is served; the hosts that requests may name, None for any."""
    address, port = listening.getsockname()[:2]
    logger.info("serving %s at http://%s:%d", name, f"[{address}]" if ":" in address else address, port)
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return (address, *LOOPBACK)
    logger.warning("everyone who reaches %s can use this service; it has no passwords", address)
    return None


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}; it must be from 0 (any that is free) to {2**16 - 1}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot listen at {host} port {port}: {first_line(error)}; choose another --host or --port"
        ) from None


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger("a3jax.serve")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
