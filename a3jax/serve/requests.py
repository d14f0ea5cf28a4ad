"""Bodies of requests as texts to fill, strictly: what is not understood is refused, never passed over.

The shape is that of OpenAI's completions, with the fields of `a3jax.Decoding` beside it under their own names.
"""

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Range, Size, Template, has_open, parse
from a3jax.errors import UserError
from a3jax.files.outside_json import parse_object
from a3jax.files.strict import build, nearest
from a3jax.generate.filling import check_ends, check_stop, document_of
from a3jax.generate.objective import check_mode
from a3jax.generate.revision import ROUNDS
from a3jax.serve.limits import Limits
from a3jax.weights.loading import Model

STOPS = 16
TOP_LOGPROBS = 5
DECODING = {name: hint for name, hint in get_type_hints(Decoding).items() if name not in ("stop", "ends")}
"""Fields that both requests share with `Decoding`, and their types."""
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "presence_penalty": (0, "use repetition_penalty instead"),
    "frequency_penalty": (0, "use repetition_penalty instead"),
    "best_of": (1, "use n, and choose by logprobs"),
    "logit_bias": ({}, "use top_k, top_p, min_p or repetition_penalty instead"),
}
"""OpenAI's fields that are not supported: the value that asks for nothing, and what to do instead."""


