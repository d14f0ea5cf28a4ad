"""A blank's size chosen by likelihood: every one is tried, which any model can do, and costs a filling each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Range, Template
from a3jax.generate.filling import document_of
from a3jax.generate.one_by_one import fill_blanks
from a3jax.likelihood.scoring import token_log_likelihoods
from a3jax.weights.loading import Model

CANDIDATES = 8
"""Lengths of a blank that are tried in one batch."""


def with_lengths(model: Model, template: Template, decoding: Decoding) -> Template:
    """The template with every size chosen, one blank after the other, those not yet chosen at their largest.

    The length taken is that whose filled text has the largest log-likelihood per token, from the blank on, left to right.
    """
    for i, size in enumerate(template.sizes):
        if isinstance(size, Range):
            lengths = range(size.least, size.most + 1)
            document_of(model, template)  # the largest must fit
            scores = [score for n in range(0, len(lengths), CANDIDATES)
                      for score in _score_lengths(model, template, i, lengths[n : n + CANDIDATES], decoding)]  # fmt: skip
            template = _sized(template, i, lengths[int(np.argmax(scores))])
    return template


def _score_lengths(model: Model, template: Template, i: int, lengths: Sequence[int], decoding: Decoding) -> list[float]:
    """Nats per token of the text from blank i on, for each length. The batch is always as large, so as to compile once."""
    padded = [*lengths, *[lengths[-1]] * (CANDIDATES - len(lengths))]
    documents = [document_of(model, _sized(template, i, length)) for length in padded]
    filled = [one.text for one in fill_blanks(model, documents, [decoding] * len(documents))]
    tokens = [text.tokens.tolist() for text in filled]
    given = [[at < document.blanks[i].start for at in range(len(document.tokens))] for document in documents]
    return [score.total / len(score.tokens) for score in token_log_likelihoods(model, tokens, given)][: len(lengths)]


def _sized(template: Template, i: int, size: int) -> Template:
    return dataclasses.replace(template, sizes=(*template.sizes[:i], size, *template.sizes[i + 1 :]))
