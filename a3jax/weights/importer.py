"""Pretrained weights -> a model folder, tensor by tensor, checked against the table before anything is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
from flax import nnx

from a3jax.checkpoint.arrays import Form, ParameterWriter
from a3jax.checkpoint.folder import PARAMS, write_description
from a3jax.config import ModelConfig
from a3jax.data.tokenizer import AUTO, codec_of, with_start
from a3jax.errors import UserError
from a3jax.files.folders import check_new, resumable
from a3jax.model.parameters import shapes
from a3jax.progress import Progress
from a3jax.weights import sha256
from a3jax.weights.source import Source
from a3jax.weights.table import QUERY_SEED, Entry, entries

_IGNORED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the configuration."""


def import_model(source: Source, out: Path, dtype: str | None = None, start: str = AUTO) -> ModelConfig:
    """Write `source` as a model folder at `out`, in its own dtype or the one given.

    `start` is the token that documents of the model begin with, "none", or "auto" for the tokenizer's own way. Holds one
    tensor at a time, as read, in the target dtype, and transposed. An import that was stopped goes on where it stood.
    Raises `UserError`, with nothing written, for a non-finite tensor, a file that is not what its checksum says, and a
    tokenizer that has no such token; what else cannot be imported `open_source` has refused.
    """
    check_new(out)
    config = source.config if start == AUTO else with_start(source.config, source.tokenizer, "tokenizer.json", start)
    sha256.check(source.checksums())
    target = np.dtype(dtype) if dtype else None
    with resumable(out, _made_from(source, dtype) | {"start": start}) as partial:
        write_description(partial, config, source.record, source.tokenizer)
        parts = list(_parts(source, target))
        forms = {part.entry.ours: part.form for part in parts} | {QUERY_SEED.ours: _seed_form(source, parts)}
        writer = ParameterWriter(partial / PARAMS, forms)
        with Progress("import", sum(part.bytes for part in parts), "bytes") as progress:
            for part in parts:
                _write(source, part, writer)
                progress.advance(part.bytes)
    return config


def check_source(source: Source) -> None:
    """Raise `UserError` for a missing, unexpected or misshapen tensor, and a tokenizer that does not fit; reads none."""
    if (size := codec_of(source.tokenizer, source.config, "tokenizer.json").vocab) > source.config.vocab:
        raise UserError(
            f"tokenizer.json has ids up to {size - 1}, but the weights have {source.config.vocab} embeddings; "
            "use the tokenizer that belongs to the weights"
        )
    _check_shapes(source)


class _Part(NamedTuple):
    """One tensor of the source and what it becomes."""

    name: str
    """Theirs."""
    entry: Entry
    place: tuple[int, ...]
    """Of the layer, and of the expert."""
    form: Form
    """Of the whole parameter, ours."""
    bytes: int
    """As read."""


def _parts(source: Source, dtype: np.dtype | None) -> Iterator[_Part]:
    """Every tensor in the order of the table. Layers of one parameter that differ in dtype are all saved in float32."""
    config, found = source.config, source.shapes()
    tree = nnx.to_pure_dict(shapes(config))
    for entry in table_of(source):
        shape = entry.get(tree).shape
        names = entry.names(shape)
        dtypes = {source.dtype(name) for name in names.values()}
        saved_as = dtype or (dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32))
        form = Form(shape, saved_as, entry.stacked)
        for index, name in names.items():
            size = int(np.prod(found[name])) * source.dtype(name).itemsize
            yield _Part(name, entry, index, form, size)


def table_of(source: Source) -> tuple[Entry, ...]:
    """The table, with the query seed if the source has one."""
    return entries(source.config) + ((QUERY_SEED,) if QUERY_SEED.theirs in source.shapes() else ())


def _seed_form(source: Source, parts: list[_Part]) -> Form:
    """Of the query seed, which takes the embedding's dtype where the source has none."""
    forms = {part.entry.ours: part.form for part in parts}
    return forms.get(QUERY_SEED.ours) or Form((source.config.width,), forms["embedding"].dtype, 0)


def _write(source: Source, part: _Part, writer: ParameterWriter) -> None:
    """Import one tensor, unless it is there. The query seed of a source without one starts as the mean token embedding."""
    if writer.has(part.entry.ours, part.place):
        return
    tensor = source.read(part.name)
    with np.errstate(over="ignore"):
        cast = tensor.astype(part.form.dtype, copy=False)
    check_finite(tensor, cast, source.where(part.name))
    ours = part.entry.to_ours(cast, part.form.shape[part.form.stacked :])
    if part.entry.ours == "embedding" and QUERY_SEED.theirs not in source.shapes():
        writer.write(QUERY_SEED.ours, mean_embedding(ours))  # first: it is there if this one is
    writer.write(part.entry.ours, ours, part.place)


def check_finite(tensor: np.ndarray, cast: np.ndarray, where: str) -> None:
    """Raise `UserError`, beginning with `where`, if a tensor or a part of one is not finite, or not in another dtype."""
    if not is_finite(tensor):
        raise UserError(f"{where} holds NaN or infinity; the file is damaged")
    if cast.dtype != tensor.dtype and not is_finite(cast):
        raise UserError(f"{where} does not fit into {cast.dtype}; choose bfloat16 or float32")


def mean_embedding(embedding_VxD: np.ndarray) -> np.ndarray:
    """Where the query seed starts, D, or some columns of it: each is summed by itself, row after row."""
    return embedding_VxD.mean(0, dtype=np.float32).astype(embedding_VxD.dtype)


def is_finite(tensor: np.ndarray) -> bool:
    """Whether no number of a tensor, bfloat16 included, is NaN or infinite; a part at a time, to take little memory."""
    return all(bool(np.isfinite(part).all()) for part in np.array_split(tensor, 16))


def _made_from(source: Source, dtype: str | None) -> dict[str, Any]:
    """What tells one import from another: the files, as they are now, and the dtype."""
    files = {str(file.resolve()): [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in source.files()}
    return {"files": files, "dtype": dtype}


def _check_shapes(source: Source) -> None:
    config, found = source.config, source.shapes()
    asked = {"layers": config.layers, "experts": config.experts.count if config.experts else 0}
    for what, count in asked.items():
        if count > len(found):  # before as many names are made
            raise UserError(f"{source.path}: {count} {what} are asked for, and the weights have {len(found)} tensors")
    tree = nnx.to_pure_dict(shapes(config))
    expected: dict[str, tuple[int, ...]] = {}
    for entry in table_of(source):
        shape = entry.get(tree).shape
        expected |= dict.fromkeys(entry.names(shape).values(), entry.their_shape(shape[entry.stacked :]))
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{source.where(name)} is missing from the weights")
        if found[name] != shape:
            raise UserError(f"{source.where(name)} has shape {found[name]}; its configuration asks for {shape}")
    allowed = {"lm_head.weight"} if config.tied_head else set()
    for name in found:
        if name not in expected and name not in allowed and not name.endswith(_IGNORED):
            raise UserError(f"{source.where(name)} is not part of a {config.family} model; it would be lost")
