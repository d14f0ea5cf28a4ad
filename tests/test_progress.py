"""Lines of progress where no terminal is: now and then, with all that a bar shows, and none beside a bar."""

import io
from types import SimpleNamespace

import pytest

from a3jax.progress import EVERY, Progress
from a3jax.terminal import Terminal


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Seconds, which pass when a test says so."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr("a3jax.progress.time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def told(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_now_and_then(clock, capsys):
    with Progress("stories", 3000, "items", completed=1000) as bar:
        for _ in range(9):
            clock.seconds += EVERY / 10
            bar.advance(8)
        assert told(capsys) == [], "what is soon done needs none"
        clock.seconds += EVERY / 10
        bar.advance(8)
        assert told(capsys) == ["a3jax: stories: 1,080 of 3,000 items, 2.7 a second, about 12 min left"]
        clock.seconds += 60
        bar.note("a note\n")
        assert told(capsys) == ["a3jax: stories: 1,080 of 3,000 items; a note\u240a"]
        clock.seconds += 90
        bar.advance(12)
        assert told(capsys) == ["a3jax: stories: 1,092 of 3,000 items, 8 a minute, about 4 h left; a note\u240a"]
    assert told(capsys) == []


def test_a_line_says_of_the_work_that_it_counts(clock, capsys):
    with Progress("train", 100, "steps") as bar:
        bar.advance(note="loss 5")
        clock.seconds += 40
        bar.advance(note="loss 4")
    assert told(capsys) == ["a3jax: train: 2 of 100 steps, 3 a minute, about 33 min left; loss 4"]


def test_bytes_and_what_has_no_end(clock, capsys):
    with Progress("import", 5 * 10**9, "bytes") as bar, Progress("generate", None, "texts") as other:
        clock.seconds += 40
        bar.advance(10**9)
        other.advance(3)
    lines = ["import: 1.0 GB of 5.0 GB, 25.0 MB a second, about 3 min left", "generate: 3 texts, 4.5 a minute"]
    assert told(capsys) == [f"a3jax: {line}" for line in lines]


def test_speed_begins_anew_where_work_goes_back(clock, capsys):
    with Progress("train", 100, "steps") as bar:
        clock.seconds += 20
        bar.advance(50)
        bar.set(10)
        clock.seconds += 20
        bar.advance(10)
        clock.seconds += 20
        bar.advance(10)
    assert told(capsys) == ["a3jax: train: 30 of 100 steps, 30 a minute, about 2 min left"]


def test_no_lines_beside_a_bar_nor_where_another_process_has_them(clock, capsys, monkeypatch):
    with Progress("train", 9, "steps", lines=False) as bar:
        clock.seconds += 99
        bar.advance()
    monkeypatch.setattr("a3jax.progress.console", Terminal(file=io.StringIO(), force_terminal=True))
    with Progress("train", 9, "steps") as bar:
        clock.seconds += 99
        bar.advance()
        bar.note("there")
    assert told(capsys) == []
