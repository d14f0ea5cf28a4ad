"""Sources used directly: an experiment may name texts where it would name a corpus. They are prepared into its run folder
once, and read from there ever after, so that the stream is as exact as any, whatever becomes of them."""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from a3jax.checkpoint.folder import CONFIG, Checkpoint, write_description
from a3jax.config import Config, DataConfig, SourceConfig
from a3jax.data.corpus import MANIFEST, read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.files.parts import is_there
from a3jax.files.places import is_local, place, remove
from a3jax.progress import console
from a3jax.weights.pretrained import pretrained

FOLDER = "data"
"""Of a run folder."""


def with_corpora(config: Config, looked: bool = False) -> DataConfig:
    """The experiment's data with a prepared corpus in place of every source that is none.

    Texts are tokenized as the model's are, or as bytes where weights are random; all else is as `a3jax prepare` does it
    unless told otherwise. Before the run has begun texts that have changed since they were prepared, for a try that failed,
    are prepared again, unless somebody has `looked` just now. Raises `UserError` for a source that it cannot read, for a path
    where nothing is, and for other texts than a run that has begun was made of.
    """
    for number, source in enumerate(config.data.sources):  # before any of them is prepared
        if not _is_prepared(config, source, number, looked) and not _is_source(source.path):
            read_manifest(place(source.path))
    sources = [
        dataclasses.replace(source, path=str(_corpus(config, source, number, looked)), chat=())
        for number, source in enumerate(config.data.sources)
    ]
    return dataclasses.replace(config.data, path=DataConfig.path, chat=(), mixture=tuple(sources))


def _is_source(path: str) -> bool:
    return _is_url(path) or (not (place(path) / MANIFEST).is_file() and place(path).exists())


def _is_url(path: str) -> bool:
    return re.match(r"(?!gs:|s3:)\w+:", path) is not None


def _folder(config: Config, source: SourceConfig, number: int) -> Path:
    name = re.sub(r"[^\w.-]+", "-", re.split(r"[/:]", source.path.rstrip("/"))[-1])
    return config.run_folder / FOLDER / f"{number}-{name}"


def _is_prepared(config: Config, source: SourceConfig, number: int, looked: bool) -> bool:
    """Whether the run's folder has the source; before the run has begun, as it is now."""
    folder = _folder(config, source, number)
    if not is_there(folder):
        return False
    manifest = read_manifest(folder)
    if manifest.sources != (source.path,) or manifest.settings["chat"] != " ".join(source.chat):
        return False
    if looked or (config.run_folder / CONFIG).is_file():
        return True
    codec = pretrained(config.source).codec if config.source is not None else byte_codec()
    return manifest.tokenizer_sha256 == codec.sha256 and not _is_newer(source.path, folder / MANIFEST)


def _is_newer(path: str, file: Path) -> bool:
    """Whether a source has changed or gone since a file was written; of what is not on this machine nobody knows."""
    if _is_url(path) or not is_local(place(path)):
        return False
    there, since = place(path), file.stat().st_mtime
    try:
        return any(each.stat().st_mtime > since for each in (there, *there.rglob("*")))
    except OSError:  # reading it tells what is wrong
        return True


def _corpus(config: Config, source: SourceConfig, number: int, looked: bool) -> Path | str:
    folder = _folder(config, source, number)
    if not _is_prepared(config, source, number, looked):
        if not _is_source(source.path):
            return source.path
        if is_there(folder) and (config.run_folder / CONFIG).is_file():
            raise UserError(
                f"{folder} holds what the run began with, which is not {source.path}; give another --name or --run"
            )
        remove(folder)
        console.print(f"{source.path} is no prepared corpus: preparing it into {folder}, once")
        with _tokenizer(config) as tokenizer:
            prepare([source.path], folder, Preparation(tokenizer, chat=source.chat))
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
