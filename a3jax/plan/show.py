"""Plans and searches as tables for people."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from a3jax.devices.mesh import AXES
from a3jax.plan.roofline import Roofline
from a3jax.plan.search import Candidate
from a3jax.plan.stages import Plan
from a3jax.plan.topology import GIB, Topology
from a3jax.terminal import Terminal


def show_plan(plan: Plan, price: float | None = None) -> None:
    """Memory, time and traffic of every stage, then the answer; its cost at a `price` of a chip for an hour."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "unsplit"
    where = f"{plan.topology.name}: {len(plan.topology.devices)} devices, {mesh}"
    _print(f"{plan.parameters / 1e9:.2f} B parameters on {where}, remat {plan.remat}, {plan.attention}")
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
        f"a step: PFLOP of all devices; seconds of each part, and of the step {_ENDS}",
        ("stage", "steps", "useful", "executed", "compute", "memory", "communication", "bound by", *_STEP),
        (
            (
                stage.name,
                f"{stage.steps:,}",
                *(f"{work / 1e15:.3g}" for work in (bound.flops, bound.executed_flops)),
                *(f"{t:.3g}" for t in (bound.compute_seconds, bound.memory_seconds, bound.communication_seconds)),
                bound.bound_by,
                *_step(bound),
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
    chips, chip_hours = plan.topology.chips, plan.chip_hours()
    if chip_hours is None:
        _print(f"does not fit: a device lacks {plan.bytes_over:,} bytes ({plan.bytes_over / GIB:.2f} GiB)")
        return
    best, serial = chip_hours
    _print(
        f"fits; its {plan.steps:,} steps take {_range(best / chips, serial / chips, '.3g')} hours {_ENDS}, with products at"
    )
    _print("the chip's peak; starting, evaluating, saving and what fails come on top")
    if price is not None:
        _print(f"{chips} chips at {price:g} an hour: {_range(price * best, price * serial, ',.0f')}")


def show_search(candidates: Sequence[Candidate], topology: Topology) -> None:
    """Those that fit, fastest first, then the others."""
    _table(
        f"{topology.name}: meshes and batches, fastest first; a step {_ENDS}",
        (*AXES, "batch", "remat", "GiB", *_STEP, "bound by"),
        (
            (
                *(str(getattr(one.config.mesh, axis)) for axis in AXES),
                str(one.config.data.batch),
                one.config.train.remat,
                f"{one.bytes_per_chip / GIB:.2f}",
                *(
                    ("", "", "", f"{one.bytes_over / GIB:.2f} GiB over")
                    if (bound := one.bound) is None
                    else (*_step(bound), bound.bound_by)
                ),
            )
            for one in candidates
        ),
    )


_ENDS = "from perfect overlap to none"
_STEP = ("seconds", "tokens/s", "MFU")


def _step(bound: Roofline) -> tuple[str, ...]:
    """A step at both ends."""
    best, serial = bound.seconds, bound.serial_seconds
    speeds = _range(bound.tokens / best, bound.tokens / serial, ",.0f")
    return _range(best, serial, ".3g"), speeds, _range(bound.mfu, bound.serial_mfu, ".0%")


def _range(first: float, last: float, form: str) -> str:
    return f"{first:{form}} to {last:{form}}"


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
