"""The gradient of group k's loss with respect to the content of groups >= k is exactly zero, and not of those before.

Every token of a window is its own word, so the gradient of the embedding's rows is that of single tokens' content.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import long_after
from flax import nnx
from small_models import ODD

from a3jax.attention import chunked, flash, interface, splash
from a3jax.checkpoint.folder import load_params
from a3jax.config import Experts
from a3jax.curriculum.stage import Part
from a3jax.model.parameters import graph as two_streams
from a3jax.model.two_stream import Compute
from a3jax.ordering import example_keys

L = 24
DRAWS = [
    Part(1.0, "random", 4, 0.5),
    Part(1.0, "random", 1),
    Part(1.0, "random", 64),
    Part(1.0, "spans", 4, 0.5),
    Part(1.0, "infill", 8, 0.3),
    Part(1.0, "in_order", 4, 0.5),
    Part(1.0, "random", 3, prefix=0.7, sizes="geometric"),
    Part(1.0, "spans", 3, sizes="geometric"),
    Part(1.0, "right_to_left", 5, prefix=0.5, sizes="uniform"),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "ROW_BLOCK", 8)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 8)


LOCAL = {"local_layers": (0,), "local_window": 4, "attention_cap": 2.0, "logit_cap": 5.0, "post_norm": True}
LOCAL["attention_sinks"] = True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "seeding", "changes"),
    long_after(
        4,
        [
            *(
                ("dense", "two_sided", {}),
                ("dense", "successor", {}),
                ("chunked", "successor", LOCAL),
                ("flash", "learned", {}),
            ),
            *(("splash", "successor", {}), ("flash", "successor", {}), ("flash", "learned", LOCAL)),
            *((path, "learned", {}) for path in ("dense", "chunked", "splash")),
            ("dense", "successor", {"experts": Experts(4, 2)}),
        ],
    ),
)
def test_no_group_sees_itself_or_a_later_one_and_sees_all_before(
    attention, seeding, changes, tiny, network, packed, draw, monkeypatch
):
    for kernels, name, platform in [(splash, "splash", "tpu"), (flash, "flash", "gpu")]:
        if name == attention:
            whole = getattr(kernels, f"{name}_attention")
            monkeypatch.setattr(kernels, f"{name}_attention", functools.partial(whole, interpret=True))
            monkeypatch.setattr(interface, "platform", lambda platform=platform: platform)
    config = tiny(vocab=L, seeding=seeding, layers=2, **changes)
    assert_nothing_leaks(network(config), Compute(attention=attention), packed, draw)


@pytest.mark.long
@pytest.mark.parametrize("case", ODD)
def test_nothing_leaks_in_any_family(case, imported, packed, draw):
    net = nnx.merge(two_streams(imported(case).config), load_params(imported(case)))
    assert_nothing_leaks(net, Compute(), packed, draw, (DRAWS[0], DRAWS[6]))


def assert_nothing_leaks(net, how, packed, draw, draws=DRAWS):
    """And, where a layer of the model has no window, that all that comes before is seen."""
    graph, params = nnx.split(net)
    seeding, local = net.config.seeding, len(net.config.local_layers) == net.config.layers
    tokens = np.random.default_rng(0).permutation(L)[None]

    @jax.jit
    def sensitivity(order):
        """L x L: does the loss of the row's slot move with the content of the column's token of the window?"""

        def losses(content_VxD):
            moved = nnx.State({**params, "embedding": params["embedding"].replace(content_VxD)})
            hidden = nnx.merge(graph, moved).query_hidden(tokens, order, how)
            targets = jnp.take_along_axis(tokens, order.token_index, axis=1)
            logits = nnx.merge(graph, params).logits(hidden[0])  # a head that is the embedding does not move
            return -jax.nn.log_softmax(logits)[jnp.arange(L), targets[0]]

        gradient_LxVxD = jax.jacrev(losses)(params["embedding"][...])
        return jnp.abs(gradient_LxVxD).max(-1)[:, tokens[0]]

    for number, part in enumerate(draws):
        for example, segments in enumerate(packed):
            key = example_keys(0, number, 3)[example]
            rest = {"prefix": part.prefix, "sizes": part.sizes}
            _, groups, order = draw(key, segments, part.family, part.group_size, part.given, seeding, **rest)
            moves = sensitivity(jax.tree.map(lambda x: x[None], order))
            check(np.asarray(moves), order.token_index, groups, segments, local)


def check(moves, token, groups, segments, local):
    for slot, t in enumerate(token):
        if not segments[t]:
            continue
        before = (segments == segments[t]) & (groups < groups[t])
        assert (moves[slot, ~before] == 0).all(), "a leak"
        for group in () if local else set(groups[before]):
            assert (moves[slot, before & (groups == group)] > 0).any(), "an earlier group is not seen"
