"""The header of a GGUF file is read over before anything believes what it counts."""

import struct

import gguf
import pytest

from a3jax.errors import UserError
from a3jax.weights.gguf.header import check_header
from a3jax.weights.source import open_source


def _header(*value: int, kind: int, entries_of: int | None = None) -> bytes:
    """A file of one pair of metadata: a name, and the beginning of a value."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 4) + b"name" + struct.pack("<I", kind)
    return head + (b"" if entries_of is None else struct.pack("<I", entries_of)) + struct.pack(f"<{len(value)}Q", *value)


HEADERS = {
    "an array of bytes": _header(2**62, kind=9, entries_of=0),
    "an array of texts": _header(2**62, 1, kind=9, entries_of=8),
    "an array of arrays": _header(2**62, kind=9, entries_of=9),
    "an array that would take a day": _header(2**40, kind=9, entries_of=0) + bytes(100),
    "a text": _header(2**62, kind=8),
    "a kind that is none": _header(kind=99),
    "no end of pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
    "no end of tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_a_header_counts_must_be_there(name, tmp_path):
    (tmp_path / "model.gguf").write_bytes(HEADERS[name])
    with pytest.raises(UserError, match=r"model.gguf is truncated or not a GGUF file") as caught:
        open_source(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", gguf.GGUFEndian)
def test_headers_of_both_byte_orders_are_read_over(order, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", endianess=order)
    writer.add_array("names", ["a", "bc"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    check_header(tmp_path / "model.gguf")
    swapped = order == gguf.GGUFEndian.BIG
    with pytest.raises(UserError, match="bytes in the other order" if swapped else "head_count' is missing"):
        open_source(tmp_path / "model.gguf")
