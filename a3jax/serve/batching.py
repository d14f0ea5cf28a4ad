"""Texts of many requests, filled together, each from when it joins.

Everything but the filling happens in one event loop, so that nothing needs a lock. One thread owns the model, and makes a
pass at a time. Between two passes those leave that nobody waits for any more, and the one that has waited longest joins, if
there is room.
"""

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.devices.processes import is_alone
from a3jax.errors import first_line
from a3jax.generate.filling import Tokens
from a3jax.generate.infill import Infilled
from a3jax.generate.together import News
from a3jax.likelihood.alternatives import Alternatives, alternatives
from a3jax.likelihood.restriction import Allowed
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, Text
from a3jax.serve.told import Told
from a3jax.weights.loading import Model

logger = logging.getLogger(__name__)

Watch = Callable[[int, Tokens], None]
"""Called in the event loop after every pass, with the number of a text and how it stands."""


@dataclass(frozen=True, eq=False)
class Job:
    """One text that waits, or is being filled. Cancelling its result takes it out of the queue."""

    text: Text
    result: asyncio.Future[Infilled]
    watch: Callable[[Tokens], None] | None


class _Asked(NamedTuple):
    """What stands in a text, and what might, for somebody who waits."""

    result: asyncio.Future[Alternatives]
    tokens: tuple[int, ...]
    likeliest: int
    allowed: Allowed


