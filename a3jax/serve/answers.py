"""Filled texts as JSON, in the shape of OpenAI's completions."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.document import Document
from a3jax.decode.spelling import spelled
from a3jax.errors import UserError
from a3jax.generate.filling import Tokens
from a3jax.generate.infill import Infilled
from a3jax.likelihood.alternatives import Alternatives
from a3jax.serve.requests import Refused

Json = dict[str, Any]


class Style(NamedTuple):
    """How the answers of a route look: of a whole one, and of the events of a stream."""

    id: str
    whole: str
    piece: str
    choice: Callable[[str, int, str | None, Json | None], Json]
    delta: Callable[[str, int, str | None], Json]
    opening: Json
    """What the first event of a choice says besides."""


def completed(filled: Infilled, echo: bool) -> str:
    """A prompt's completion, behind the prompt itself for `echo`; a suffix is left out."""
    (prompt, _), (text, _), *_ = filled.pieces
    return prompt + text if echo else text


def cut(filled: Infilled, stops: Sequence[str]) -> Infilled:
    """A completion up to its first stop string, where that was not heeded while it was filled."""
    before, answer, *behind = filled.parts
    found = [answer.text.find(stop) for stop in stops if stop in answer.text]
    if not found:
        return filled
    cut_short = answer._replace(text=answer.text[: min(found)])
    return dataclasses.replace(filled, parts=(before, cut_short, *behind), finished="stop")


def choice(text: str, index: int, finished: str | None = None, scores: Json | None = None) -> Json:
    """One entry of `choices`, or a piece of one that is streamed."""
    return {"text": text, "index": index, "logprobs": scores, "finish_reason": finished}


def _message(text: str, index: int, finished: str | None = None, scores: Json | None = None) -> Json:
    return {"index": index, "message": {"role": "assistant", "content": text}, "logprobs": scores, "finish_reason": finished}


def _delta(text: str, index: int, finished: str | None = None) -> Json:
    return {"index": index, "delta": {"content": text}, "finish_reason": finished}


TEXT = Style("cmpl", "text_completion", "text_completion", choice, choice, {})
MESSAGE = Style("chatcmpl", "chat.completion", "chat.completion.chunk", _message, _delta, {"role": "assistant"})


def infill_choice(filled: Infilled, index: int, with_scores: bool) -> Json:
    """One entry of `choices`: the whole text, and what stands in its blanks."""
    blanks: list[Json] = [{"text": blank.text, "tokens": len(blank.tokens)} for blank in filled.blanks]
    if with_scores:
        for entry, blank in zip(blanks, filled.blanks):
            entry["logprob"] = blank.log_prob
    return {"text": filled.text, "index": index, "blanks": blanks, "finish_reason": filled.finished}


def counts(filled: Infilled) -> tuple[int, int]:
    """Tokens given and tokens filled in. One that was given back to a blank is given, and so is what took its place."""
    back = len(filled.allowed)
    return sum(filled.given) + back, sum(len(blank.tokens) for blank in filled.blanks) - back


def usage(filled: list[Infilled], samples: int) -> Json:
    """Tokens given, those of a prompt once for all its samples, and tokens filled in."""
    prompt, completion = sum(counts(one)[0] for one in filled[::samples]), sum(counts(one)[1] for one in filled)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def logprobs(codec: TextCodec, filled: Infilled, echo: bool) -> Json:
    """Each token of a choice as the characters it adds, its log-probability in nats, and where in the choice it begins.

    Given tokens have none. A token that completes no character, or stands behind a stop string, adds none; without `echo` the
    first may add less than it says, as the prompt has the rest.
    """
    prompt, blank, *_ = filled.parts
    place = slice(prompt.place.start if echo else blank.place.start, blank.place.stop)
    texts = spelled(codec, filled.tokens, filled.parts)[place]
    if not echo and texts:
        texts[0] = texts[0].removeprefix(blank.lead)
    return {
        "tokens": texts,
        "token_logprobs": [None if given else x for given, x in zip(filled.given[place], filled.log_probs[place])],
        "top_logprobs": None,
        "text_offset": list(itertools.accumulate(map(len, texts), initial=0))[:-1],
    }


def with_alternatives(codec: TextCodec, scores: Json, tokens: Sequence[int], found: Alternatives, count: int) -> Json:
    """`logprobs` of the last tokens of a text, with what else was likely, and how likely those are that were given."""
    first = len(tokens) - len(scores["tokens"])
    places = range(first, len(tokens))
    own = [float(found.log_probs_T[place]) if place else None for place in places]
    known = [one if own_one is None or one is not None else own_one for one, own_one in zip(scores["token_logprobs"], own)]
    top = [_likeliest(codec, tokens[place], found, place, count) for place in places] if count else None
    return {**scores, "token_logprobs": known, "top_logprobs": top}


