"""How sources become a corpus: every choice of `a3jax prepare`."""

from dataclasses import dataclass
from typing import Literal

from a3jax.data.filters import KEEP_ALL, Filters
from a3jax.errors import UserError


@dataclass(frozen=True)
class Preparation:
    """How sources become a corpus. Raises `UserError` for a value that cannot be."""

    tokenizer: str
    """A model folder, a folder with tokenizer.json, or 'bytes'."""
    start: str = "auto"
    """Token that begins documents, none, or auto: as those of the model begin."""
    end: str = "auto"
    """Token that ends documents, none, or auto: the model's own."""
    column: str = "text"
    """Field or column that holds the text, or token ids."""
    chat: tuple[str, ...] = ()
    """In its place, that of chats (messages, or ShareGPT's conversations), or those of prompt and response, or of system,
    prompt and response: what the assistant says is learned, and the rest is given (docs/chat.md)."""
    chat_template: str | None = None
    """A Jinja file that writes chats, in place of the tokenizer's own."""
    split: str = "train"
    """Of data sets that have splits."""
    include: tuple[str, ...] = ("*",)
    """Shell patterns of files to read inside folders."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of files to pass over."""
    token_dtype: Literal["uint16", "uint32", "int32", "int64"] = "uint16"
    """Of ArrayRecord files of token ids."""
    held_out: float = 0.01
    """Fraction of documents kept for evaluation."""
    seed: int = 0
    """Decides which documents those are."""
    deduplicate: bool = False
    """Keep only the first of identical documents."""
    filters: Filters = KEEP_ALL
    on_error: Literal["stop", "skip"] = "stop"
    """Whether a document that cannot be read ends it, or is passed over and counted."""
    workers: int | None = None
    """Processes; one per core if not given."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UserError(f"held-out is {self.held_out}; it must be at least 0 and below 1")
        if len(self.chat) > 3:
            raise UserError(f"chat names {len(self.chat)} columns; give that of messages, or those of prompt and response")
        if self.chat_template is not None and not self.chat:
            raise UserError("chat-template is for chats, and none are named; say with --chat where they stand")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers is {self.workers}; it must be at least 1")
