"""What a folder or file is, without loading it: models of ours and of others, runs, exports, prepared corpora."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from a3jax.checkpoint.folder import ADAPTERS, CONFIG, MODEL, PARAMS, STEPS, Checkpoint, find, lacking, saved, saved_steps
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Config, ModelConfig
from a3jax.curriculum.plateau import PlateauState
from a3jax.data.corpus import MANIFEST, read_manifest
from a3jax.errors import UserError
from a3jax.files.places import local_copy, local_folder, place, sizes
from a3jax.files.strict import read
from a3jax.model.parameters import count
from a3jax.train import goodput, hosts
from a3jax.train.metrics import last_evaluation
from a3jax.weights import a3_folder, quantized
from a3jax.weights.adapter_files import Adapters
from a3jax.weights.gguf import GgufFile, open_gguf
from a3jax.weights.huggingface import read_description, with_stored_head
from a3jax.weights.pretrained import frozen_source
from a3jax.weights.tensor_files import TensorFiles, read_json

Facts = dict[str, Any]


def describe(path: Path, step: int | None = None) -> Facts:
    """Facts by name, `what` first. Raises `UserError` for anything unknown.

    Only headers and small files are read, and the head of a published model that should be tied and is stored.
    """
    path = place(path)
    for applies, facts in _KINDS:
        if applies(path):
            return facts(path, step)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    raise UserError(f"{path} is none that we know: neither model.json, config.json nor manifest.json in it, nor a .gguf file")


def _model_folder(path: Path, _: int | None) -> Facts:
    checkpoint = find(path)
    return {"what": "model folder", **_network(checkpoint.config), **_saved(checkpoint), **_history(checkpoint.record)}


def _run_folder(path: Path, step: int | None) -> Facts:
    config, steps = read(Config, path / CONFIG), saved_steps(path)
    facts: Facts = {"what": "run folder", "experiment": config.name}
    if not steps:
        return {**facts, "step": f"0 of {config.steps:,}, none saved yet", **_network(read(ModelConfig, path / MODEL))}
    checkpoint = find(path, step)
    at = step if step is not None else steps[-1]
    standing = path / STEPS / str(at) / "standing" / "metadata"
    skipped = read(PlateauState, standing).skipped if standing.is_file() else 0
    number, stage = config.schedule.at(min(at + skipped, config.schedule.steps) - 1)
    facts |= {
        "step": f"{at:,} of {config.steps:,}",
        "curriculum_stage": f"{stage.name}, {number + 1} of {len(config.schedule.stages)}",
        "saved_steps": ", ".join(map(str, steps)),
        "nll": (evaluated := last_evaluation(path)).nll,
        "nll_step": evaluated.step,
        "time": ", ".join(f"{cause} {share:.2%}" for cause, share in goodput.shares(path).items() if share),
        **_hosts(path),
    }
    return {**facts, **_network(checkpoint.config), **_saved(checkpoint), **_history(checkpoint.record)}


def _hosts(run: Path) -> Facts:
    """What each process took of every step for itself, as a histogram: who holds the others up has the longer times."""
    facts: Facts = {}
    for process, beat in hosts.read(run).items():
        counts = ", ".join(
            f"{bucket} s x {n}" for bucket, n in sorted(beat.histogram.items(), key=lambda item: float(item[0]))
        )
        median = f"{beat.own_seconds:.2g} of {beat.step_seconds:.2g} s a step its own"
        facts[f"process_{process}"] = f"{beat.host}, step {beat.step:,}, {median} ({counts})"
    return facts


def _hugging_face_folder(path: Path, _: int | None) -> Facts:
    path = local_folder(path)
    raw, where = read_json(path / "config.json"), str(path / "config.json")
    both = raw.get("model_type") == a3_folder.MODEL_TYPE
    tensors = TensorFiles(path)
    facts: Facts = {"what": "Hugging Face folder, " + ("both streams" if both else "left to right")}
    try:
        tensors = quantized.opened(path, raw)
        facts |= _network(with_stored_head(read_description(path).config, tensors, where))
        facts |= {"quantized": said} if (said := quantized.said(raw)) else {}
    except UserError as error:
        facts |= {"family": raw.get("model_type"), "not_importable": str(error)}
    facts |= _stored(((tensors.shape(name), tensors.dtype(name)) for name in tensors), _sizes(tensors.files()))
    record = path / a3_folder.RECORD
    return facts | (_history(read(Provenance, record)) if record.is_file() else {})


def _adapters_folder(path: Path, _: int | None) -> Facts:
    path = local_folder(path)
    adapters, tensors = read(Adapters, path / ADAPTERS), TensorFiles(path)
    return {
        "what": "adapters, to be put on their source with a3jax import SOURCE MODEL --adapters",
        **_network(adapters.model),
        **_stored(((tensors.shape(name), tensors.dtype(name)) for name in tensors), _sizes(tensors.files())),
        **_history(adapters.record),
    }


def _gguf_file(path: Path, _: int | None) -> Facts:
    path = local_copy(path)
    reader = open_gguf(path)
    facts: Facts = {"what": "GGUF file"}
    try:
        facts |= _network(GgufFile(path).config)
    except UserError as error:
        facts |= {"not_importable": str(error)}
    return facts | _stored(((tensor.shape, tensor.tensor_type.name) for tensor in reader.tensors), _sizes([path]))


def _corpus(path: Path, _: int | None) -> Facts:
    manifest = read_manifest(path)
    splits = {name: f"{split.documents:,} documents, {split.tokens:,} tokens, {len(split.shards)} shards"
              for name, split in (("train", manifest.train), ("held_out", manifest.held_out))}  # fmt: skip
    return {"what": "corpus folder", **splits, "vocabulary": manifest.vocab, "characters": manifest.characters,
            "sources": ", ".join(manifest.sources)}  # fmt: skip


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path, int | None], Facts]], ...] = (
    (lambda path: (path / MODEL).is_file() and (path / PARAMS).is_dir(), _model_folder),
    (lambda path: (path / MODEL).is_file() and (path / CONFIG).is_file(), _run_folder),
    (lambda path: (path / MANIFEST).is_file(), _corpus),
    (lambda path: (path / ADAPTERS).is_file(), _adapters_folder),
    (lambda path: (path / "config.json").is_file(), _hugging_face_folder),
    (lambda path: path.is_file() and path.suffix == ".gguf", _gguf_file),
)


def _network(config: ModelConfig) -> Facts:
    heads = f"{config.query_heads} query, {config.kv_heads} key-value, width {config.head_width}"
    scaling = f", stretched ({type(config.rope_scaling).__name__.removesuffix('Scaling')})" if config.rope_scaling else ""
    local = f"{len(config.local_layers)} layers within {config.local_window:,} tokens" if config.local_layers else "none"
    return {
        "family": config.family,
        "layers": config.layers,
        "width": config.width,
        "feed_forward_width": config.ff_width,
        **({"experts": f"{mixture.count}, {mixture.active} of them for a token"} if (mixture := config.experts) else {}),
        "heads": heads,
        "vocabulary": config.vocab,
        "head": "tied to the embedding" if config.tied_head else "its own",
        "context": config.context,
        "local_attention": local,
        "rope_base": f"{config.rope_theta:,.0f}{scaling}",
        "query_seeding": config.seeding,
        "content_sees_up_to": f"the end of its {config.content}",
        "adapters": f"rank {config.adapter_rank}, {config.adapter_stream}" if config.adapter_rank else "none",
    }


def _saved(checkpoint: Checkpoint) -> Facts:
    own = saved(checkpoint)
    facts = _stored(((array.shape, array.dtype.name) for array in own.values()), sizes(checkpoint.params))
    if not lacking(checkpoint, own):
        return facts
    assert checkpoint.frozen is not None
    try:
        frozen_source(checkpoint.frozen, checkpoint.folder)
        rest = f"in {checkpoint.frozen.source}, as they were"
    except UserError as error:
        rest = str(error)
    return {
        "parameters": count(checkpoint.config),
        "saved_parameters": facts.pop("parameters"),
        **facts,
        "other_weights": rest,
    }


def _sizes(files: Iterable[Path]) -> dict[str, int]:
    return {str(file): file.stat().st_size for file in files}


def _stored(tensors: Iterable[tuple[Iterable[int], str]], files: dict[str, int]) -> Facts:
    """Numbers by dtype, the largest share first, and what they take on disk."""
    numbers: Counter[str] = Counter()
    for shape, dtype in tensors:
        numbers[dtype] += int(np.prod(list(shape)))
    shares = ", ".join(f"{dtype} {count / numbers.total():.1%}" for dtype, count in numbers.most_common())
    dtype = next(iter(numbers)) if len(numbers) == 1 else shares
    return {"parameters": numbers.total(), "dtype": dtype, "bytes": sum(files.values())}


def _history(record: Provenance) -> Facts:
    dequantized = f", {record.origin}" if record.dequantized else ""
    return {
        "source": record.source + dequantized,
        "steps_trained": record.steps,
        "tokens_seen": record.tokens,
        "objective": record.objective,
        "curriculum": " -> ".join(record.stages) or "none",
        **({"trained_with": " -> ".join(record.trained_with)} if record.trained_with else {}),
        **({"blanks": "end by themselves where nothing says how long they are"} if record.blanks_end else {}),
    }
