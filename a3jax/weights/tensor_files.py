"""The tensors of a Hugging Face folder, by name over all its files: safetensors with or without an index, or `.bin`."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, gives numpy the name bfloat16
import numpy as np
import safetensors

from a3jax.errors import UserError
from a3jax.files.outside_json import parse_object, read_object

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = {"I32": "int32", "U8": "uint8"}
_EIGHT_BITS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
_ALL = _DTYPES | _INTEGERS | _EIGHT_BITS


class TensorFiles:
    """Opens every file's header at once, so that a missing or truncated one is found before anything is read."""

    def __init__(self, folder: Path):
        self._tensors = _open_tensors(folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def rename(self, name: str, new: str) -> None:
        """Call a tensor otherwise."""
        self._tensors[new] = self._tensors.pop(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return tuple(self._tensors[name][1].get_shape())

    def dtype(self, name: str) -> str:
        """By numpy's name; one that numpy lacks keeps its own."""
        dtype = self._tensors[name][1].get_dtype().removeprefix("torch.")
        return _ALL.get(dtype, dtype)

    def file(self, name: str) -> Path:
        """Where one tensor lies."""
        return self._tensors[name][0]

    def files(self) -> list[Path]:
        """All of them, by name."""
        return sorted({file for file, _ in self._tensors.values()})

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part of one tensor, without the rest of it. Raises `UserError` if it cannot be read."""
        file, tensor = self._tensors[name]
        try:
            return tensor[index]
        except (safetensors.SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{file}: tensor {name} cannot be read: {error}") from None

    def check_dtypes(self) -> None:
        """Raise `UserError` for a tensor that is not of a plain floating dtype."""
        for name in self:
            if (dtype := self.dtype(name)) not in _DTYPES.values():
                what = "and nothing says how it is quantized; give an unquantized folder, or one whose config.json does"
                raise UserError(f"{self.file(name)}: tensor {name} is {dtype}, {what}")

    def main_dtype(self) -> str:
        """That of the first matrix."""
        return next((self.dtype(name) for name in self if len(self.shape(name)) == 2), "float32")


class _TorchTensor:
    """A tensor of a `.bin` file, with the methods of a safetensors slice that we use."""

    def __init__(self, tensor: Any):
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return str(self._tensor.dtype)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        import torch

        part = self._tensor[index].contiguous()
        if part.dtype == torch.bfloat16:
            return part.view(torch.uint16).numpy().view(np.dtype("bfloat16"))
        name = str(part.dtype).removeprefix("torch.")
        return part.view(torch.uint8).numpy().view(np.dtype(name)) if name in _EIGHT_BITS.values() else part.numpy()


class _EightBits:
    """A tensor of eight-bit floats in a safetensors file, which the library cannot give to numpy: its bytes as they lie."""

    def __init__(self, file: Path, begin: int, tensor: Any):
        self.get_shape, self.get_dtype = tensor.get_shape, tensor.get_dtype
        self._file, self._begin = file, begin

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        dtype = np.dtype(_EIGHT_BITS[self.get_dtype()])
        return np.array(np.memmap(self._file, dtype, "r", self._begin, tuple(self.get_shape()))[index])


def _begins(file: Path) -> Callable[[str], int]:
    """Where each tensor of a safetensors file begins, of which the header is read when it is first asked."""

    @functools.cache
    def header() -> tuple[int, dict[str, Any]]:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            return 8 + length, parse_object(opened.read(length), str(file))

    return lambda name: header()[0] + header()[1][name]["data_offsets"][0]


def _open_tensors(path: Path) -> dict[str, tuple[Path, Any]]:
    """Tensor name -> (file, lazily readable tensor), over all files of the folder."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    weight_map: dict[str, str] = {}
    if whole.is_file():  # as in transformers, whatever lies beside it
        files = [whole]
    elif index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: weight_map does not name a file for every tensor; download it again")
        files = [path / name for name in sorted(set(weight_map.values()))]
    else:  # a folder may hold the same weights once more in another layout, such as consolidated.safetensors
        files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    for file in files:
        if not file.exists() and file.name in weight_map.values():
            missing = next(name for name, shard in weight_map.items() if shard == file.name)
            raise UserError(f"{file} is missing; {index} says that it holds {missing} and others: download it again")
        _check_regular(file)
    if not files:
        return _open_bin(path)
    tensors: dict[str, tuple[Path, Any]] = {}
    for file in files:
        try:
            opened = safetensors.safe_open(file, "numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or damaged ({error}); download it again") from None
        begins = _begins(file)
        for name in opened.keys():  # noqa: SIM118, not a mapping
            tensor = opened.get_slice(name)
            _add(tensors, name, file, _EightBits(file, begins(name), tensor) if tensor.get_dtype() in _EIGHT_BITS else tensor)
    for name in weight_map:
        if name not in tensors:
            raise UserError(f"{path / weight_map[name]}: tensor {name} is missing, though the index lists it")
    return tensors


def _add(tensors: dict[str, tuple[Path, Any]], name: str, file: Path, tensor: Any) -> None:
    if name in tensors:
        raise UserError(
            f"{file} and {tensors[name][0]} both hold {name}; leave the file that does not belong to the model out"
        )
    tensors[name] = (file, tensor)


def _check_regular(file: Path) -> None:
    """Raise `UserError` for what opening would wait for, or never get to the end of, and for a link to nothing."""
    if not file.is_file():
        raise UserError(f"{file} is no regular file; put the weights there, or download them again")


def _open_bin(path: Path) -> dict[str, tuple[Path, Any]]:
    whole = path / "pytorch_model.bin"
    files = [whole] if whole.is_file() else sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{path} has no *.safetensors file; give a complete Hugging Face folder")
    try:
        import torch
    except ImportError:
        raise UserError(f"{files[0]} is a PyTorch file; install the extra: pip install 'a3jax[torch]'") from None
    tensors: dict[str, tuple[Path, Any]] = {}
    for file in files:
        _check_regular(file)
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for a damaged or hostile file
            raise UserError(f"{file} cannot be loaded safely ({str(error).splitlines()[0]}); use safetensors") from None
        if not isinstance(loaded, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
            raise UserError(f"{file} is not a plain dictionary of tensors; use safetensors")
        for name, tensor in loaded.items():
            _add(tensors, name, file, _TorchTensor(tensor))
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of such a folder. Raises `UserError` if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a complete Hugging Face folder")
    return read_object(path)
