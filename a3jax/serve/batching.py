"""Texts of many requests, filled a batch at a time.

Everything but the filling happens in one event loop, so that nothing needs a lock. One thread owns the model. Whatever
arrives while a batch is filled waits for the next one, so batches grow with the load by themselves.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.devices.processes import is_alone
from a3jax.errors import first_line
from a3jax.generate.filling import Tokens
from a3jax.generate.infill import Infilled, infill_batch
from a3jax.likelihood.alternatives import Alternatives, alternatives
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, Text
from a3jax.serve.together import tell_batch
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


class Abandoned(Exception):
    """Nobody waits for a batch any more."""


class Batcher:
    """A queue and the worker that empties it. All methods are called in the event loop that runs `run`."""

    def __init__(self, model: Model, limits: Limits, mesh: Mesh | None = None) -> None:
        """`mesh` is that of the model, if it has one."""
        self.model, self.mesh = model, mesh
        self.limits = limits
        self.warm = False
        self.batches = 0
        self.texts = 0
        self._closed = False
        self._seconds = 1.0
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._asked: list[tuple[asyncio.Future[Alternatives], tuple[int, ...], int]] = []
        self._arrived = asyncio.Event()

    def submit(self, texts: Sequence[Text], watch: Watch | None = None) -> list[asyncio.Future[Infilled]]:
        """Queue texts, all or none. Raises `Refused` with 429 where the queue is full, and with 503 once it is closed.

        A result may be any exception that filling its text raised, or `Refused` where it was not begun.
        """
        if self._closed:
            raise Refused("the service is stopping", http=503)
        self._waiting = [job for job in self._waiting if not job.result.done()]
        if len(self._waiting) + len(texts) > self.limits.max_queue:
            batches = -(-len(self._waiting) // self.limits.max_batch)
            wait = max(1, round(batches * self._seconds))
            raise Refused(f"{len(self._waiting)} texts are waiting; try again later", http=429, retry_after=wait)
        loop = asyncio.get_running_loop()
        jobs = [Job(text, loop.create_future(), _numbered(watch, i)) for i, text in enumerate(texts)]
        self._waiting += jobs
        self._arrived.set()
        return [job.result for job in jobs]

    @property
    def scores(self) -> bool:
        """Whether texts can be scored: what one process of several is not told, it does not compute."""
        return is_alone()

    async def score(self, tokens: Sequence[int], count: int) -> Alternatives:
        """What stands in a text and what might, once the batch that runs is filled. Raises `Refused` as `submit` does."""
        if self._closed or not self.scores:
            raise Refused("the service is stopping" if self._closed else "several processes score no texts", http=503)
        if len(self._asked) >= self.limits.max_queue:
            raise Refused(f"{len(self._asked)} texts wait to be scored; try again later", http=429, retry_after=1)
        result: asyncio.Future[Alternatives] = asyncio.get_running_loop().create_future()
        self._asked.append((result, tuple(tokens), count))
        self._arrived.set()
        return await result

    async def _answer_asked(self, loop: asyncio.AbstractEventLoop, worker: ThreadPoolExecutor) -> None:
        while self._asked:
            result, tokens, count = self._asked.pop(0)
            if result.done():
                continue
            try:
                found = await loop.run_in_executor(worker, alternatives, self.model, tokens, count)
                if not result.done():
                    result.set_result(found)
            except Exception as error:
                if not result.done():
                    result.set_exception(error)

    def close(self) -> None:
        """Refuse whatever waits or comes later; a batch that is being filled goes on."""
        self._closed = True
        _refuse([job.result for job in self._waiting] + [result for result, _, _ in self._asked])

    def give_up(self) -> None:
        """Refuse the batch that is being filled too. It ends with its next pass; compiling ends when it ends."""
        _refuse([job.result for job in self._running])

    async def run(self) -> None:
        """Fill batches until cancelled. A batch that is being filled then is left to its thread, named "model"."""
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(1, "model", self._use_mesh)
        try:
            await loop.run_in_executor(worker, self._warm_up)
            while True:
                await self._arrived.wait()
                await self._answer_asked(loop, worker)
                if len(self._waiting) < self.limits.max_batch:
                    await asyncio.sleep(self.limits.max_wait_ms / 1000)
                jobs = self._running = self._take()
                if not jobs:
                    continue
                begin = time.perf_counter()
                outcomes = await loop.run_in_executor(worker, self._fill, jobs, loop)
                self._seconds = time.perf_counter() - begin
                self.batches += 1
                self.texts += len(jobs)
                for job, outcome in zip(jobs, outcomes):
                    if job.result.done():
                        continue
                    if isinstance(outcome, Exception):
                        job.result.set_exception(outcome)
                    else:
                        job.result.set_result(outcome)
        finally:
            worker.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[Job]:
        """The next batch: the text that has waited longest, and those that can be filled with it."""
        waiting = [job for job in self._waiting if not job.result.done()]
        program = waiting[0].text.decoding.program if waiting else None
        jobs = [job for job in waiting if job.text.decoding.program == program][: self.limits.max_batch]
        self._waiting = [job for job in waiting if job not in jobs]
        if not (self._waiting or self._asked):
            self._arrived.clear()
        return jobs

    def _use_mesh(self) -> None:
        """In the thread that owns the model, for as long as it lives: a mesh is in use in one thread only."""
        if self.mesh is not None:
            jax.set_mesh(self.mesh).__enter__()

    def _warm_up(self) -> None:
        try:
            warm = [Template((".", ""), (1,))], [Decoding(ends=True)]
            tell_batch(*warm)
            infill_batch(self.model, *warm)
            self.warm = True
        except Exception as error:
            logger.error("the model does not work: %s", first_line(error))

    def _fill(self, jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> Sequence[Infilled | Exception]:
        """What became of each text. Where a batch fails, each is tried alone, so that one fails for itself only."""
        alone = is_alone()  # what several processes have begun, they end

        def observe(texts: list[Tokens]) -> None:
            if alone and all(job.result.done() for job in jobs):
                raise Abandoned
            for job, tokens in zip(jobs, texts):
                if job.watch is not None:
                    loop.call_soon_threadsafe(job.watch, tokens)

        try:
            templates, decodings = zip(*padded([job.text for job in jobs]))
            tell_batch(templates, decodings)
            return infill_batch(self.model, templates, decodings, observe)[: len(jobs)]
        except Exception as error:
            if len(jobs) == 1 or isinstance(error, Abandoned):
                return [error] * len(jobs)
            logger.warning("a batch of %d texts failed, each is tried alone: %s", len(jobs), first_line(error))
            return [outcome for job in jobs for outcome in self._fill([job], loop)]


def padded(texts: Sequence[Text]) -> list[Text]:
    """A power of two of texts, since each number of them is compiled. What is added has blanks of one token."""
    template, decoding = texts[0]
    least = Text(
        dataclasses.replace(template, sizes=(1,) * len(template.sizes)), dataclasses.replace(decoding, ends=False, stop=())
    )
    return [*texts, *[least] * ((1 << (len(texts) - 1).bit_length()) - len(texts))]


def _refuse(results: Sequence[asyncio.Future[Any]]) -> None:
    for result in results:
        if not result.done():
            result.set_exception(Refused("the service is stopping", http=503))


def _numbered(watch: Watch | None, number: int) -> Callable[[Tokens], None] | None:
    return None if watch is None else lambda tokens: watch(number, tokens)
