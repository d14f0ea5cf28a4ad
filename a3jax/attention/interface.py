"""The one attention interface, and the choice of implementation."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec as P

from a3jax.attention.blocks import Attended, Local, Range, splash_block
from a3jax.attention.chunked import chunked_attention
from a3jax.attention.dense import dense_attention
from a3jax.attention.sinks import beside_sinks
from a3jax.config import AttentionPath
from a3jax.devices.accelerators import compute_capability, platform
from a3jax.devices.context_parallel import gathered
from a3jax.devices.mesh import BATCH
from a3jax.errors import UserError

DENSE_KEYS = 128
"""`auto` uses the dense path up to this many keys: one block of scores is all there is."""
KERNELS: dict[str, AttentionPath] = {"tpu": "splash", "gpu": "flash"}
"""The kernel of each platform that has one."""
_LACKS: dict[AttentionPath, dict[str, str]] = {
    "flash": {"own": "one range of keys a row"},
    "splash": {"own": "one range of keys a row", "local": "no local attention", "sink_H": "no sinks"},
}
"""What kernels do not know, by what they would have to be given."""


def attend(
    query_BxRxHxE: Array,
    key_BxLxKxE: Array,
    value_BxLxKxE: Array,
    start_BxR: Array,
    end_BxR: Array,
    implementation: AttentionPath = "auto",
    own: Range | None = None,
    block: int | None = None,
    cap: float | None = None,
    local: Local | None = None,
    sink_H: Array | None = None,
) -> Array:
    """Softmax attention of each row over keys [start, end), scaled by E**-0.5; a row with an empty range gives zero.

    `own` is a second range of each row, behind the first, which block diffusion has: the kernels do not know it. `block` is
    that of `splash`, which otherwise follows from the shapes. Scores are bent to stay within `cap` (`a3jax.attention.cap`).
    Under `local` attention rows see what of their ranges is near them too, and every head may have a sink
    (`a3jax.attention.sinks`); `splash` knows neither.

    H is a multiple of K: query head h reads key-value head h // (H / K). Returns B x R x H x E in the query's dtype;
    softmax statistics are float32. Under a mesh, the batch is split over (slices, data, fsdp), heads over tensor, and rows
    and keys over context, keys as `a3jax.devices.context_parallel.spread` lays them: a device gathers the keys of its
    windows and computes its own rows, and the gradients of keys are summed and scattered. That holds for every
    implementation.

    Ranges are those of documents, `splash` relies on it: within an example, ranges that start at different keys do not
    overlap. Raises `UserError` where a named implementation cannot run.
    """
    mesh = jax.sharding.get_abstract_mesh()
    length, width = key_BxLxKxE.shape[1], key_BxLxKxE.shape[3]
    asked = {name for name, value in (("own", own), ("local", local), ("sink_H", sink_H)) if value is not None}
    for name, what in _LACKS.get(implementation, {}).items():
        if name in asked:
            raise UserError(f"train.attention is '{implementation}', which knows {what}; give auto")
    chosen = choose(implementation, platform(), length)
    chosen = "chunked" if asked & _LACKS.get(chosen, {}).keys() else chosen
    block = block or splash_block(length, width, 1 if mesh.empty else mesh.shape["context"])
    function = functools.partial(_function(chosen, block), cap=cap)
    seen: dict[str, Any] = {"start_BxR": start_BxR, "end_BxR": end_BxR, "own": own, "local": local}
    seen = {name: value for name, value in seen.items() if value is not None}
    if mesh.empty:
        return _out(function(query_BxRxHxE, key_BxLxKxE, value_BxLxKxE, **seen), sink_H)

    def device(query: Array, key: Array, value: Array, seen: dict[str, Any]) -> Attended:
        if "local" in seen:
            position = gathered(seen["local"].position[..., None, None])[..., 0, 0]
            seen = seen | {"local": seen["local"]._replace(position=position)}
        return function(query, gathered(key), gathered(value), **seen)

    heads, rows = P(BATCH, "context", "tensor", None), P(BATCH, "context")
    parts = (heads, heads, heads, jax.tree.map(lambda _: rows, seen))
    made: Any = Attended(heads, None if chosen == "splash" else P(BATCH, "context", "tensor"))  # type: ignore[arg-type]
    split = jax.shard_map(device, mesh=mesh, in_specs=parts, out_specs=made, check_vma=False)
    return _out(split(query_BxRxHxE, key_BxLxKxE, value_BxLxKxE, seen), sink_H)


def _out(attended: Attended, sink_H: Array | None) -> Array:
    return attended.out if sink_H is None else beside_sinks(attended, sink_H)


def choose(implementation: AttentionPath, platform: str, keys: int) -> AttentionPath:
    """What runs: `implementation` or, for `auto`, the platform's own if it can. Raises `UserError` if it cannot run."""
    if implementation == "auto":
        if keys <= DENSE_KEYS:
            return "dense"
        kernel = KERNELS.get(platform)
        return kernel if kernel and not refusal(kernel, platform) else "chunked"
    reason = refusal(implementation, platform)
    if reason:
        raise UserError(f"train.attention is '{implementation}', which {reason}; 'auto' takes what can run")
    return implementation


def refusal(implementation: AttentionPath, platform: str) -> str | None:
    """Why `implementation` cannot run on `platform`, in words that follow "which"; None if it can."""
    if implementation == "splash" and platform != "tpu":
        return f"runs on TPUs, and this is {platform}"
    if implementation == "flash" and platform != "gpu":
        return f"runs on NVIDIA GPUs, and this is {platform}"
    capability = compute_capability() if implementation == "flash" else None
    if capability is not None and not re.match(r"([89]|\d\d)\.\d", capability):
        return f"needs an NVIDIA GPU of compute capability 8.0 or more, and this one has {capability}"
    return None


def _function(chosen: AttentionPath, block: int) -> Callable[..., Attended]:
    # The kernels bring Pallas along, which only those who run them should wait for.
    if chosen == "splash":
        from a3jax.attention.splash import splash_attention

        return functools.partial(splash_attention, block=block)
    if chosen == "flash":
        from a3jax.attention.flash import flash_attention

        return flash_attention
    return dense_attention if chosen == "dense" else chunked_attention
