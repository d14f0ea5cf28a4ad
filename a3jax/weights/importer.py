"""Pretrained weights -> a model folder, tensor by tensor, checked against the table before anything is written."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
from flax import nnx

from a3jax.checkpoint import save_model
from a3jax.config import ModelConfig
from a3jax.errors import UserError
from a3jax.folders import refuse_existing
from a3jax.model.parameters import shapes
from a3jax.progress import Progress
from a3jax.weights.source import Source, tokenizer_size
from a3jax.weights.table import QUERY_SEED, Entry, entries

_IGNORED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the configuration."""


def import_model(source: Source, out: Path, dtype: str | None = None) -> ModelConfig:
    """Write `source` as a model folder at `out`, in its own dtype or the one given.

    Holds the whole model in the target dtype and one tensor of the source. Raises `UserError`, with nothing written,
    for a missing, unexpected, misshapen or non-finite tensor, and for a tokenizer that does not fit the weights.
    """
    refuse_existing(out)
    config = source.config
    if (size := tokenizer_size(source.tokenizer["tokenizer.json"], "tokenizer.json")) > config.vocab:
        raise UserError(f"tokenizer.json has ids up to {size - 1}, but the weights have {config.vocab} embeddings")
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
            _set(tree, entry.ours, _read_entry(source, entry, _get(tree, entry.ours).shape, dtype, progress))
    if not has_seed:
        embedding = tree["embedding"]
        tree["query_seed"] = embedding.mean(0, dtype=np.float32).astype(embedding.dtype)
    return tree


def _read_entry(
    source: Source, entry: Entry, shape: tuple[int, ...], dtype: np.dtype | None, progress: Progress
) -> np.ndarray:
    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = source.read(name)
        if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
            raise UserError(f"tensor {name} holds NaN or infinity; the file is damaged")
        progress.advance(tensor.size)
        return entry.to_ours(tensor.astype(dtype or tensor.dtype, copy=False), shape)

    if not entry.per_layer:
        return read(entry.theirs, shape)
    first = read(entry.theirs.format(i=0), shape[1:])
    stacked = np.empty(shape, first.dtype)
    stacked[0] = first
    for i in range(1, shape[0]):
        stacked[i] = read(entry.theirs.format(i=i), shape[1:])
    return stacked


def _check_shapes(source: Source) -> None:
    tree = nnx.to_pure_dict(shapes(source.config))
    found = source.shapes()
    expected: dict[str, tuple[int, ...]] = {}
    for entry in entries(source.config):
        shape = _get(tree, entry.ours).shape
        if entry.per_layer:
            names = {entry.theirs.format(i=i): entry.their_shape(shape[1:]) for i in range(shape[0])}
        else:
            names = {entry.theirs: entry.their_shape(shape)}
        expected |= names
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"tensor {name} is missing from the weights")
        if found[name] != shape:
            raise UserError(f"tensor {name} has shape {found[name]}; config.json asks for {shape}")
    allowed = {QUERY_SEED.theirs} | ({"lm_head.weight"} if source.config.tied_head else set())
    for name in found:
        if name not in expected and name not in allowed and not name.endswith(_IGNORED):
            raise UserError(f"tensor {name} is not part of a {source.config.family} model; it would be lost")


def _get(tree: dict[str, Any], path: str) -> jax.ShapeDtypeStruct:
    for part in path.split("."):
        tree = tree[part]
    return tree


def _set(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    *parents, last = path.split(".")
    for part in parents:
        tree = tree[part]
    tree[last] = value
