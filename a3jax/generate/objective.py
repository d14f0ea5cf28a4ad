"""What may be asked of a model, by what it was trained for (`Provenance.objective`)."""

from a3jax.curriculum.stage import BOUND
from a3jax.decode.settings import Decoding
from a3jax.errors import UserError
from a3jax.weights.loading import Model


def check_order(model: Model, order: str) -> None:
    """Raise `UserError` for a likelihood that the model does not have.

    Masked diffusion has a bound, and reads from left to right as any model does; the bound is of nothing else.
    """
    objective = model.record.objective
    if order == BOUND and objective != "diffusion":
        raise UserError(
            f"order bound is for models of objective diffusion, and this one's is {objective}; name another order"
        )
    if objective == "diffusion" and order not in (BOUND, "ar", "in_order_1"):
        raise UserError(
            f"order {order} is for models of two streams, and this one's objective is diffusion; give bound or ar"
        )


def check_mode(model: Model, decoding: Decoding) -> None:
    """Raise `UserError` for a way to fill blanks that the model did not learn."""
    objective, mode = model.record.objective, decoding.mode
    if mode == "diffusion" and objective != "diffusion":
        raise UserError(
            f"mode diffusion is for models of objective diffusion, and this one's is {objective}; name another mode"
        )
    if mode == "fim" and objective != "fim":
        raise UserError(f"mode fim is for models of objective fim, and this one's is {objective}; name another mode")
    in_order = mode in ("ar", "groups", "speculative") and decoding.order in ("ar", "in_order_1")
    if objective == "diffusion" and mode != "diffusion" and not in_order:
        raise UserError(
            f"mode {mode} is for models of two streams, and this one's objective is diffusion; give mode diffusion or ar"
        )
