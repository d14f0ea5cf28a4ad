"""The training loop: read, step, report, evaluate, save; and go on from where an earlier call of the same run stopped.

Steps are dispatched ahead of the device: the metrics of step n - 1 are read after step n is under way, so the device
never waits for the host. Each curriculum stage has a step of its own, compiled while the stage before it runs.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from a3jax.checkpoint.folder import saved_steps
from a3jax.config import Config, settled
from a3jax.curriculum.plateau import PlateauState, judge
from a3jax.data.own import OwnBatches, TokenBatches
from a3jax.data.pipeline import Batches, held_out_windows
from a3jax.devices import mesh as meshes
from a3jax.devices.accelerators import check_used, environment
from a3jax.devices.agreement import AgreedStop, barrier
from a3jax.devices.interrupt import stop_requests
from a3jax.devices.passing import Passing, may_pass
from a3jax.devices.processes import Processes, connect, is_first, last_try, meeting_at
from a3jax.errors import first_line
from a3jax.files.desk import Desk
from a3jax.likelihood.held_out import HeldOut
from a3jax.model.network import Network
from a3jax.progress import console
from a3jax.train.callbacks import Callback, Samples
from a3jax.train.chats import refuses_given
from a3jax.train.checkpoints import Checkpoints
from a3jax.train.compiled import CompiledSteps
from a3jax.train.goodput import FILE as TIMES
from a3jax.train.hosts import Hosts
from a3jax.train.metrics import EVENTS, METRICS, last_evaluation, say_unsent
from a3jax.train.objectives import compute_of
from a3jax.train.pace import Interval
from a3jax.train.position import Position, Rollbacks, after, at_checkpoint, begin
from a3jax.train.report import Report
from a3jax.train.run import Run, open_run, opened_folder
from a3jax.train.state import abstract_state, with_counts
from a3jax.train.tracing import Tracing
from a3jax.train.trained import told
from a3jax.train.tries import AGAIN, Tries, given_up
from a3jax.weights.loading import model_of

ALONE = Processes()


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended."""

    run: str
    steps: int
    """Optimizer steps done over all calls."""
    loss: float | None
    """Of the last step, nats per predicted token; None if this call made no step."""
    tokens_per_second: float | None
    """Median over this call's steps; tokens of documents, without padding."""
    nll: dict[str, float]
    """Held-out nats per predicted token by order, at the last evaluation; empty where nothing is held out."""
    nll_step: int | None
    """The step after which that was made."""
    stopped_by: int
    """Signal that ended the run early, or 0."""
    goodput: float | None
    """Useful step time over wall time since the run began; process 0 knows it."""


def train(
    config: Config, processes: Processes = ALONE, callbacks: Sequence[Callback] = (), data: TokenBatches | None = None
) -> Summary:
    """Train an experiment to the end of its curriculum, resuming it if its run folder holds a checkpoint.

    `callbacks` look on, and `data` is read in place of the experiment's corpora (see `fit`). Called in every process of a run
    that has several, which `processes` or the environment introduces to each other.

    Raises `UserError` for a configuration that cannot work, a bad step that ends the run, and a checkpoint that cannot be
    written; `Passing` for what may pass, and `GivenUp` once it has not. What was saved before stays.
    """
    started = time.perf_counter()
    config = settled(config)
    tries = Tries(config.run_folder)
    with stop_requests() as caught:
        connect(processes)
        try:
            return _train(config, tries, caught, started, callbacks, data)
        except Exception as error:
            if not may_pass(error):
                raise
            failure = tries.failed(str(error) if isinstance(error, Passing) else first_line(error), is_first())
            if isinstance(error, Passing) and isinstance(failure, Passing):
                raise  # in its own words
            raise failure from error


def fit(config: Config, callbacks: Sequence[Callback] = (), data: TokenBatches | None = None) -> Summary:
    """Train an experiment from Python: what `a3jax train` does, in this process, with `callbacks` that look on.

    `data` gives the batches in place of the experiment's corpora. It is an iterator, or gives one, of integer arrays B x L:
    token ids of `data.batch` windows of `data.length` tokens, a document each; or of dicts with such `tokens` and `segments`,
    which number the documents of a window from 1, with 0 for padding and the number negated where a token is given and not
    learned. Its `get_state` and `set_state` say where it is and bring it there, as those of Grain's iterators do; a state is
    made of plain Python values, and saved with every checkpoint. In a run of several processes each reads whole batches, the
    same ones, and keeps its rows. If the experiment names corpora too, their held-out text is evaluated; their tokenizer, or
    that of `source`, is that of the ids.

    Resumes a run, and raises, as `train` does; and `UserError` for a batch that cannot be one and for data that end early.
    """
    return train(config, callbacks=callbacks, data=data)


