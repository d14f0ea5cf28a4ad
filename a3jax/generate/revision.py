"""Filled texts revised: their least probable tokens are opened again, as long as that makes them more probable."""

from collections.abc import Sequence

import numpy as np

from a3jax.decode.document import Document
from a3jax.decode.settings import Decoding
from a3jax.generate.filling import Observe, Tokens
from a3jax.generate.one_by_one import blanks_filled, side_by_side
from a3jax.likelihood.scoring import token_log_likelihoods
from a3jax.weights.loading import Model

ROUNDS = 16
"""A text is revised at most so often."""


def revised(
    model: Model, documents: Sequence[Document], decodings: Sequence[Decoding], filled: list[Tokens], observe: Observe | None
) -> list[Tokens]:
    """Open each text's least probable tokens again and refill them, as long as the blanks become more likely by it.

    That is log p of the blanks given all text around them, on both sides, from left to right; not that of the whole text.
    """

    def scored(texts: Sequence[Tokens]) -> list[Tokens]:
        tokens = [text.tokens.tolist() for text in texts]
        given, allowed = [document.given for document in documents], [document.allowed for document in documents]
        found = token_log_likelihoods(model, tokens, given, allowed=allowed)
        each = []
        for text, document, score in zip(texts, documents, found):
            log_probs = np.zeros(len(text.tokens))
            log_probs[~np.asarray(document.given)] = score.log_probs
            each.append(text._replace(log_probs=log_probs))
        return each

    filled = scored(filled)
    going = [True] * len(documents)
    for _ in range(ROUNDS):
        opened = [_opened(document, text, decodings[0].revise) for document, text in zip(documents, filled)]
        fillings = [blanks_filled(model, *one) for one in zip(opened, decodings)]
        again = [one.text for one in side_by_side(model, fillings, observe)]
        again = scored([_joined(old, new) for old, new in zip(filled, again)])
        better = [now and new.log_probs.sum() > old.log_probs.sum() for now, old, new in zip(going, filled, again)]
        filled = [new if rises else old for rises, old, new in zip(better, filled, again)]
        going = better
        if not any(going):
            break
    return filled


def _opened(document: Document, text: Tokens, count: int) -> Document:
    """The document as it was filled, but for its `count` least probable tokens."""
    place = np.flatnonzero(~np.asarray(document.given))
    worst = place[np.argsort(text.log_probs[place], kind="stable")[:count]]
    given = np.ones(len(document.tokens), bool)
    given[worst] = False
    return document._replace(tokens=tuple(text.tokens.tolist()), given=tuple(given.tolist()))


def _joined(old: Tokens, new: Tokens) -> Tokens:
    """A revision of `old`: its passes come after those that were."""
    return new._replace(passes=np.where(new.passes > 0, new.passes + old.passes.max(), old.passes))
