"""Which documents are worth keeping: limits on length, and on shape in any language that parts words by spaces.

The measures of shape are Gopher's (arXiv 2112.11446, appendix A.1.1), but for its stop words, which are English. All are off
unless a limit is given; docs/data.md has Gopher's own.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

BULLETS = ("•", "‣", "●", "-", "*")
ELLIPSES = ("…", "...")


@dataclass(frozen=True)
class Filters:
    """Limits of what is kept, both ends included. The words after min_ and max_ name a measure."""

    min_characters: int | None = None
    max_characters: int | None = None
    min_tokens: int | None = None
    """Without those that begin and end documents."""
    max_tokens: int | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_word_length: float | None = None
    """Mean, in characters."""
    max_word_length: float | None = None
    min_alphabetic_words: float | None = None
    """Share of words with a letter."""
    max_symbols: float | None = None
    """Hash signs and ellipses, each per word."""
    max_bullets: float | None = None
    """Share of lines that begin with a bullet."""
    max_ellipses: float | None = None
    """Share of lines that end with an ellipsis."""
    max_repeated_lines: float | None = None
    """Share of lines that came before in the document."""
    max_repeated_characters: float | None = None
    """Share of characters that are in such lines."""

    def limits(self) -> dict[str, float]:
        """Those that are given, by name."""
        return {name: limit for name, limit in dataclasses.asdict(self).items() if limit is not None}


KEEP_ALL = Filters()


def refused(limits: Mapping[str, float], measures: Mapping[str, float]) -> str | None:
    """The first limit that a document breaks, in words; None for one to keep. Measures that are not given break none."""
    for name, limit in limits.items():
        end, _, measure = name.partition("_")
        value = measures.get(measure, limit)
        if value < limit if end == "min" else value > limit:
            return f"{measure.replace('_', ' ')} {'below' if end == 'min' else 'above'} {limit:g}"
    return None


def measures(text: str) -> dict[str, float]:
    """Everything about a text that `Filters` can limit, but its tokens."""
    words = text.split()
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    repeated = _repeated(lines)
    per_word, per_line = 1 / max(len(words), 1), 1 / max(len(lines), 1)
    return {
        "characters": len(text),
        "words": len(words),
        "word_length": sum(map(len, words)) * per_word,
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) * per_word,
        "symbols": max(text.count("#"), sum(map(text.count, ELLIPSES))) * per_word,
        "bullets": sum(line.startswith(BULLETS) for line in lines) * per_line,
        "ellipses": sum(line.endswith(ELLIPSES) for line in lines) * per_line,
        "repeated_lines": len(repeated) * per_line,
        "repeated_characters": sum(map(len, repeated)) / max(sum(map(len, lines)), 1),
    }


def _repeated(lines: list[str]) -> list[str]:
    seen: set[str] = set()
    return [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
