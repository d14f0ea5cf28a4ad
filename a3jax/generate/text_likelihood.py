"""Exact log-likelihood of texts, and of what stands in the blanks of a template: `a3jax.log_likelihood`."""

from collections.abc import Sequence

from a3jax.curriculum.stage import BOUND
from a3jax.decode.document import Document, lay_out, with_blanks
from a3jax.decode.settings import Decoding
from a3jax.errors import check_list
from a3jax.generate.middle import middle_last
from a3jax.generate.objective import check_order
from a3jax.likelihood.scoring import Likelihood, token_log_likelihood, token_log_likelihoods
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
    if blanks is None:
        return log_likelihoods(model, [text], order, seed, orders)[0]
    document = with_blanks(text, blanks, model.codec, model.healing if heal else None)
    block, what = model.record.mask_block, (document.tokens, document.given)
    return token_log_likelihood(model, *what, order, seed, orders, mask_block=block, allowed=document.allowed)


def blanks_log_likelihoods(model: Model, documents: Sequence[Document], decoding: Decoding) -> list[Likelihood]:
    """Of what stands in the blanks, seen as the mode of decoding sees it; documents have one blank each.

    From left to right where the mode finds its own order; for masked diffusion it is a bound, the mean of `DRAWS` draws.
    """
    order = "ar" if decoding.finds_order else decoding.order
    orders, block = 1, decoding.block or model.record.mask_block
    if decoding.mode in ("diffusion", "block_diffusion"):
        order, orders = BOUND, DRAWS
    if decoding.mode == "fim":
        documents = [middle_last(one, one.tokens, 0, model.record.fim_tokens) for one in documents]
    tokens, given, allowed = zip(*((one.tokens, one.given, one.allowed) for one in documents))
    return token_log_likelihoods(model, tokens, given, order, decoding.seed, orders, None, decoding.prefill, block, allowed)


def log_likelihoods(
    model: Model, texts: Sequence[str], order: str = "ar", seed: int = 0, orders: int = 1
) -> list[Likelihood]:
    """`log_likelihood` of several whole texts, a batch at a time. No text's result depends on the others."""
    check_list("texts", texts)
    check_order(model, order)
    tokens = [lay_out([text], [], model.codec).tokens for text in texts]
    given = [[i == 0 for i in range(len(t))] for t in tokens]
    return token_log_likelihoods(model, tokens, given, order, seed, orders, mask_block=model.record.mask_block)
