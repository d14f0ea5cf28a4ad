"""A run's checkpoints: parameters, optimizer, record and data iterator saved together, asynchronously, whole or not at all.

    RUN/checkpoints/STEP/params/      what `a3jax.checkpoint.folder` finds: all weights, or those the source lacks
                         optimizer/   moments and counts
                         record/      `Provenance` as JSON: steps, tokens, curriculum stages
                         data/        where the data iterator stands, as JSON
                         standing/    where the run stands in its curriculum (`a3jax.curriculum.plateau`), as JSON
                         checksums/   of all these (`a3jax.train.checksums`), as JSON
                         metrics/     held-out NLL by order, where the step was evaluated, and the best are kept
        damaged/STEP/                 a step that could not be read, set aside; nothing looks at it again, nor removes it
                metrics-STEP/         the same of a step's metrics alone

Orbax writes a step under a temporary name and renames it when it is complete, so a killed run leaves whole steps only.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from a3jax.checkpoint.arrays import flat, saved_names
from a3jax.checkpoint.folder import PARAMS, STEPS, Frozen
from a3jax.checkpoint.provenance import Provenance
from a3jax.config import TrainConfig
from a3jax.curriculum.plateau import PlateauState
from a3jax.devices.agreement import barrier, from_runtime, together
from a3jax.devices.passing import Passing
from a3jax.devices.replicas import part_to_read, sent_to_all
from a3jax.errors import UserError, first_line
from a3jax.files.bucket import disk_error
from a3jax.files.folders import is_forbidden, is_full_disk, is_passing, move, remove
from a3jax.files.outside_json import parse_object
from a3jax.files.places import is_local
from a3jax.files.strict import build
from a3jax.model.parameters import named
from a3jax.progress import console
from a3jax.train.away import Away
from a3jax.train.checksums import checksums
from a3jax.train.pace import Pace
from a3jax.train.state import State, with_counts

T = TypeVar("T")

DAMAGED = "damaged"
_FACTS = ("record", "data", "standing")
"""What is saved as JSON."""


class Restored(NamedTuple):
    """What a run goes on from."""

    step: int
    state: State
    record: Provenance
    data: dict[str, Any]
    """State of the data iterator."""
    standing: PlateauState


class Checkpoints:
    """The steps saved in a run folder, and which of them stay."""

    def __init__(self, run: Path, config: TrainConfig, frozen: Frozen | None = None):
        """`frozen`, where the run has such weights, is left out of what is saved, unless `train.save` says otherwise."""
        self._away = Away(run / STEPS)
        self._folder = self._away.folder.resolve()
        self._frozen = frozenset(frozen.parameters if frozen else ())
        self._pace = Pace()
        self._left_out = self._frozen if config.save == "trained" else frozenset()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy(config),
            best_fn=(lambda metrics: metrics[config.best_order]) if config.keep_best else None,
            best_mode="min",
            enable_async_checkpointing=True,
            # Made in the background, a folder that cannot be made leaves threads that wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            cleanup_tmp_directories=True,
        )
        try:
            self._away.fetch()
            if config.keep_best:
                self._leave_damaged_figures_out(config.best_order)
            self._manager = ocp.CheckpointManager(epath.Path(str(self._folder)), options=options)
        except OSError as error:
            raise UserError(f"{self._folder} cannot be used: {first_line(error)}") from None

    @property
    def newest(self) -> int | None:
        """The last step that was saved whole, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: State,
        record: Provenance,
        data: dict[str, Any],
        standing: PlateauState,
        nll: dict[str, float] | None,
    ) -> None:
        """Begin to save `step`, after the one before is written. Raises `UserError` if that one could not be.

        `nll` is the held-out NLL by order at this very step, if it was evaluated.
        """
        facts = {"record": dataclasses.asdict(record), "data": data, "standing": dataclasses.asdict(standing)}
        params = _without(state.params, self._left_out)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(_plain(params), _plain(jax.tree.map(_by_layer, params, is_leaf=_is_variable))),
            optimizer=ocp.args.StandardSave(_plain(state.optimizer)),
            checksums=ocp.args.JsonSave(checksums(state, **facts)),
            **{name: ocp.args.JsonSave(fact) for name, fact in facts.items()},
        )
        with self._writing():
            if self._manager.is_saving_in_progress():
                self._pace.waited(self._manager.wait_until_finished)
            self._pace.begins()
            self._manager.save(step, args=items, metrics=nll or None)
            self._away.send(self._manager)

    def restore(self, abstract: State, source: Callable[[], nnx.State]) -> Restored | None:
        """The newest step that can be read, laid out as `abstract` (shapes with shardings) says; None if there is none.

        `source` gives, so laid out, the weights that a step lacks, among others; it is asked at most once, and not in vain.
        A step that is damaged for any of the processes is reported, set aside, and all take the one before it. Raises
        `UserError` where none is left but those set aside, `Passing` where it is not the files that keep a step from being
        read, and what JAX raises where it is another process.
        """
        source = functools.cache(functools.partial(_loaded, source))
        while (step := self.newest) is not None:
            try:
                saved = together(functools.partial(self._read, step, abstract))
                return together(functools.partial(self._checked, step, saved, abstract, source))
            except Exception as error:  # a damaged file can fail anywhere inside Orbax
                if isinstance(error, UserError) or from_runtime(error):  # of the file system, devices or other hosts
                    raise
                aside = self._set_aside(step)
                what = f"{self._folder / str(step)} is damaged ({first_line(error)}); it is set aside as {aside}"
                console.print(f"{what}, and the one before it is used", soft_wrap=True)
        if any((self._folder / DAMAGED).glob("[0-9]*")):
            raise UserError(
                f"{self._folder} has no step that can be read; remove {self._folder / DAMAGED} to begin the run anew, or "
                f"move a step back from there"
            )
        return None

    def wait(self) -> None:
        """Until the last save is written. Raises `UserError` if it could not be."""
        with self._writing():
            self._manager.wait_until_finished()
            self._away.send(self._manager)

    def _read(self, step: int, abstract: State) -> dict[str, Any]:
        """This process's part of a step, without a word to the others, who may fail where this one does not."""
        facts = [name for name in (*_FACTS, "checksums") if (self._folder / str(step) / name).is_dir()]
        try:
            held, lacking = self._split(abstract.params, saved_names(self._folder / str(step) / PARAMS))
            arrays = part_to_read(_plain({"params": held, "optimizer": abstract.optimizer})) or {}
            items = ocp.args.Composite(
                **{name: ocp.args.StandardRestore(part) for name, part in arrays.items()},
                **{name: ocp.args.JsonRestore() for name in facts},
            )
            with contextlib.closing(ocp.CompositeCheckpointHandler()) as handler:
                saved = handler.restore(epath.Path(str(self._folder / str(step))), args=items)
        except (OSError, ValueError, MemoryError) as error:
            if (passing := is_passing(error)) or is_forbidden(error):
                where, kind = self._folder / str(step), Passing if passing else UserError
                raise kind(f"{where} cannot be read now ({first_line(error)}); run the same command again") from error
            raise
        read = {name: saved[name] for name in arrays} or None
        return {name: saved[name] for name in facts} | {"arrays": read, "lacking": lacking}

    def _split(self, params: nnx.State, names: Collection[str]) -> tuple[nnx.State, frozenset[str]]:
        """What a step with these parameters holds of them all, and which it lacks. Raises `ValueError` if it may not."""
        lacking = frozenset(flat(nnx.to_pure_dict(params))) - set(names)
        if not lacking <= self._frozen:
            raise ValueError(f"{min(lacking - self._frozen)} is missing")
        return _without(params, lacking), lacking

    def _checked(self, step: int, saved: dict[str, Any], abstract: State, source: Callable[[], nnx.State]) -> Restored:
        """What was read, if it is what was saved; all processes compute its checksums together."""
        lacking = saved["lacking"]
        asked = {"params": _without(abstract.params, lacking), "optimizer": abstract.optimizer}
        plain = sent_to_all(saved.pop("arrays"), _plain(asked))
        params, optimizer = (jax.tree.unflatten(jax.tree.structure(asked[it]), jax.tree.leaves(plain[it])) for it in asked)
        if lacking:
            params = nnx.merge_state(params, nnx.filter_state(source(), named(lacking)))
        facts = {name: saved[name] for name in _FACTS if name in saved}
        standing = _built(PlateauState, facts.get("standing", {}), "standing")  # older runs have none
        state = with_counts(State(params, optimizer, abstract.step, abstract.skipped), step, standing.skipped)
        sums = checksums(state, **facts)
        for name in sums.keys() | saved["checksums"].keys():
            if sums.get(name) != saved["checksums"].get(name):
                raise ValueError(f"{name} is not what was saved")
        return Restored(step, state, _built(Provenance, saved["record"], "record"), saved["data"], standing)

    def _set_aside(self, step: int) -> Path:
        aside = self._free(str(step))
        barrier("named")
        if jax.process_index() == 0:
            move(self._folder / str(step), aside)
        barrier("damaged")
        self._manager.reload()
        return aside

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the last save. Raises `UserError` if it could not be written."""
        try:
            self.wait()
        finally:
            with self._writing():
                self._manager.close()

    def _leave_damaged_figures_out(self, order: str) -> None:
        """Set aside what Orbax would fail over: a step with damaged figures is no longer one of the best, and no less."""
        for file in self._folder.glob("[0-9]*/metrics/metrics") if jax.process_index() == 0 else ():
            try:
                whole = type(parse_object(file.read_bytes(), str(file))[order]) in (int, float)
            except (UserError, KeyError):
                whole = False
            if not whole:
                aside = self._free(f"metrics-{file.parts[-3]}")
                move(file.parent, aside)
                line = f"{file} is damaged; it is set aside as {aside}, and its step is none of the best any more"
                console.print(line, soft_wrap=True)
        barrier("figures")

    def _free(self, name: str) -> Path:
        """A name that nothing set aside has yet."""
        names = itertools.chain([name], (f"{name}-{again}" for again in itertools.count(2)))
        return next(aside for one in names if not (aside := self._folder / DAMAGED / one).exists())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what may say that a save has failed, this one or the one before it."""
        try:
            yield
        except Exception as error:
            disk = isinstance(error, OSError)
            if isinstance(error, UserError) or (from_runtime(error) and not disk):
                raise
            local = is_local(self._folder)
            if local and not disk and not isinstance(error, ValueError):
                raise
            # In a bucket it is one of the libraries that Orbax writes by.
            raise self._failed(error if local or disk else disk_error(error, self._folder, writing=True)) from error

    def _failed(self, error: Exception) -> UserError:
        with contextlib.suppress(OSError):  # what cannot be written may not be there to be removed
            for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
                remove(unfinished)
        newest = self._away.newest(self._manager)
        last = f"the last whole checkpoint is step {newest}" if newest is not None else "none was saved before"
        said = getattr(error, "strerror", None) or first_line(error)
        reason = "the disk is full" if is_full_disk(error) else said
        kind, first = (Passing, "") if is_passing(error) else (UserError, "make room and ")
        return kind(f"{self._away.place} could not be written ({reason}); {last}: {first}run the same command again")


