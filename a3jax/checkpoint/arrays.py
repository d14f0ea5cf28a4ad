"""Saved parameters read and written a part at a time, so that a model larger than memory can be imported and exported.

A parameter is one Zarr array in the folder that Orbax saves to and restores from. Orbax makes the folder, and is imported
only where that is done, for it takes a second; the numbers pass between here and the arrays through TensorStore, one layer
after another. Files written here hold one chunk each with a CRC-32C, which every later read checks, and appear whole: what is
there need not be written again.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import Sharding

from a3jax.files.places import for_orbax, kvstore

Index = tuple[slice, ...]

CHUNK_BYTES = 64 * 2**20
"""Largest chunk: small enough for many readers of one array, large enough for storage that likes large reads."""
_DESCRIPTIONS = (".zarray", "zarr.json")
"""What tells of an array beside its chunks, in Zarr's formats 2 and 3."""


class Form(NamedTuple):
    """What an array is, without its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: int
    """How many of its first axes count matrices that are written one at a time: those of layers, and of experts."""


class ParameterWriter:
    """Writes parameters, named by dotted paths, into a folder that Orbax restores as a nested dict.

    Opened again on a folder that an interrupted writer left, it knows what is there already.
    """

    def __init__(self, folder: Path, forms: Mapping[str, Form]):
        if not folder.is_dir():
            _save_outline(folder, forms)
        self._arrays = {name: _WritableArray(folder / name, form) for name, form in forms.items()}

    def has(self, name: str, index: tuple[int, ...] = ()) -> bool:
        """Whether a parameter, or the entry at an index of all axes that it is stacked over, was written whole."""
        return self._arrays[name].has(index)

    def write(self, name: str, value: np.ndarray, index: tuple[int, ...] = ()) -> None:
        """Write a parameter, or one entry of it; on return it is in its files."""
        self._arrays[name].write(value, index)


class _WritableArray:
    """One Zarr array, cut into chunks of one layer, or one expert of it, and a part of the axis behind it."""

    def __init__(self, path: Path, form: Form):
        self._path = path
        self._rest = form.shape[form.stacked :]
        row = int(np.prod(self._rest[1:])) * form.dtype.itemsize
        fitting = [n for n in range(1, self._rest[0] + 1) if self._rest[0] % n == 0 and n * row <= CHUNK_BYTES]
        self._rows = max(fitting, default=1)
        chunk = [1] * form.stacked + [self._rows, *self._rest[1:]]
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path.resolve()}/"},
            "metadata": {
                "shape": form.shape,
                "data_type": form.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            },
            "store_data_equal_to_fill_value": True,
        }
        try:
            self._store = ts.open(spec, open=True, create=True).result()
        except ValueError:  # the outline, whose shape is another
            shutil.rmtree(path)
            self._store = ts.open(spec, create=True).result()

    def has(self, index: tuple[int, ...]) -> bool:
        first = "".join(f"{i}/" for i in index)
        rest = "/0" * (len(self._rest) - 1)
        return all((self._path / f"c/{first}{i}{rest}").is_file() for i in range(self._rest[0] // self._rows))

    def write(self, value: np.ndarray, index: tuple[int, ...]) -> None:
        self._store[index].write(value, can_reference_source_data_indefinitely=True).result()


def _save_outline(folder: Path, forms: Mapping[str, Form]) -> None:
    """Have Orbax save a tree of the right names and nothing in it; the arrays are then replaced."""
    import orbax.checkpoint as ocp

    outline = nested({name: np.zeros((), form.dtype) for name, form in forms.items()})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)) as checkpointer:
        checkpointer.save(folder.resolve(), outline)


class SavedParameter:
    """One parameter of a saved model. Whatever reads it can raise what TensorStore raises for a damaged file."""

    def __init__(self, store: ts.TensorStore):
        self._store = store

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return tuple(self._store.shape)

    @property
    def dtype(self) -> np.dtype:
        """As saved."""
        return self._store.dtype.numpy_dtype

    def read(self, index: tuple[int, ...] = ()) -> np.ndarray:
        """All of it, or the entry at an index of its first axes."""
        return self._store[index].read().result()

    def part(self, index: Index, dtype: str | None = None) -> np.ndarray:
        """A part of it, one slice an axis; cast to `dtype`, or as it was saved."""
        store = self._store if dtype is None else ts.cast(self._store, ts.dtype(dtype))
        return store[index].read().result()


def saved_names(folder: Path) -> set[str]:
    """The dotted paths of the parameters that Orbax saved in `folder`."""
    keys = ts.KvStore.open(_arrays(for_orbax(folder))).result().list().result()
    names = (key.decode().rpartition("/") for key in keys)
    return {name for name, _, file in names if file in _DESCRIPTIONS}


def _arrays(folder: Path) -> dict[str, Any]:
    """The key-value store that has the arrays: the folder's own, or the one that Orbax packed into its files."""
    base = kvstore(folder)
    return {"driver": "ocdbt", "base": base} if (folder / "manifest.ocdbt").is_file() else base


