"""Key-range attention: every row sees one contiguous range of keys.

`attend` is the only entrance; `dense` is the reference and `chunked` the path that never holds more than one block of
scores. Ranges come from `a3jax.ordering`.
"""

from a3jax.attention.interface import attend

__all__ = ["attend"]