def _train(
    config: Config,
    tries: Tries,
    caught: Callable[[], int],
    started: float,
    callbacks: Sequence[Callback],
    data: TokenBatches | None,
) -> Summary:
    """`train`, of processes that have found each other."""
    if config.train.sample is not None:
        callbacks = [*callbacks, Samples(config, config.train.sample)]
    with contextlib.ExitStack() as stack:
        mesh = meshes.make_mesh(config.mesh)
        check_used()
        stop = AgreedStop(mesh, caught, Interval(config.train.save_minutes).passed)
        run = open_run(config, mesh, data is not None)
        stack.enter_context(opened_folder(run))
        if is_first():
            console.print(
                f"computing with {environment()}{_pace(run)}; {told(config, run.model)}; {_beginning(run)}", soft_wrap=True
            )
        hosts = stack.enter_context(Hosts(config.run_folder, tries, caught))
        barrier("hosts")
        meeting_at(hosts.first, AGAIN)
        if tries.is_last:
            last_try(given_up(tries.begun_at))
        stack.enter_context(jax.set_mesh(mesh))
        compiled = stack.enter_context(CompiledSteps(config, run.model, mesh))
        checkpoints = stack.enter_context(Checkpoints(config.run_folder, config.train, run.frozen))
        batch_S = config.schedule.batch_S
        rows = {batch: _rows_here(mesh, batch) for batch in config.batches}
        source: Batches | OwnBatches
        if data is None:
            # Without an end: a run that goes back to a checkpoint passes over batches, nobody knows how many.
            source = Batches(run.corpora, config.data, len(batch_S), config.seed, rows, batch_S, endless=True)
        else:
            source = OwnBatches(data, config.data.length, run.model.vocab, rows, batch_S, refuses_given(config))
        stack.enter_context(hosts.watched())
        position = begin(run, mesh, checkpoints, source)
        stack.enter_context(contextlib.closing(position.batches))
        done = position.step, position.record.tokens
        grows = (METRICS, TIMES, EVENTS) if is_first() else (EVENTS,)
        desk = stack.enter_context(Desk(config.run_folder, *grows, failed=say_unsent))
        report = stack.enter_context(Report(config, run.model, mesh, *done, source, hosts, started, desk.folder, callbacks))
        tracing = stack.enter_context(Tracing(config, desk.folder))
        steps = _steps(run, position, _Means(mesh, compiled, checkpoints, desk, report, tracing, stop, hosts, callbacks))
    folder = config.run_folder
    goodput = report.goodput.facts()["goodput"] if report.goodput else None
    step, nll = last_evaluation(folder)
    return Summary(str(folder), steps, report.loss, report.tokens_per_second, nll, step, stop.agreed, goodput)


def _pace(run: Run) -> str:
    """What would make a new run faster on what computes."""
    slower = jax.default_backend() == "cpu" and run.config.train.compute_dtype == "bfloat16"
    if not slower or saved_steps(run.config.run_folder):
        return ""
    return ", in bfloat16, slower than float32 where a CPU has no instructions for it (--train.compute-dtype float32)"


def _beginning(run: Run) -> str:
    """What there is to wait for first."""
    if steps := saved_steps(run.config.run_folder):
        return f"loading step {steps[-1]} of {run.config.run_folder}"
    return f"loading {run.source.folder}" if run.source else "drawing weights"


@dataclass(frozen=True)
class _Means:
    """What a run is done with."""

    mesh: Mesh
    compiled: CompiledSteps
    checkpoints: Checkpoints
    desk: Desk
    report: Report
    tracing: Tracing
    stop: AgreedStop
    hosts: Hosts
    callbacks: Sequence[Callback]


