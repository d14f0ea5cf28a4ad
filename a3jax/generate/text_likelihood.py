"""Exact log-likelihood of texts, and of what stands in the blanks of a template: `a3jax.log_likelihood`."""

from collections.abc import Sequence

from a3jax.curriculum.stage import BOUND
from a3jax.decode.document import Document, lay_out, with_blanks
from a3jax.decode.settings import Decoding, Prefill
from a3jax.errors import check_list
from a3jax.generate.middle import middle_last
from a3jax.generate.objective import check_order
from a3jax.likelihood.scoring import Likelihood, token_log_likelihoods
from a3jax.weights.loading import Model

DRAWS = 16
"""Of masks, whose mean is the bound on what stands in a blank."""


def log_likelihood(
    model: Model,
    text: str,
    order: str = "ar",
    seed: int = 0,
    blanks: Sequence[str] | None = None,
    orders: int = 1,
    heal: bool = True,
) -> Likelihood:
    """Exact log-probability of a text, every token predicted from those that come before it in `order`.

    The first token of the document is given: the model's start token, or the text's first where it has none. With
    `blanks`, `text` is a template and only the texts put into its blanks are scored, all else being given; the sizes
    written in the template do not matter. With `heal` they have the tokens that they have behind the text before them, of
    whose last one the bytes are known, as in `Decoding`. Of several `orders`, drawn with seed, seed + 1, ..., the mean is
    returned. A model of masked diffusion has no such likelihood; its order "bound" gives a lower bound, from so many draws
    of masks.

    Raises `UserError` if there is nothing to score, or more than the model's context, and for several `orders` of a kind
    that is not drawn.
    """
    check_order(model, order)
    return document_log_likelihoods(model, [to_score(model, text, blanks, heal)], order, seed, orders)[0]


def log_likelihoods(
    model: Model, texts: Sequence[str], order: str = "ar", seed: int = 0, orders: int = 1
) -> list[Likelihood]:
    """`log_likelihood` of several whole texts, a batch at a time. No text's result depends on the others."""
    check_list("texts", texts)
    check_order(model, order)
    return document_log_likelihoods(model, [to_score(model, text) for text in texts], order, seed, orders)


def to_score(model: Model, text: str, blanks: Sequence[str] | None = None, heal: bool = True) -> Document:
    """A text laid out so that what is to be scored is not given: as `log_likelihood` says."""
    if blanks is not None:
        return with_blanks(text, blanks, model.codec, model.healing if heal else None)
    document = lay_out([text], [], model.codec)
    return document._replace(given=tuple(place == 0 for place in range(len(document.tokens))))


def document_log_likelihoods(
    model: Model,
    documents: Sequence[Document],
    order: str,
    seed: int,
    orders: int,
    prefill: Prefill = "ar",
    block: int | None = None,
) -> list[Likelihood]:
    """Of what is not given in documents, as `token_log_likelihoods` has it; a `block` is of other tokens than the model's."""
    tokens, given = [one.tokens for one in documents], [one.given for one in documents]
    allowed, block = [one.allowed for one in documents], block or model.record.mask_block
    return token_log_likelihoods(model, tokens, given, order, seed, orders, None, prefill, block, allowed)


def blanks_log_likelihoods(model: Model, documents: Sequence[Document], decoding: Decoding) -> list[Likelihood]:
    """Of what stands in the blanks, seen as the mode of decoding sees it; documents have one blank each.

    From left to right where the mode finds its own order; for masked diffusion it is a bound, the mean of `DRAWS` draws.
    """
    order = "ar" if decoding.finds_order else decoding.order
    orders = 1
    if decoding.mode in ("diffusion", "block_diffusion"):
        order, orders = BOUND, DRAWS
    if decoding.mode == "fim":
        documents = [middle_last(one, one.tokens, 0, model.record.fim_tokens) for one in documents]
    return document_log_likelihoods(model, documents, order, decoding.seed, orders, decoding.prefill, decoding.block)
