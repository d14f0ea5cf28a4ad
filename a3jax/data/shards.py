"""What one worker does: read the documents of a shard, choose, tokenize in batches, and write them.

A document is known by the digest of its text: whether it is held out follows from that and the seed alone. Chats are written
by their template first, so that theirs is a text as well.
"""

import collections
import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from a3jax.data import duplicates
from a3jax.data.corpus import SPLITS, Dtype, ShardWriter
from a3jax.data.filters import measures, refused
from a3jax.data.sources.interface import Chat, Fault, Part, Source, Tokens
from a3jax.data.tokenizer import TextCodec, load_codec
from a3jax.data.workers import Report
from a3jax.errors import UserError
from a3jax.files.strict import read

if TYPE_CHECKING:
    from a3jax.data.chat_template import ChatTemplate, Written

BATCH_CHARACTERS = 2**18
"""About how much text is tokenized in one call."""
BATCH_DOCUMENTS = 256
DIGEST_BYTES = duplicates.DIGEST.itemsize
Content: TypeAlias = "str | Tokens | Written"
"""What is written of a document: text, token ids, or a chat as its template has it."""


@dataclass(frozen=True)
class Recipe:
    """What the contents of a shard follow from, beside its sources."""

    tokenizer: str
    start: str
    end: str
    dtype: Dtype
    seed: int
    held_out: float
    limits: Mapping[str, float]
    template: "ChatTemplate | None" = None
    """Of chats."""


class Encoded(NamedTuple):
    """The tokens of a document."""

    ids: Sequence[int] | np.ndarray
    given_T: np.ndarray | None
    """Which of them are given, where that is known."""


@dataclass(frozen=True)
class Task:
    """One shard's work, small enough to send to another process."""

    number: int
    parts: tuple[tuple[Source, Part], ...]
    identity: str
    """Of the sources."""
    folder: Path
    recipe: Recipe
    skip_faults: bool
    repeats: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Numbers of documents that repeat earlier ones; empty documents and faults have none."""

    @property
    def bytes(self) -> int:
        """About how much there is to read."""
        return sum(part.bytes for _, part in self.parts)

    @property
    def digests(self) -> Path:
        """Where the digests of its documents are kept, for as long as the sources stay the same."""
        return self.folder / f"{self.number:05d}-{self.identity[:16]}.digests"

    @property
    def done(self) -> Path:
        """What says that the shard is written, and what it was made of."""
        return self.folder / f"{self.number:05d}.done.json"

    @property
    def made_of(self) -> str:
        """A digest of sources and repeats."""
        return hashlib.sha256(self.identity.encode() + self.repeats.tobytes()).hexdigest()


@dataclass
class Counts:
    """What came of the documents of a shard, those that the corpus counts itself aside."""

    characters: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    """By reason."""
    faults: int = 0
    """How many of those are mistakes."""


@dataclass(frozen=True)
class _Done:
    """What says that a shard is written."""

    made_of: str
    characters: int
    passed_over: dict[str, int]
    faults: int


def finished(task: Task) -> Counts | None:
    """The counts of a shard that an earlier run wrote, if it did, from the same sources, with nothing now forbidden."""
    if not task.done.is_file():
        return None
    try:
        found = read(_Done, task.done)
    except UserError:  # damaged; the shard is written again
        return None
    if found.made_of != task.made_of or (found.faults and not task.skip_faults):
        return None
    return Counts(found.characters, Counter(found.passed_over), found.faults)


def hash_documents(task: Task, report: Report) -> None:
    """Write the digests of a shard's documents."""
    found = bytearray()
    for _, digest in _read(task, Counts(), report):
        found += digest
    duplicates.save_digests(task.digests, bytes(found))


def write_shard(task: Task, report: Report) -> Counts:
    """Write a shard of both splits. Raises `UserError` for a fault, unless faults are to be skipped."""
    recipe = task.recipe
    codec = _codec(recipe.tokenizer, recipe.start, recipe.end)
    counts, repeats, read = Counts(), frozenset(task.repeats.tolist()), 0

    def note_read(more: int, _: int) -> None:  # reported with the tokens made of it, so that one can be told by the other
        nonlocal read
        read += more

    with contextlib.ExitStack() as stack:
        train, held = (stack.enter_context(ShardWriter(task.folder, split, task.number, recipe.dtype)) for split in SPLITS)
        for batch in _batches(_chosen(task, repeats, counts, note_read)):
            tokens = 0
            for (content, digest), (ids, given_T) in zip(batch, _encode(codec, [content for content, _ in batch])):
                if isinstance(content, Tokens) and (fault := _foreign(content, codec.vocab)):
                    _note(fault, task, counts)
                    continue
                if reason := refused(recipe.limits, {"tokens": len(ids)}) or ("" if len(ids) else "empty"):
                    counts.passed_over[reason] += 1
                    continue
                whole = codec.enclosed(list(ids)) if isinstance(content, str) else ids
                (held if held_out(digest, recipe.seed, recipe.held_out) else train).write(whole, given_T)
                counts.characters += 0 if isinstance(content, Tokens) else len(_text(content))
                tokens += len(whole)
            report(read, tokens)
            read = 0
    report(read, 0)
    unfinished = task.done.with_suffix(".partial")
    unfinished.write_text(json.dumps({"made_of": task.made_of, **vars(counts)}))
    unfinished.rename(task.done)
    return counts


