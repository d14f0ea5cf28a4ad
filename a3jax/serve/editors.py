"""What editors send for the text at the cursor: to llama.cpp's server (llama.vim, llama.vscode), or to Mistral's (Continue).

A text stands before the cursor and another behind it. What comes between them ends where the model says so, if it was trained
on blanks that end or to fill in the middle; any other model is given short blanks of every size, and the most probable is
taken. Where both texts and the answer are longer than the model's context, what is farthest from the cursor is left out.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Template
from a3jax.generate.filling import ends_blanks
from a3jax.serve.completions import Growing
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, Text
from a3jax.weights.loading import Model

ANSWER = 128
"""Tokens of an answer at most where the request does not say."""
SEARCHED = 16
"""Tokens of an answer at most where the model does not know ends, and every size is tried."""
BEHIND = 4
"""The text behind the cursor has this part of the room at least, where there is not enough for all."""
SPARE = 8
"""Tokens that a text may have more of once it is cut: the one at the cut is another, and documents begin with one."""


class Around(NamedTuple):
    """The texts around a cursor, as far as they fit."""

    before: str
    behind: str
    cut: bool
    """Whether something was left out."""


@dataclass(frozen=True, kw_only=True)
class AtCursor(Growing):
    """A request for what comes at a cursor."""

    temperature: ClassVar = 0.0

    @property
    def most(self) -> int:
        """Tokens of the answer at most."""
        raise NotImplementedError

    def around(self, model: Model) -> Around:
        """The texts around the cursor, so that the answer has room."""
        raise NotImplementedError

    def templates(self, model: Model) -> list[Template]:  # noqa: D102
        before, behind, _ = self.around(model)
        if not behind:
            return [Template((before, ""), (self.most,))]
        if self.decoding.fills_to_ends and ends_blanks(model, self.decoding):
            return [Template((before, behind), (Open(self.most),))]
        return [Template((before, behind), (Range(1, min(self.most, SEARCHED)),))]

    @property
    def continues(self) -> bool:  # noqa: D102
        return not self.has_text_behind

    @property
    def has_text_behind(self) -> bool:
        """Whether there is text behind the cursor."""
        raise NotImplementedError

    def texts(self, limits: Limits, model: Model) -> list[Text]:  # noqa: D102
        if self.logprobs is not None:
            raise Refused("logprobs are not given here; leave them out, or ask /v1/completions", "logprobs")
        request, how = self, self.decoding
        if model.record.objective == "fim" and self.has_text_behind and how.fills_to_ends:
            how = dataclasses.replace(how, mode="fim", order=Decoding.order)
            request = dataclasses.replace(self, decoding=how)
        return super(AtCursor, request).texts(limits, model)


@dataclass(frozen=True, kw_only=True)
class FillInMiddle(AtCursor):
    """POST /v1/fim/completions, as Mistral has it."""

    given: ClassVar = "prompt"
    sizes: ClassVar = "max_tokens"
    renamed: ClassVar[dict[str, str]] = {"random_seed": "seed"}
    ignored: ClassVar[frozenset[str]] = frozenset({"metadata"})
    prompt: str
    suffix: str = ""
    max_tokens: int = ANSWER
    min_tokens: int = 0

    @property
    def most(self) -> int:  # noqa: D102
        if self.max_tokens < 1:
            raise Refused(f"max_tokens is {self.max_tokens}; it must be at least 1", "max_tokens")
        if self.min_tokens:
            raise Refused("min_tokens is not supported; leave it out", "min_tokens")
        return self.max_tokens

    @property
    def has_text_behind(self) -> bool:  # noqa: D102
        return bool(self.suffix)

    def around(self, model: Model) -> Around:  # noqa: D102
        return fitted(model, self.prompt, self.suffix, self.most)


@dataclass(frozen=True)
class Extra:
    """Another piece of text that the editor has seen."""

    text: str = ""
    filename: str = ""
    time: Any = None


@dataclass(frozen=True, kw_only=True)
class LlamaInfill(AtCursor):
    """POST /infill, as llama.cpp's server has it."""

    given: ClassVar = "input_prefix"
    sizes: ClassVar = "n_predict"
    renamed: ClassVar[dict[str, str]] = {"repeat_penalty": "repetition_penalty"}
    ignored: ClassVar[frozenset[str]] = frozenset({"samplers", "cache_prompt", "id_slot", "t_max_prompt_ms", "n_cache_reuse"})
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: tuple[Extra, ...] = ()
    prompt: str = ""
    """What stands before the cursor in its line, behind `input_prefix`."""
    n_predict: int = ANSWER
    n_indent: int = 0
    """A line that is indented by fewer characters, and not empty, is no part of the answer any more; nor what follows."""
    t_max_predict_ms: float = 0.0
    """The answer ends with the first line that is whole after so long; 0 for no such limit."""
    response_fields: tuple[str, ...] = ()
    """Those of the answer that are wanted, as "timings/predicted_n"; all of them where there are none."""

    @property
    def reads_ahead(self) -> bool:
        """Whether nothing is to be written: editors let llama.cpp read ahead so, which is nothing here."""
        return self.n_predict == 0

    @property
    def most(self) -> int:  # noqa: D102
        if self.n_predict < -1:
            raise Refused(f"n_predict is {self.n_predict}; it must be at least 0, or -1 for {ANSWER}", "n_predict")
        return ANSWER if self.n_predict == -1 else self.n_predict

    @property
    def has_text_behind(self) -> bool:  # noqa: D102
        return bool(self.input_suffix)

    def templates(self, model: Model) -> list[Template]:  # noqa: D102
        if self.n != 1:
            raise Refused(f"n is {self.n}; an answer of this kind holds one text", "n")
        return [] if self.reads_ahead else super().templates(model)

    def around(self, model: Model) -> Around:  # noqa: D102
        extra = "".join(f"{one.text}\n\n" for one in self.input_extra if one.text)
        return fitted(model, self.input_prefix + self.prompt, self.input_suffix, self.most, extra)

    def certain(self, text: str) -> tuple[str, bool]:
        """As much of a text as is part of the answer, and whether the answer ends there, before a line with less indent."""
        first, *lines = text.split("\n")
        for i, line in enumerate(lines):
            if line.strip() and len(line) - len(line.lstrip()) < self.n_indent:
                return "\n".join([first, *lines[:i]]), True
        return text, False


