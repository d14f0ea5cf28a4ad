"""The `a3jax` command. Each subcommand is a dataclass of its options; running it returns what `--json` prints."""

import dataclasses
import importlib
import json
import logging
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from a3jax.commandline import parse
from a3jax.config import Config, check, from_json, nearest, to_json
from a3jax.data.filters import KEEP_ALL, Filters
from a3jax.errors import UserError
from a3jax.interrupt import stop_requests
from a3jax.processes import Processes, continue_in_child, failing, several

Json = Annotated[bool, arg(help="Print the result as one JSON object, the last line of standard output.")]


@dataclass(frozen=True)
class Import:
    """Import pretrained autoregressive weights as a model folder. The same command goes on with an import that was stopped.

    a3jax import ~/models/SmolLM2-135M models/smollm2

    a3jax import HuggingFaceTB/SmolLM2-135M models/smollm2
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A Hugging Face folder (config.json, *.safetensors, tokenizer.json), a .gguf file, or the hub's OWNER/MODEL[@REV]."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The model folder to write."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights on disk; the source's own if not given."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102, the class says it
        from a3jax.model.parameters import count
        from a3jax.weights.importer import import_model
        from a3jax.weights.source import open_source

        model = import_model(open_source(self.source), self.out, self.dtype)
        return {"out": str(self.out), "family": model.family, "parameters": count(model), "context": model.context}


@dataclass(frozen=True)
class Inspect:
    """Say what a model, run, export, corpus or GGUF file is, without loading it.

    a3jax inspect runs/demo
    """

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """A model folder, a run folder, a Hugging Face folder, a corpus folder or a .gguf file."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.describe import describe

        return describe(self.path, self.step)


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
    start: str | None = None
    """Token that begins documents; the model's own if not given."""
    end: str | None = None
    """Token that ends documents; the model's own if not given."""
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
        manifest = prepare(sources, Path(out), **options)
        return {"out": out, **dataclasses.asdict(manifest)}


@dataclass(frozen=True)
class Generate:
    """Fill the blanks of a text, in any order.

    a3jax generate runs/demo --text "def area(r): [[8]] * r"
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    text: str
    """A text in which [[n]] is a blank of n tokens."""
    order: str = "ar"
    """ar, in_order_N, random_N or spans_N, with N tokens decoded at a time."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have probability p."""
    seed: int = 0
    """Decides orders and samples."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        import a3jax

        model = a3jax.load(self.checkpoint, dtype=self.dtype, step=self.step)
        result = a3jax.infill(
            model,
            self.text,
            order=self.order,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )
        blanks = [dataclasses.asdict(blank) for blank in result.blanks]
        facts = {"blanks": blanks, "forwards": result.forwards, "seconds": result.seconds}
        if self.json:
            return {"text": result.text, **facts}
        _print_marked(result.pieces)
        return facts | {"log_prob": result.log_prob}


def _print_marked(pieces: Sequence[tuple[str, bool]]) -> None:
    """A text with what was filled in standing out: in colour on a terminal, between ⟦ and ⟧ elsewhere."""
    from rich.console import Console
    from rich.text import Text

    if sys.stdout.isatty():
        marked = Text.assemble(*((text, "bold green" if filled else "") for text, filled in pieces))
        Console(soft_wrap=True, highlight=False).print(marked)
    else:
        print("".join(f"⟦{text}⟧" if filled else text for text, filled in pieces))


@dataclass(frozen=True)
class Export:
    """Write a checkpoint for PyTorch: the two-stream model, or its autoregressive view as the family's own class or GGUF.

    a3jax export runs/demo exported --verify

    a3jax export runs/demo exported-llama --as llama

    a3jax export runs/demo exported.gguf --as gguf --dtype bfloat16
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The Hugging Face folder, or the .gguf file, to write."""
    as_: Annotated[str, arg(name="as")] = "a3"
    """a3 for both streams (trust_remote_code), or the model's family, such as llama, or gguf."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as saved if not given."""
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    verify: bool = False
    """Run both sides, and compare their logits and the tokens they choose greedily."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.checkpoint import find
        from a3jax.weights.exporter import GGUF, export_model
        from a3jax.weights.verify import require_torch, verify

        if self.verify:
            if self.as_ == GGUF:
                raise UserError("--verify needs a folder that PyTorch loads; export it --as the model's family too")
            require_torch()
        checkpoint = find(self.checkpoint, self.step)
        export_model(checkpoint, self.out, self.as_, self.dtype)
        result: dict[str, Any] = {"out": str(self.out)}
        if self.verify:
            found = verify(checkpoint, self.out)
            if found.problem:
                raise UserError(f"{self.out}: {found.problem}; do not use this folder")
            result |= dataclasses.asdict(found)
        return result


@dataclass(frozen=True)
class Train:
    """Adapt a model. The same command resumes a run that was stopped."""

    config: Config
    processes: Processes
    json: bool = False

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Train":
        """`EXPERIMENT [--field value ...] [--coordinator HOST:PORT --processes N --process I] [--json]`."""
        if not args or args[0] in ("-h", "--help"):
            print(_TRAIN_HELP)
            sys.exit(0 if args else 2)
        name, *options = args
        experiment = load_experiment(name)
        own, rest = _divide(options, [f"--{field.name}" for field in dataclasses.fields(Processes)])
        fields = [option for option in rest if option != "--json"]
        config = parse(Config, fields, f"{prog} {name}", experiment, _TRAIN_HELP)
        check(config)
        return cls(config, parse(Processes, own, prog), "--json" in options)

    def run(self) -> dict[str, Any]:  # noqa: D102
        import jax

        from a3jax.train.loop import train

        summary = train(self.config, self.processes)
        return dataclasses.asdict(summary) if jax.process_index() == 0 else {"stopped_by": summary.stopped_by}


_TRAIN_HELP = """usage: a3jax train EXPERIMENT [--field value ...] [--json]
       a3jax train EXPERIMENT --coordinator HOST:PORT --processes N --process I [--field value ...] [--json]