def saved_parameters(folder: Path) -> dict[str, SavedParameter]:
    """The parameters that Orbax saved in `folder`, by dotted path, none of them read."""
    folder = for_orbax(folder)
    arrays = _arrays(folder)

    def described(name: str) -> dict[str, Any]:
        store = {**arrays, "path": f"{arrays.get('path', '')}{name}/"}
        array = ts.open({"driver": "auto", "kvstore": store}, open=True, read=True).result()
        chunk_bytes.append(array.chunk_layout.read_chunk_template.size * array.dtype.numpy_dtype.itemsize)
        return array.spec().to_json() | {"fill_missing_data_reads": False}  # a lost file is an error, not zeros

    chunk_bytes: list[int] = []
    specs = {name: described(name) for name in sorted(saved_names(folder))}
    # A chunk that spans layers stays in memory until another is read, not to be read again for each of them.
    context = ts.Context({"cache_pool": {"total_bytes_limit": max(chunk_bytes, default=0)}})
    return {
        name: SavedParameter(ts.open(spec, open=True, read=True, context=context).result()) for name, spec in specs.items()
    }


def laid_out(shape: tuple[int, ...], sharding: Sharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array of parts, each read once however many devices of this process hold it."""
    parts: dict[tuple[range, ...], np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
        assert index is not None, "the array has a shape"
        place = ranges(index, shape)
        if place not in parts:
            parts[place] = read(index)
        return parts[place]

    return jax.make_array_from_callback(shape, sharding, part)


def in_one_piece(
    shape: tuple[int, ...], sharding: Sharding, read: Callable[[Index], np.ndarray]
) -> Callable[[Index], np.ndarray]:
    """`read`, which reads what this process's devices hold of an array at once, if together that is a piece of it.

    Chunks of storage are not cut as devices cut an array: part by part, one would be read for every device that has some.
    """
    parts = {ranges(index, shape) for index in sharding.addressable_devices_indices_map(shape).values() if index is not None}
    piece = tuple(range(min(axis.start for axis in axes), max(axis.stop for axis in axes)) for axes in zip(*parts))
    if len(parts) == 1 or sum(math.prod(map(len, part)) for part in parts) < math.prod(map(len, piece)):
        return read
    whole = read(tuple(slice(axis.start, axis.stop) for axis in piece))

    def part(index: Index) -> np.ndarray:
        places = zip(ranges(index, shape), piece)
        return whole[tuple(slice(axis.start - own.start, axis.stop - own.start) for axis, own in places)]

    return part


def ranges(index: Index, shape: tuple[int, ...]) -> tuple[range, ...]:
    """The places of a part, axis by axis."""
    return tuple(range(n)[axis] for axis, n in zip(index, shape, strict=True))


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict's leaves by dotted path."""
    return {".".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree
