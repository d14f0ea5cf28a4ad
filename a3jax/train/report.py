"""What a run tells while it goes on: the live bar, the metrics files, and the stop at a loss that is not finite."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

import jax
from jax.sharding import Mesh

from a3jax.config import Config, ModelConfig, Stage
from a3jax.data.pipeline import Batches
from a3jax.errors import UserError
from a3jax.progress import Progress
from a3jax.train import flops
from a3jax.train.metrics import Log
from a3jax.train.step import Metrics


class _Pending(NamedTuple):
    """A step that was dispatched and not yet read."""

    step: int
    stage: Stage
    metrics: Metrics


class Report:
    """Reads every step's metrics one step late, so that reading never holds up the device."""

    def __init__(self, config: Config, model: ModelConfig, mesh: Mesh, step: int, batches: Batches):
        """`step` is how many steps are done, `batches` what they read."""
        self._config, self._model, self._batches = config, model, batches
        self._tokens = config.data.batch * config.data.length
        one = flops.peak(mesh.devices.flat[0])
        self._peak = one * mesh.size if one else None
        self._log = Log(config.run_folder, step)
        self._bar = Progress("train", config.steps, "steps", step)
        self._pending: _Pending | None = None
        self._clock = time.perf_counter()
        self._speeds: list[float] = []
        self.loss: float | None = None
        """Of the last step read."""

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, trace)
        self._log.close()

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the steps read so far."""
        return statistics.median(self._speeds) if self._speeds else None

    def step(self, step: int, stage: Stage, metrics: Metrics) -> None:
        """Note a step that was dispatched; read the one before it."""
        self.flush()
        self._pending = _Pending(step, stage, metrics)

    def flush(self) -> None:
        """Wait for the noted step, if any, and report it. Raises `UserError` if its loss is not finite."""
        if self._pending is None:
            return
        (step, stage, metrics), self._pending = self._pending, None
        loss, norm, predicted, rate = (float(value) for value in jax.device_get(metrics))
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        speed = self._tokens / seconds
        self._speeds.append(speed)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {norm}; the run stopped before saving it. "
                f"Lower optimizer.peak-lr and run again: it goes on from the last checkpoint"
            )
        self.loss = loss
        mfu = {}
        if self._peak:
            needed = self._config.data.batch * flops.per_window(self._model, stage, self._config.data.length)
            mfu = {"mfu": needed / seconds / self._peak}
        if step % self._config.train.log_every == 0 or step == self._config.steps:
            self._log.write(
                step=step,
                stage=stage.name,
                loss=loss,
                gradient_norm=norm,
                learning_rate=rate,
                tokens_per_second=speed,
                predicted=int(predicted),
                seconds=seconds,
                **mfu,
                **self._batches.progress(step),
            )
        share = f" mfu {mfu['mfu']:.0%}" if mfu else ""
        self._bar.advance()
        self._bar.note(f"{stage.name} loss {loss:.3f} {speed:,.0f} tok/s{share}")

    def evaluation(self, step: int, evaluate: Callable[[], dict[str, float]]) -> None:
        """Run and report an evaluation: NLL by order."""
        self.flush()
        with self.pause("evaluating"):
            nll = evaluate()
        if nll:
            self._log.write(step=step, **{f"nll/{order}": value for order, value in nll.items()})

    @contextlib.contextmanager
    def pause(self, why: str) -> Iterator[None]:
        """Say what takes time now, and keep it out of the steps' tokens per second."""
        self.flush()
        self._bar.note(why)
        yield
        self._clock = time.perf_counter()
