"""The bound of masked diffusion: one stream against transformers, and draws against enumeration over a small vocabulary."""

import itertools
import math

import brute_force
import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from model_folders import load_arrays, save_model

from a3jax.checkpoint.folder import find, load_params
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.export.exporter import export_model
from a3jax.likelihood import held_out as held_outs
from a3jax.likelihood.forward import bound
from a3jax.likelihood.held_out import HeldOut
from a3jax.likelihood.scoring import token_log_likelihood, token_log_likelihoods
from a3jax.model.network import Network
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import MaskedRows, draw_masking, example_keys

HOW = Compute(attention="dense")
V, N = 3, 4
"""Words, and tokens behind the first."""


def test_one_stream_computes_what_transformers_does_of_an_export_with_everything_in_sight(imported, tmp_path):
    checkpoint = imported("llama")
    network = nnx.merge(graph(checkpoint.config), load_params(checkpoint))
    rng = np.random.default_rng(0)
    tokens, masked = rng.integers(0, 300, (2, 20)), rng.random((2, 20)) < 0.5
    place, whole = np.broadcast_to(np.arange(20), (2, 20)), np.full((2, 20), 20)
    rows = MaskedRows(place, masked, place, np.zeros_like(place), whole)
    logits = jax.jit(lambda tokens, rows: network.masked_hidden(tokens, rows, HOW) @ network.output_matrix.T)
    ours = np.asarray(logits(tokens, rows))

    arrays, folder = load_arrays(checkpoint), tmp_path / "exported"
    record = Provenance("source", objective="diffusion", mask_block=0)
    save_model(tmp_path / "model", checkpoint.config, arrays, record, byte_codec().files)
    export_model(find(tmp_path / "model"), folder, "llama")
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    with torch.no_grad():
        read = theirs.get_input_embeddings()(torch.from_numpy(tokens))
        read[torch.from_numpy(masked)] = torch.from_numpy(np.load(folder / "mask_vector.npy"))
        logits = theirs(inputs_embeds=read, attention_mask=torch.zeros(2, 1, 20, 20)).logits.numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def small(tiny, network):
    """A model of three words."""
    config = tiny(layers=2, vocab=V)
    net = network(config)
    return config, net, nnx.to_pure_dict(nnx.state(net, nnx.Param))


def by_mask(config, params, text):
    """For every set of masked places, log p of each of them given the others."""
    found = {}
    for masked in itertools.product([False, True], repeat=N):
        logits = brute_force.masked_stream(config, params, text, [False, *masked])
        log_p = brute_force.log_softmax(logits)
        found[masked] = {i: log_p[i, text[i + 1]] for i in range(N) if masked[i]}
    return found


def log_likelihood(found):
    """Of the model that draws an order, then tokens one after the other; and the mean over orders of theirs."""
    each = []
    for order in itertools.permutations(range(N)):
        masked, total = [True] * N, 0.0
        for place in order:
            total += found[tuple(masked)][place]
            masked[place] = False
        each.append(total)
    return np.logaddexp.reduce(each) - math.log(len(each)), np.mean(each)


def test_the_mean_of_draws_is_the_bound_which_is_below_the_likelihood_of_a_distribution(small):
    config, net, params = small
    text = [1, 2, 0, 1, 1]
    found = by_mask(config, params, text)
    exact = sum(sum(log_p.values()) / (len(log_p) * math.comb(N, len(log_p))) for log_p in found.values() if log_p)
    likelihood, mean_over_orders = log_likelihood(found)
    assert exact == pytest.approx(mean_over_orders, abs=1e-9)
    assert exact < likelihood - 1e-3
    texts = [[1, *rest] for rest in itertools.product(range(V), repeat=N)]
    total = np.logaddexp.reduce([log_likelihood(by_mask(config, params, one))[0] for one in texts])
    assert total == pytest.approx(0, abs=1e-9)

    draws = 4000
    tokens, segments = np.tile(text, (draws, 1)), np.ones((draws, N + 1), np.int32)
    masking = draw_masking(example_keys(0, 0, draws), segments)
    each = np.asarray(jax.jit(lambda *of: bound(net, *of, HOW))(tokens, masking), np.float64).sum(1)
    assert each.mean() == pytest.approx(exact, abs=4 * float(each.std()) / math.sqrt(draws))

    model = Network(config, nnx.state(net, nnx.Param), HOW)
    scored = token_log_likelihood(model, text, [True] + [False] * N, "bound", orders=400)
    assert scored.is_bound
    assert scored.total == pytest.approx(exact, abs=4 * scored.error)
    assert scored.error == pytest.approx(float(each.std()) / math.sqrt(400), rel=0.2)
    assert sum(scored.log_probs) == pytest.approx(scored.total, rel=1e-5)


