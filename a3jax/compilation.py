"""How programs are compiled: what is kept on disk, and the compiler's options."""

import os
from pathlib import Path

import jax

CACHE_BYTES = 5 * 2**30
"""How large the cache on disk may grow before the programs used longest ago are dropped."""


def keep_compiled_programs() -> None:
    """Turn on JAX's cache of compiled programs, in ~/.cache/a3jax, so that the next start does not compile them again.

    `JAX_COMPILATION_CACHE_DIR` puts it elsewhere; `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "a3jax" / "xla"))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