class Batcher:
    """A queue and the worker that empties it. All methods are called in the event loop that runs `run`."""

    def __init__(self, model: Model, limits: Limits, mesh: Mesh | None = None) -> None:
        """`mesh` is that of the model, if it has one."""
        self.model, self.mesh = model, mesh
        self.limits = limits
        self.warm = False
        self.texts = 0
        self._closed = False
        self._seconds = 1.0
        self._together = Told(model, limits.max_batch)
        self._numbers = itertools.count()
        self._waiting: list[Job] = []
        self._running: dict[int, Job] = {}
        self._asked: list[_Asked] = []
        self._arrived = asyncio.Event()

    def submit(self, texts: Sequence[Text], watch: Watch | None = None) -> list[asyncio.Future[Infilled]]:
        """Queue texts, all or none. Raises `Refused` with 429 where the queue is full, and with 503 once it is closed.

        A result may be any exception that filling its text raised, or `Refused` where it was not begun.
        """
        if self._closed:
            raise Refused("the service is stopping", http=503)
        self._waiting = [job for job in self._waiting if not job.result.done()]
        if len(self._waiting) + len(texts) > self.limits.max_queue:
            rounds = -(-len(self._waiting) // self.limits.max_batch)
            wait = max(1, round(rounds * self._seconds))
            raise Refused(f"{len(self._waiting)} texts are waiting; try again later", http=429, retry_after=wait)
        loop = asyncio.get_running_loop()
        jobs = [Job(text, loop.create_future(), _numbered(watch, i)) for i, text in enumerate(texts)]
        self._waiting += jobs
        self._arrived.set()
        return [job.result for job in jobs]

    @property
    def can_score(self) -> bool:
        """Whether texts can be scored: what one process of several is not told, it does not compute."""
        return is_alone()

    async def score(self, tokens: Sequence[int], count: int, allowed: Allowed) -> Alternatives:
        """What stands in a text and what might, between two passes; its arguments are those of `alternatives`.

        Raises `Refused` as `submit` does.
        """
        if self._closed or not self.can_score:
            raise Refused("the service is stopping" if self._closed else "several processes score no texts", http=503)
        if len(self._asked) >= self.limits.max_queue:
            raise Refused(f"{len(self._asked)} texts wait to be scored; try again later", http=429, retry_after=1)
        result: asyncio.Future[Alternatives] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(result, tuple(tokens), count, allowed))
        self._arrived.set()
        return await result

    async def _answer_asked(self, loop: asyncio.AbstractEventLoop, worker: ThreadPoolExecutor) -> None:
        while self._asked:
            asked = self._asked.pop(0)
            if asked.result.done():
                continue
            try:
                score = functools.partial(alternatives, self.model, asked.tokens, asked.likeliest, asked.allowed)
                found = await loop.run_in_executor(worker, score)
                if not asked.result.done():
                    asked.result.set_result(found)
            except Exception as error:
                if not asked.result.done():
                    asked.result.set_exception(error)

    def close(self) -> None:
        """Refuse whatever waits or comes later; texts on their way go on."""
        self._closed = True
        _refuse([job.result for job in self._waiting] + [asked.result for asked in self._asked])

    def give_up(self) -> None:
        """Refuse texts on their way too. The pass that runs is the last; compiling ends when it ends."""
        _refuse([job.result for job in self._running.values()])

    async def run(self) -> None:
        """Fill texts until cancelled. A pass that is being made then is left to its thread, named "model"."""
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(1, "model", self._use_mesh)
        try:
            await loop.run_in_executor(worker, self._warm_up)
            while True:
                await self._arrived.wait()
                await self._answer_asked(loop, worker)
                leaving, first = self._leaving(), self._first()
                if leaving or self._running:
                    self._deliver(await loop.run_in_executor(worker, self._turn, leaving, first), first)
                elif not (self._waiting or self._asked):
                    self._arrived.clear()
        finally:
            worker.shutdown(wait=False, cancel_futures=True)

    @property
    def passes(self) -> int:
        """How many passes were made of texts together, the first of each not counted, which it makes alone."""
        return self._together.passes

    def _leaving(self) -> list[int]:
        """The texts on their way that nobody waits for any more."""
        leaving = [number for number, job in self._running.items() if job.result.done()]
        for number in leaving:
            del self._running[number]
        return leaving

    def _first(self) -> int | None:
        """The text that has waited longest, on its way from now on; it may find no room."""
        self._waiting = [job for job in self._waiting if not job.result.done()]
        if not self._waiting:
            return None
        number = next(self._numbers)
        self._running[number] = self._waiting.pop(0)
        return number

    def _deliver(self, news: News, first: int | None) -> None:
        """Tell of each text how it stands, or what it became. The first has found no room where there is no news of it."""
        if first is not None and first not in news:
            job = self._running.pop(first)
            self._waiting.insert(0, job)
            if self._closed:
                _refuse([job.result])
        for number, new in news.items():
            job = self._running.get(number)
            if isinstance(new, Tokens):
                if job is not None and job.watch is not None:
                    job.watch(new)
                continue
            self.texts += 1
            if job is None or self._running.pop(number).result.done():
                continue
            if isinstance(new, Exception):
                job.result.set_exception(new)
            else:
                self._seconds = new.seconds
                job.result.set_result(new)

    def _use_mesh(self) -> None:
        """In the thread that owns the model, for as long as it lives: a mesh is in use in one thread only."""
        if self.mesh is not None:
            jax.set_mesh(self.mesh).__enter__()

    def _warm_up(self) -> None:
        number = next(self._numbers)
        self._together.join(number, Template((".", ""), (1,)), Decoding(ends=True, heal=False))  # done in its first pass
        found = self._together.news()[number]
        if isinstance(found, Exception):
            logger.error("the model does not work: %s", first_line(found))
        self.warm = not isinstance(found, Exception)

    def _turn(self, leaving: Sequence[int], first: int | None) -> News:
        """In the thread that owns the model: a pass of all texts on their way, and that of another by itself, if it has room.

        One joins at a time, for it is read while all others wait.
        """
        for number in leaving:
            self._together.leave(number)
        self._together.advance()
        if first is not None and self._together.has_room(self._running[first].text.decoding):
            self._together.join(first, *self._running[first].text)
        return self._together.news()


def _refuse(results: Sequence[asyncio.Future[Any]]) -> None:
    for result in results:
        if not result.done():
            result.set_exception(Refused("the service is stopping", http=503))


def _numbered(watch: Watch | None, number: int) -> Callable[[Tokens], None] | None:
    return None if watch is None else lambda tokens: watch(number, tokens)
