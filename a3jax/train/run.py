"""A run before its first step: what it trains, on what, and the folder that remembers both.

RUN/
    config.json                       the experiment
    model.json, tokenizer.json, ...   as in a model folder, so that a run folder can be used as one
    inputs.json                       what its corpora, and the model that it learns from, were
    frozen.json                       where the weights lie that it leaves as they are, and that its checkpoints lack
    checkpoints/                      `a3jax.train.checkpoints`
    metrics.jsonl                     `a3jax.train.metrics`
    events/                           the same for TensorBoard
    lock                              held while a process trains here

Nothing is written before the folder is held and known to be this run's, or nobody's.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from a3jax.checkpoint.folder import CONFIG, FROZEN, MODEL, PARAMS, RECORD, STEPS, Frozen
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import Config, ModelConfig, check_start, settled
from a3jax.data.mixing import weights
from a3jax.data.pipeline import Corpus, open_corpora
from a3jax.data.tokenizer import NONE, TextCodec, load_codec
from a3jax.data.tokenizer_files import FILES
from a3jax.devices.agreement import barrier, together
from a3jax.devices.mesh import check_mesh
from a3jax.errors import UserError
from a3jax.files.folders import unwritable, write_whole
from a3jax.files.holding import held, is_held
from a3jax.files.strict import flat, read, to_json
from a3jax.train.chats import check_chats, with_chats
from a3jax.train.direct import with_corpora
from a3jax.train.frozen import frozen_weights
from a3jax.train.inputs import INPUTS, Inputs, inputs_of, source_of
from a3jax.train.metrics import EVENTS, METRICS
from a3jax.train.trained import changes, trained_model
from a3jax.weights.pretrained import Pretrained

LOCK = "lock"
_WRITTEN = (MODEL, *FILES, RECORD, PARAMS, STEPS, FROZEN, METRICS, EVENTS)
"""What a run would write over, or a model folder has: such a folder without `CONFIG` is not a run's."""

_FREE_TO_CHANGE = (
    *("name", "run", "mesh", "guard", "profile"),
    *(f"train.{name}" for name in ("attention", "attention_block", "remat", "loss_chunk", "executables", "log_every")),
    *(f"train.{name}" for name in ("sample", "eval_every", "eval_windows", "eval_stages", "stop_at", "save", "save_every")),
    *(f"train.{name}" for name in ("save_minutes", "keep", "keep_hours", "keep_best", "best_order", "wandb")),
)
"""Fields that a resumed run may set anew, since the steps stay the same steps."""


@dataclass(frozen=True)
class Run:
    """Everything that is settled before the first step."""

    config: Config
    model: ModelConfig
    corpora: tuple[Corpus, ...]
    """What it trains on, in the order of the experiment's sources."""
    source: Pretrained | None
    """Where the weights come from; None for random ones."""
    record: Provenance
    """What had happened to them before, and what they are trained for now."""
    codec: TextCodec
    """Its tokenizer, with the template of the chats that it learns from."""
    inputs: Inputs
    frozen: Frozen | None = None
    """What its checkpoints need not hold; None where they hold all weights."""