def prompt_logprobs(codec: TextCodec, document: Document, found: Alternatives, count: int) -> Json:
    """`logprobs` of a whole text; its first token has none where nothing stands before it."""
    texts = spelled(codec, document.tokens, document.parts(codec))[document.head :]
    none = {
        "tokens": texts,
        "token_logprobs": [None] * len(texts),
        "top_logprobs": None,
        "text_offset": list(itertools.accumulate(map(len, texts), initial=0))[:-1],
    }
    return with_alternatives(codec, none, document.tokens, found, count)


def _likeliest(codec: TextCodec, token: int, found: Alternatives, place: int, count: int) -> Json | None:
    """The texts of the most probable tokens that may stand in a place, and of the one that does; None for the first place."""
    if place == 0:
        return None
    result: Json = {}
    for other, log_prob in zip(found.likeliest_TxK[place][:count].tolist(), found.log_probs_TxK[place].tolist()):
        if log_prob > -math.inf:
            result.setdefault(codec.decode([other], inside=True), log_prob)
    result.setdefault(codec.decode([token], inside=True), float(found.log_probs_T[place]))
    return result


def begun(codec: TextCodec, fillable_V: np.ndarray, tokens: Tokens, stops: tuple[str, ...], echoed: str) -> str:
    """What is certain of a completion that is on its way from left to right, behind what is `echoed` of its prompt."""
    begin = int(np.argmax(tokens.passes != 0))
    written = tokens.tokens[tokens.passes > 0]
    written = written[: int(np.argmin(np.append(fillable_V[written], False)))]  # up to the end of the text
    text = codec.certain(written.tolist(), inside=begin > tokens.head).removeprefix(tokens.lead)
    found = [text.find(stop) for stop in stops if stop in text]
    open_ = max((len(stop) - 1 for stop in stops), default=0)  # its end may be the beginning of a stop string
    text = text[: min(found)] if found else text[: max(0, len(text) - open_)]
    return echoed + text


def llama_answer(text: str, finished: str, tokens: tuple[int, int], seconds: tuple[float, float], cut_: bool) -> Json:
    """An answer as llama.cpp's server gives it, from tokens read and written, and the seconds these took."""
    timings: Json = {}
    for name, count, time in zip(("prompt", "predicted"), tokens, seconds):
        timings |= {f"{name}_n": count, f"{name}_ms": 1000 * time}
        timings |= {f"{name}_per_token_ms": 1000 * time / max(count, 1), f"{name}_per_second": count / max(time, 1e-9)}
    counts = {"tokens_evaluated": tokens[0], "tokens_predicted": tokens[1], "tokens_cached": sum(tokens)}
    kind = {"stop": "eos", "length": "limit"}[finished]
    return {"index": 0, "content": text, "stop": True, "stop_type": kind, "truncated": cut_, **counts, "timings": timings}


def chosen(answer: Json, fields: Sequence[str]) -> Json:
    """The fields that are asked for, those inside others as "timings/predicted_n"; all where none are. What is not there is
    left out.
    """
    if not fields:
        return answer
    found: Json = {}
    for name in fields:
        value: Any = answer
        for key in name.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        found |= {} if value is None else {name: value}
    return found


def failure(error: Exception) -> tuple[int, Json, dict[str, str]]:
    """Status, body and headers for a request that failed. What is not the client's mistake shows no detail of ours."""
    if isinstance(error, UserError) and not isinstance(error, Refused):
        error = Refused(str(error))
    if isinstance(error, Refused):
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        headers |= {"WWW-Authenticate": "Bearer"} if error.http == 401 else {}
        return error.http, error_body(str(error), kinds.get(error.http, "invalid_request_error"), error), headers
    return 500, error_body("the text could not be filled; the log of the service says why", "server_error"), {}


def error_body(message: str, kind: str, refused: Refused | None = None) -> Json:
    """An error as OpenAI writes it; what it quotes of the request may be long, and need not be text."""
    printable = message[:300].encode(errors="replace").decode()
    param, code = (refused.param, refused.code) if refused else (None, None)
    param = param and param[:300].encode(errors="replace").decode()
    return {"error": {"message": printable, "type": kind, "param": param, "code": code}}
