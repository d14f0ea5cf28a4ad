"""Heartbeats: who is lost, who only came to the end, and how little is asked for to know it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from a3jax.devices import liveness
from a3jax.devices.board import Board
from a3jax.devices.liveness import Heartbeat, Liveness


class CountingBoard(Board):
    """Notes in this process's memory, and how many of them were ever read at once."""

    largest = 0

    def read(self, topic):
        found = super().read(topic)
        self.largest = max(self.largest, len(found))
        return found


@pytest.fixture
def board(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "LOST_AFTER_ERROR", 0.3)
    return CountingBoard()


def beat(process, board, caught=lambda: 0):
    return Liveness(Heartbeat(f"h{process}", process, 1), caught, board)


def note(board, process, **facts):
    board.put("heartbeats", str(process), json.dumps(dataclasses.asdict(Heartbeat(f"h{process}", process, 1, **facts))))


def until(condition) -> bool:
    """Whether something comes true within some heartbeats."""
    latest = time.monotonic() + 5
    while not condition() and time.monotonic() < latest:
        time.sleep(0.01)
    return condition()


def test_a_signal_to_one_is_heard_of_by_all(board):
    caught = []
    with beat(0, board) as first, beat(1, board), beat(2, board, lambda: sum(caught)) as third:
        time.sleep(0.2)
        assert (first.signal(), third.signal()) == (0, 0)
        caught.append(15)
        assert third.signal() == 15
        assert until(lambda: first.signal() == 15)
    with beat(0, board), beat(1, board) as second, beat(2, board, lambda: 2):
        assert until(lambda: second.signal() == 2)


def test_one_without_a_heartbeat_is_lost_for_all_and_one_that_ended_is_not(board):
    with beat(0, board) as first, beat(1, board) as second:
        note(board, 2, ended=True)
        assert second.lost() is None
        note(board, 2, beat=1)
        assert first.lost().startswith("host h2 (process 2) was lost: nothing was heard of it for")
        assert until(lambda: second.lost() == first.lost())
        assert second.first == first.first == "h0"


def test_nobody_is_lost_while_all_hearts_beat(board):
    with beat(0, board) as first, beat(1, board) as second, beat(2, board):
        begin = time.monotonic()
        assert second.lost() is None
        assert first.lost() is None
        assert time.monotonic() - begin >= 1.2


def test_process_0_is_watched_too(board):
    with beat(0, board):
        pass
    with beat(1, board) as second:
        assert second.lost() is None, "it has ended"
    first = beat(0, board)
    first._exchange()  # its only heartbeat
    with beat(1, board) as second:
        assert second.lost().startswith("host h0 (process 0) was lost")


def test_of_many_each_asks_for_one_note(board):
    for process in range(2, 64):
        note(board, process)
    with beat(1, board) as second:
        assert board.largest == 0
        first = beat(0, board)
        first._exchange()
        assert board.largest == 63
        board.largest = 0
        assert until(lambda: set(second.beats) == {0})
        assert board.largest == 1


THREE = """
import sys, time
import jax
from a3jax.devices import liveness
from a3jax.devices.liveness import Heartbeat, Liveness
from a3jax.devices.processes import Processes, connect
liveness.BEAT_SECONDS, liveness.LOST_SECONDS = 0.1, 2.0
connect(Processes(sys.argv[1], 3, int(sys.argv[2])))
with Liveness(Heartbeat.own()) as alive:
    while not alive.beats:
        time.sleep(0.1)
    with alive.watched():
        print("here", flush=True)
        time.sleep(100)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("number", "how"), [(1, signal.SIGKILL), (0, signal.SIGSTOP)])
def test_a_process_that_is_killed_or_hangs_is_named_by_all_others(number, how):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", THREE, address]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    three = [subprocess.Popen([*command, str(i)], env=environment, **pipes) for i in range(3)]
    try:
        assert [process.stdout.readline() for process in three] == ["here\n"] * 3
        three[number].send_signal(how)
        for process in three[:number] + three[number + 1 :]:
            said = process.communicate(timeout=20)[1]
            assert process.returncode == 75, said
            line = f"a3jax: host {socket.gethostname()} (process {number}) was lost: nothing was heard of it for 2 s; start"
            assert line in said
    finally:
        for process in three:
            process.kill()
