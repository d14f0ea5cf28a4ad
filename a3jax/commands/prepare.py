"""a3jax prepare: text -> a corpus of token ids."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json
from a3jax.data.preparation import Preparation
from a3jax.errors import UserError
from a3jax.files.places import place


@dataclass(frozen=True)
class _Sources:
    """What comes before the choices."""

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE... OUT")]
    """Files, folders or URLs of text (one document a file), JSONL (also .gz and .zst), Parquet or ArrayRecord of token
    ids; folders of the datasets library; tfds:NAME[/CONFIG][:VERSION]; hf:OWNER/NAME[:CONFIG]. Last, the corpus folder."""


@dataclass(frozen=True)
class Prepare(Preparation, _Sources):
    """Tokenize text into a corpus folder: sharded token ids, a manifest, and a held-out split.

    The same command goes on with one that was stopped.

    a3jax prepare ~/texts more.jsonl.gz data/mine --tokenizer models/smollm2 --include '*.txt'

    a3jax prepare gs://bucket/fineweb data/fineweb --tokenizer models/llama --include '*.parquet' --deduplicate
    """

    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.data.prepare import prepare

        if len(self.sources) < 2:
            raise UserError("give at least one source and, last, the corpus folder to write")
        *sources, out = self.sources
        manifest = prepare(sources, place(out), self)
        return {"out": out, **dataclasses.asdict(manifest)}
