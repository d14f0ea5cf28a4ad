"""Texts to evaluate on: whatever `a3jax prepare` reads, as text, with its faults told or counted."""

import random
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from a3jax.data.sources.interface import Chat, Fault, Tokens
from a3jax.data.sources.opening import Reading, open_source
from a3jax.errors import UserError

STANDARD_LIBRARY = "the source of Python's standard library"


class Text(NamedTuple):
    """A text and where it comes from."""

    id: str
    text: str


def read_texts(
    source: str | None, column: str, split: str, include: Sequence[str], seed: int, skip_bad: bool, bad: Counter[str]
) -> tuple[str, list[Text]]:
    """What messages call the source, and its texts in an order drawn by `seed`.

    Without a source they are the modules of Python's standard library. Empty texts, and files in folders that are not
    text, are counted in `bad`. Other faults are too with `skip_bad`, and else raise `UserError`.
    """
    if source is None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        texts = [Text(path.name, path.read_text("utf-8")) for path in sorted(folder.glob("*.py"))]
        random.Random(seed).shuffle(texts)
        return STANDARD_LIBRARY, texts
    sources = open_source(source, Reading(column, split, tuple(include)))
    if not sources:
        raise UserError(f"no file to read in {source}; check the path and --include")
    texts = []
    for each in sources:
        parts = each.parts()
        name = each.name.removeprefix(source).strip("/") or Path(source).name
        found = [parts] if isinstance(parts, Fault) else (one for part in parts for one in each.documents(part))
        for number, document in enumerate(found, 1):
            if isinstance(document, Tokens | Chat):
                raise UserError(f"{document.where} has token ids; evaluation needs text: name another with --column")
            if isinstance(document, Fault):
                if not (skip_bad or document.expected):
                    raise UserError(f"{document.message}; mend it, or pass over such with --skip-bad")
                bad[document.reason] += 1
            elif not document.strip():
                bad["empty"] += 1
            else:
                texts.append(Text(f"{name}:{number}", document))
    random.Random(seed).shuffle(texts)
    return source, texts