def _steps(run: Run, start: Position, means: _Means) -> int:
    """Everything from `start` to the end of the curriculum, or to a request to stop. Returns the steps then done."""
    config, settings, schedule = run.config, run.config.train, run.config.schedule
    step, state, record, batches, standing = start
    mesh, checkpoints, report, stop = means.mesh, means.checkpoints, means.report, means.stop
    put = _put(meshes.batch_sharding(mesh))
    put_rows = {batch: _put_rows(mesh, batch) for batch in config.batches}
    windows = held_out_windows(run.corpora, config.data.length, settings.eval_windows)
    held_out = HeldOut(windows, config.data.batch // settings.accumulate, put, config.mask_block)
    saved, rollbacks, last = step, Rollbacks(), -1
    report.started()

    def save(nll: dict[str, float] | None) -> None:
        with report.pause("saving"):  # which reads the last step first
            means.desk.send()  # first: a run that goes on from the checkpoint finds all that was logged before it
            read_so_far = dataclasses.replace(record, tokens=report.tokens)
            checkpoints.save(step, state, read_so_far, batches.get_state(), standing, nll)
            for callback in means.callbacks:
                callback.saved(step, config.run_folder)

    def evaluate() -> dict[str, float]:
        network = Network(run.model, state.params, compute_of(config))
        nll = report.evaluation(step, functools.partial(held_out.nll, network))
        if means.callbacks:
            model = model_of(network, run.codec, record, run.source)
            with report.pause("evaluating"):
                for callback in means.callbacks:
                    callback.evaluated(step, nll, model)
        return nll

    if step == 0:
        evaluate()
    if stop.now():
        return step
    while step < _end(config, standing):
        position = step + standing.skipped
        index, stage = schedule.at(position)
        may_stop, last = stop.alone or index != last, index  # several wait for each other here, which a step should not
        with contextlib.nullcontext() if means.compiled.ready(stage) else report.pause("compiling", config.stage_name(stage)):
            run_step = means.compiled.at(stage, schedule.after(index), means.hosts.signal if may_stop else lambda: 0)
        if (may_stop and stop.now()) or run_step is None:  # a signal came while it was compiled, or during an evaluation
            if step > saved:
                save(None)
            break
        with report.input():
            read = next(batches)
            read |= schedule.rows(position, len(read["tokens"]))
            batch = {name: put_rows[schedule.windows(stage)](array) for name, array in read.items()}
        with means.tracing.step(step + 1, report.flush):
            state, metrics = run_step(state, batch)
            step += 1
            report.step(step, stage, metrics)
        record = after(record, config.stage_name(stage))
        last_step = step == _end(config, standing)
        ending = last_step or bool(stop.after(metrics.loss))
        ends_stage = settings.eval_stages and position + 1 == schedule.ends[index]
        nll = None
        if last_step or step % settings.eval_every == 0 or ends_stage:
            nll = evaluate()
            if step % settings.eval_every == 0:  # others come where this start was told to stop
                standing = judge(standing, schedule, step, nll)
            if step + standing.skipped > position + 1:  # the stage ends here
                state = with_counts(state, step, standing.skipped)
                ending |= step == _end(config, standing)
        saving = ending or stop.due or step % settings.save_every == 0
        if saving:
            report.flush()  # a bad step is not saved
        if report.roll_back:
            checkpoints.wait()
            kept = state.params
            before = checkpoints.restore(abstract_state(config, run.model, mesh), lambda: kept)  # noqa: B023
            step, state, record, batches, standing = at_checkpoint(run, mesh, before, state.teacher, batches)
            rollbacks, saved = rollbacks.to(step, config.guard.limit), step
            report.rewind(step, record.tokens)
            continue
        if saving:
            save(nll)
            saved = step
        if ending:
            break
    report.flush()
    return step


def _end(config: Config, standing: PlateauState) -> int:
    """The optimizer steps after which the run ends, as things stand."""
    return min(config.end, config.schedule.steps - standing.skipped)


def _put(sharding: jax.sharding.NamedSharding) -> Callable[[np.ndarray], jax.Array]:
    """Host array -> global device array; every process holds the whole array and lays out its own share."""

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return put


def _rows_here(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of a batch that devices of this process hold: those that it reads."""
    places = meshes.batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[place] for place in places]))


def _put_rows(mesh: Mesh, batch: int) -> Callable[[np.ndarray], jax.Array]:
    """The rows of this process -> global device array of the whole batch."""
    rows, sharding = _rows_here(mesh, batch), meshes.batch_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        shape, here = (batch, *array.shape[1:]), lambda index: np.searchsorted(rows, np.arange(batch)[index[0]])
        return jax.make_array_from_callback(shape, sharding, lambda index: array[here(index)])

    return put
