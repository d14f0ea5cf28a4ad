"""A checkpoint -> a Hugging Face folder, of both streams with their PyTorch code or of the family's own class, or GGUF."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np

from a3jax.checkpoint.folder import Checkpoint, damage_named
from a3jax.config import ModelConfig
from a3jax.data.tokenizer import fillable, load_codec
from a3jax.data.tokenizer_files import FILES, put_before
from a3jax.errors import UserError
from a3jax.export.card import adapter_card, model_card, peft_card
from a3jax.files.folders import check_new, complete_or_nothing, new_file, resumable
from a3jax.files.places import version
from a3jax.files.strict import misspelt, to_json
from a3jax.model.adapters import adapted, content_is_fixed, factors, merged, source_of
from a3jax.model.parameters import declarations
from a3jax.progress import Progress
from a3jax.weights import a3_folder, adapter_files, configuration, generation, peft_files, sha256
from a3jax.weights.fused import fuse
from a3jax.weights.gguf.writer import write_gguf
from a3jax.weights.importer import is_finite
from a3jax.weights.safetensors_writer import Tensor, write_safetensors
from a3jax.weights.source import without_code
from a3jax.weights.table import QUERY_SEED, Entry, entries
from a3jax.weights.whole import Parameter, parameters

TWIN = tuple(
    Path(__file__).parent / "twin" / f"{name}_a3.py" for name in ("configuration", "decoding", "experts", "modeling")
)
"""The model in PyTorch, which stands alone."""
GGUF, ADAPTERS, PEFT = "gguf", "adapters", "peft"
"""The style that is one file instead of a folder, and those of adapters without the weights that they change: of the query
stream as `a3jax import` takes them, and of both streams as PEFT does."""
MASK_VECTOR = "mask_vector.npy"
"""Beside plain weights, what a model of masked diffusion reads in the place of masked tokens, in float32."""
SHARD_BYTES = 5_000_000_000
"""Largest safetensors file, unless one tensor alone is larger."""


def export_model(
    checkpoint: Checkpoint, out: Path, style: str = "a3", dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `checkpoint` as a Hugging Face folder at `out`, in `dtype` or the one in which it is saved.

    `style` is "a3" for both streams with the PyTorch twin, the name of the model's family for plain weights that
    transformers loads by itself, "gguf" for these as one file of llama.cpp's, "adapters" for what a run has trained beside
    them, which `a3jax import` puts on its source again, or "peft" for the same of both streams as PEFT has it. Holds one
    tensor at a time. An export that was stopped goes on with the first file that is not whole. Raises `UserError`, with
    nothing written, for another style, a number that is not finite in `dtype`, and what GGUF cannot hold.
    """
    check_new(out)
    whole = functools.partial(_export_folder, style=style, shard_bytes=shard_bytes)
    styles: dict[str, Callable[[Checkpoint, Path, str | None], None]] = {
        a3_folder.MODEL_TYPE: whole,
        checkpoint.config.family: whole,
        GGUF: _export_gguf,
        ADAPTERS: _export_adapters,
        PEFT: _export_peft,
    }
    if style not in styles:
        *others, last = (f"'{known}'" for known in styles)
        kinds = f"{', '.join(others)} or {last}"
        raise UserError(f"cannot export as '{style}'{misspelt(style, styles)}; this model can be exported as {kinds}")
    styles[style](checkpoint, out, dtype)