def fitted(model: Model, before: str, behind: str, answer: int, extra: str = "") -> Around:
    """Both texts, and what stands in `extra` in front of them as far as there is room, for an answer of so many tokens.

    Raises `Refused` where the answer alone is too long.
    """
    codec, room = model.codec, model.config.context - answer - SPARE
    if room < 1:
        raise Refused(f"an answer of {answer} tokens leaves no room for text in a context of {model.config.context}")
    known = codec.encode(before), codec.encode(behind, inside=True)
    follows = min(len(known[1]), max(room // BEHIND, room - len(known[0])))
    precedes = min(len(known[0]), room - follows)
    short = follows < len(known[1]) or precedes < len(known[0])
    before, behind = _last(codec, before, precedes), _first(codec, behind, follows)
    context = _last(codec, extra, room - precedes - follows)
    return Around(context + before, behind, short or len(context) < len(extra))


def _last(codec: TextCodec, text: str, tokens: int) -> str:
    """The end of a text, in so many tokens; from the beginning of a line, where it has one."""
    ids = codec.encode(text)
    if len(ids) <= tokens:
        return text
    kept = codec.decode(ids[len(ids) - tokens :], inside=True).lstrip("\ufffd")
    _, _, lines = kept.partition("\n")
    return lines if lines and not text.removesuffix(kept).endswith("\n") else kept


def _first(codec: TextCodec, text: str, tokens: int) -> str:
    """The beginning of a text, in so many tokens."""
    ids = codec.encode(text, inside=True)
    return text if len(ids) <= tokens else codec.decode(ids[:tokens], inside=True).rstrip("\ufffd")
