"""Files of JSON lines that are gone on with: torn lines are cut, damaged ones named, and nothing of another's is lost."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from typed import fails, run

from a3jax.errors import UserError
from a3jax.files.jsonl import growing

ROWS = [{"id": i, "text": "x" * (7 * i)} for i in range(4)]
WHOLE = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def there(path) -> list[dict]:
    with growing(path, "row of a test", "id") as file:
        return [line.value for line in file.there()]


def test_lines_are_cut_where_they_are_torn_and_gone_on_with(tmp_path):
    path = tmp_path / "x.jsonl"
    for end in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:end])
        with growing(path, "row of a test", "id") as file:
            done = sum(1 for _ in file.there())
            assert done == WHOLE[:end].count(b"\n")
            file.append(ROWS[done:])
        assert path.read_bytes() == WHOLE
    with growing(path, "row of a test", "id") as file:
        file.keep(2)
        file.append(ROWS[2:])
    assert path.read_bytes() == WHOLE


@pytest.mark.parametrize(
    "line",
    [b"", b"notes", b"{}", b'{"id": 1', b'{"id": \xff}', b'{"id": 1, "id": 2}', b'{"id": ' + b"[" * 100_000, b'["id"]'],
)
def test_a_damaged_line_is_named_and_nothing_lost(line, tmp_path):
    path = tmp_path / "x.jsonl"
    lines = WHOLE.splitlines(keepends=True)
    damaged = b"".join([*lines[:2], line + b"\n", *lines[2:]])
    path.write_bytes(damaged)
    with pytest.raises(UserError) as error:
        there(path)
    assert str(error.value).startswith(f"{path}:3 is no row of a test")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == damaged
    path.write_bytes(b"mine, without a line's end")
    with pytest.raises(UserError, match=r"x\.jsonl:1 is no row"):
        there(path)
    assert path.read_bytes() == b"mine, without a line's end"


def test_a_file_is_held_for_one_process_and_a_kill_lets_it_go(tmp_path):
    path = tmp_path / "x.jsonl"
    program = (
        f"from pathlib import Path; from a3jax.files.jsonl import growing; import time\n"
        f"with growing(Path({str(path)!r}), 'row', 'id') as file:\n"
        f"    file.append({ROWS!r}); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is being written by another process"):
            there(path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert there(path) == ROWS


def test_a_stream_and_what_is_no_file_begin_anew(tmp_path):
    stream = io.BytesIO()
    with growing(stream, "row", "id") as file:
        assert list(file.there()) == []
        file.append(ROWS)
    assert stream.getvalue() == WHOLE
    with pytest.raises(UserError, match="cannot be written"), growing(tmp_path, "row", "id"):
        pass


def test_damaged_answers_and_results_are_named_by_line(model_folder, tmp_path, capsys):
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text('{"text": "a [[1]]"}\n' * 3)
    generate = ["generate", model_folder, "--file", requests, "--out", out, "--batch", 1]
    stories = tmp_path / "stories.txt"
    stories.write_text(json.dumps({"sentences": ["One."] * 5}) + "\n")
    evaluate = ["evaluate", model_folder, "--tasks", "stories", "--settings", "one", "--stories", stories]
    evaluate += ["--out", tmp_path / "results"]
    for command, path, what in (
        (generate, out, "answer of a3jax generate"),
        (evaluate, tmp_path / "results" / "stories.jsonl", "result of a3jax evaluate"),
    ):
        run(*command)
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1][:20] + b"\xff" + lines[1][21:] + b"".join(lines[2:]))
        assert f"{path}:2 is no {what} (is not UTF-8 text" in fails(capsys, *command)
        path.write_bytes(whole)
    path.write_bytes(lines[0] + lines[1].replace(b'"id": ', b'"id": "another", "was": ', 1))
    assert f"{path}:2 is a result of something else" in fails(capsys, *evaluate)
