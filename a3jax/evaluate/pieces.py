"""Rows of data as items, for tasks whose strings are tokenized one by one, each as at the beginning of a text."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from a3jax.data.tokenizer import TextCodec
from a3jax.errors import UserError
from a3jax.evaluate.local_data import Row
from a3jax.evaluate.task import Item
from a3jax.files.reading import located

TOKENS = (
    "every string by itself, as at the beginning of a text; before the first the start token, if the model's texts have one"
)


def by_itself(text: str, codec: TextCodec) -> str:
    """What has, inside a text, the tokens of `text` at the beginning of one.

    It is the same, with a space in front where the tokenizer is of the kind that puts one before a text.
    """
    return f" {text}" if text and codec.encode(f" {text}", inside=True) == codec.encode(text) else text


def items(
    name: str,
    rows: Sequence[Row],
    ask: Callable[[Mapping[str, Any]], tuple[int, Any]],
    skip_bad: bool,
    left_out: Counter[str],
) -> list[Item]:
    """An item of each row, of which `ask` says the length and the content.

    What it refuses raises `UserError` with the row's place, unless such are to be counted in `left_out`.
    """
    found = []
    for number, row in enumerate(rows):
        try:
            with located(row.where):
                found.append(Item(f"{name}:{number}", *ask(row.value)))
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}; pass over such with --skip-bad") from None
            left_out["longer than the context, or empty"] += 1
    return found