def test_no_bound_depends_on_what_else_is_scored(small):
    config, net, _ = small
    model = Network(config, nnx.state(net, nnx.Param), HOW)
    texts = [[1, 2, 0, 1, 1], [0, 0, 2], np.random.default_rng(0).integers(0, V, 40).tolist()]
    given = [[place < 2 for place in range(len(text))] for text in texts]
    together = token_log_likelihoods(model, texts, given, "bound", seed=3, orders=5)
    for text, known, one in zip(texts, given, together):
        alone = token_log_likelihood(model, text, known, "bound", seed=3, orders=5)
        np.testing.assert_allclose(alone.totals, one.totals, rtol=1e-5)
        assert len(one.tokens) == len(text) - 2


@pytest.mark.long
def test_the_held_out_bound_is_the_mean_of_draws_with_its_error(tiny, network, packed):
    config = tiny(layers=2)
    params = nnx.state(network(config), nnx.Param)
    tokens = np.random.default_rng(5).integers(0, config.vocab, packed.shape).astype(np.int32)
    windows = {"tokens": tokens, "segments": packed}
    found = HeldOut(windows, batch=2, mask_block=0).nll(Network(config, params, HOW))
    assert tuple(found) == ("ar", "bound")
    draws = []
    for draw in range(held_outs.DRAWS):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(example_keys(0, 0, 4)[:3])  # noqa: B023
        masking = jax.tree.map(np.asarray, draw_masking(keys, packed))
        total = 0.0
        for row, segments in enumerate(packed):
            for number in np.unique(segments[segments > 0]):
                place = np.flatnonzero(segments == number)
                masked = masking.masked[row, place]
                log_p = brute_force.log_softmax(
                    brute_force.masked_stream(config, nnx.to_pure_dict(params), tokens[row, place], masked)
                )
                weight = masking.weight[row, place]
                total -= sum(weight[t] * log_p[t - 1, tokens[row, place[t]]] for t in range(1, len(place)))
        draws.append(total / masking.predicted.sum())
    assert found["bound"].nll == pytest.approx(np.mean(draws), rel=1e-5)
    assert found["bound"].nll_error == pytest.approx(np.std(draws, ddof=1) / math.sqrt(len(draws)), rel=1e-4)
    both = HeldOut(windows, batch=3, mask_block=0).nll(Network(config, params, HOW))
    assert both["bound"].nll == pytest.approx(found["bound"].nll, rel=1e-5)


def test_the_bound_of_blocks_of_one_is_the_likelihood_from_left_to_right(small):
    config, net, _ = small
    model = Network(config, nnx.state(net, nnx.Param), HOW)
    text = np.random.default_rng(1).integers(0, V, 17).tolist()
    given = [place < 3 for place in range(len(text))]
    exact = token_log_likelihood(model, text, given)
    found = token_log_likelihood(model, text, given, "bound", orders=2, mask_block=1)
    np.testing.assert_allclose(found.log_probs, exact.log_probs, atol=1e-5)
    assert found.spread == pytest.approx(0, abs=1e-5)


def test_the_mean_of_draws_of_blocks_is_their_bound(small):
    """Two blocks of a text: the first holds its first token and one more, the second three."""
    config, net, params = small
    text, block_of = [1, 2, 0, 1, 1], [0, 0, 0, 1, 1]
    exact = 0.0
    for block in ([1, 2], [3, 4]):
        for masked in itertools.product([False, True], repeat=2):
            if any(masked):
                hidden = np.isin(np.arange(5), [place for place, here in zip(block, masked) if here])
                log_p = brute_force.block_log_probs(config, params, text, hidden, block_of)
                exact += sum(log_p[t, text[t]] for t in np.flatnonzero(hidden)) / (sum(masked) * math.comb(2, sum(masked)))
    model = Network(config, nnx.state(net, nnx.Param), HOW)
    scored = token_log_likelihood(model, text, [True] + [False] * N, "bound", orders=400, mask_block=3)
    assert scored.error > 0
    assert scored.total == pytest.approx(exact, abs=4 * scored.error)
