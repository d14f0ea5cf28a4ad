"""The service as an ASGI application: its routes, and what goes around them."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from a3jax.decode.document import lay_out
from a3jax.generate.infill import Infilled
from a3jax.serve import answers
from a3jax.serve.batching import Batcher
from a3jax.serve.chats import ChatCompletion
from a3jax.serve.completions import Completion, Growing
from a3jax.serve.editors import FillInMiddle, LlamaInfill
from a3jax.serve.exchange import all_of, body_of, failed, gone, not_found, unless_gone
from a3jax.serve.requests import Infill, Refused, Request, Text, check, read_request
from a3jax.serve.streams import Updates, llama_events, openai_events, server_sent
from a3jax.weights.loading import Model

R = TypeVar("R", bound=Request)


class Service:
    """The routes of one model."""

    def __init__(self, model: Model, name: str, batcher: Batcher) -> None:
        self.model = model
        self.name = name
        self.batcher = batcher
        self.created = int(time.time())
        self.reader = ThreadPoolExecutor(1, "reader")

    def app(self) -> Starlette:
        """The service as an ASGI application, which fills texts as long as it is up."""

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
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/fim/completions", self.fill_in_middle, methods=["POST"]),
                Route("/v1/infill", self.infill, methods=["POST"]),
                Route("/infill", self.llama_infill, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model_named),
                Route("/health", self.health),
            ],
            exception_handlers={Refused: failed, HTTPException: not_found, ClientDisconnect: gone, Exception: failed},
            lifespan=filling,
        )
        app.router.redirect_slashes = False
        return app

    async def complete(self, http: Http) -> Response:
        """POST /v1/completions."""
        request, texts = await self._read(http, Completion)
        if request.only_echoes:
            return await self._scored(http, request)
        return await self._answer(http, request, texts, answers.TEXT, request.echo)

    async def chat(self, http: Http) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(http, *await self._read(http, ChatCompletion), answers.MESSAGE)

    async def fill_in_middle(self, http: Http) -> Response:
        """POST /v1/fim/completions."""
        return await self._answer(http, *await self._read(http, FillInMiddle), answers.MESSAGE)

    async def llama_infill(self, http: Http) -> Response:
        """POST /infill."""
        request, texts = await self._read(http, LlamaInfill)
        updates = Updates()
        events = llama_events(self.model, request, self.batcher.submit(texts, updates.put), updates)
        if request.stream:
            return StreamingResponse(server_sent(events), media_type="text/event-stream")

        async def joined() -> dict[str, Any]:
            pieces = [event async for event in events]
            return pieces[-1] | {"content": "".join(piece["content"] for piece in pieces)}

        return JSONResponse(answers.chosen(await unless_gone(http, joined()), request.response_fields))

    async def infill(self, http: Http) -> Response:
        """POST /v1/infill."""
        request, texts = await self._read(http, Infill)
        filled = await unless_gone(http, all_of(self.batcher.submit(texts)))
        choices = [answers.infill_choice(one, i, request.logprobs is not None) for i, one in enumerate(filled)]
        head = self._head("fill", "infill")
        return JSONResponse({**head, "choices": choices, "usage": answers.usage(filled, request.n)})

    async def models(self, _: Http) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model_named(self, http: Http) -> Response:
        """GET /v1/models/NAME."""
        self._check_name(http.path_params["name"])
        return JSONResponse(self._model())

    async def health(self, _: Http) -> Response:
        """GET /health: 200 once the model has filled something."""
        return JSONResponse({"status": "ok" if self.batcher.warm else "warming"}, 200 if self.batcher.warm else 503)

    async def _read(self, http: Http, kind: type[R]) -> tuple[R, list[Text]]:
        """A request and its texts, found to be fit to be filled. Long ones take seconds, one after the other in a thread."""
        body = await body_of(http, self.batcher.limits)
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._understood, kind, body)

    def _understood(self, kind: type[R], body: bytes) -> tuple[R, list[Text]]:
        request = read_request(kind, body)
        self._check_name(request.model or self.name)
        texts = request.texts(self.batcher.limits, self.model)
        for text in texts[:: request.n]:
            check(self.model, text, request.given, request.sizes)
        return request, texts

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise Refused(f"model '{name}' is not served here; '{self.name}' is", "model", 404, "model_not_found")

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "a3jax"}

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.name}

    async def _answer(
        self, http: Http, request: Growing, texts: Sequence[Text], style: answers.Style, echo: bool = False
    ) -> Response:
        """A request answered in OpenAI's shape, whole or streamed."""
        if request.stream:
            updates = Updates()
            echoed = [text.template.pieces[0] if echo else "" for text in texts]
            results, head = self.batcher.submit(texts, updates.put), self._head(style.id, style.piece)
            events = openai_events(self.model, request, results, updates, style, head, echoed)
            return StreamingResponse(server_sent(events, "[DONE]"), media_type="text/event-stream")
        found = await unless_gone(http, all_of(self.batcher.submit(texts)))
        filled = [answers.cut(one, request.stops) for one in found]
        scores = [None if request.logprobs is None else await self._logprobs(http, request, one, echo) for one in filled]
        choices = [
            style.choice(answers.completed(one, echo), i, one.finished, score)
            for i, (one, score) in enumerate(zip(filled, scores))
        ]
        head = self._head(style.id, style.whole)
        return JSONResponse({**head, "choices": choices, "usage": answers.usage(filled, request.n)})

    async def _logprobs(self, http: Http, request: Growing, filled: Infilled, echo: bool) -> dict[str, Any]:
        """Of a completion's tokens. Those of a prompt, and what else was likely, are known of text from left to right."""
        codec = self.model.codec
        scores = await asyncio.to_thread(answers.logprobs, codec, filled, echo)
        if (
            not (request.logprobs or echo)
            or filled.pieces[-1][0]
            or not self.batcher.can_score
            or not request.decoding.is_left_to_right
        ):
            return scores
        stop = filled.places[1].stop
        asked = self.batcher.score(filled.tokens[:stop], max(1, request.logprobs or 0), filled.allowed)
        found = await unless_gone(http, asked)
        return answers.with_alternatives(codec, scores, filled.tokens[:stop], found, request.logprobs or 0)

    async def _scored(self, http: Http, request: Completion) -> Response:
        """Prompts that come back, with how likely they are where that is asked for."""
        choices, read = [], 0
        for i, prompt in enumerate(request.prompts(self.model)):
            document = lay_out([prompt], [], self.model.codec)
            scores, read = None, read + len(document.tokens)
            if request.logprobs is not None:
                found = await unless_gone(
                    http, self.batcher.score(document.tokens, max(1, request.logprobs), document.allowed)
                )
                scores = answers.prompt_logprobs(self.model.codec, document, found, request.logprobs)
            choices += [answers.choice(prompt, i * request.n + j, "length", scores) for j in range(request.n)]
        usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
        head = self._head(answers.TEXT.id, answers.TEXT.whole)
        return JSONResponse({**head, "choices": choices, "usage": usage})
