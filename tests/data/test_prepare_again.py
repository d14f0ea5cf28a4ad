"""`prepare` that was stopped: what was finished stays, and the corpus is the one that an undisturbed one makes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from corpora import digests

from a3jax.data import prepare as module
from a3jax.data import shards
from a3jax.data.filters import Filters
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError


class Killed(BaseException):
    """What stands for a process that is gone."""


def stopping_before(monkeypatch, shard):
    """`write_shard` as it is, but for one shard, at whose beginning the process is killed."""
    written = []

    def write_shard(task, report):
        if task.number == shard:
            raise Killed
        written.append(task.number)
        return shards.write_shard(task, report)

    monkeypatch.setattr(module, "write_shard", write_shard)
    return written


@pytest.mark.parametrize("deduplicate", [False, True])
def test_what_was_finished_stays_and_the_corpus_is_the_same(source, tmp_path, monkeypatch, deduplicate):
    options = {"held_out": 0.3, "workers": 1, "deduplicate": deduplicate}
    monkeypatch.setattr(module, "SMALLEST_SHARD", 200)
    prepare([source], tmp_path / "whole", Preparation("bytes", **options))
    stopping_before(monkeypatch, 5)
    with pytest.raises(Killed):
        prepare([source], tmp_path / "out", Preparation("bytes", **options))
    assert [path.name for path in tmp_path.glob("out*")] == ["out.partial"]
    (tmp_path / "out.partial" / "train-00005.array_record").write_bytes(b"half a shard")
    rest = stopping_before(monkeypatch, None)
    prepare([source], tmp_path / "out", Preparation("bytes", **options))
    assert rest[0] == 5
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_file_that_was_mended_and_no_other_is_read_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_SHARD", 200)
    (source / "zz.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UserError, match=r"zz\.jsonl:2 is not JSON.*; the same command goes on from .*out\.partial"):
        prepare([source], tmp_path / "out", Preparation("bytes", workers=1))
    written = stopping_before(monkeypatch, None)
    (source / "zz.jsonl").write_text('{"text": "good"}\n{"text": "now"}\n')
    manifest = prepare([source], tmp_path / "out", Preparation("bytes", workers=1))
    assert len(written) == 1
    prepare([source], tmp_path / "anew", Preparation("bytes", workers=1))
    assert digests(tmp_path / "out") == digests(tmp_path / "anew")
    assert manifest.train.documents + manifest.held_out.documents == 32


@pytest.mark.parametrize("other", [{"seed": 1}, {"column": "more"}, {"start": "a"}, {"filters": Filters(min_characters=1)}])
def test_with_other_settings_nothing_is_taken_over(other, tmp_path, monkeypatch):
    for i in range(2):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"text": f"one {i}", "more": f"two {i}"}))
    sources = sorted(tmp_path.glob("*.jsonl"))
    stopping_before(monkeypatch, 1)
    with pytest.raises(Killed):
        prepare(sources, tmp_path / "out", Preparation("bytes", workers=1))
    written = stopping_before(monkeypatch, None)
    prepare(sources, tmp_path / "out", Preparation("bytes", workers=1, **other))
    assert written == [0, 1]


def test_what_was_skipped_is_not_taken_over_where_faults_are_to_end_it(source, tmp_path, monkeypatch):
    (source / "00.jsonl").write_text("bad\n")
    stopping_before(monkeypatch, 1)
    with pytest.raises(Killed):
        prepare([source], tmp_path / "out", Preparation("bytes", workers=1, on_error="skip"))
    stopping_before(monkeypatch, None)
    with pytest.raises(UserError, match=r"00\.jsonl:1 is not JSON"):
        prepare([source], tmp_path / "out", Preparation("bytes", workers=1))


@pytest.mark.long
def test_after_a_kill_no_process_stays_and_the_corpus_is_the_same(tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in {
        "0.txt": 150_000,
        "1.txt": 40_000,
    }.items():  # a shard each; the second is finished long before the first
        (tmp_path / "in" / name).write_text(" ".join(map(str, range(size))))
    command = [sys.executable, "-m", "a3jax.cli", "prepare", "in", "out", "--tokenizer", "bytes", "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out.partial/*.done.json")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()  # the workers are not told
    process.wait()
    assert list(tmp_path.glob("out.partial/*.done.json"))
    while _alive(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _alive(process.pid)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    prepare([tmp_path / "in"], tmp_path / "anew", Preparation("bytes", workers=1))
    found, anew = digests(tmp_path / "out"), digests(tmp_path / "anew")
    del found["manifest.json"], anew["manifest.json"]  # which says where the source was
    assert found == anew


def _alive(session: int) -> bool:
    """Whether any process of a session is left."""
    try:
        os.killpg(session, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return True
