"""Decoding with adapters of the query stream: the chain rule, and the source model's own words from left to right."""

import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from filling import HOW, document, fill, log_probs, teacher_forced

DOCUMENTS = [document(n) for n in ([5, 11, 3, 1, 4, 9, 2], [1, 40], [2, 13, 20])]


@pytest.mark.parametrize(
    ("order", "options"),
    long_after(
        2,
        [
            ("in_order_4", {}),
            ("random_4", {}),
            ("ar", {"mode": "dynamic", "threshold": 0.2, "commit": 4}),
            ("random_1", {"mode": "speculative"}),
        ],
    ),
)
def test_chain_rule(order, options, tiny, network):
    net = network(tiny(layers=2, context=256, adapter_rank=3))
    drawn, filled = fill(net, DOCUMENTS, order, seed=1, temperature=1.0, **options)
    if options.get("mode") == "dynamic":
        teacher = teacher_forced(net, DOCUMENTS, filled)
    else:
        teacher = np.asarray(log_probs(net, jnp.asarray(filled.tokens_BxL), drawn.order, compute=HOW))
    np.testing.assert_allclose(filled.log_probs_BxL, teacher, atol=1e-4)


@pytest.mark.parametrize("mode", long_after(1, ["groups", "speculative"]))
def test_left_to_right_it_is_the_source_model(mode, tiny, network, without_adapters):
    net = network(tiny(layers=2, context=256, adapter_rank=3))
    documents = [document([9, 30]), document([2, 17])]
    adapted, source = (fill(one, documents, "ar", mode=mode)[1] for one in (net, without_adapters(net)))
    np.testing.assert_array_equal(adapted.tokens_BxL, source.tokens_BxL)
    np.testing.assert_allclose(adapted.log_probs_BxL, source.log_probs_BxL, atol=1e-6)
    adapted, source = (fill(one, documents, "random_4")[1] for one in (net, without_adapters(net)))
    assert (adapted.log_probs_BxL != source.log_probs_BxL).any()
