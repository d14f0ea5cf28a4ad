"""Connections that cost no more than they should: how long a client may keep the service waiting, and how many there are.

uvicorn limits how long an idle connection is kept, and how many there may be. It does not limit how long the headers of a
request may take, nor how long an answer may lie there untaken, and where there are too many connections it refuses the
newest, which may be the only one that has something to ask. Here it is the one that has kept the service waiting longest
that goes.
"""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

from a3jax.errors import UserError

PART = 2**13
"""Bytes that are looked at at once, so that a request with too many headers is refused before all of them are read."""
OTHER_FILES = 32
"""What the process has open beside its connections."""


class Connection(H11Protocol):
    """One client's connection.

    The client has `timeout_keep_alive` seconds for the headers of its next request, from the last answer on, and as many to
    take some more of an answer. It is the application that looks after the time of a request's body, since it can say so.
    """

    since = 0.0
    """When it began to be the client's turn, in the event loop's time."""
    _clock: asyncio.TimerHandle | None = None
    _untaken = 0

    @property
    def between_requests(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: a request is not there as a whole, or an answer is not taken."""
        return self.between_requests or self.cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, if there are too many."""
        super().connection_made(transport)
        waiting = [other for other in self.connections if isinstance(other, Connection) and other.waits and other is not self]
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency and waiting:
            longest = min(waiting, key=lambda other: other.since)
            self.connections.discard(longest)
            longest.transport.abort()
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._end()

    def data_received(self, data: bytes) -> None:
        """Read in parts; what comes after a request that is refused is not read."""
        for start in range(0, len(data), PART):
            if not self.transport.is_closing():
                super().data_received(data[start : start + PART])
        self._go_on()

    def on_response_complete(self) -> None:
        """The time of the next request begins, unless it is there already."""
        super().on_response_complete()
        self._begin()
        self._go_on()

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        super().pause_writing()
        self._begin()

    def resume_writing(self) -> None:
        """The client has taken the most part of it."""
        super().resume_writing()
        self._go_on()

    def _begin(self) -> None:
        self._end()
        self.since, self._untaken = self.loop.time(), self.transport.get_write_buffer_size()
        self._clock = self.loop.call_later(self.timeout_keep_alive, self._late)

    def _go_on(self) -> None:
        """Stop the clock where it is not the client's turn any more."""
        if not self.between_requests and not self.flow.write_paused:
            self._end()

    def _end(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    def _late(self) -> None:
        untaken = self.transport.get_write_buffer_size()
        if 0 < untaken < self._untaken:  # slow, but it moves
            self._untaken = untaken
            self._clock = self.loop.call_later(self.timeout_keep_alive, self._late)
        else:
            self.transport.abort()


def room(most: int) -> int:
    """How many connections there can be, at most `most`: as many may be open, and again as many on their way.

    The process takes leave to open as many files, as far as it may. Raises `UserError` where there is no room for any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OTHER_FILES + 2 * most
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files < OTHER_FILES + 2:
        raise UserError(f"a process may open {files} files here, and the service needs {OTHER_FILES + 2}; raise ulimit -n")
    return (files - OTHER_FILES) // 2
