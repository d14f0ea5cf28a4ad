"""A page on which one can move through the passes in which texts were filled. It needs nothing but itself."""

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.settings import Decoding
from a3jax.decode.spelling import spelled
from a3jax.generate.infill import Infilled

_BEGIN = 160
"""Bytes by which a page is known: up to its title."""


def is_trace(path: Path) -> bool:
    """Whether a file is such a page, or empty."""
    with path.open("rb") as file:
        begin = file.read(_BEGIN)
    return not begin or begin == _page()[:_BEGIN].encode()


def trace(codec: TextCodec, filled: Sequence[tuple[Infilled, Decoding]]) -> str:
    """HTML with a section for each text."""
    data = json.dumps([_section(codec, *one) for one in filled])
    for letter in "<>&":  # JSON may write any letter by its number, and HTML then sees none of its own
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    return _page().replace("$data", data)


def _page() -> str:
    return (importlib.resources.files(__package__) / "trace.html").read_text(encoding="utf-8")


def _section(codec: TextCodec, filled: Infilled, decoding: Decoding) -> dict[str, Any]:
    texts = spelled(codec, filled.tokens, filled.parts)
    tokens = [
        {"text": text, "id": token, "log_prob": log_prob, "pass": number}
        for text, token, log_prob, number in zip(texts, filled.tokens, filled.log_probs, filled.passes)
    ][filled.places[0].start :]
    count = len(filled.given) - sum(filled.given)
    summary = {
        "mode": decoding.mode,
        "order": None if decoding.finds_order or decoding.mode == "ar" else decoding.order,
        "seed": decoding.seed,
        "temperature": decoding.temperature,
        "passes": filled.forwards,
        "tokens filled": count,
        "tokens per pass": f"{count / max(filled.forwards, 1):.2f}",
        "log-likelihood": f"{filled.log_prob:.3f} nats",
    }
    return {"summary": {name: value for name, value in summary.items() if value is not None}, "tokens": tokens}
