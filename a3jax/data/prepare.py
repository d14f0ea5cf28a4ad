"""Text and JSONL -> tokenized ArrayRecord shards, in parallel.

Files are dealt into shards of about equal size by a rule that knows neither the number of processes nor the clock, and
a document's split depends only on the seed and its text; so the same sources always give the same corpus.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from a3jax.data.corpus import SPLITS, VERSION, Dtype, Manifest, ShardWriter, join_shards, write_manifest
from a3jax.data.tokenizer import load_codec
from a3jax.errors import UserError
from a3jax.folders import check_new, complete_or_nothing
from a3jax.progress import Progress, console

SHARD_BYTES = 32 * 2**20
"""Source bytes per shard."""
JSONL = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class _Task:
    """One shard's work, small enough to send to another process."""

    index: int
    files: tuple[Path, ...]
    out: Path
    tokenizer: str
    start: str | None
    end: str | None
    text_field: str
    seed: int
    held_out: float
    dtype: Dtype


@dataclass(frozen=True)
class _Done:
    characters: int
    skipped: int


def prepare(
    sources: Sequence[Path],
    out: Path,
    tokenizer: str,
    start: str | None = None,
    end: str | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    text_field: str = "text",
    held_out: float = 0.01,
    seed: int = 0,
    workers: int | None = None,
) -> Manifest:
    """Tokenize files or folders into a corpus folder `out`, and return its manifest.

    A text file is one document; every line of a JSONL file is one, in its `text_field`. `include` and `exclude` are
    shell patterns matched against paths found inside folders. `held_out` is the fraction of documents kept for
    evaluation. Files that are not UTF-8 text are passed over, counted and reported; empty documents are passed over.
    Raises `UserError`, with nothing written, for a source that is absent or has no text.
    """
    check_new(out)
    if not 0 <= held_out < 1:
        raise UserError(f"held-out is {held_out}; it must be at least 0 and below 1")
    codec = load_codec(tokenizer, start, end)
    files = list(_find(sources, include, exclude))
    if not files:
        raise UserError(f"no file to read in {', '.join(map(str, sources))}; check the path and --include")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    dtype: Dtype = "uint16" if codec.vocab <= 2**16 else "uint32"
    with complete_or_nothing(out) as partial:
        tasks = [
            _Task(i, tuple(shard), partial, tokenizer, start, end, text_field, seed, held_out, dtype)
            for i, shard in enumerate(_deal(files))
        ]
        done = _run(tasks, workers or os.cpu_count() or 1)
        train, held = (join_shards(partial, split, range(len(tasks))) for split in SPLITS)
        if not train.documents:
            raise UserError(f"{', '.join(map(str, sources))}: no text for training was found; the corpus would be empty")
        for name, content in codec.files.items():
            (partial / name).write_bytes(content)
        skipped = sum(result.skipped for result in done)
        manifest = Manifest(
            version=VERSION,
            train=train,
            held_out=held,
            vocab=codec.vocab,
            tokenizer_sha256=codec.sha256,
            dtype=dtype,
            seed=seed,
            held_out_fraction=held_out,
            start_token=codec.start,
            end_token=codec.end,
            sources=tuple(map(str, sources)),
            settings={},
            characters=sum(result.characters for result in done),
            passed_over={"not UTF-8 text": skipped} if skipped else {},
        )
        write_manifest(partial, manifest)
    for reason, count in manifest.passed_over.items():
        console.print(f"files passed over because they are {reason}: {count}")
    return manifest


def _find(sources: Sequence[Path], include: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    """Files in a fixed order; hidden ones inside folders are passed over."""
    for source in sources:
        if source.is_file():
            yield source
        elif source.is_dir():
            for path in sorted(source.rglob("*")):
                name = str(path.relative_to(source))
                hidden = any(part.startswith(".") for part in Path(name).parts)
                wanted = any(fnmatch(name, pattern) for pattern in include)
                if wanted and not hidden and not any(fnmatch(name, p) for p in exclude) and path.is_file():
                    yield path
        else:
            raise UserError(f"{source} does not exist")


def _deal(files: list[Path]) -> list[list[Path]]:
    """Consecutive files in shards of at least `SHARD_BYTES`; at least two shards where there are two files."""
    limit = min(SHARD_BYTES, 1 + sum(path.stat().st_size for path in files) // 2)
    shards: list[list[Path]] = [[]]
    size = 0
    for path in files:
        if size >= limit:
            shards.append([])
            size = 0
        shards[-1].append(path)
        size += path.stat().st_size
    return shards


def _run(tasks: list[_Task], workers: int) -> list[_Done]:
    total = sum(path.stat().st_size for task in tasks for path in task.files)
    with Progress("prepare", total, "bytes") as progress:
        if min(workers, len(tasks)) == 1:
            return [_write_shard(task, progress.advance) for task in tasks]
        context = multiprocessing.get_context("spawn")
        done = context.Value("q", 0)
        with ProcessPoolExecutor(min(workers, len(tasks)), context, _share, (done,)) as pool:
            futures = [pool.submit(_write_shared, task) for task in tasks]
            shown = 0
            while True:
                finished, waiting = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                progress.advance(done.value - shown)
                shown = done.value
                if failed := next((future for future in finished if future.exception()), None):
                    pool.shutdown(cancel_futures=True)
                    failed.result()
                if not waiting:
                    return [future.result() for future in futures]


_bytes_done: Any = None
"""In a worker process: how much of the sources all of them have read."""


def _share(counter: Any) -> None:
    global _bytes_done
    _bytes_done = counter


def _write_shared(task: _Task) -> _Done:
    def advance(size: int) -> None:
        with _bytes_done.get_lock():
            _bytes_done.value += size

    return _write_shard(task, advance)


def _write_shard(task: _Task, advance: Callable[[int], None]) -> _Done:
    codec = load_codec(task.tokenizer, task.start, task.end)
    characters = skipped = 0
    with contextlib.ExitStack() as stack:
        train, held = (stack.enter_context(ShardWriter(task.out, split, task.index, task.dtype)) for split in SPLITS)
        for path in task.files:
            texts, before = _documents(path, task.text_field), characters
            skipped += texts is None
            for text in texts or ():
                (held if _held_out(text, task.seed, task.held_out) else train).write(codec.document(text))
                characters += len(text)
                advance(len(text))
            advance(path.stat().st_size - (characters - before))  # what is not a character of its own
    return _Done(characters, skipped)


def _documents(path: Path, text_field: str) -> Iterable[str] | None:
    """The texts of one file, empty ones passed over; None for a file that is not UTF-8 text."""
    if path.suffix in JSONL:
        return filter(str.strip, _lines(path, text_field))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return [text] if text.strip() else []


def _lines(path: Path, text_field: str) -> Iterator[str]:
    """The texts of a JSONL file, read line by line."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, text_field, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}; convert it, or leave it out with --exclude") from None


def _text_of(line: str, text_field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    text = value.get(text_field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{where} has no text in field '{text_field}'; name the right one with --text-field")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which is no character
        raise UserError(f"{where} is not Unicode text in field '{text_field}': {error}") from None
    return text


def _held_out(text: str, seed: int, fraction: float) -> bool:
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
