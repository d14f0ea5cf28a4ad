"""Sources -> a corpus: documents are dealt into shards, which workers tokenize and write, and which are then joined.

Parts of sources are dealt by a rule that knows neither the number of workers nor the clock, and each document's split
depends on its text and the seed alone; so the same sources always give the same corpus, byte for byte. A shard that is
finished stays when a run is stopped, killed or fails, and the same command goes on with the others.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.filesize import decimal

from a3jax.data.corpus import SPLITS, VERSION, Manifest, dtype_of, join_shards, write_manifest
from a3jax.data.duplicates import find_duplicates
from a3jax.data.preparation import Preparation
from a3jax.data.shards import Counts, Recipe, Task, fault_error, finished, hash_documents, write_shard
from a3jax.data.sources.interface import Fault, Part, Source
from a3jax.data.sources.opening import Reading, open_source
from a3jax.data.tokenizer import TextCodec, load_codec
from a3jax.data.workers import in_processes
from a3jax.errors import UserError
from a3jax.files.folders import check_new, resumable
from a3jax.files.outside_json import content_of, decoded
from a3jax.files.places import place
from a3jax.progress import Progress, console

if TYPE_CHECKING:
    from a3jax.data.chat_template import ChatTemplate

LARGEST_SHARD, SMALLEST_SHARD = 64 * 2**20, 2**20
"""Source bytes, about, of a shard where there are many, and where there are few."""
SHARDS = 64
"""How many there are in between."""
LISTERS = 16
"""Threads that list parts: for many files in a bucket."""

Work = list[tuple[Source, Part]]


def prepare(sources: Sequence[str | Path], out: Path, how: Preparation) -> Manifest:
    """Tokenize sources into a corpus folder `out`, and return its manifest.

    `sources` are files, folders and URLs, `hf:` and `tfds:` with a name (`a3jax.data.sources.opening.open_source`).

    Empty documents, and files in folders that are not text, are passed over and counted. Raises `UserError`, with what is
    finished kept in `OUT.partial` for the next try, for a source that is absent, broken or without text.
    """
    texts = how.column, how.split, tuple(how.include), tuple(how.exclude), how.token_dtype
    reading = Reading(*texts, chat=tuple(how.chat))
    check_new(out)
    codec = load_codec(how.tokenizer, how.start, how.end)
    codec, template = _with_template(codec, how) if how.chat else (codec, None)
    named = [str(source) for source in sources]
    opened = [source for name in named for source in open_source(name, reading)]
    if not opened:
        raise UserError(f"no file to read in {', '.join(named)}; check the path and --include")
    work, faults = _list_parts(opened)
    if faults and how.on_error == "stop":
        raise fault_error(faults[0])
    dtype = dtype_of(codec.vocab, bool(how.chat))
    recipe = Recipe(how.tokenizer, how.start, how.end, dtype, how.seed, how.held_out, how.filters.limits(), template)
    choices = {"deduplicate": how.deduplicate, "on_error": how.on_error}
    settings = {**asdict(reading), **how.filters.limits(), **choices}
    made_from = {"version": VERSION, "split": how.split, "token_dtype": how.token_dtype}
    made_from |= {"column": how.column, "chat": list(how.chat)}
    made_from |= {**asdict(recipe), "tokenizer": codec.sha256}
    with resumable(out, made_from, _begun) as partial:
        tasks = [
            Task(number, tuple(shard), _identity(shard), partial, recipe, how.on_error == "skip")
            for number, shard in enumerate(_deal(work))
        ]
        processes = how.workers or os.cpu_count() or 1
        if how.deduplicate:
            tasks = _with_repeats(tasks, processes)
        counts = _write(tasks, processes, np.dtype(dtype).itemsize)
        train, held = (join_shards(partial, split, range(len(tasks))) for split in SPLITS)
        passed_over = sum((each.passed_over for each in counts), Counter(fault.reason for fault in faults))
        if not train.documents:
            _tidy(partial, set())
            why = f" (passed over: {_listed(passed_over)})" if passed_over else ""
            raise UserError(f"{', '.join(named)}: no text for training was found{why}; the corpus would be empty")
        for name, content in codec.files.items():
            (partial / name).write_bytes(content)
        manifest = Manifest(
            version=VERSION,
            train=train,
            held_out=held,
            vocab=codec.vocab,
            tokenizer_sha256=codec.sha256,
            dtype=dtype,
            seed=how.seed,
            held_out_fraction=how.held_out,
            start_token=codec.start,
            end_token=codec.end,
            sources=tuple(named),
            settings={name: _written(value) for name, value in settings.items()},
            characters=sum(each.characters for each in counts),
            passed_over=dict(sorted(passed_over.items())),
            chats=bool(how.chat),
        )
        _tidy(partial, {shard.name for split in (train, held) for shard in split.shards})
        write_manifest(partial, manifest)
    if manifest.passed_over:
        console.print(f"passed over: {_listed(manifest.passed_over)}")
    return manifest


def _with_template(codec: TextCodec, how: Preparation) -> "tuple[TextCodec, ChatTemplate]":
    """The template that writes chats, and the tokenizer with that as its own."""
    from a3jax.data.chat_template import FILE, template_of

    if how.chat_template is None:
        return codec, template_of(codec, how.tokenizer)
    source = content_of(place(how.chat_template))
    codec = replace(codec, files=codec.files | {FILE: decoded(source, how.chat_template).encode()})
    return codec, replace(template_of(codec, how.tokenizer), where=how.chat_template)


def _list_parts(sources: Sequence[Source]) -> tuple[Work, list[Fault]]:
    """All parts of all sources, in order, and what cannot be opened."""
    work, faults = [], []
    with ThreadPoolExecutor(LISTERS) as pool:
        for source, parts in zip(sources, pool.map(lambda source: source.parts(), sources)):
            if isinstance(parts, Fault):
                faults.append(parts)
            else:
                work += [(source, part) for part in parts]
    return work, faults


def _deal(work: Work) -> list[Work]:
    """Consecutive parts in shards: about `SHARDS` of them, two at least where there are two parts."""
    total = sum(part.bytes for _, part in work)
    limit = min(LARGEST_SHARD, max(1, -(-total // SHARDS), min(SMALLEST_SHARD, -(-total // 2))))
    shards: list[Work] = []
    size = limit
    for source, part in work:
        if size >= limit:
            shards.append([])
            size = 0
        shards[-1].append((source, part))
        size += part.bytes
    return shards


def _identity(work: Work) -> str:
    told = [(source.name, source.identity, asdict(part)) for source, part in work]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _with_repeats(tasks: Sequence[Task], workers: int) -> list[Task]:
    """The tasks, knowing which of their documents repeat earlier ones."""
    new = [task for task in tasks if not task.digests.is_file()]
    total = sum(task.bytes for task in tasks)
    with Progress("find duplicates", total, "bytes", total - sum(task.bytes for task in new)) as progress:
        in_processes(hash_documents, new, workers, lambda read, _: progress.advance(read))
    found = find_duplicates([task.digests for task in tasks])
    return [replace(task, repeats=repeats) for task, repeats in zip(tasks, found)]


def _write(tasks: Sequence[Task], workers: int, token_bytes: int) -> list[Counts]:
    """Write every shard that no earlier run has; the counts of all."""
    counts = {task.number: finished(task) for task in tasks}
    new = [task for task in tasks if counts[task.number] is None]
    total = sum(task.bytes for task in tasks)
    read = tokens = 0
    with Progress("prepare", total, "bytes", total - sum(task.bytes for task in new)) as progress:

        def report(more_read: int, more_tokens: int) -> None:
            nonlocal read, tokens
            read, tokens = read + more_read, tokens + more_tokens
            progress.advance(more_read)
            if read and tokens:
                whole = round(tokens / read * total)
                progress.note(f"about {whole:,} tokens, at most {decimal(whole * token_bytes)}")

        for task, found in zip(new, in_processes(write_shard, new, workers, report)):
            counts[task.number] = found
    return [found for found in counts.values() if found]


def _begun(partial: Path) -> bool:
    """Whether a partial folder has something to go on from."""
    return any(path.suffix == ".digests" or path.name.endswith(".done.json") for path in partial.iterdir())


def _tidy(partial: Path, shards: set[str]) -> None:
    """Remove what only the work needed, and shards of an earlier run whose sources are gone."""
    for pattern in ("*.digests", "*.done.json", "*.partial"):
        for path in partial.glob(pattern):
            path.unlink()
    for path in partial.glob("*.array_record"):
        if path.name not in shards:
            path.unlink()


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))


def _written(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
