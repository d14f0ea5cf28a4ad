"""a3jax prepare: text -> a corpus of token ids."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json
from a3jax.data.filters import KEEP_ALL, Filters
from a3jax.errors import UserError
from a3jax.files.places import local


@dataclass(frozen=True)
class Prepare:
    """Tokenize text into a corpus folder: sharded token ids, a manifest, and a held-out split.

    The same command goes on with one that was stopped.

    a3jax prepare ~/texts more.jsonl.gz data/mine --tokenizer models/smollm2 --include '*.txt'

    a3jax prepare gs://bucket/fineweb data/fineweb --tokenizer models/llama --include '*.parquet' --deduplicate
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE... OUT")]
    """Files, folders or URLs of text (one document a file), JSONL (also .gz and .zst), Parquet or ArrayRecord of token
    ids; folders of the datasets library; tfds:NAME[/CONFIG][:VERSION]; hf:OWNER/NAME[:CONFIG]. Last, the corpus folder."""
    tokenizer: str
    """A model folder, a folder with tokenizer.json, or 'bytes'."""
    start: str = "auto"
    """Token that begins documents, none, or auto: as those of the model begin."""
    end: str = "auto"
    """Token that ends documents, none, or auto: the model's own."""
    column: str = "text"
    """Field or column that holds the text, or token ids."""
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
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.data.prepare import prepare

        if len(self.sources) < 2:
            raise UserError("give at least one source and, last, the corpus folder to write")
        *sources, out = self.sources
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("sources", "json")}
        manifest = prepare(sources, local(out), **options)
        return {"out": out, **dataclasses.asdict(manifest)}
