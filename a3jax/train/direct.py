"""Sources used directly: an experiment may name texts where it would name a corpus. They are prepared into its run folder
once, and read from there ever after, so that the stream is as exact as any."""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from a3jax.checkpoint.folder import Checkpoint, write_description
from a3jax.config import Config, DataConfig, SourceConfig
from a3jax.data.corpus import MANIFEST, read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.files.parts import is_there
from a3jax.files.places import place
from a3jax.progress import console
from a3jax.weights.pretrained import pretrained

FOLDER = "data"
"""Of a run folder."""


def with_corpora(config: Config) -> DataConfig:
    """The experiment's data with a prepared corpus in place of every source that is none.

    Texts are tokenized as the model's are, or as bytes where weights are random; all else is as `a3jax prepare` does it
    unless told otherwise. Raises `UserError` for a source that it cannot read, and for a path where nothing is.
    """
    for source in config.data.sources:  # before any of them is prepared
        if not _is_source(source.path):
            read_manifest(place(source.path))
    sources = [
        dataclasses.replace(source, path=str(_corpus(config, source, number)), chat=())
        for number, source in enumerate(config.data.sources)
    ]
    return dataclasses.replace(config.data, path=DataConfig.path, chat=(), mixture=tuple(sources))


def _is_source(path: str) -> bool:
    if re.match(r"(?!gs:|s3:)\w+:", path):
        return True
    return not (place(path) / MANIFEST).is_file() and place(path).exists()


def _corpus(config: Config, source: SourceConfig, number: int) -> Path | str:
    path = source.path
    if not _is_source(path):
        return path
    name = re.sub(r"[^\w.-]+", "-", re.split(r"[/:]", path.rstrip("/"))[-1])
    folder = config.run_folder / FOLDER / f"{number}-{name}"
    if not is_there(folder):
        console.print(f"{path} is no prepared corpus: preparing it into {folder}, once")
        with _tokenizer(config) as tokenizer:
            prepare([path], folder, Preparation(tokenizer, chat=source.chat))
    return folder


@contextlib.contextmanager
def _tokenizer(config: Config) -> Iterator[str]:
    """A name of the model's tokenizer; of a published model, which may be a file, a folder as an import would write it."""
    if config.source is None or isinstance((model := pretrained(config.source)).origin, Checkpoint):
        yield config.source or "bytes"
        return
    with tempfile.TemporaryDirectory() as folder:
        write_description(Path(folder), model.config, model.record, model.origin.tokenizer)
        yield folder