def _export_folder(checkpoint: Checkpoint, out: Path, dtype: str | None, style: str, shard_bytes: int) -> None:
    """Write a Hugging Face folder, of both streams or as its family has it."""
    both = style == a3_folder.MODEL_TYPE
    if both and checkpoint.record.mask_block is not None:
        objective, family = checkpoint.record.objective, checkpoint.config.family
        raise UserError(f"this model's objective is {objective}, which has no two streams; export it as '{family}' or 'gguf'")
    config = _exported(checkpoint.config, both)
    found = parameters(checkpoint)
    dtype_name = dtype or found["embedding"].dtype.name
    made_from: dict[str, Any] = {"params": str(checkpoint.params.resolve()), "written": version(checkpoint.params)}
    made_from |= {"style": style, "dtype": dtype, "shard_bytes": shard_bytes}
    if both:
        settings = a3_folder.to_hf(config, dtype_name, fillable(load_codec(checkpoint.folder), config))
    else:
        settings = configuration.to_hf(config, dtype_name)
    kept = checkpoint.record.generation
    with resumable(out, made_from) as partial, damage_named(checkpoint):
        tensors = _tensors(checkpoint.config, found, dtype, both)
        stored = tensors if both else fuse(tensors, config)
        _write_weights(partial, _shards(list(stored), shard_bytes))
        _write_json(partial / "config.json", settings | generation.padding(kept))
        _write_json(partial / generation.FILE, generation.to_hf(config, kept))
        for name, content in _tokenizer_files(checkpoint).items():
            (partial / name).write_bytes(content)
        (partial / "README.md").write_text(model_card(out.name, config, checkpoint.record, both))
        if checkpoint.record.mask_block is not None:
            np.save(partial / MASK_VECTOR, found["query_seed"].read().astype(np.float32))
        if both:
            (partial / a3_folder.RECORD).write_text(to_json(dataclasses.replace(checkpoint.record, generation={})))
            for file in TWIN:
                (partial / file.name).write_bytes(file.read_bytes())


def _exported(config: ModelConfig, both: bool) -> ModelConfig:
    """The model as it is exported: adapters of both streams are added into the weights, others left out of plain weights."""
    if not both:
        return source_of(config)
    return config if content_is_fixed(config) else dataclasses.replace(config, adapter_rank=0)


def _export_gguf(checkpoint: Checkpoint, out: Path, dtype: str | None) -> None:
    """Write the left-to-right view as one GGUF file; one that was stopped is begun anew."""
    tensors = list(_tensors(checkpoint.config, parameters(checkpoint), None, both=False))
    total = sum(tensor.bytes for tensor in tensors)
    with new_file(out) as partial, damage_named(checkpoint), Progress("export", total, "bytes") as progress:
        write_gguf(partial, checkpoint.config, tensors, _tokenizer_files(checkpoint), out.stem, dtype, progress.advance)


def _export_adapters(checkpoint: Checkpoint, out: Path, dtype: str | None) -> None:
    """Write the adapters of the query stream and query seeds."""
    config = checkpoint.config
    if not content_is_fixed(config):
        raise UserError(f"{checkpoint.folder} has no adapters of the query stream alone; export it as 'a3'")
    found = parameters(checkpoint)
    tensors = {tensor.name: tensor for tensor in _tensors(config, found, None, both=True)}
    own = [tensor for tensor in _tensors(config, found, dtype, both=True) if tensor.name in adapter_files.names(config)]
    card = adapter_card(out.name, config, checkpoint.record)
    with _beside_source(checkpoint, out, adapter_files.TENSORS, own, card) as partial:
        norms = adapter_files.fingerprint(tensors[name].read() for name in adapter_files.norm_names(config))
        described = adapter_files.Adapters(config, checkpoint.record, norms)
        (partial / adapter_files.DESCRIPTION).write_text(to_json(described))


def _export_peft(checkpoint: Checkpoint, out: Path, dtype: str | None) -> None:
    """Write the adapters of both streams over the source's weights."""
    config, frozen = checkpoint.config, checkpoint.frozen
    if not config.adapter_rank or content_is_fixed(config):
        raise UserError(f"{checkpoint.folder} has no adapters of both streams; export it as 'a3', or as 'adapters'")
    own = [entry for entry in entries(config) if entry.kind == "adapter"]
    left = {path for path, it in declarations(config).items() if it.kind not in ("adapter", "seed")}
    if frozen is None or not left <= {*frozen.parameters}:
        raise UserError(f"{checkpoint.folder} has trained more than adapters; export it as '{config.family}'")
    found = parameters(checkpoint)
    tensors = [
        one._replace(name=peft_files.name(one.name)) for entry in own for one in _of(entry, found[entry.ours], dtype, [])
    ]
    described = peft_files.description(checkpoint.record.source, config.adapter_rank, [tensor.name for tensor in tensors])
    card = peft_card(out.name, config, checkpoint.record)
    with _beside_source(checkpoint, out, peft_files.TENSORS, tensors, card) as partial:
        _write_json(partial / peft_files.DESCRIPTION, described)