def held_out(digest: bytes, seed: int, fraction: float) -> bool:
    """Whether a document is kept for evaluation: drawn by its digest and the seed, with probability `fraction`."""
    drawn = hashlib.sha256(f"{seed} ".encode() + digest).digest()
    return int.from_bytes(drawn[:8], "little") < fraction * 2**64


def _read(task: Task, counts: Counts, report: Report) -> Iterator[tuple[Content, bytes]]:
    """The documents of a shard that are well-formed and not empty, in order, with their digests."""
    for source, part in task.parts:
        unreported = part.bytes
        for document in source.documents(part):
            document = _written(document, task.recipe.template) if isinstance(document, Chat) else document
            if isinstance(document, Fault):
                _note(document, task, counts)
                continue
            if isinstance(document, str) and not document.strip():
                counts.passed_over["empty"] += 1
                continue
            content = document.ids.astype("<i8").tobytes() if isinstance(document, Tokens) else _text(document).encode()
            read = min(len(content), unreported)
            unreported -= read
            report(read, 0)
            yield document, hashlib.sha256(content).digest()[:DIGEST_BYTES]
        report(unreported, 0)


def _written(chat: Chat, template: "ChatTemplate | None") -> "Written | Fault":
    """A chat as its template has it."""
    assert template is not None
    try:
        return template.written(chat.messages, chat.given)
    except UserError as error:
        return Fault("not for the template", f"{chat.where}: {error}")


def _text(content: "str | Written") -> str:
    return content if isinstance(content, str) else content.text


def _chosen(task: Task, repeats: frozenset[int], counts: Counts, report: Report) -> Iterator[tuple[Content, bytes]]:
    """Those of `_read` that neither repeat earlier ones nor are refused for their text."""
    shaped = any(not name.endswith("_tokens") for name in task.recipe.limits)
    for number, (content, digest) in enumerate(_read(task, counts, report)):
        if number in repeats:
            counts.passed_over["duplicate"] += 1
        elif shaped and not isinstance(content, Tokens) and (reason := _refused(task.recipe.limits, _text(content))):
            counts.passed_over[reason] += 1
        else:
            yield content, digest


def _refused(limits: Mapping[str, float], text: str) -> str | None:
    return refused(limits, measures(text))


def _batches(documents: Iterator[tuple[Content, bytes]]) -> Iterator[list[tuple[Content, bytes]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[0].ids) if isinstance(document[0], Tokens) else len(_text(document[0]))
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(codec: TextCodec, contents: Sequence[Content]) -> Iterator[Encoded]:
    """The tokens of each, those that have theirs among them; one at a time in memory as Python integers."""
    texts = [content for content in contents if isinstance(content, str)]
    chats = [content.text for content in contents if not isinstance(content, str | Tokens)]
    plain = collections.deque(codec.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    placed = collections.deque(codec.tokenizer.encode_batch(chats, add_special_tokens=False))  # with places in the text
    for content in contents:
        if isinstance(content, Tokens):
            yield Encoded(content.ids, None)
        elif isinstance(content, str):
            yield Encoded(plain.popleft().ids, None)
        else:
            encoding = placed.popleft()
            yield Encoded(encoding.ids, ~content.said(encoding.offsets))


def _foreign(tokens: Tokens, vocab: int) -> Fault | None:
    """The fault of ids that no tokenizer of this vocabulary made."""
    low, high = int(tokens.ids.min()), int(tokens.ids.max())
    if low >= 0 and high < vocab:
        return None
    which = f"has the token id {low if low < 0 else high}, and the tokenizer ids from 0 to {vocab - 1}"
    return Fault("foreign token ids", f"{tokens.where} {which}: check --token-dtype and --tokenizer")


def _note(fault: Fault, task: Task, counts: Counts) -> None:
    """Count a fault, or stop because of it."""
    if not fault.expected and not task.skip_faults:
        raise fault_error(fault)
    counts.passed_over[fault.reason] += 1
    counts.faults += not fault.expected


def fault_error(fault: Fault) -> UserError:
    """What a user is told who did not ask to skip faults."""
    return UserError(f"{fault.message}; mend that, or pass over what is broken with --on-error skip")


@functools.lru_cache(maxsize=1)
def _codec(tokenizer: str, start: str, end: str) -> TextCodec:
    return load_codec(tokenizer, start, end)
