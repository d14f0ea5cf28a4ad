"""Any-order, any-subset language models from pretrained autoregressive ones, in JAX (arXiv 2601.13228)."""

from typing import TYPE_CHECKING, Any

from a3jax.errors import UserError

if TYPE_CHECKING:
    from a3jax.api import (
        Blank,
        Infilled,
        Likelihood,
        Model,
        infill,
        infill_batch,
        load,
        log_likelihood,
        token_log_likelihood,
    )

__all__ = [
    "Blank",
    "Infilled",
    "Likelihood",
    "Model",
    "UserError",
    "infill",
    "infill_batch",
    "load",
    "log_likelihood",
    "token_log_likelihood",
]


def __getattr__(name: str) -> Any:
    """Import the interface, and JAX with it, when something of it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'a3jax' has no attribute '{name}'")
    from a3jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
