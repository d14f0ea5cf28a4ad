"""What hosts tell of their steps: who is slow, and what people find of it in the run folder."""

import dataclasses
import json
import time

import jax
import pytest

from a3jax.devices import liveness
from a3jax.devices.board import Board
from a3jax.train import hosts
from a3jax.train.hosts import Heartbeat, Hosts, read
from a3jax.train.tries import Tries


@pytest.fixture
def three(monkeypatch, tmp_path):
    """This process, the first of three; and a function that writes the heartbeat of another."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(hosts, "WRITE_SECONDS", 0.05)
    board = Board()

    def other(process: int, **facts) -> None:
        beat = Heartbeat(f"h{process}", process, 1, **facts)
        board.put("heartbeats", str(process), json.dumps(dataclasses.asdict(beat)))

    with Hosts(tmp_path, Tries(tmp_path), board=board) as mine:
        yield mine, other, tmp_path


def beats_until(condition) -> bool:
    """Whether something comes true within some heartbeats."""
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_the_host_that_the_others_wait_for_is_named(three):
    mine, other, _ = three
    for _ in range(5):
        mine.step(3, own_seconds=0.01, step_seconds=0.5)
    with mine.watched():
        other(1, own_seconds=0.3, step_seconds=0.5)
        other(2, own_seconds=0.01, step_seconds=0.5)
        expected = "host h1 (process 1) needs 0.3 s of its own for each step, the others 0.01 s"
        assert beats_until(lambda: mine.straggler == expected)
        for unremarkable in (0.012, 0.03):  # no more than others; too little to hold up a step
            other(1, own_seconds=0.3, step_seconds=0.5)
            assert beats_until(lambda: mine.straggler is not None)
            other(1, own_seconds=unremarkable, step_seconds=0.5)
            assert beats_until(lambda: mine.straggler is None)


def test_a_heartbeat_is_whole_while_steps_go_on(three):
    mine, _, run = three
    for step in range(1, 3000):
        mine.step(step, own_seconds=2.0 ** (step % 12 - 12), step_seconds=1.0)
    assert beats_until(lambda: read(run)[0].step == 2999)
    assert sum(read(run)[0].histogram.values()) == 2999


def test_steps_are_counted_by_the_time_that_the_host_took(three):
    mine, _, run = three
    for seconds in (0.02, 0.02, 0.3):
        mine.step(1, seconds, 1.0)
    assert beats_until(lambda: read(run)[0].step == 1)
    assert read(run)[0].histogram == {"0.0156": 2, "0.25": 1}
    assert read(run)[0].beat > 0


def test_process_0_writes_of_all_and_the_others_write_nothing(three, monkeypatch, tmp_path_factory):
    _, other, run = three
    other(2, step=7)
    assert beats_until(lambda: read(run).keys() == {0, 2} and read(run)[2].step == 7)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = tmp_path_factory.mktemp("run")
    with Hosts(run, Tries(run), board=Board()) as mine:
        mine.step(3, own_seconds=0.01, step_seconds=0.5)
        time.sleep(0.2)
    assert not list(run.iterdir())


def test_a_lost_host_is_named_with_its_step(three, monkeypatch):
    mine, other, _ = three
    monkeypatch.setattr(liveness, "LOST_AFTER_ERROR", 0.3)
    other(1, step=7)
    other(2, ended=True)
    assert mine.lost().startswith("host h1 (process 1) was lost at step 7: nothing was heard of it")
