"""Quantized Hugging Face folders, read as plain ones: one file a format, and every tensor made when it is asked for."""

from a3jax.weights.quantized.view import opened, said

__all__ = ["opened", "said"]
