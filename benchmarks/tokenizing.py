"""How fast `a3jax prepare` is, next to the tokenizers library alone on the same text, with as many threads as workers.

python benchmarks/tokenizing.py --tokenizer models/smollm2

The library is given texts that are in memory already, a few hundred in a call, and what it makes is thrown away; prepare
reads them from a JSONL file, and is timed as the command that a user types. The text is Python's standard library unless
another is given.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from common import run, show

from a3jax.data.sources.interface import Document, Fault, Source
from a3jax.data.sources.opening import Reading, open_source
from a3jax.errors import UserError

TEXTS = 512
"""In a call of the library."""


@dataclass(frozen=True)
class Options:
    """Prepare, and the tokenizers library alone.

    python benchmarks/tokenizing.py --tokenizer models/smollm2
    """

    tokenizer: str
    """A folder with tokenizer.json."""
    source: str = sysconfig.get_path("stdlib")
    include: tuple[str, ...] = ("*.py",)
    exclude: tuple[str, ...] = ("site-packages/*",)
    workers: int = os.cpu_count() or 1
    """And threads of the library."""
    copies: int = 2
    """Of the text, since starting the processes takes about two seconds whatever there is to tokenize."""
    repeats: int = 2
    """Rates are of the best; all are shown, since they tell how quiet the machine was."""
    json: bool = False


def read(source: Source) -> Iterator[Document]:
    """All documents of a source. Raises `UserError` where it cannot be opened."""
    parts = source.parts()
    if isinstance(parts, Fault):
        raise UserError(parts.message)
    for part in parts:
        yield from source.documents(part)


def main(options: Options) -> None:
    """Measure both in turn, and show them."""
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    found = open_source(options.source, Reading(include=options.include, exclude=options.exclude))
    documents = [document for source in found for document in read(source)]
    texts = [text for text in documents if isinstance(text, str) and text.strip()] * options.copies
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, list[float]] = {"tokenizers alone": [], "a3jax prepare": []}
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for _ in range(options.repeats):
            for name in seconds:
                begun = time.perf_counter()
                tokens[name] = _prepare(options, file) if name == "a3jax prepare" else _library(options, texts)
                seconds[name].append(time.perf_counter() - begun)
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "seconds": ", ".join(f"{time:.1f}" for time in times),
            "MB/s": megabytes / min(times),
            "tokens/s": round(tokens[name] / min(times)),
            "of the library": min(seconds["tokenizers alone"]) / min(times),
        }
        for name, times in seconds.items()
    ]
    what = f"{len(texts)} documents, {megabytes:.1f} MB, {options.workers} workers or threads"
    show(f"Tokenizing {what}, tokenizers {tokenizers.__version__}", rows, options.json)


def _library(options: Options, texts: list[str]) -> int:
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(options.tokenizer) / "tokenizer.json"))
    calls = (texts[begin : begin + TEXTS] for begin in range(0, len(texts), TEXTS))  # all at once would fill the memory
    return sum(len(encoding) for call in calls for encoding in tokenizer.encode_batch_fast(call, add_special_tokens=False))


def _prepare(options: Options, file: Path) -> int:
    out = file.with_name("corpus")
    command = [sys.executable, "-m", "a3jax.cli", "prepare", str(file), str(out), "--tokenizer", options.tokenizer]
    printed = subprocess.run(
        [*command, "--workers", str(options.workers), "--json"], check=True, stdout=subprocess.PIPE
    ).stdout
    shutil.rmtree(out)
    facts = json.loads(printed.splitlines()[-1])
    return facts["train"]["tokens"] + facts["held_out"]["tokens"]


if __name__ == "__main__":
    run(main, Options)
