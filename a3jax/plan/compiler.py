"""Whether the TPU compiler is here, told without JAX."""

import importlib.util

from a3jax.errors import UserError


def check_compiler() -> None:
    """Raise `UserError` where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed; pip install 'a3jax[tpu]' (it needs no TPU)")
