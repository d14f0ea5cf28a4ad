"""Texts with their exact likelihood: scored a window at a time, and told as JSON or as a table."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from a3jax.decode.document import Document
from a3jax.decode.spelling import spelled
from a3jax.errors import UserError
from a3jax.files.reading import check_text, windows
from a3jax.generate.objective import check_order
from a3jax.generate.text_likelihood import document_log_likelihoods, to_score
from a3jax.likelihood.scoring import Likelihood
from a3jax.model.network import check_context
from a3jax.weights.loading import Model

WINDOW = 64
"""Texts that are read before any is scored."""


@dataclass(frozen=True)
class Asked:
    """A text to score, as a line of JSONL has it."""

    text: str
    """With `blanks`, a template."""
    blanks: tuple[str, ...] | None = None
    id: int | str | None = None


class Subject(NamedTuple):
    """A text to score, laid out."""

    id: int | str | None
    document: Document
    bytes: int
    """Of what is scored."""


@dataclass(frozen=True)
class Scored:
    """A text's likelihood. One entry of `texts` and `log_probs` per predicted token."""

    id: int | str | None
    likelihood: Likelihood
    texts: tuple[str, ...]
    bytes: int

    def summary(self) -> dict[str, Any]:
        """The figures of the text as a whole."""
        found = self.likelihood
        orders = {"spread": found.spread, "totals": list(found.totals)} if len(found.totals) > 1 else {}
        if found.is_bound and orders:
            orders["monte_carlo_error"] = found.error
        total = {total_name(found.is_bound): found.total}
        return {**total, **orders, **figures(found.total, len(found.tokens), self.bytes)}

    def tokens(self) -> list[dict[str, Any]]:
        """Each token with its log-probability in nats."""
        rows = zip(self.likelihood.tokens, self.texts, self.likelihood.log_probs)
        return [{"id": token, "text": text, "log_prob": log_prob} for token, text, log_prob in rows]


def total_name(is_bound: bool) -> str:
    """What the nats of a text are called."""
    return "log_likelihood_bound" if is_bound else "log_likelihood"


def figures(log_likelihood: float, tokens: int, count: int) -> dict[str, Any]:
    """What is derived from the nats of so many tokens, which make up `count` bytes."""
    return {
        "tokens": tokens,
        "nats_per_token": -log_likelihood / tokens if tokens else None,
        "perplexity": math.exp(min(-log_likelihood / tokens, 700.0)) if tokens else None,
        "bytes": count,
        "bits_per_byte": -log_likelihood / math.log(2) / count if count else None,
    }


def subject(model: Model, asked: Asked, heal: bool = True) -> Subject:
    """Lay out what is to be scored; `heal` as in `a3jax.log_likelihood`.

    Raises `UserError` where there is nothing, or more than the model's context.
    """
    for name, text in [("text", asked.text), *(("blanks", blank) for blank in asked.blanks or ())]:
        check_text(name, text)
    codec = model.codec
    document = to_score(model, asked.text, asked.blanks, heal)
    if asked.blanks is None:
        first = "".join(spelled(codec, document.tokens, document.parts(codec))[:1])  # given, if it is text
        size = len(asked.text.encode()) - len(first.encode())
    else:
        size = len("".join(asked.blanks).encode())
    if all(document.given):
        raise UserError("there is nothing to score; give more text than the document's first token")
    check_context(model, len(document.tokens))
    return Subject(asked.id, document, size)


def score(model: Model, subjects: Iterable[Subject], order: str, seed: int, orders: int) -> Iterator[Scored]:
    """Score texts as they come. Those before a mistake are scored before it is raised.

    Raises `UserError` for an order that the model has no likelihood in.
    """
    check_order(model, order)
    for window in windows(subjects, WINDOW):
        yield from _window(model, window, order, seed, orders)


def _window(model: Model, window: Sequence[Subject], order: str, seed: int, orders: int) -> Iterator[Scored]:
    found = document_log_likelihoods(model, [one.document for one in window], order, seed, orders)
    for one, likelihood in zip(window, found):
        texts = spelled(model.codec, one.document.tokens, one.document.parts(model.codec))
        predicted = tuple(text for text, given in zip(texts, one.document.given) if not given)
        yield Scored(one.id, likelihood, predicted, one.bytes)
