"""Commands as a user types them, run in this process."""

import io
import json

import pytest

from a3jax.cli import main


def run(*args: object) -> None:
    main([str(arg) for arg in args])


def answer(capsys: pytest.CaptureFixture, *args: object) -> dict:
    """The result that a command prints with --json."""
    capsys.readouterr()
    run(*args, "--json")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def fails(capsys: pytest.CaptureFixture, *args: object, printed: int = 0) -> str:
    """The one line that a failing command prints, after so many on standard output."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*args)
    captured = capsys.readouterr()
    message = captured.err
    assert stop.value.code == 2, message
    assert captured.out.count("\n") == printed
    assert message.startswith("a3jax: ")
    assert message.count("\n") == 1, message
    return message


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let the next command find this on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
