"""Places where not every token may stand, and the distribution of a model that knows it.

Where the first bytes of a token are known (`a3jax.data.healing`), its distribution is the model's given that it is one of
those that begin so: the softmax over them alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from a3jax.model.head import head_logits
from a3jax.ordering.sequence import bucket

Allowed = Mapping[int, np.ndarray]
"""Place -> V bool: the tokens that may stand there. Any may at all others."""


class Restriction(NamedTuple):
    """The `Allowed` of a batch: P restricted places for each text, and the tokens that may stand there."""

    place_BxP: Array
    """-1 where a text has fewer."""
    allowed_BxPxV: Array

    def on(self, logits_BxSxV: Array, place_BxS: Array) -> Array:
        """Logits of the tokens of places, -inf for what may not stand there."""
        here_BxSxP = place_BxS[..., None] == self.place_BxP[:, None]
        allowed_BxSxV = jnp.take_along_axis(self.allowed_BxPxV, here_BxSxP.argmax(axis=-1)[..., None], axis=1)
        return jnp.where(here_BxSxP.any(axis=-1, keepdims=True) & ~allowed_BxSxV, -jnp.inf, logits_BxSxV)

    def rescored(
        self,
        log_prob_BxR: Array,
        hidden_BxRxD: Array,
        head_VxD: Array,
        target_BxR: Array,
        place_BxR: Array,
        cap: float | None,
    ) -> Array:
        """Log-probabilities of the targets of rows, B x R, those of restricted places among what may stand there.

        `place` says where a row's target stands; `hidden`, `head` and `cap` make its logits.
        """
        here_BxPxR = self.place_BxP[..., None] == place_BxR[:, None]
        row_BxP = here_BxPxR.argmax(axis=-1)
        hidden_BxPxD = jnp.take_along_axis(hidden_BxRxD, row_BxP[..., None], axis=1)
        logits_BxPxV = head_logits(hidden_BxPxD, head_VxD, cap)
        log_probs_BxPxV = jax.nn.log_softmax(self.on(logits_BxPxV, self.place_BxP), axis=-1)
        target_BxP = jnp.take_along_axis(target_BxR, row_BxP, axis=1)
        log_prob_BxP = jnp.take_along_axis(log_probs_BxPxV, target_BxP[..., None], axis=-1)[..., 0]
        row_BxP = jnp.where(here_BxPxR.any(axis=-1), row_BxP, log_prob_BxR.shape[1])
        return log_prob_BxR.at[jnp.arange(len(row_BxP))[:, None], row_BxP].set(log_prob_BxP, mode="drop")


def restriction(allowed: Sequence[Allowed], vocab: int) -> Restriction:
    """That of a batch. P is rounded up, so that few programs are compiled."""
    places = bucket(max(map(len, allowed)), least=1)
    place_BxP = np.full((len(allowed), places), -1, np.int32)
    allowed_BxPxV = np.ones((len(allowed), places, vocab), bool)
    for row, each in enumerate(allowed):
        for i, (place, allowed_V) in enumerate(each.items()):
            place_BxP[row, i], allowed_BxPxV[row, i] = place, allowed_V
    return Restriction(jax.device_put(place_BxP), jax.device_put(allowed_BxPxV))
