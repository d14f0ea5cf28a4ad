"""A GGUF file's metadata: names with values, of which none is to be trusted."""

from pathlib import Path
from typing import Any

from gguf import GGUFReader

from a3jax.errors import UserError, check_count, check_positive, check_token
from a3jax.weights.gguf.header import check_header


def open_gguf(path: Path) -> GGUFReader:
    """The file's metadata and tensors, mapped into memory. Raises `UserError` if it is truncated or no GGUF file."""
    try:
        check_header(path)
        reader = GGUFReader(path)
        for field in reader.fields.values():
            field.contents()
    except Exception as error:  # the reader trusts the file, and fails in many ways where it must not
        raise UserError(f"{path} is truncated or not a GGUF file ({type(error).__name__}: {error})") from None
    if reader.byte_order != "I":
        raise UserError(f"{path} has its bytes in the other order than this machine; convert it with gguf-convert-endian")
    return reader


class Metadata:
    """Values by name; errors name the file."""

    def __init__(self, path: Path, reader: GGUFReader):
        self.path = path
        self._values = {name: field.contents() for name, field in reader.fields.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """A value that may be absent."""
        return self._values.get(name, default)

    def need(self, name: str, kind: type = int, default: Any = None) -> Any:
        """A value of this type: a count, a positive number or a list that is not empty.

        Raises `UserError` if it is not, or absent without a default.
        """
        value = self._values.get(name, default)
        if value is None:
            raise UserError(f"{self.path}: metadata '{name}' is missing")
        what = f"{self.path}: metadata '{name}'"
        if type(value) is not kind or value == []:
            raise UserError(f"{what} is {str(value)[:40]}; expected one {kind.__name__}")
        return check_count(what, value) if kind is int else check_positive(what, value) if kind is float else value

    def token(self, role: str) -> int | None:
        """The id of the token that plays a role such as "bos". Raises `UserError` if there is no such token."""
        name = f"tokenizer.ggml.{role}_token_id"
        token = self.get(name)
        if token is None:
            return None
        return check_token(f"{self.path}: metadata '{name}'", token, len(self.need("tokenizer.ggml.tokens", list)))