@contextlib.contextmanager
def _beside_source(checkpoint: Checkpoint, out: Path, file: str, tensors: Sequence[Tensor], card: str) -> Iterator[Path]:
    """The folder `out` with `tensors` and a model card, whose description is still to be written; begun anew if stopped."""
    with complete_or_nothing(out) as partial, damage_named(checkpoint):
        with Progress("export", sum(tensor.bytes for tensor in tensors), "bytes") as progress:
            write_safetensors(partial / file, tensors, progress.advance)
        (partial / "README.md").write_text(card)
        yield partial


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The tokenizer, which begins text as the model's documents begin."""
    files = {name: checkpoint.folder / name for name in FILES}
    found = {name: file.read_bytes() for name, file in files.items() if file.is_file()}
    return put_before(
        without_code(found, str(checkpoint.folder)), checkpoint.config.document_start, str(files["tokenizer.json"])
    )


def _tensors(config: ModelConfig, found: dict[str, Parameter], dtype: str | None, both: bool) -> Iterator[Tensor]:
    merge = set() if content_is_fixed(config) else set(adapted(config))
    for entry in entries(_exported(config, both)) + ((QUERY_SEED,) if both else ()):
        block, _, own = entry.ours.rpartition(".")
        change = [found[f"{block}.{factor}"] for factor in factors(own)] if own in merge else []
        yield from _of(entry, found[entry.ours], dtype, change)


def _of(entry: Entry, parameter: Parameter, dtype: str | None, change: list[Parameter]) -> Iterator[Tensor]:
    """The tensors of a row of the table, with a `change` added in."""
    shape = entry.their_shape(parameter.shape[entry.stacked :])
    target = np.dtype(dtype or parameter.dtype)
    for index, name in entry.names(parameter.shape).items():
        yield Tensor(name, shape, target, functools.partial(_theirs, parameter, change, index, entry, name, target))


def _theirs(
    parameter: Parameter, change: list[Parameter], index: tuple[int, ...], entry: Entry, name: str, dtype: np.dtype
) -> np.ndarray:
    """One tensor as it will be written, its adapter added in. Raises `UserError` if it is not finite."""
    own = parameter.read(index)
    with np.errstate(over="ignore"):
        cast = (merged(own, *(factor.read(index) for factor in change)) if change else own).astype(dtype, copy=False)
    if not is_finite(cast):
        raise UserError(f"tensor {name} holds NaN, or numbers too large for {dtype}; nothing was exported")
    return entry.to_theirs(cast)


def _shards(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Tensors in order, in as few files as keep each within `limit` bytes."""
    shards: list[list[Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        if tensor.bytes > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def _write_weights(folder: Path, shards: list[list[Tensor]]) -> None:
    """One file a shard, each under its name when it is whole; those that are there already stay."""
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    sums = {name: digest for name, digest in sha256.read(folder).items() if (folder / name).is_file()}
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    with Progress("export", total, "bytes") as progress:
        for file, shard in zip(files, shards):
            if file in sums:
                progress.advance(sum(tensor.bytes for tensor in shard))
                continue
            unfinished = folder / f"{file}.unfinished"
            digest = write_safetensors(unfinished, shard, progress.advance)
            unfinished.rename(folder / file)
            sums[file] = digest
            sha256.write(folder, sums)
    if len(shards) > 1:
        weight_map = {tensor.name: file for file, shard in zip(files, shards) for tensor in shard}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
