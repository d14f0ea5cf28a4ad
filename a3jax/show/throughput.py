"""How fast batches come from storage to the device, and where the time goes: `a3jax data bench EXPERIMENT`.

First every part of the work is done alone, one after another for the same steps; then all of it as in training, with
batches read ahead. In training the order is drawn inside the compiled step, by the accelerator; here it is a program of
its own, on the device that is there.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from rich.table import Table

from a3jax.config import Config, Stage
from a3jax.data.packing import Pieces, fill, padding
from a3jax.data.pipeline import Batches, open_corpora, training_batches
from a3jax.errors import UserError
from a3jax.ordering import draw_mixture, example_keys
from a3jax.terminal import Terminal
from a3jax.train.direct import with_corpora

PARTS = ("choose", "read", "pack", "put", "order")


@dataclass(frozen=True)
class Bench:
    """What was measured."""

    device: str
    steps: int
    batch: int
    length: int
    order: str
    tokens_per_second: float
    """From storage to the device, orders drawn, as in training. Padding counts."""
    part_tokens_per_second: dict[str, float]
    """Of each part alone, on one thread or device."""
    padding: dict[str, float]
    """The share of padding in the windows of each source."""


def bench(config: Config, steps: int | None = None) -> Bench:
    """Measure `steps` steps of an experiment's data, all of it or as many as make 8 million tokens if not given.

    The order is that of the curriculum's last stage. Raises `UserError` for data that cannot be read.
    """
    data = config.data
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; it must be at least 1")
    steps = steps or max(2, 8_000_000 // (data.batch * data.length))
    batches = Batches(open_corpora(with_corpora(config)), data, steps + 1, config.seed)
    stage = config.schedule.stages[-1]
    draw = _drawer(config, stage)
    for batch in (batches[steps], batches[0]):  # files are opened, and programs compiled, before the clock runs
        jax.block_until_ready(draw(0, jax.device_put(batch)["segments"]))
    parts = _parts(batches, draw, steps)
    return Bench(
        device=jax.devices()[0].device_kind,
        steps=steps,
        batch=data.batch,
        length=data.length,
        order=stage.name,
        tokens_per_second=steps * data.batch * data.length / _whole(batches, data.workers, draw, steps),
        part_tokens_per_second={name: steps * data.batch * data.length / seconds for name, seconds in parts.items()},
        padding={name: padding(packing) for name, packing in zip(batches.names, batches.packings)},
    )


Draw = Callable[[int, jax.Array], object]


def _drawer(config: Config, stage: Stage) -> Draw:
    """(step, segments) -> the order of a batch, as the training step draws it."""

    @jax.jit
    def draw(step: int, segment_BxL: jax.Array) -> object:
        keys = example_keys(config.seed, step, config.data.batch)
        return draw_mixture(keys, segment_BxL, stage.parts, config.seeding or "successor")

    return draw


def _parts(batches: Batches, draw: Draw, steps: int) -> dict[str, float]:
    """Seconds that each part takes alone."""
    seconds = np.zeros(len(PARTS))
    for step in range(steps):
        whole = batches[step]
        marks = [time.perf_counter()]
        chosen = list(_choose(batches, step))
        marks.append(time.perf_counter())
        read = [batches.packings[k].stream.read(pieces.begin_N, pieces.end_N) for k, pieces, _ in chosen]
        marks.append(time.perf_counter())
        for (_, pieces, rows), span in zip(chosen, read):
            fill(pieces, span, rows, batches.packings[0].length)
        marks.append(time.perf_counter())
        on_device = jax.block_until_ready(jax.device_put(whole))
        marks.append(time.perf_counter())
        jax.block_until_ready(draw(step, on_device["segments"]))
        marks.append(time.perf_counter())
        seconds += np.diff(marks)
    return dict(zip(PARTS, seconds.tolist()))


def _choose(batches: Batches, step: int) -> Iterator[tuple[int, Pieces, int]]:
    """The source, the pieces and the number of the windows that a step takes from each source."""
    source_B, window_B = batches.mixture.at(step, np.arange(batches.mixture.batch(step)))
    for source in np.unique(source_B).tolist():
        chosen = window_B[source_B == source]
        yield source, batches.packings[source].pieces(chosen), len(chosen)


def _whole(batches: Batches, workers: int, draw: Draw, steps: int) -> float:
    """Seconds of all parts together, the device working while batches are read ahead."""
    iterator = iter(training_batches(batches, workers))
    orders: list[object] = []
    begin = time.perf_counter()
    for step, batch in enumerate(itertools.islice(iterator, steps)):
        orders = [*orders[-1:], draw(step, jax.device_put(batch)["segments"])]
        jax.block_until_ready(orders[0])  # as in training, the device is one step behind at most
    jax.block_until_ready(orders)
    seconds = time.perf_counter() - begin
    iterator.close()
    return seconds


_WHAT = {
    "choose": "which windows of which source a step takes",
    "read": "records from storage, checked",
    "pack": "tokens into windows",
    "put": "windows to the device",
    "order": "groups drawn and sorted, by the device",
}


def show_bench(result: Bench) -> None:
    """Print a table for people."""
    table = Table(title=f"{result.steps} steps of {result.batch} x {result.length:,} tokens, {result.order}, {result.device}")
    for name, justify in (("part", "left"), ("million tokens/s alone", "right"), ("of the time", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    costs = {name: 1 / speed for name, speed in result.part_tokens_per_second.items()}
    for name, speed in result.part_tokens_per_second.items():
        table.add_row(name, f"{speed / 1e6:.2f}", f"{costs[name] / sum(costs.values()):.0%}", _WHAT[name])
    table.add_section()
    table.add_row("together", f"{result.tokens_per_second / 1e6:.2f}", "", "as in training, read ahead")
    console = Terminal()
    console.print(table)
    for name, share in result.padding.items():
        console.print(f"{share:.2%} of the windows of {name} is padding")
