"""What may be asked of a model, by what it was trained for (`Provenance.objective`)."""

from a3jax.curriculum.stage import BOUND
from a3jax.decode.settings import Decoding
from a3jax.errors import UserError
from a3jax.weights.loading import Model


def check_order(model: Model, order: str) -> None:
    """Raise `UserError` for a likelihood that the model does not have.

    Masked diffusion has a bound, and reads from left to right as any model does; the bound is of nothing else.
    """
    objective, masks = model.record.objective, model.record.mask_block is not None
    if order == BOUND and not masks:
        raise UserError(
            f"order bound is for models of masked diffusion, and this one's objective is {objective}; name another"
        )
    if masks and order not in (BOUND, "ar", "in_order_1"):
        raise UserError(
            f"order {order} is for models of two streams, and this one's objective is {objective}; give bound or ar"
        )


def check_mode(model: Model, decoding: Decoding) -> None:
    """Raise `UserError` for a way to fill blanks that the model did not learn."""
    objective, mode, wanted = model.record.objective, decoding.mode, decoding.objective
    if wanted not in (None, objective):
        raise UserError(f"mode {mode} is for models of objective {wanted}, and this one's is {objective}; name another mode")
    if model.record.mask_block is not None and wanted is None and not decoding.is_left_to_right:
        what = f"mode {mode} is for models of two streams, and this one's objective is {objective}"
        raise UserError(f"{what}; give mode {objective} or ar")