Adapt a model. EXPERIMENT is a Python file with a function `experiment()` that returns a Config, or the name of one in
experiments/. Any field can be set by its dotted name. The same command resumes a run that was stopped.

    a3jax train tiny

    a3jax train smollm2_python --optimizer.peak-lr 1e-4 --curriculum.0.steps 20

The fields of an experiment:  a3jax train EXPERIMENT --help"""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of `a3jax plan` beside the fields of the experiment."""

    topology: str
    """CHIP:AxB or CHIP:AxBxC, one of `mesh.slices`; chips are v4, v5e, v5p, v6e and tpu7x."""
    search: bool = False
    """Try meshes and batches instead, and rank those that fit."""
    batches: tuple[int, ...] = ()
    """Batches to search; the experiment's own, twice and four times that if not given."""
    limit: int = 12
    """How many a search compiles."""
    save: Path | None = None
    """A folder for the compiled steps."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Plan(PlanOptions):
    """Whether a run fits a TPU topology, and how fast it can be; on any machine."""

    config: Config

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Plan":
        """`EXPERIMENT --topology CHIP:AxB [option ...] [--field value ...]`."""
        if not args or args[0] in ("-h", "--help"):
            print(_PLAN_HELP)
            sys.exit(0 if args else 2)
        name, *words = args
        own, fields = _divide(words, [f"--{field.name}" for field in dataclasses.fields(PlanOptions)])
        config = parse(Config, fields, f"{prog} {name}", load_experiment(name), _PLAN_HELP)
        check(config)
        return cls(config=config, **vars(parse(PlanOptions, own, prog)))

    def run(self) -> dict[str, Any]:  # noqa: D102
        import jax

        from a3jax.plan.search import search
        from a3jax.plan.show import show_plan, show_search
        from a3jax.plan.stages import plan
        from a3jax.plan.topology import topology

        jax.config.update("jax_platforms", "cpu")  # a machine with TPUs need not give them up for a plan
        jax.config.update("jax_enable_compilation_cache", False)  # it cannot read back what is for absent devices
        chips = topology(self.topology, max(1, self.config.mesh.slices))
        if self.search:
            batch = self.config.data.batch
            found = search(self.config, chips, self.batches or (batch, 2 * batch, 4 * batch), self.limit)
            if not self.json:
                show_search(found, chips)
            ranked = [candidate.as_dict() for candidate in found]
            return {"topology": chips.name, "fits": any(not one.bytes_over for one in found), "ranked": ranked}
        planned = plan(self.config, chips, self.save)
        if not self.json:
            show_plan(planned)
            return {"saved": str(self.save) if self.save else None, "fits": planned.fits}
        return planned.as_dict()


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

    @property
    def json(self) -> bool:
        """Whether the result is for machines."""
        return self.options.json

    @classmethod
    def parse(cls, args: Sequence[str], prog: str) -> "Data":
        """`show|bench EXPERIMENT [option ...] [--field value ...]`."""
        if not args or args[0] in ("-h", "--help"):
            print(_DATA_HELP)
            sys.exit(0 if args else 2)
        kinds: dict[str, type[ShowOptions | BenchOptions]] = {"show": ShowOptions, "bench": BenchOptions}
        if args[0] not in kinds:
            raise UserError(f"unknown command 'data {args[0]}'{nearest(args[0], kinds)}; see a3jax data --help")
        kind, rest, prog = kinds[args[0]], args[1:], f"{prog} {args[0]}"
        if not rest or rest[0] in ("-h", "--help"):
            print(_DATA_HELP)
            sys.exit(0 if rest else 2)
        name, *words = rest
        own, fields = _divide(words, [f"--{field.name}" for field in dataclasses.fields(kind)])
        config = parse(Config, fields, f"{prog} {name}", load_experiment(name), _DATA_HELP)
        check(config)
        return cls(config, parse(kind, own, prog))

    def run(self) -> dict[str, Any]:  # noqa: D102
        options = self.options
        if isinstance(options, ShowOptions):
            from a3jax.data.show import print_shown, show

            shown = show(self.config, options.step, options.windows, options.token)
            if options.json:
                return dataclasses.asdict(shown)
            print_shown(shown)
        else:
            from a3jax.data.bench import bench, show_bench

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


def _divide(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line: the options named, each with the words up to the next option, and everything else."""
    own: list[str] = []
    others: list[str] = []
    belongs = others
    for word in words:
        if word.startswith("--"):
            belongs = own if word.partition("=")[0] in options else others
        belongs.append(word)
    return own, others


