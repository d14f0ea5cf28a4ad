"""The same function on many tasks in as many processes as wanted, with progress, and an end to them when it is over."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from a3jax.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[int, int], None]
"""Called with the bytes read and the tokens made since the last call."""


class Stopped(Exception):
    """Ends a task whose result nobody waits for any more."""


def in_processes(function: Callable[[T, Report], R], tasks: Sequence[T], workers: int, report: Report) -> list[R]:
    """`function(task, report)` of every task, in order. With one worker, or one task, it happens in this process.

    Raises what the function raises, once the other processes have stopped. They also end when this one is killed.
    """
    if min(workers, len(tasks)) <= 1:
        return [function(task, report) for task in tasks]
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", 3)
    results: dict[int, R] = {}
    running: dict[Future[R], int] = {}
    reported = (0, 0)
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (shared,)) as pool:
        try:
            while len(results) < len(tasks):
                for number in range(len(results) + len(running), min(len(tasks), len(results) + 2 * workers)):
                    running[pool.submit(_call, function, tasks[number])] = number
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                now = (shared[0], shared[1])
                report(now[0] - reported[0], now[1] - reported[1])
                reported = now
                results |= {running.pop(future): future.result() for future in finished}
        except BaseException as error:
            shared[2] = 1
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError("a worker process was killed, perhaps for want of memory; give fewer --workers") from None
            raise
    return [results[number] for number in range(len(tasks))]


_shared: Any = None
"""In a worker process: bytes read and tokens made by all of them, and whether to stop."""


def _begin(shared: Any) -> None:
    global _shared
    _shared = shared
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and tells
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed: whoever goes on with its work must find nobody writing


def _call(function: Callable[[T, Report], R], task: T) -> R:
    return function(task, _report)


def _report(bytes_read: int, tokens: int) -> None:
    with _shared.get_lock():
        if _shared[2]:
            raise Stopped
        _shared[0] += bytes_read
        _shared[1] += tokens
