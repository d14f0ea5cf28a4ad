"""Whether all processes live: each tells process 0 every second, which tells all of them what it makes of that.

So a process asks for one note a second however many there are, and process 0 reads one of each. What counts is that a
heartbeat changes, not when: clocks of hosts differ. Process 0 is watched by all others.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import jax

from a3jax.devices.agreement import from_runtime
from a3jax.devices.board import Board
from a3jax.devices.passing import Passing, may_pass
from a3jax.devices.processes import AGAIN
from a3jax.errors import UserError, first_line
from a3jax.outside_text import say

BEAT_SECONDS = 1.0
LOST_SECONDS = 30.0
"""Without a new heartbeat for so long, a process counts as lost."""
LOST_AFTER_ERROR = 10.0
"""The same once an exchange between processes has failed for some of them."""


@dataclass(frozen=True)
class Heartbeat:
    """What a process tells of itself."""

    host: str
    process: int
    pid: int
    beat: int = 0
    signal: int = 0
    """That it has caught and ends for, or 0."""
    failed: bool = False
    """Whether an exchange with the others has failed for it."""
    ended: bool = False

    @classmethod
    def own(cls) -> Self:
        """The first one of this process."""
        return cls(socket.gethostname(), jax.process_index(), os.getpid())

    @property
    def name(self) -> str:
        """Of the process, for people."""
        return f"host {self.host} (process {self.process})"

    @property
    def at(self) -> str:
        """How far it is, as words to follow others, or nothing."""
        return ""


B = TypeVar("B", bound=Heartbeat)


class _Heard(NamedTuple):
    """The newest heartbeat of a process."""

    beat: Heartbeat
    since: float
    """When it came, by this process's own clock."""


class Liveness(Generic[B]):
    """`with Liveness(Heartbeat.own()) as alive:` the heartbeat goes on; `with alive.watched():` so must all others."""

    def __init__(self, mine: B, caught: Callable[[], int] = lambda: 0, board: Board | None = None):
        """`caught` gives the signal that this process has caught, or 0."""
        self.mine = mine
        """Replaced as a whole by whoever works, for another thread sends it."""
        self.beats: dict[int, B] = {}
        """The newest heartbeats, by process: in process 0 of all, in others of process 0."""
        self._caught, self._board = caught, board or Board()
        self._beat, self._rumour = 0, 0
        self._heard: dict[int, _Heard] = {}
        self._told_lost: str | None = None
        self._stop, self._ending, self._watching = threading.Event(), threading.Lock(), False
        # Two of them, for while process 0 hangs, so does whoever asks it.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._live, self._watch)]

    def __enter__(self) -> Self:
        self._exchange()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.mine = dataclasses.replace(self.mine, ended=kind is None)  # after an error the others must not wait for it
        self._exchange()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a lost process ends this one too, as `failure` says and with a line that names it.

        So does whatever else in the runtime of several processes may pass. To be entered when every process has its
        heartbeat. What this process would still do on its way out waits for the others, so it ends at once; there is
        nothing it could lose.
        """
        self._watching = jax.process_count() > 1
        try:
            yield
        except Exception as error:
            if self._watching and from_runtime(error):
                lost = self.lost()
                if lost is not None or may_pass(error):
                    self._end(lost or first_line(error))
            raise
        finally:
            self._watching = False

    def failure(self, why: str) -> UserError:
        """What this process ends with where another one is lost, or the runtime has failed."""
        return Passing(f"{why}; {AGAIN}")

    @property
    def first(self) -> str:
        """The name of the host of process 0. To be asked when every process has its heartbeat."""
        self._exchange()
        return self.beats[0].host

    def signal(self) -> int:
        """What this process or, as far as it has heard, another one has caught, or 0. A rumour, to be agreed on."""
        return self._caught() or self._rumour

    def lost(self) -> str | None:
        """An exchange with the others has failed here: tell it, and wait a while for who is lost, in words."""
        self.mine = dataclasses.replace(self.mine, failed=True)
        until = time.monotonic() + 2 * LOST_AFTER_ERROR
        while (who := self._lost()) is None and time.monotonic() < until:
            time.sleep(0.1)
        return who

    def _live(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._beat += 1
            self._exchange()

    def _watch(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            if self._watching and (who := self._lost()) is not None:
                # The main thread waits inside an exchange that will never end, and cannot be woken.
                self._end(who)

    def _exchange(self) -> None:
        """Tell the others, and hear of them."""
        mine = dataclasses.replace(self.mine, beat=self._beat, signal=self._caught())
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 does not answer; if that stays so, it is lost
            if mine.process == 0:
                self._lead(mine)
            else:
                self._follow(mine)

    def _lead(self, mine: B) -> None:
        """Hear all, and tell what it comes to."""
        others = {int(name): self._read(json.loads(note)) for name, note in self._board.read("heartbeats").items()}
        self._hear({0: mine, **dict(sorted(others.items()))})
        self._rumour = max(beat.signal for beat in self.beats.values())
        news = {"first": dataclasses.asdict(mine), "signal": self._rumour, "lost": self._lost()}
        self._board.put("news", "all", json.dumps(news))

    def _follow(self, mine: B) -> None:
        """Tell process 0, and hear what it says of all."""
        self._board.put("heartbeats", str(mine.process), json.dumps(dataclasses.asdict(mine)))
        if note := self._board.read("news").get("all"):
            news = json.loads(note)
            self._hear({0: self._read(news["first"])})
            self._rumour, self._told_lost = news["signal"], news["lost"]

    def _read(self, note: dict[str, Any]) -> B:
        """A heartbeat that one of our own processes has sent."""
        return type(self.mine)(**note)

    def _hear(self, beats: dict[int, B]) -> None:
        """Note what came, and when what is new came."""
        before, now = self._heard, time.monotonic()
        same = {process for process, beat in beats.items() if process in before and before[process].beat == beat}
        self._heard = {process: before[process] if process in same else _Heard(beat, now) for process, beat in beats.items()}
        self.beats = beats

    def _lost(self) -> str | None:
        """Which process has had no new heartbeat for too long, in words."""
        failed = any(beat.failed for beat in (self.mine, *self.beats.values()))
        patience, now = LOST_AFTER_ERROR if failed else LOST_SECONDS, time.monotonic()
        for beat, since in self._heard.values():
            if beat.process != self.mine.process and not beat.ended and now - since > patience:
                return f"{beat.name} was lost{beat.at}: nothing was heard of it for {now - since:.0f} s"
        return self._told_lost

    def _end(self, why: str) -> None:
        self._ending.acquire()  # for good: this process ends once, whichever of its threads finds out
        if self.mine.process == 0:
            time.sleep(2 * BEAT_SECONDS)  # until the others have heard it, for they end when process 0 is gone
        failure = self.failure(why)
        say(str(failure))
        os._exit(failure.status)
