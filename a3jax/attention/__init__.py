"""Key-range attention: every row sees one contiguous range of keys.

`attend` is the only entrance and chooses by platform: `splash` on TPU, `flash` on NVIDIA GPUs, elsewhere `chunked`, which
never holds more than one block of scores; `dense` is the reference. Ranges come from `a3jax.ordering`.
"""

from a3jax.attention.blocks import ATTENTION
from a3jax.attention.interface import attend

__all__ = ["ATTENTION", "attend"]