_PLAN_HELP = """usage: a3jax plan EXPERIMENT --topology CHIP:AxB[xC] [--save FOLDER] [--field value ...] [--json]
       a3jax plan EXPERIMENT --topology CHIP:AxB[xC] --search [--batches N ...] [--limit N] [--field value ...] [--json]

Whether a run fits a TPU topology, and how fast it can be. The step of every stage is compiled as it would be on the chips
(v4, v5e, v5p, v6e, tpu7x); this needs libtpu, not a TPU. Exit status 1 if it does not fit.

    a3jax plan llama_8b --topology v5p:4x4x4

    a3jax plan llama_1b --topology v5e:4x4 --search --batches 64 128

The fields of an experiment:  a3jax plan EXPERIMENT --help"""


def load_experiment(name: str) -> Config:
    """The Config that an experiment file returns. Raises `UserError` for one that is absent or broken."""
    path = Path(name) if name.endswith(".py") else Path("experiments") / f"{name}.py"
    if not path.is_file():
        known = [file.stem for file in sorted(Path("experiments").glob("*.py"))]
        raise UserError(f"experiment {path} does not exist{nearest(name, known)}")
    try:
        content = runpy.run_path(str(path))
        if "experiment" not in content:
            raise UserError(f"{path}: there is no function experiment() that returns a Config")
        config = content["experiment"]()
    except (Exception, SystemExit) as error:  # whatever is wrong with a user's file is the user's to mend
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: experiment() returns {type(config).__name__}, not a Config")
    return from_json(Config, to_json(config), str(path))  # Python does not check the types of fields; this does


COMMANDS: dict[str, tuple[type, str, str]] = {
    "import": (Import, "a3jax.weights.importer", "pretrained weights -> a model folder"),
    "inspect": (Inspect, "a3jax.describe", "what a model, run, export or corpus is"),
    "prepare": (Prepare, "a3jax.data.prepare", "text -> a corpus of token ids"),
    "data": (Data, "a3jax.data.pipeline", "look at an experiment's batches, or measure how fast they come"),
    "train": (Train, "a3jax.train.loop", "adapt a model along a curriculum"),
    "plan": (Plan, "a3jax.plan.stages", "whether a run fits a TPU topology, and how fast it can be"),
    "generate": (Generate, "a3jax.api", "fill the blanks of a text in any order"),
    "export": (Export, "a3jax.weights.exporter", "a checkpoint -> Hugging Face and PyTorch"),
}
"""Name -> options, the module that does the work, and what it is for."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command line. A user's mistake is one line on standard error and exit status 2."""
    args = list(sys.argv[1:] if args is None else args)
    for name in ("absl", "asyncio"):  # Orbax warns of what is as it should be, and tells every failure at length
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by exception, so that folders are tidied
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_help())
            sys.exit(0 if args else 2)
        if args[0] not in COMMANDS:
            raise UserError(f"unknown command '{args[0]}'{nearest(args[0], COMMANDS)}; see a3jax --help")
        kind, module, _ = COMMANDS[args[0]]
        prog = f"a3jax {args[0]}"
        command = kind.parse(args[1:], prog) if kind in (Train, Plan, Data) else parse(kind, args[1:], prog)
        if isinstance(command, Train) and several(command.processes):
            continue_in_child()
        with stop_requests() as stopped_by:  # libraries that are being imported can swallow an interrupt
            importlib.import_module(module)
            if "jax" in sys.modules:  # commands that compile nothing do not wait for it
                importlib.import_module("a3jax.compilation").keep_compiled_programs()
        if stopped_by():
            sys.exit(128 + stopped_by())
        result = command.run()
    except UserError as error:
        print(f"a3jax: {error}", file=sys.stderr)
        sys.exit(failing(error.status))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        failing(1)
        raise
    if command.json and result:
        print(json.dumps(result))
    else:
        _show(result)
    if result.get("stopped_by"):
        status = 128 + result["stopped_by"]
        if any(thread.name.startswith("compile") for thread in threading.enumerate()):  # nobody waits for it any more
            sys.stdout.flush()
            os._exit(status)
        sys.exit(status)
    if result.get("fits") is False:
        sys.exit(1)


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    """Pass over the echoes of a failed write: TensorStore's threads report to an event loop that is gone by then."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _help() -> str:
    rows = "\n".join(f"  {name:10}{what}" for name, (*_, what) in COMMANDS.items())
    return f"usage: a3jax COMMAND ...\n\n{rows}\n\nHelp and an example:  a3jax COMMAND --help"


def _show(result: dict[str, Any]) -> None:
    """Results for people: a name and a value a line, long lists left to `--json`."""
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(item)}" for key, item in value.items() if not isinstance(item, list | tuple))
        if value and not isinstance(value, list | tuple):
            print(f"{name.replace('_', ' '):22} {_number(value)}")


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    main()
