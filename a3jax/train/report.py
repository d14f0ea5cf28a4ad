"""What a run tells while it goes on: the live bar, the metrics files, where its time goes, and what is wrong with a step."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import jax
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.data.own import OwnBatches
from a3jax.data.pipeline import Batches
from a3jax.likelihood.held_out import Bound, Nll
from a3jax.progress import Progress, console
from a3jax.train import flops, guard, routers
from a3jax.train.callbacks import Callback
from a3jax.train.counts import Counts
from a3jax.train.goodput import USEFUL, Goodput
from a3jax.train.hosts import Hosts
from a3jax.train.kept import Kept
from a3jax.train.step import Metrics


class _Pending(NamedTuple):
    """A step that was dispatched and not yet read."""

    step: int
    stage: Stage
    metrics: Metrics
    own: float
    """Seconds that this host took for its input."""


class _Read(NamedTuple):
    """A step in plain numbers, `Metrics` with what the host knows of it."""

    step: int
    stage: str
    loss: float
    gradient_norm: float
    learning_rate: float
    bad: bool
    counts: Counts[float]
    seconds: float
    facts: dict[str, float]
    """What not every run has, or not of every step."""


class Report:
    """Reads every step's metrics one step late, so that reading never holds up the device. Process 0 writes them down."""

    def __init__(
        self,
        config: Config,
        model: ModelConfig,
        mesh: Mesh,
        step: int,
        tokens: int,
        batches: Batches | OwnBatches,
        hosts: Hosts,
        started: float,
        folder: Path,
        callbacks: Sequence[Callback] = (),
    ):
        """`step` is how many steps are done, with how many `tokens`, `batches` what they read, `started` when
        (`time.perf_counter`) all began; in `folder` the files grow. `callbacks` see what is written.
        """
        self._config, self._model, self._batches, self._hosts = config, model, batches, hosts
        one = flops.peak(mesh.devices.flat[0])
        self._peak = one * mesh.size if one else None
        self._kept = Kept(config, folder, step, started, callbacks) if jax.process_index() == 0 else None
        self._bar = Progress("train", config.steps, "steps", step, lines=self._kept is not None)
        self._pending: _Pending | None = None
        self._clock = time.perf_counter()
        self._own = self._waited = 0.0
        self._told = {"saving"}  # which takes no time to speak of
        self._bad = 0
        self._speeds: list[float] = []
        self.tokens = tokens
        """Tokens of documents that were trained on, up to the last step read, as `Provenance.tokens` counts them."""
        self.loss: float | None = None
        """Of the last step read."""
        self.roll_back = False
        """Whether the step read last asks for the last checkpoint."""

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, trace)
        if self._kept:
            self._kept.close()

    @property
    def goodput(self) -> Goodput | None:
        """Where the time goes; process 0 knows it."""
        return self._kept.goodput if self._kept else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the steps read so far; tokens of documents, given ones included."""
        return statistics.median(self._speeds) if self._speeds else None

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """Around the wait for a batch. It costs nothing as long as the device is busy with the step before.

        This is a host's own part of a step: the call that dispatches one may wait for other hosts.
        """
        before = time.perf_counter()
        yield
        self._own = time.perf_counter() - before
        if self._pending is None or self._pending.metrics.loss.is_ready():  # type: ignore[attr-defined]
            self._waited += self._own

    def step(self, step: int, stage: Stage, metrics: Metrics) -> None:
        """Note a step that was dispatched; read the one before it."""
        self.flush()
        self._pending = _Pending(step, stage, metrics, self._own)

    def flush(self) -> None:
        """Wait for the noted step, if any, and report it. Raises `UserError` if it is bad and that ends the run."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        read = self._read(pending)
        if read.bad or read.step % self._config.train.log_every == 0 or read.step == self._config.end:
            self._write_down(read)
        share = f" mfu {read.facts['mfu']:.0%}" if self._peak else ""
        speed = read.counts.tokens / read.seconds
        self._bar.advance(note=f"{read.stage} loss {read.loss:.3f} {speed:,.0f} tok/s{share}")
        self._judge(read)

    def _read(self, pending: _Pending) -> _Read:
        """Wait for a step, and take its time."""
        found = jax.device_get(pending.metrics)
        loss, norm, rate, bad = (float(x) for x in (found.loss, found.gradient_norm, found.learning_rate, found.bad))
        counts = Counts[float](*(float(x) for x in found.counts))
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._spent(USEFUL)
        waited, self._waited = min(self._waited, seconds), 0.0
        self.tokens += int(counts.tokens)
        self._speeds.append(counts.tokens / seconds)
        self._hosts.step(pending.step, pending.own, seconds)
        facts = {"input_wait": waited / seconds}
        if self._peak:
            needed = flops.useful(self._model, pending.stage, counts, self._config.adapt.distill > 0)
            facts["mfu"] = needed / seconds / self._peak
        if found.routing is not None:
            facts |= {"balance": float(found.balance), **routers.facts(found.routing)}
        stage = self._config.stage_name(pending.stage)
        return _Read(pending.step, stage, loss, norm, rate, bool(bad), counts, seconds, facts)

    def _write_down(self, read: _Read) -> None:
        if self._kept is None:
            return
        slow = self._hosts.straggler
        self._kept.write(
            step=read.step,
            stage=read.stage,
            loss=read.loss if math.isfinite(read.loss) and read.counts.predicted else None,
            gradient_norm=read.gradient_norm if math.isfinite(read.gradient_norm) else None,
            learning_rate=read.learning_rate,
            tokens_per_second=read.counts.tokens / read.seconds,
            predicted_tokens_per_second=read.counts.predicted / read.seconds,
            tokens=int(read.counts.tokens),
            predicted=int(read.counts.predicted),
            seconds=read.seconds,
            **read.facts,
            **({"bad": True} if read.bad else {}),
            **({"straggler": slow} if slow else {}),
            **self._batches.progress(read.step),
            **self._kept.goodput.facts(),
        )
        self._kept.goodput.save()

    def _judge(self, read: _Read) -> None:
        """What the step means for the run. Raises `UserError` if it is bad and that ends it."""
        if read.bad:
            self._bad += 1
            self.roll_back = guard.asks_for_checkpoint(
                self._config.guard, read.step, read.loss, read.gradient_norm, self._bad
            )
        elif read.counts.predicted:
            self.loss, self._bad = read.loss, 0
        elif "nothing" not in self._told:
            self._told.add("nothing")
            if self._kept:
                console.print(
                    f"step {read.step} had nothing to learn: no token of its windows was to be predicted; prompts may be "
                    f"longer than data.length {self._config.data.length}",
                    soft_wrap=True,
                )

    def evaluation(self, step: int, evaluate: Callable[[], dict[str, Nll | Bound]]) -> dict[str, float]:
        """Run and report an evaluation. Returns the NLL by order."""
        self.flush()
        with self.pause("evaluating"):
            found = evaluate()
        if found and self._kept:
            parts = {
                f"{part}/{order}": value
                for order, figures in found.items()
                for part, value in figures._asdict().items()
                if self._config.train.eval_stages or not part.startswith("nll_by")
            }
            self._kept.write(step=step, **parts)
        return {order: nll.nll for order, nll in found.items()}

    def rewind(self, step: int, tokens: int) -> None:
        """Go on from an earlier step, and the tokens until then: what was logged after it is dropped."""
        self.tokens = tokens
        if self._kept:
            self._kept.rewind(step)
        self._bar.set(step)
        self._pending, self.roll_back = None, False

    @contextlib.contextmanager
    def pause(self, cause: str, what: str = "") -> Iterator[None]:
        """Say what takes time now, one of `goodput.CAUSES`, and keep it out of the steps' tokens per second."""
        self.flush()
        self._spent(USEFUL)
        self._bar.note(f"{cause} {what}".rstrip(), at_once=cause not in self._told)
        self._told.add(cause)
        yield
        self._spent(cause)
        self._clock = time.perf_counter()

    def started(self) -> None:
        """All time before this call was needed to start."""
        self._spent("starting")
        self._clock = time.perf_counter()

    def _spent(self, cause: str) -> None:
        if self._kept is None:
            return
        if cause == USEFUL and self._waited:
            self._kept.goodput.spent_of(USEFUL, "input", self._waited)
        else:
            self._kept.goodput.spent(cause)
