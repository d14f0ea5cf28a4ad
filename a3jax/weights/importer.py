"""Pretrained weights -> a model folder, tensor by tensor, checked against the table before anything is written."""

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
from flax import nnx

from a3jax.checkpoint import save_model
from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.folders import check_new
from a3jax.model.parameters import shapes
from a3jax.progress import Progress
from a3jax.weights.source import Source, tokenizer_size
from a3jax.weights.table import QUERY_SEED, Entry, entries

_IGNORED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the configuration."""


def import_model(source: Source, out: Path, dtype: str | None = None) -> ModelConfig:
    """Write `source` as a model folder at `out`, in its own dtype or the one given.

    Holds the whole model in the target dtype, and twice the parameter that is being stacked. Raises `UserError`, with
    nothing written, for a missing, unexpected, misshapen or non-finite tensor, and for a tokenizer that does not fit.
    """
    check_new(out)
    config = source.config
    if (size := tokenizer_size(source.tokenizer["tokenizer.json"], "tokenizer.json")) > config.vocab:
        raise UserError(
            f"tokenizer.json has ids up to {size - 1}, but the weights have {config.vocab} embeddings; "
            "use the tokenizer that belongs to the weights"
        )
    _check_shapes(source)
    params = read_params(source, np.dtype(dtype) if dtype else None)
    save_model(out, config, params, source.record, source.tokenizer)
    return config


def read_params(source: Source, dtype: np.dtype | None) -> dict[str, Any]:
    """All parameters as a nested dict of numpy arrays. The query seed starts as the mean token embedding."""
    config = source.config
    tree = nnx.to_pure_dict(shapes(config))
    has_seed = QUERY_SEED.theirs in source.shapes()
    table = entries(config) + ((QUERY_SEED,) if has_seed else ())
    total = sum(int(np.prod(shape)) for shape in source.shapes().values())
    with Progress("import", total, "parameters") as progress:
        for entry in table:
            entry.set(tree, _read_entry(source, entry, entry.get(tree).shape, dtype, progress))
    if not has_seed:
        embedding = tree["embedding"]
        tree["query_seed"] = embedding.mean(0, dtype=np.float32).astype(embedding.dtype)
    return tree


def _read_entry(
    source: Source, entry: Entry, shape: tuple[int, ...], dtype: np.dtype | None, progress: Progress
) -> np.ndarray:
    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = source.read(name)
        if not is_finite(tensor):
            raise UserError(f"tensor {name} holds NaN or infinity; the file is damaged")
        with np.errstate(over="ignore"):
            cast = tensor.astype(dtype or tensor.dtype, copy=False)
        if not is_finite(cast):
            raise UserError(f"tensor {name} does not fit into {dtype}; choose bfloat16 or float32")
        progress.advance(tensor.size)
        return entry.to_ours(cast, shape)

    if not entry.per_layer:
        return read(entry.theirs, shape)
    return np.stack([read(name, shape[1:]) for name in entry.names(shape[0])])


def is_finite(tensor: np.ndarray) -> bool:
    """Whether no number of a tensor, bfloat16 included, is NaN or infinite."""
    return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())


def _check_shapes(source: Source) -> None:
    config, found = source.config, source.shapes()
    tree = nnx.to_pure_dict(shapes(config))
    expected: dict[str, tuple[int, ...]] = {}
    for entry in entries(config):
        shape = entry.get(tree).shape
        expected |= dict.fromkeys(entry.names(config.layers), entry.their_shape(shape[1:] if entry.per_layer else shape))
    if QUERY_SEED.theirs in found:
        expected[QUERY_SEED.theirs] = (config.width,)
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"tensor {name} is missing from the weights")
        if found[name] != shape:
            raise UserError(f"tensor {name} has shape {found[name]}; its configuration asks for {shape}")
    allowed = {"lm_head.weight"} if config.tied_head else set()
    for name in found:
        if name not in expected and name not in allowed and not name.endswith(_IGNORED):
            raise UserError(f"tensor {name} is not part of a {config.family} model; it would be lost")
