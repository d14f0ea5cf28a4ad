"""A checkpoint -> a Hugging Face folder: both streams with their PyTorch code, or plain weights of the family's own class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
from safetensors.numpy import save_file

from a3jax.checkpoint import Checkpoint, load_arrays
from a3jax.config import ModelConfig, nearest, to_json
from a3jax.errors import UserError
from a3jax.folders import check_new, complete_or_nothing
from a3jax.progress import Progress
from a3jax.weights import a3_folder, families
from a3jax.weights.card import model_card
from a3jax.weights.importer import is_finite
from a3jax.weights.source import TOKENIZER_FILES
from a3jax.weights.table import QUERY_SEED, Entry, entries

SHARD_BYTES = 5_000_000_000
"""Largest safetensors file, unless one tensor alone is larger."""


def export_model(
    checkpoint: Checkpoint, out: Path, style: str = "a3", dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `checkpoint` as a Hugging Face folder at `out`, in `dtype` or the one in which it is saved.

    `style` is "a3" for both streams with the PyTorch twin, or the name of the model's family for plain weights that
    transformers loads by itself. Holds the whole model and one shard. Raises `UserError`, with nothing written, for
    another style, a number that is not finite in `dtype`, and a full disk.
    """
    check_new(out)
    config, both = checkpoint.config, style == a3_folder.MODEL_TYPE
    if not both and style != config.family:
        hint = nearest(style, (a3_folder.MODEL_TYPE, config.family))
        raise UserError(f"cannot export as '{style}'{hint}; this model can be exported as 'a3' or '{config.family}'")
    arrays = load_arrays(checkpoint)
    dtype_name = dtype or arrays["embedding"].dtype.name
    shards = _shards(list(_tensors(config, arrays, dtype, both)), shard_bytes)
    to_hf = a3_folder.to_hf if both else families.to_hf
    ends = list(config.end_tokens)
    with complete_or_nothing(out) as partial:
        _write_weights(partial, shards)
        _write_json(partial / "config.json", to_hf(config, dtype_name))
        tokens = {"bos_token_id": config.start_token, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
        _write_json(partial / "generation_config.json", {k: v for k, v in tokens.items() if v is not None})
        for name in TOKENIZER_FILES:
            if (checkpoint.folder / name).is_file():
                (partial / name).write_bytes((checkpoint.folder / name).read_bytes())
        (partial / "README.md").write_text(model_card(out.name, config, checkpoint.record, both))
        if both:
            (partial / a3_folder.RECORD).write_text(to_json(checkpoint.record))
            for file in a3_folder.TWIN:
                (partial / file.name).write_bytes(file.read_bytes())


class _Tensor(NamedTuple):
    """One tensor to be written; its numbers are laid out only when its shard is."""

    name: str
    entry: Entry
    array: np.ndarray
    """Ours, a view of one layer."""
    dtype: np.dtype

    @property
    def size(self) -> int:
        """In bytes, as written."""
        return self.array.size * self.dtype.itemsize

    def theirs(self) -> np.ndarray:
        """The tensor as written. Raises `UserError` if it is not finite."""
        with np.errstate(over="ignore"):
            cast = self.array.astype(self.dtype, copy=False)
        if not is_finite(cast):
            raise UserError(f"tensor {self.name} holds NaN, or numbers too large for {self.dtype}; nothing was exported")
        return self.entry.to_theirs(cast)


def _tensors(config: ModelConfig, arrays: dict[str, Any], dtype: str | None, both: bool) -> Iterator[_Tensor]:
    for entry in entries(config) + ((QUERY_SEED,) if both else ()):
        array = entry.get(arrays)
        layers = array if entry.per_layer else array[None]
        for name, layer in zip(entry.names(config.layers), layers, strict=True):
            yield _Tensor(name, entry, layer, np.dtype(dtype or array.dtype))


def _shards(tensors: list[_Tensor], limit: int) -> list[list[_Tensor]]:
    """Tensors in order, in as few files as keep each within `limit` bytes."""
    shards: list[list[_Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        if tensor.size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.size
    return shards


def _write_weights(folder: Path, shards: list[list[_Tensor]]) -> None:
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    with Progress("export", sum(tensor.array.size for shard in shards for tensor in shard), "parameters") as progress:
        for file, shard in zip(files, shards):
            save_file({tensor.name: tensor.theirs() for tensor in shard}, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)  # safetensors lets nobody else read it
            progress.advance(sum(tensor.array.size for tensor in shard))
    if len(shards) > 1:
        total = sum(tensor.size for shard in shards for tensor in shard)
        weight_map = {tensor.name: file for file, shard in zip(files, shards) for tensor in shard}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