def _without(params: nnx.State, names: Collection[str]) -> nnx.State:
    return nnx.filter_state(params, lambda *leaf: not named(names)(*leaf))


def _loaded(source: Callable[[], nnx.State]) -> nnx.State:
    """Weights of the source. Whatever is wrong with them, the step that lacks them is not damaged: raises `UserError`."""
    try:
        return source()
    except Exception as error:
        if isinstance(error, UserError) or from_runtime(error):
            raise
        raise UserError(f"the source's weights cannot be read ({first_line(error)}); run the same command again") from error


def _built(kind: type[T], fact: Any, name: str) -> T:
    """What was saved as JSON. Raises `ValueError` for what cannot have been."""
    try:
        return build(kind, fact, name)
    except UserError as error:
        raise ValueError(str(error)) from error


def policy(config: TrainConfig) -> policies.PreservationPolicy:
    """Which steps stay."""
    kept: list[policies.PreservationPolicy] = [policies.LatestN(config.keep + 1)]
    if config.keep_hours is not None:
        kept.append(policies.EveryNSeconds(round(config.keep_hours * 3600)))
    if config.keep_best:
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[config.best_order],
            reverse=True,
            n=config.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def _by_layer(variable: nnx.Variable) -> nnx.Variable:
    """How to cut an array for storage: one layer a chunk, so that an export can read it layer by layer."""
    return variable.replace(ocp.SaveArgs(shard_axes=(0,) if variable.get_metadata()["axes"][0] == "N" else ()))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _plain(tree: Any) -> Any:
    """`tree` with its parameter states as nested dicts of arrays, so that nothing of Flax is in the files."""

    def plain(leaf: Any) -> Any:
        return nnx.to_pure_dict(leaf) if isinstance(leaf, nnx.State) else leaf

    return jax.tree.map(plain, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.State))
