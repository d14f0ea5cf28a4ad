"""A run's checkpoints: parameters, optimizer, record and data iterator saved together, asynchronously, whole or not at all.

    RUN/checkpoints/STEP/params/      what `a3jax.checkpoint` finds
                         optimizer/   moments and counts
                         record/      `Record` as JSON: steps, tokens, curriculum stages
                         data/        where the data iterator stands, as JSON

Orbax writes a step under a temporary name and renames it when it is complete, so a killed run leaves whole steps only.
"""

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from a3jax.checkpoint import STEPS
from a3jax.config import from_json
from a3jax.errors import UserError, first_line
from a3jax.folders import is_full_disk, remove
from a3jax.record import Record
from a3jax.train.step import State


class Restored(NamedTuple):
    """What a run goes on from."""

    step: int
    state: State
    record: Record
    data: dict[str, Any]
    """State of the data iterator."""


class Checkpoints:
    """The steps saved in a run folder: the newest, and `keep` before it."""

    def __init__(self, run: Path, keep: int):
        self._folder = (run / STEPS).resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep + 1, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def newest(self) -> int | None:
        """The last step that was saved whole, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, record: Record, data: dict[str, Any]) -> None:
        """Begin to save `step`, after the one before is written. Raises `UserError` if that one could not be."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(
                _plain(state.params), _plain(jax.tree.map(_by_layer, state.params, is_leaf=_is_variable))
            ),
            optimizer=ocp.args.StandardSave(_plain(state.optimizer)),
            record=ocp.args.JsonSave(dataclasses.asdict(record)),
            data=ocp.args.JsonSave(data),
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def restore(self, abstract: State) -> Restored:
        """The newest step, laid out as `abstract` (shapes with shardings) says."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_plain(abstract.params)),
            optimizer=ocp.args.StandardRestore(_plain(abstract.optimizer)),
            record=ocp.args.JsonRestore(),
            data=ocp.args.JsonRestore(),
        )
        step = self.newest
        assert step is not None, "nothing to restore; ask `newest` first"
        try:
            saved = self._manager.restore(step, args=items)
        except Exception as error:  # a damaged file can fail anywhere inside Orbax
            where = self._folder / str(step)
            raise UserError(f"{where} is damaged ({first_line(error)}); remove it to go on from the one before") from None
        plain = (saved["params"], saved["optimizer"])
        structure = jax.tree.structure((abstract.params, abstract.optimizer))
        params, optimizer = jax.tree.unflatten(structure, jax.tree.leaves(plain))
        record = from_json(Record, json.dumps(saved["record"]), str(self._folder / str(step) / "record"))
        count = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
        return Restored(step, State(params, optimizer, count), record, saved["data"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the last save. Raises `UserError` if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as failed:
            raise self._failed(failed) from failed
        finally:
            self._manager.close()

    def _failed(self, error: Exception) -> UserError:
        for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
            remove(unfinished)
        last = f"the last whole checkpoint is step {self.newest}" if self.newest is not None else "none was saved before"
        reason = "the disk is full" if is_full_disk(error) else first_line(error)
        return UserError(f"{self._folder} could not be written ({reason}); {last}: make room and run the same command again")


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
