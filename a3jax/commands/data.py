"""a3jax prepare and data: corpora, and what an experiment reads of them."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commands.commandline import Json
from a3jax.config import Config
from a3jax.data.filters import KEEP_ALL, Filters
from a3jax.errors import UserError
from a3jax.experiment.files import parse_experiment
from a3jax.files.places import local
from a3jax.files.strict import nearest


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


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The options of `a3jax data show` beside the fields of the experiment."""

    step: int = 0
    """Of the batch; 0 is the first."""
    windows: int = 2
    """How many of its rows."""
    token: int | None = None
    """A place in the windows; what its query may see is shown."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of `a3jax data bench` beside the fields of the experiment."""

    steps: int | None = None
    """How many to measure; as many as make 8 million tokens if not given."""
    json: Json = False


@dataclass(frozen=True)
class Data:
    """Look at the batches of an experiment, or measure how fast they come."""

    config: Config
    options: ShowOptions | BenchOptions

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Data":
        """`show|bench EXPERIMENT [option ...] [--field value ...]`."""
        if not args or args[0] in ("-h", "--help"):
            print(_DATA_HELP)
            sys.exit(0 if args else 2)
        kinds: dict[str, type[ShowOptions | BenchOptions]] = {"show": ShowOptions, "bench": BenchOptions}
        if args[0] not in kinds:
            raise UserError(f"unknown command 'data {args[0]}'{nearest(args[0], kinds)}; see a3jax data --help")
        return cls(*parse_experiment(kinds[args[0]], args[1:], f"{prog} {args[0]}", _DATA_HELP))

    def run(self) -> dict[str, Any]:  # noqa: D102
        options = self.options
        if isinstance(options, ShowOptions):
            from a3jax.show.batches import print_shown, show

            shown = show(self.config, options.step, options.windows, options.token)
            if options.json:
                return dataclasses.asdict(shown)
            print_shown(shown)
        else:
            from a3jax.show.throughput import bench, show_bench

            measured = bench(self.config, options.steps)
            if options.json:
                return dataclasses.asdict(measured)
            show_bench(measured)
        return {}


_DATA_HELP = """usage: a3jax data show EXPERIMENT [--step N] [--windows N] [--token N] [--field value ...] [--json]
       a3jax data bench EXPERIMENT [--steps N] [--field value ...] [--json]

show    windows of a batch as training reads them: documents, what is given, groups in their order; with --token the
        place of a token in the windows, and what its query may see
bench   tokens/s from storage to the device, and where the time goes

    a3jax data show tiny --step 30 --token 100

    a3jax data bench tiny --data.length 2048 --data.batch 32"""
