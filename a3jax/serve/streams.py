"""Texts that are streamed while they are filled: how each stands, and what is new of it."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

from a3jax.errors import first_line
from a3jax.generate.filling import Tokens
from a3jax.generate.infill import Infilled
from a3jax.serve import answers
from a3jax.serve.completions import Growing
from a3jax.serve.editors import LlamaInfill
from a3jax.weights.loading import Model

logger = logging.getLogger(__name__)


class Piece(NamedTuple):
    """What a text has more of than before."""

    number: int
    """Of the text."""
    text: str
    finished: str | None
    """Why it ends, where it does."""
    counts: tuple[int, int]
    """Tokens of the text that were given, and that are written by now."""


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


async def pieces(
    model: Model, request: Growing, results: Sequence[asyncio.Future[Infilled]], updates: Updates, echoed: Sequence[str]
) -> AsyncGenerator[Piece]:
    """What is certain of each text after every pass, and was not before."""
    for i, result in enumerate(results):
        result.add_done_callback(lambda _, i=i: updates.put(i, None))  # type: ignore[misc]
    sent, left = [0] * len(results), len(results)
    try:
        while left:
            i, tokens = await updates.get()
            if tokens is None:
                filled, left = answers.cut(results[i].result(), request.stops), left - 1
                text, finished = answers.completed(filled, bool(echoed[i])), filled.finished
                counts = answers.counts(filled)
            else:
                text = answers.begun(model.codec, model.fillable, tokens, request.stops, echoed[i])
                back = bool(tokens.lead)  # a token that was given back is given
                given, written = int((tokens.passes == 0).sum()), int((tokens.passes > 0).sum())
                counts, finished = (given + back, max(0, written - back)), None
            if finished or len(text) > sent[i]:
                yield Piece(i, text[sent[i] :], finished, counts)
                sent[i] = max(sent[i], len(text))
    finally:
        for result in results:
            result.cancel()


async def openai_events(
    model: Model,
    request: Growing,
    results: Sequence[asyncio.Future[Infilled]],
    updates: Updates,
    style: answers.Style,
    head: dict[str, Any],
    echoed: Sequence[str],
) -> AsyncIterator[dict[str, Any]]:
    """What a stream in OpenAI's shape consists of; all events begin with `head`."""
    usage = {"usage": None} if request.stream_options.include_usage else {}
    head = {**head, **usage}
    begun: set[int] = set()
    async for piece in pieces(model, request, results, updates, echoed):
        entry = style.delta(piece.text, piece.number, piece.finished)
        if style.opening and piece.number not in begun:
            entry["delta"] |= style.opening
        begun.add(piece.number)
        yield {**head, "choices": [entry]}
    if usage:
        filled = [result.result() for result in results]
        yield {**head, "choices": [], "usage": answers.usage(filled, request.n)}


async def llama_events(
    model: Model, request: LlamaInfill, results: Sequence[asyncio.Future[Infilled]], updates: Updates
) -> AsyncIterator[dict[str, Any]]:
    """What a stream of llama.cpp's consists of; the last piece tells of all. An answer may end before its text does."""
    text, sent, counts, begin, first = "", 0, (0, 0), time.perf_counter(), None
    cut = request.around(model).cut
    async with contextlib.aclosing(pieces(model, request, results, updates, [""])) as found:
        async for piece in found:
            now = time.perf_counter()
            first = now if first is None else first
            text, counts = text + piece.text, piece.counts
            kept, ended = request.certain(text)
            finished = "stop" if ended else piece.finished
            if 0 < request.t_max_predict_ms <= 1000 * (now - first) and "\n" in kept and not finished:
                kept, finished = kept[: kept.rindex("\n")], "length"
            fresh, sent = kept[sent:], max(sent, len(kept))
            if finished:
                yield answers.llama_answer(fresh, finished, counts, (first - begin, now - first), cut)
                return
            yield {"index": 0, "content": fresh, "stop": False}
    yield answers.llama_answer("", "length", counts, (0.0, 0.0), cut)  # nothing was to be written


async def server_sent(events: AsyncIterator[dict[str, Any]], end: str | None = None) -> AsyncIterator[str]:
    """Server-sent events; where something goes wrong, the last tells what."""
    try:
        async for event in events:
            yield f"data: {json.dumps(event)}\n\n"
        if end is not None:
            yield f"data: {end}\n\n"
    except Exception as error:
        logger.error("%s", first_line(error))
        yield f"data: {json.dumps(answers.failure(error)[1])}\n\n"
