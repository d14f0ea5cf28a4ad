"""Any-order, any-subset language models from pretrained autoregressive ones, in JAX (arXiv 2601.13228)."""

import importlib
from typing import TYPE_CHECKING, Any

from a3jax.errors import UserError

if TYPE_CHECKING:
    from a3jax.decode.settings import Decoding
    from a3jax.decode.template import Template
    from a3jax.generate.chat import chat
    from a3jax.generate.infill import Blank, Infilled, complete, infill, infill_batch
    from a3jax.generate.text_likelihood import log_likelihood, log_likelihoods
    from a3jax.likelihood.scoring import Likelihood, token_log_likelihood, token_log_likelihoods
    from a3jax.train.callbacks import Callback
    from a3jax.train.loop import fit
    from a3jax.weights.loading import Model, load

__all__ = [
    "Blank",
    "Callback",
    "Decoding",
    "Infilled",
    "Likelihood",
    "Model",
    "Template",
    "UserError",
    "chat",
    "complete",
    "fit",
    "infill",
    "infill_batch",
    "load",
    "log_likelihood",
    "log_likelihoods",
    "token_log_likelihood",
    "token_log_likelihoods",
]
_WHERE = {
    "a3jax.decode.settings": ["Decoding"],
    "a3jax.decode.template": ["Template"],
    "a3jax.generate.chat": ["chat"],
    "a3jax.generate.infill": ["Blank", "Infilled", "complete", "infill", "infill_batch"],
    "a3jax.likelihood.scoring": ["Likelihood", "token_log_likelihood", "token_log_likelihoods"],
    "a3jax.train.callbacks": ["Callback"],
    "a3jax.train.loop": ["fit"],
    "a3jax.weights.loading": ["Model", "load"],
    "a3jax.generate.text_likelihood": ["log_likelihood", "log_likelihoods"],
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and JAX with it, when it is first used."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'a3jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
