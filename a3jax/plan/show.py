"""Plans and searches as tables for people."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from a3jax.devices.mesh import AXES
from a3jax.plan.search import Candidate
from a3jax.plan.stages import Plan
from a3jax.plan.topology import GIB, Topology
from a3jax.terminal import Terminal


def show_plan(plan: Plan) -> None:
    """Memory, bound and traffic of every stage, then the answer."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "unsplit"
    where = f"{plan.topology.name}: {len(plan.topology.devices)} devices, {mesh}"
    _print(f"{plan.parameters / 1e9:.2f} B parameters on {where}, remat {plan.remat}")
    _table(
        f"memory of a device, GiB of {plan.topology.chip.hbm_bytes / GIB:.0f}",
        ("stage", "parameters", "optimizer", "temporaries", "program", "total"),
        (
            (stage.name, *(f"{size / GIB:.2f}" for size in (m.parameters, m.optimizer, m.temporaries, m.program, m.total)))
            for stage in plan.stages
            for m in [stage.memory]
        ),
    )
    bounds = [(stage, stage.bound) for stage in plan.stages if stage.bound is not None]
    _table(
        "a step at its bound: PFLOP of all devices, seconds",
        ("stage", "steps", "useful", "executed", "compute", "memory", "communication", "bound by", "tokens/s", "MFU"),
        (
            (
                stage.name,
                f"{stage.steps:,}",
                *(f"{work / 1e15:.3g}" for work in (bound.flops, bound.executed_flops)),
                *(f"{t:.3g}" for t in (bound.compute_seconds, bound.memory_seconds, bound.communication_seconds)),
                bound.bound_by,
                f"{bound.tokens / bound.seconds:,.0f}",
                f"{bound.mfu:.0%}",
            )
            for stage, bound in bounds
        ),
    )
    kinds = sorted({kind for _, bound in bounds for kind in bound.sent_bytes})
    _table(
        "GB of a device in a step: memory traffic, and what it sends",
        ("stage", "memory", *kinds),
        (
            (stage.name, f"{bound.hbm_bytes / 1e9:.1f}", *(f"{bound.sent_bytes.get(kind, 0) / 1e9:.2f}" for kind in kinds))
            for stage, bound in bounds
        ),
    )
    if plan.seconds is None:
        _print(f"does not fit: a device lacks {plan.bytes_over:,} bytes ({plan.bytes_over / GIB:.2f} GiB)")
    else:
        _print(f"fits; the whole curriculum takes at least {plan.seconds / 3600:.3g} hours")


def show_search(candidates: Sequence[Candidate], topology: Topology) -> None:
    """Those that fit, fastest first, then the others."""
    _table(
        f"{topology.name}: meshes and batches, fastest first",
        (*AXES, "batch", "remat", "GiB", "seconds", "tokens/s", "MFU", "bound by"),
        (
            (
                *(str(getattr(one.config.mesh, axis)) for axis in AXES),
                str(one.config.data.batch),
                one.config.train.remat,
                f"{one.bytes_per_chip / GIB:.2f}",
                *(
                    ("", "", "", f"{one.bytes_over / GIB:.2f} GiB over")
                    if (bound := one.bound) is None
                    else (
                        f"{bound.seconds:.3g}",
                        f"{bound.tokens / bound.seconds:,.0f}",
                        f"{bound.mfu:.0%}",
                        bound.bound_by,
                    )
                ),
            )
            for one in candidates
        ),
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    rows = list(rows)
    if not rows:
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("stage", "bound by") else "right")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _print(text: str) -> None:
    _console().print(text)


def _console() -> Terminal:
    """Standard output; as wide as a table needs where it is not a terminal."""
    console = Terminal()
    return console if console.is_terminal else Terminal(width=160)
