"""A blank's size chosen by likelihood: every one is tried, which any model can do.

What is given before the blank is the same for all sizes. Where it is read from left to right it depends on nothing behind it,
and is read once; every size is filled from a copy of its keys and values, and so are the filled texts scored. What follows
the blank is read for every size. Its places depend on the size: one could turn its keys, which rotate with their places, but
its tokens have attended to what is before at other distances, so that from the second layer on nothing is the same.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.decode.beginning import read_beginnings
from a3jax.decode.cached import Beginning
from a3jax.decode.document import Document
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Range, Template
from a3jax.devices.mesh import fetched, filled_up
from a3jax.generate.continued import Suffix, hidden, single_stream, stacked, suffix_of
from a3jax.generate.filling import document_of
from a3jax.generate.one_by_one import blanks_filled, side_by_side
from a3jax.likelihood.fused_loss import token_nll
from a3jax.likelihood.restriction import Restriction, restriction
from a3jax.model.network import Network
from a3jax.ordering.sequence import bucket
from a3jax.weights.loading import Model

CANDIDATES = 32
"""Sizes of a blank that are tried in one batch at most."""
HEADS_AT_ONCE = 1024
"""Tokens whose logits are held at once."""


def with_lengths(model: Model, template: Template, decoding: Decoding) -> Template:
    """The template with every size chosen, one blank after the other, those not yet chosen at their largest.

    The length taken is that whose filled text has the largest log-likelihood per token, from the blank on, left to right.
    """
    for i, size in enumerate(template.sizes):
        if isinstance(size, Range):
            document_of(model, template, decoding.heal)  # the largest must fit
            lengths = range(size.least, size.most + 1)
            documents = [document_of(model, _sized(template, i, length), decoding.heal) for length in lengths]
            scores = _scores(model, documents, i, decoding)
            template = _sized(template, i, lengths[int(np.argmax(scores))])
    return template


def _sized(template: Template, i: int, size: int) -> Template:
    return dataclasses.replace(template, sizes=(*template.sizes[:i], size, *template.sizes[i + 1 :]))


def _scores(model: Model, documents: Sequence[Document], i: int, decoding: Decoding) -> list[float]:
    """Nats per token of the text from blank i on, once it is filled, for documents that differ in its size alone.

    Batches are filled up to one of few sizes, so that few programs are compiled.
    """
    tokens, given, blanks = documents[0][:3]
    known = [place for place in range(blanks[i].start) if given[place]]
    beginning = read_beginnings(model.network, filled_up([[tokens[place] for place in known]]), filled_up([known]))
    scores: list[float] = []
    for n in range(0, len(documents), CANDIDATES):
        chosen = documents[n : n + CANDIDATES]
        rows = [*chosen, *[chosen[-1]] * (bucket(len(chosen), least=8, steps=2) - len(chosen))]
        read = beginning if decoding.reads_in_order else None
        filled = side_by_side(model, [blanks_filled(model, row, decoding) for row in rows], beginning=read)
        texts = [one.document for one in filled]
        # The text is scored as it stands, so that of what was read only what precedes all blanks is of use.
        found = _nats_per_token(model, beginning, texts, blanks[0].start, blanks[i].start)
        scores += found[: len(chosen)]
    return scores


def _nats_per_token(model: Model, beginning: Beginning, documents: Sequence[Document], alike: int, given: int) -> list[float]:
    """Log-likelihood per token of texts from left to right, but for the first `given` tokens; -inf where there are no more.

    The first `alike` of all texts are those of the beginning.
    """
    config = model.config
    texts = [document.tokens for document in documents]
    begin = alike - 1  # the last one predicts the first that differs
    each = [suffix_of(config, text, given, begin) for text in texts]
    suffix = stacked(bucket(max(len(one.target) for one in each), least=8, steps=4), filled_up(each))
    begun = beginning._replace(length_B=np.full_like(beginning.length_B, begin))
    ahead = single_stream(config, "ar")  # whose rows are those of the places before
    allowed = [{place - begin - ahead: set_V for place, set_V in document.allowed.items()} for document in documents]
    known = restriction(filled_up(allowed), config.vocab)  # by rows
    nats_RxM = fetched(_log_probs(model.network, begun, suffix, known))
    counts = [len(text) - given for text in texts]
    return [float(nats_M.sum(dtype=np.float64)) / n if n else -np.inf for nats_M, n in zip(nats_RxM, counts)]


@jax.jit
def _log_probs(network: Network, beginning: Beginning, suffix: Suffix, known: Restriction) -> Array:
    """Of every target, R x M; 0 where it is not scored. The places of `known` are rows."""
    module, cap = network.module(), network.config.logit_cap
    target_RxM = jnp.asarray(suffix.target)
    owner_R = jnp.zeros(len(target_RxM), jnp.int32)
    hidden_RxMxD, head_VxD = hidden(module, beginning, owner_R, suffix, network.compute), module.output_matrix
    log_prob_RxM = -token_nll(hidden_RxMxD, head_VxD, target_RxM, HEADS_AT_ONCE, cap)
    row_RxM = jnp.broadcast_to(jnp.arange(target_RxM.shape[1]), target_RxM.shape)
    log_prob_RxM = known.rescored(log_prob_RxM, hidden_RxMxD, head_VxD, target_RxM, row_RxM, cap)
    return jnp.where(suffix.scored, log_prob_RxM, 0.0)
