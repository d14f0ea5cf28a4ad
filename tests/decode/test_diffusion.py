"""Masked diffusion, of whole texts and block by block: against recomputation from scratch, pass by pass."""

import brute_force
import numpy as np
import pytest
from chosen import long_after
from filling import document, fill
from flax import nnx

from a3jax.decode import diffusion
from a3jax.decode.settings import Decoding
from a3jax.errors import UserError


def by_hand(net, tokens, given, certainty, steps, remask):
    """Greedy tokens, the pass that decided each, and log p of each then."""
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    tokens, passes, nats = np.array(tokens), np.where(given, 0, -1), np.zeros(len(tokens))
    blanks = int((~np.array(given)).sum())
    steps = min(steps, blanks)
    for number in range(1, steps + 1):
        decided = np.flatnonzero(passes > 0)
        again = decided[np.argsort(nats[decided], kind="stable")[:remask]] if remask else []
        passes[again] = -1
        log_p = brute_force.log_softmax(brute_force.masked_stream(net.config, params, tokens, passes < 0))
        open_ = np.flatnonzero(passes < 0)
        here = log_p[open_ - 1]
        best = here.max(1)
        sure = best if certainty == "confidence" else (np.exp(here) * here).sum(1)
        due = -(-blanks * number // steps) - (blanks - len(open_))
        for i in np.argsort(-sure, kind="stable")[:due]:
            tokens[open_[i]], passes[open_[i]], nats[open_[i]] = here[i].argmax(), number, best[i]
    assert (passes >= 0).all()
    return tokens, passes, nats


@pytest.mark.parametrize(
    ("certainty", "steps", "remask"), [("confidence", 5, 0), ("entropy", 4, 0), ("confidence", 6, 2), ("confidence", 100, 0)]
)
def test_greedy_choices_equal_recomputation(certainty, steps, remask, tiny, network):
    net = network(tiny(layers=2))
    documents = [document([3, 7, 4, 2, 5, 4, 2]), document([1, 6], seed=1)]
    options = {"certainty": certainty, "steps": steps, "remask": remask}
    _, filled = fill(net, documents, "ar", mode="diffusion", **options)
    for row, (tokens, given) in enumerate(documents):
        expected, passes, nats = by_hand(net, tokens, given, **options)
        np.testing.assert_array_equal(filled.passes_BxL[row, : len(tokens)], passes)
        np.testing.assert_array_equal(filled.tokens_BxL[row, : len(tokens)], expected)
        np.testing.assert_allclose(filled.log_probs_BxL[row, : len(tokens)], nats, atol=1e-4)


def by_hand_in_blocks(net, tokens, given, steps, block):
    """The same of block diffusion, by confidence; passes that only read are not counted."""
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    tokens, passes, nats, order = np.array(tokens), np.where(given, 0, -1), np.zeros(len(tokens)), 0
    block_of = np.arange(len(tokens)) // block
    for number in np.unique(block_of):
        here = block_of == number
        due = -(-int((here & ~np.array(given)).sum()) // steps)
        while (passes[here] < 0).any():
            order += 1
            log_p = brute_force.block_log_probs(net.config, params, tokens, (passes < 0) & here, block_of)
            open_ = np.flatnonzero(here & (passes < 0))
            best = log_p[open_].max(1)
            for i in np.argsort(-best, kind="stable")[:due]:
                tokens[open_[i]], passes[open_[i]], nats[open_[i]] = log_p[open_[i]].argmax(), order, best[i]
    return tokens, passes, nats


@pytest.mark.parametrize(("steps", "block"), long_after(2, [(2, 4), (3, 7), (2, 64), (1, 4), (16, 5), (1, 1)]))
def test_greedy_choices_in_blocks_equal_recomputation_without_a_cache(steps, block, tiny, network):
    net = network(tiny(layers=2))
    documents = [document([3, 7, 4, 2, 25, 4, 2]), document([1, 6], seed=1), document([38, 9], seed=2)]
    _, filled = fill(net, documents, "ar", mode="block_diffusion", steps=steps, block=block)
    for row, (tokens, given) in enumerate(documents):
        expected, passes, nats = by_hand_in_blocks(net, tokens, given, steps, block)
        found = filled.passes_BxL[row, : len(tokens)]
        np.testing.assert_array_equal(np.unique(found, return_inverse=True)[1], np.unique(passes, return_inverse=True)[1])
        np.testing.assert_array_equal(filled.tokens_BxL[row, : len(tokens)], expected)
        np.testing.assert_allclose(filled.log_probs_BxL[row, : len(tokens)], nats, atol=1e-4)


@pytest.mark.parametrize("remask", [0, 2])
def test_a_batch_gives_each_sequence_what_it_gets_alone(remask, tiny, network):
    net = network(tiny(layers=2))
    documents = [document(n) for n in ([5, 11, 3], [1, 20], [2, 13, 9])]
    options = {"mode": "diffusion", "temperature": 1.0, "certainty": "random", "steps": 4, "remask": remask}
    _, batch = fill(net, documents, "ar", seed=5, **options)
    for i, one in enumerate(documents):
        _, alone = fill(net, [one], "ar", seed=5 + i, **options)
        np.testing.assert_array_equal(batch.tokens_BxL[i], alone.tokens_BxL[0])
        np.testing.assert_array_equal(batch.passes_BxL[i], alone.passes_BxL[0])


def test_nothing_is_compiled_twice(tiny, network):
    net = network(tiny(layers=2))
    fill(net, [document([4, 9, 3])], "ar", mode="diffusion")
    before = diffusion.decode_masked._cache_size()
    fill(net, [document([2, 5, 1, 6])], "ar", seed=1, mode="diffusion", temperature=0.5)
    assert diffusion.decode_masked._cache_size() == before


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"mode": "dynamic", "steps": 4}, "steps belongs to mode diffusion"),
        ({"mode": "diffusion", "window": 4}, "window belongs to mode dynamic"),
        ({"mode": "diffusion", "order": "random_2"}, "mode diffusion finds its own order"),
        ({"mode": "diffusion", "steps": 0}, "steps is 0; it must be from 1"),
    ],
)
def test_options_of_other_modes_are_refused(choices, message):
    with pytest.raises(UserError, match=message):
        Decoding(**choices)
