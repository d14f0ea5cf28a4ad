"""Filled texts as JSON, in the shape of OpenAI's completions."""

import itertools
from typing import Any

import numpy as np

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.spelling import spelled
from a3jax.errors import UserError
from a3jax.generate.filling import Tokens
from a3jax.generate.infill import Infilled
from a3jax.serve.requests import Completion, Refused

Json = dict[str, Any]


def completed(filled: Infilled, echo: bool) -> str:
    """A prompt's completion, behind the prompt itself for `echo`; a suffix is left out."""
    (prompt, _), (text, _), *_ = filled.pieces
    return prompt + text if echo else text


def completion_choice(codec: TextCodec, filled: Infilled, request: Completion, index: int) -> Json:
    """One entry of `choices`."""
    scores = None if request.logprobs is None else logprobs(codec, filled, request.echo)
    return choice(completed(filled, request.echo), index, filled.finished, scores)


def choice(text: str, index: int, finished: str | None = None, scores: Json | None = None) -> Json:
    """One entry of `choices`, or a piece of one that is streamed."""
    return {"text": text, "index": index, "logprobs": scores, "finish_reason": finished}


def infill_choice(filled: Infilled, index: int, with_scores: bool) -> Json:
    """One entry of `choices`: the whole text, and what stands in its blanks."""
    blanks: list[Json] = [{"text": blank.text, "tokens": len(blank.tokens)} for blank in filled.blanks]
    if with_scores:
        for entry, blank in zip(blanks, filled.blanks):
            entry["logprob"] = blank.log_prob
    return {"text": filled.text, "index": index, "blanks": blanks, "finish_reason": filled.finished}


def usage(filled: list[Infilled], samples: int) -> Json:
    """Tokens given, those of a prompt once for all its samples, and tokens filled in."""
    prompt = sum(sum(one.given) for one in filled[::samples])
    completion = sum(len(blank.tokens) for one in filled for blank in one.blanks)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def logprobs(codec: TextCodec, filled: Infilled, echo: bool) -> Json:
    """Each token of a choice as the characters it adds, its log-probability in nats, and where in the choice it begins.

    Given tokens have none. A token that completes no character, or stands behind a stop string, adds none.
    """
    blank = filled.places[1]
    place = slice(filled.places[0].start if echo else blank.start, blank.stop)
    texts = spelled(codec, filled.tokens, filled.parts)[place]
    return {
        "tokens": texts,
        "token_logprobs": [None if given else x for given, x in zip(filled.given[place], filled.log_probs[place])],
        "top_logprobs": None,
        "text_offset": list(itertools.accumulate(map(len, texts), initial=0))[:-1],
    }


def begun(codec: TextCodec, fillable_V: np.ndarray, tokens: Tokens, stops: tuple[str, ...], echoed: str) -> str:
    """What is certain of a completion that is on its way from left to right, behind what is `echoed` of its prompt."""
    begin = int(np.argmax(tokens.passes != 0))
    written = tokens.tokens[tokens.passes > 0]
    written = written[: int(np.argmin(np.append(fillable_V[written], False)))]  # up to the end of the text
    text = codec.certain(written.tolist(), inside=begin > tokens.head)
    found = [text.find(stop) for stop in stops if stop in text]
    open_ = max((len(stop) - 1 for stop in stops), default=0)  # its end may be the beginning of a stop string
    text = text[: min(found)] if found else text[: max(0, len(text) - open_)]
    return echoed + text


def failure(error: Exception) -> tuple[int, Json, dict[str, str]]:
    """Status, body and headers for a request that failed. What is not the client's mistake shows no detail of ours."""
    if isinstance(error, UserError) and not isinstance(error, Refused):
        error = Refused(str(error))
    if isinstance(error, Refused):
        kinds = {429: "rate_limit_error", 503: "server_error"}
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return error.http, error_body(str(error), kinds.get(error.http, "invalid_request_error"), error), headers
    return 500, error_body("the text could not be filled; the log of the service says why", "server_error"), {}


def error_body(message: str, kind: str, refused: Refused | None = None) -> Json:
    """An error as OpenAI writes it; what it quotes of the request may be long, and need not be text."""
    printable = message[:300].encode(errors="replace").decode()
    param, code = (refused.param, refused.code) if refused else (None, None)
    param = param and param[:300].encode(errors="replace").decode()
    return {"error": {"message": printable, "type": kind, "param": param, "code": code}}