class Refused(UserError):
    """A request that is not served: why, which field is at fault, and the HTTP status."""

    def __init__(
        self, message: str, param: str | None = None, http: int = 400, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.param, self.http, self.code, self.retry_after = param, http, code, retry_after


class Text(NamedTuple):
    """One text to fill."""

    template: Template
    decoding: Decoding


@dataclass(frozen=True, kw_only=True)
class Request:
    """What both kinds of request have in common."""

    decoding: Decoding
    """Of the first text; each further one has the next seed."""
    model: str | None = None
    n: int = 1
    """Samples of each text."""
    stop: str | tuple[str, ...] = ()
    logprobs: int | None = None
    user: str = ""
    """Of the client's own records; it changes nothing."""

    given: ClassVar = ""
    """The field that holds the texts."""
    sizes: ClassVar = ""
    """The field that says how many tokens to fill in."""
    temperature: ClassVar = 1.0
    """Where the request has none."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields of other services that change nothing here."""
    renamed: ClassVar[dict[str, str]] = {}
    """Fields of `Decoding` as other services call them."""

    def templates(self, model: Model) -> list[Template]:
        """Of the texts that were given, each to be filled `n` times."""
        raise NotImplementedError

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return _listed(self.stop)

    @property
    def continues(self) -> bool:
        """Whether texts end with their blank, and may do so before it is full."""
        return False

    def texts(self, limits: Limits, model: Model) -> list[Text]:
        """The texts to fill, all samples of the first one first. Raises `Refused` where they are too many or too long.

        Of a blank whose length is unknown every one is tried, unless the model knows the ends of blanks.
        """
        if self.n < 1:
            raise Refused(f"n is {self.n}; it must be at least 1", "n")
        if self.logprobs is not None and not 0 <= self.logprobs <= TOP_LOGPROBS:
            raise Refused(f"logprobs is {self.logprobs}; it must be from 0 to {TOP_LOGPROBS}", "logprobs")
        templates = self.templates(model)
        if (texts := len(templates) * self.n) > limits.max_queue:
            field = "n" if len(templates) <= limits.max_queue else self.given
            raise Refused(f"the request asks for {texts} texts; at most {limits.max_queue} are served at once", field)
        sample = sum(_work(template, self.decoding, model.record.blanks_end) for template in templates)
        if (work := sample * self.n) > limits.max_tokens_per_request:
            field = "n" if sample <= limits.max_tokens_per_request else self.sizes
            message = f"the request asks for {work} tokens; at most {limits.max_tokens_per_request} are filled for one"
            raise Refused(message, field)
        longest = max((_tokens(template) for template in templates), default=0)
        name, rows = self.decoding.rows
        if (rows := min(rows, longest)) > limits.max_tokens_per_pass:
            raise Refused(f"{name} predicts {rows} tokens at once; at most {limits.max_tokens_per_pass} may be", name)
        each = [template for template in templates for _ in range(self.n)]
        seed = self.decoding.seed
        return [
            Text(one, _decoding({"seed": seed + i, "stop": self._stops(one)}, self.decoding)) for i, one in enumerate(each)
        ]

    def _stops(self, template: Template) -> tuple[str, ...]:
        """The stop strings up to which a text is filled: none where no blank of it may end."""
        return self.stops if self.decoding.ends or has_open(template.sizes) else ()


@dataclass(frozen=True, kw_only=True)
class Infill(Request):
    """POST /v1/infill: texts in which [[n]] is a blank of n tokens, [[n-m]] one of n to m, and [[..n]] one of at most n."""

    given: ClassVar = "text"
    sizes: ClassVar = "text"
    text: str | tuple[str, ...]

    def templates(self, model: Model) -> list[Template]:  # noqa: D102
        texts = _listed(self.text)
        if not texts:
            raise Refused("text is an empty list; give at least one text", "text")
        try:
            found = [parse(text) for text in texts]
        except UserError as error:
            raise Refused(str(error), "text") from None
        try:
            check_stop(self.stops, has_open(size for template in found for size in template.sizes))
        except UserError as error:
            raise Refused(str(error), "stop") from None
        return found


R = TypeVar("R", bound=Request)


def read_request(kind: type[R], body: bytes) -> R:
    """The request that a body holds. Raises `Refused`, with the field at fault where there is one."""
    given = {name: value for name, value in _object(body).items() if value is not None and name not in kind.ignored}
    for name, (nothing, instead) in WITHOUT_EFFECT.items():
        if given.pop(name, nothing) != nothing:
            raise Refused(f"{name} is not supported; {instead}", name)
    hints = get_type_hints(kind)
    own = {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name != "decoding"}
    known = {**own, **DECODING, **{theirs: DECODING[ours] for theirs, ours in kind.renamed.items()}}
    for name in given:
        if name not in known:
            raise Refused(f"unknown field '{name}'{nearest(name, known)}", name)
    values = {name: _typed(known[name], value, name) for name, value in given.items()}
    decoding = {name: values.pop(name) for name in DECODING if name in values}
    decoding |= {ours: values.pop(theirs) for theirs, ours in kind.renamed.items() if theirs in values}
    try:
        request = kind(decoding=Decoding(), **values)
    except TypeError:
        missing = next(
            f.name for f in dataclasses.fields(kind) if f.name in {*own} - {*given} and f.default is dataclasses.MISSING
        )
        raise Refused(f"field '{missing}' is missing", missing) from None
    stops = request.stops
    if len(stops) > STOPS:
        raise Refused(f"stop holds {len(stops)} strings; at most {STOPS} are allowed", "stop")
    if not all(stops):
        raise Refused("stop holds an empty string; give strings of at least one character", "stop")
    plain = {"temperature": kind.temperature, "seed": secrets.randbelow(2**31), "ends": request.continues}
    return dataclasses.replace(request, decoding=_decoding({**plain, **decoding}))


def check(model: Model, text: Text, given: str, sizes: str) -> None:
    """Raises `Refused` where a text could not be filled, or not so, before it waits for a row.

    `given` and `sizes` are the fields that hold texts, and say how many tokens to fill in.
    """
    template, decoding = text
    try:
        document_of(model, template, decoding.heal)
    except UserError as error:
        raise Refused(str(error), sizes if _fits_if_small(model, template) else given) from None
    try:
        check_ends(model, template, decoding)
        check_mode(model, decoding)
    except UserError as error:
        first = str(error).split()[0]
        raise Refused(str(error), first if first in ("stop", "revise") else "mode") from None


def _fits_if_small(model: Model, template: Template) -> bool:
    """Whether there would be room for blanks of one token."""
    try:
        document_of(model, dataclasses.replace(template, sizes=(1,) * len(template.sizes)))
    except UserError:
        return False
    return True


def _object(body: bytes) -> dict[str, Any]:
    try:
        return parse_object(body, "the body")
    except UserError as error:
        raise Refused(f'{error}; give an object such as {{"prompt": "Once upon"}}') from None


def _typed(hint: Any, value: Any, name: str) -> Any:
    try:
        return build(hint, value, name)
    except UserError as error:
        raise Refused(str(error), name) from None


def _decoding(fields: dict[str, Any], base: Decoding | None = None) -> Decoding:
    """`base` with `fields`. `Decoding` begins its complaints with the name of the field at fault."""
    try:
        return dataclasses.replace(base or Decoding(), **fields)
    except UserError as error:
        first = str(error).split()[0].replace("-", "_")
        raise Refused(str(error), first if first == "stop" or first in DECODING else None) from None


def _listed(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _most(size: Size) -> int:
    return size if isinstance(size, int) else size.most


def _tokens(template: Template) -> int:
    return sum(map(_most, template.sizes))


def _work(template: Template, decoding: Decoding, blanks_end: bool) -> int:
    """Tokens that are filled in for one text, all lengths that are tried and all revisions included."""
    tokens = _tokens(template)
    tried = sum(size.most - size.least + 1 for size in template.sizes if isinstance(size, Range))
    ends = blanks_end or decoding.mode == "fim"
    tried += sum(size.most for size in template.sizes if isinstance(size, Open) and not ends)
    return tokens * (1 + tried) + ROUNDS * min(decoding.revise, tokens)