def open_run(config: Config, mesh: Mesh, own_data: bool = False) -> Run:
    """Check that source, data, mesh and an earlier part of the run fit together; of its folder it writes `data/` at most.

    With `own_data` it reads no corpora but those that the experiment names all the same, for their held-out text.

    Raises `UserError` where they do not, where the folder is none of this run, and where another process trains in it.
    """
    check_folder(config)
    if is_training(config.run_folder):
        raise _in_use(config.run_folder)
    corpora: tuple[Corpus, ...] = ()
    if not own_data or config.data.names_corpora:
        # What has to be prepared, one process prepares.
        together(lambda: with_corpora(config) if jax.process_index() == 0 else None)
        corpora = open_corpora(with_corpora(config, looked=True))
    elif config.source is None:
        raise UserError("data are token ids, and nothing says of which tokenizer: give source, or data.path with a corpus")
    weights(config.data.sources, config.schedule.steps)
    check_start(config)
    source = source_of(config)
    if source is None:
        assert config.model is not None
        model, record = config.model, Provenance(source="random")
    else:
        model, record = source.config, source.record
        if config.model is not None:
            _check_model(config.model, source)
    model = trained_model(config, model)
    changes(config.adapt, model)
    _check_data(config, model, corpora, source)
    check_chats(config, corpora)
    model, codec = with_chats(model, source.codec if source else load_codec(corpora[0].folder), corpora)
    if not any(c.manifest.held_out.tokens for c in corpora):
        nothing = f"nothing of {corpora[0].folder} is held out" if corpora else "data.path names no corpus with held-out text"
        if config.schedule.may_end_early:
            raise UserError(f"a stage has a plateau, but {nothing}; prepare one with --held-out")
        if config.train.keep_best:
            raise UserError(f"train.keep_best is {config.train.keep_best}, but {nothing}; prepare one with --held-out")
    if config.adapt.distill and mesh.shape["context"] > 1:
        raise UserError(f"adapt.distill does not work with mesh.context {mesh.shape['context']}; set mesh.context to 1")
    if config.mask_block is not None and mesh.shape["context"] > 1:
        what = f"objective {config.objective} does not work with mesh.context {mesh.shape['context']}"
        raise UserError(f"{what}; set mesh.context to 1")
    for batch in config.batches:
        check_mesh(mesh, model, batch // config.train.accumulate, config.data.length)
    record = dataclasses.replace(
        record,
        objective=config.objective,
        mask_block=config.mask_block,
        fim_tokens=config.fim.tokens,
        blanks_end=record.blanks_end or config.schedule.slack > 0,
    )
    inputs = together(lambda: inputs_of(config, corpora, source))
    frozen = together(lambda: frozen_weights(config, model, source))
    return Run(config, model, corpora, source, record, codec, inputs, frozen)


@contextlib.contextmanager
def opened_folder(run: Run) -> Iterator[None]:
    """Hold the run folder, made if need be, and write into it what the run is; process 0 does, for all.

    Raises `UserError`, with nothing written, where another process trains in it, or another run has begun there meanwhile.
    """
    config, folder = run.config, run.config.run_folder
    barrier("checked")  # nobody looks any more whether it is held
    with contextlib.ExitStack() as held:

        def write() -> None:
            held.enter_context(only_process(folder))
            check_folder(config)
            write_whole(folder / CONFIG, to_json(config))  # first, as it says whose the folder is
            _write(folder, run.model, run.codec)
            write_whole(folder / INPUTS, to_json(run.inputs))
            if run.frozen is not None:
                write_whole(folder / FROZEN, to_json(run.frozen))

        together(lambda: write() if jax.process_index() == 0 else None)
        yield


def _write(folder: Path, model: ModelConfig, codec: TextCodec) -> None:
    try:
        (folder / MODEL).write_text(to_json(model))
        for name, content in codec.files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise unwritable(folder, error) from None


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold a run folder, made if need be. Raises `UserError` if another process does."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder / LOCK, folder))
        except OSError as error:
            raise unwritable(folder, error) from None
        except UserError:
            raise _in_use(folder) from None
        yield


def _in_use(folder: Path) -> UserError:
    return UserError(f"{folder} is being trained by another process; wait for it, or give another --run")


def check_folder(config: Config) -> None:
    """Raise `UserError` if the run folder holds another run than `config`, or what is no run and would be written over."""
    folder = config.run_folder
    if (folder / CONFIG).is_file():
        check_same(folder, config)
        return
    for path in (folder / name for name in _WRITTEN):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UserError(f"{folder} is not a run's folder, and {path.name} in it would be lost; give another --run")


def _check_model(expected: ModelConfig, source: Pretrained) -> None:
    for field in dataclasses.fields(ModelConfig):
        here, there = getattr(expected, field.name), getattr(source.config, field.name)
        if here != there and field.name not in ("seeding", "content", "adapter_rank", "adapter_stream"):
            raise UserError(f"model.{field.name} is {here}, but {source.folder} has {there}; correct the experiment's model")


def _check_data(config: Config, model: ModelConfig, corpora: tuple[Corpus, ...], source: Pretrained | None) -> None:
    model_sha256 = source.codec.sha256 if source else corpora[0].manifest.tokenizer_sha256
    for folder, manifest, _ in corpora:
        codec = load_codec(folder, start=NONE)
        if codec.sha256 != manifest.tokenizer_sha256:
            raise UserError(f"{folder}/tokenizer.json is not the one it was prepared with; prepare it again")
        if manifest.vocab > model.vocab:
            raise UserError(f"{folder} has token ids up to {manifest.vocab - 1}, but the model has {model.vocab} embeddings")
        if manifest.start_token != model.document_start:
            begin = "documents of {} begin with {}"
            theirs = begin.format(folder, codec.name(manifest.start_token))
            ours = begin.format(source.folder if source else "the experiment's model", codec.name(model.document_start))
            raise UserError(f"{theirs}, but {ours}; prepare it again with the tokenizer of the model")
        if manifest.tokenizer_sha256 != model_sha256:
            other = source.folder if source else corpora[0].folder
            raise UserError(f"{folder} was prepared with another tokenizer than that of {other}; prepare it again with it")
    if config.data.length > model.context:
        raise UserError(f"data.length {config.data.length} is more than the model's context of {model.context} tokens")
    if config.schedule.slack and not model.end_tokens:
        raise UserError("order open needs an end token to end blanks with, and the model has none; take infill instead")
    if config.data.length + config.schedule.slack > model.context:
        what = f"data.length {config.data.length} and slack {config.schedule.slack - 1}, with one place for an end,"
        raise UserError(f"{what} are more than the model's context of {model.context} places; make one smaller")


def is_training(folder: Path) -> bool:
    """Whether a process holds the run folder."""
    return is_held(folder / LOCK)


def check_same(folder: Path, config: Config) -> None:
    """Raise `UserError` if the run in `folder` is another than `config`, but for what is free to change."""
    before, now = (dict(flat(dataclasses.asdict(settled(one)))) for one in (read(Config, folder / CONFIG), config))
    bound = ("train.eval_every", "train.eval_windows") if config.schedule.may_end_early else ()
    for name in sorted(before.keys() | now.keys()):
        # A source may have moved: that it is the same one is seen by its SHA-256 (`a3jax.train.frozen`).
        if name == "source" and (folder / FROZEN).is_file():
            continue
        free = name not in bound and any(name == field or name.startswith(f"{field}.") for field in _FREE_TO_CHANGE)
        if before.get(name) != now.get(name) and not free:
            raise UserError(
                f"{folder} holds a run with {name} = {before.get(name)}, not {now.get(name)}; "
                f"give another --name or --run, or remove the folder"
            )
