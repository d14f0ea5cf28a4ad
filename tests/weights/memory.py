"""Memory of this process's own, for programs that tests run in processes of their own."""

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h: larger blocks are mapped by themselves, whatever was freed before


def grown_by(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` returns, and by how many bytes memory grew at most while it ran.

    What is mapped from files does not count: it can be dropped at any time. Free memory that the allocator holds is given
    back first, or the work could fill it unseen; and arrays freed while it runs go back at once, or every thread that once
    held one would count as if it held it still.
    """
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)
    allocator.malloc_trim(0)
    before = top = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal top
        while not done.is_set():
            top = max(top, _anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = work()
    finally:
        done.set()
        thread.join()
    return result, max(top, _anonymous()) - before


def _anonymous() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
