"""GGUF, the file format of llama.cpp, in and out."""

from a3jax.weights.gguf.metadata import open_gguf
from a3jax.weights.gguf.source import GgufFile

__all__ = ["GgufFile", "open_gguf"]
