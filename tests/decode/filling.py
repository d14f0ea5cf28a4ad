"""What the tests of decoding share: documents with blanks, and filling them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from a3jax.decode.cached import plan
from a3jax.decode.loop import decode
from a3jax.decode.settings import Decoding
from a3jax.likelihood import forward
from a3jax.model.network import Network
from a3jax.model.two_stream import Compute
from a3jax.ordering import arrange

HOW = Compute()
log_probs = jax.jit(forward.log_probs, static_argnames=("compute",))


def document(lengths, vocab=48, seed=0):
    """Tokens and given mask; `lengths` are in turn of given pieces and of blanks."""
    given = np.concatenate([np.full(n, i % 2 == 0) for i, n in enumerate(lengths)])
    tokens = np.random.default_rng(seed).integers(0, vocab, len(given))
    return np.where(given, tokens, 0).tolist(), given.tolist()


def fill(net, documents, order, allowed=None, seed=0, compute=HOW, restricted=None, **options):
    """The plan, and what it became. Document i uses seed + i."""
    config = net.config
    decodings = [Decoding(order=order, seed=seed + i, **options) for i in range(len(documents))]
    allowed = np.ones(config.vocab, bool) if allowed is None else allowed
    tokens, given = zip(*documents)
    allowed_1xV = jnp.asarray(allowed)[None]
    drawn = plan(decodings, tokens, given, config, allowed_1xV, restricted=restricted)
    return drawn, decode(Network(config, nnx.state(net, nnx.Param), compute), drawn, decodings[0])


def teacher_forced(net, documents, filled, restriction=None):
    """Log-probabilities by place where the groups are those that each pass decided, given tokens one by one before them."""
    rows = []
    for (tokens, _), filled_L, passes_L in zip(documents, filled.tokens_BxL, filled.passes_BxL):
        own = np.arange(len(filled_L)) < len(tokens)
        given = own & (passes_L == 0)
        groups = np.where(given, np.cumsum(given), len(own) + passes_L).astype(np.int32)
        order = arrange(groups, given, own.astype(np.int32), net.config.seeding)
        known = jax.tree.map(lambda x: x[len(rows)][None], restriction)
        tokens_1xL, order = jnp.asarray(filled_L)[None], jax.tree.map(lambda x: x[None], order)
        rows.append(log_probs(net, tokens_1xL, order, compute=HOW, restriction=known)[0])
    return np.stack(rows)
