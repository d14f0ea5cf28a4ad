"""Places in buckets, against emulators: paths, folders that appear whole, files that grow, and one writer at a time."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import emulators
import pytest
from chosen import long_after

from a3jax.errors import UserError
from a3jax.files import desk, holding, parts
from a3jax.files.desk import Desk
from a3jax.files.folders import complete_or_nothing, move, new_file, resumable, write_whole
from a3jax.files.holding import held, is_held
from a3jax.files.jsonl import growing
from a3jax.files.parts import PARTS, check_whole
from a3jax.files.places import local_copy, local_folder, place, scratch, sizes


@pytest.fixture(scope="module", params=long_after(1, ["gs", "s3"]))
def scheme(request):
    with emulators.of(request.param):
        yield request.param


@pytest.fixture
def at(scheme, tmp_path, monkeypatch, request) -> Path:
    """A folder in the bucket that no other test has."""
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    return place(f"{scheme}://bucket/{request.node.name.split('[')[0]}")


def test_a_path_in_a_bucket_is_one_of_a_folder(at, scheme):
    file = at / "a" / "b.txt"
    assert str(file) == f"{scheme}://bucket/{at.name}/a/b.txt"
    assert place(Path(str(file))) == file, "a slash was lost"
    assert (file.name, file.suffix, file.parent) == ("b.txt", ".txt", at / "a")
    assert not file.exists()
    with pytest.raises(FileNotFoundError) as gone:
        file.read_bytes()
    assert (gone.value.errno, gone.value.filename) == (errno.ENOENT, str(file))
    file.write_text("text ä")
    (at / "a" / "c.bin").write_bytes(b"123")
    assert (file.read_text(), file.stat().st_size, file.is_file(), file.is_dir()) == ("text ä", 7, True, False)
    assert (at.is_dir(), at.is_file(), (at / "a").is_dir(), (at / "b").exists()) == (True, False, True, False)
    assert list((at / "a").iterdir()) == [file, at / "a" / "c.bin"] == list(at.glob("a/*"))
    assert sizes(at) == {"a/b.txt": 7, "a/c.bin": 3}
    with file.open("rb") as opened:
        opened.seek(2)
        assert opened.read(2) == b"xt"
    copy = local_copy(file)
    assert (copy.name, copy.read_text(), local_copy(file)) == ("b.txt", "text ä", copy)
    assert sizes(local_folder(at)) == sizes(at)
    file.write_text("new")
    assert local_copy(file).read_text() == "new"
    file.unlink()
    file.unlink(missing_ok=True)
    assert not file.exists()


def test_a_folder_appears_whole(at):
    out = at / "out"
    with resumable(out, {"of": 1}) as partial:
        (partial / "params" / "x").mkdir(parents=True)
        (partial / "params" / "x" / "c").write_bytes(b"numbers")
        (partial / "model.json").write_text("{}")
        with pytest.raises(UserError, match="is not whole"):
            check_whole(out)
        with pytest.raises(UserError, match="is being written by another process"), resumable(out, {"of": 2}):
            pass
    assert sizes(out).keys() == {"params/x/c", "model.json", PARTS}
    check_whole(out)
    assert json.loads((out / PARTS).read_text())["parts"]["model.json"]["bytes"] == 2
    with pytest.raises(UserError, match="exists already"), resumable(out, {"of": 1}):
        pass
    (out / "params" / "x" / "c").write_bytes(b"number")
    with pytest.raises(UserError, match=r"params/x/c is damaged \(6 bytes, not 7\)"):
        check_whole(out)
    (out / "params" / "x" / "c").unlink()
    with pytest.raises(UserError, match="params/x/c is missing"):
        check_whole(out)


def test_what_fails_leaves_nothing(at):
    for make, half in ((complete_or_nothing, "out"), (new_file, ".")):

        def fail(make=make, half=half) -> None:
            with make(at / "out") as partial:
                (partial / half).write_text("half")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
    assert sizes(at) == {}
    with new_file(at / "out") as partial:
        partial.write_text("whole")
    assert (at / "out").read_text() == "whole"
    for make in (new_file, complete_or_nothing):
        with pytest.raises(UserError, match="exists already"), make(at / "out"):
            pass


def killed(work, *args: object) -> None:
    """Run a function in a process that ends by SIGKILL."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def write_and_be_killed(out: str, after: int) -> None:
    sent = []

    def send(file, to, real=parts.send):
        sent.append(real(file, to))
        if len(sent) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return sent[-1]

    parts.send = send
    with resumable(place(out), {"of": 1}) as partial:
        for i in range(3):
            if not (partial / f"{i}").exists():
                (partial / f"{i}").write_text(str(os.getpid()))
        if not after:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
def test_a_kill_on_the_way_is_gone_on_from(at):
    out = at / "out"
    killed(write_and_be_killed, str(out), 0)
    killed(write_and_be_killed, str(out), 2)
    with pytest.raises(UserError, match="until a kill"):
        check_whole(out)
    with resumable(out, {"of": 1}) as partial:
        first = (partial / "0").read_text()
        assert first != str(os.getpid()), "begun anew"
    check_whole(out)
    assert {(out / str(i)).read_text() for i in range(3)} == {first}


def test_a_growing_file(at, monkeypatch):
    out = at / "answers.jsonl"
    monkeypatch.setattr(desk, "SEND_SECONDS", 0.1)
    with growing(out, "answer", "id") as lines:
        assert list(lines.there()) == []
        lines.append([{"id": 1}])
        until = time.monotonic() + 10
        while not out.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert out.read_text() == '{"id": 1}\n', "sent on the way"
        with pytest.raises(UserError, match="another process"), growing(out, "answer", "id"):
            pass
        lines.append([{"id": 2}])
    with growing(out, "answer", "id") as lines:
        assert [line.value for line in lines.there()] == [{"id": 1}, {"id": 2}]
        assert [line.where for line in lines.there()] == [f"{out}:1", f"{out}:2"]
        lines.keep(1)
        lines.append([{"id": 3}])
    assert out.read_text() == '{"id": 1}\n{"id": 3}\n'
    assert sizes(at).keys() == {"answers.jsonl"}


def test_a_folder_of_files_that_grow(at, tmp_path):
    with Desk(at, "log.txt", "events") as first:
        (first.folder / "events").mkdir()
        (first.folder / "events" / "1").write_text("event")
        (first.folder / "log.txt").write_text("one\n")
        first.send()
        assert sizes(at) == {"log.txt": 4, "events/1": 5}
    assert not first.folder.exists()
    with Desk(at, "log.txt") as second, (second.folder / "log.txt").open("a") as log:
        log.write("two\n")
    assert (at / "log.txt").read_text() == "one\ntwo\n"
    here = tmp_path / "run"
    with Desk(here, "log.txt") as third:
        assert third.folder == here


def test_what_grows_for_another_process_is_left_alone_and_that_of_a_gone_one_removed(at):
    """Two hosts can have one scratch folder, and one process number."""
    host, boot, pid, _ = holding.here().split(":")
    desks = scratch(at) / ".desks"
    for left in (gone := f"{host}:{boot}:{pid}:1:x", of_another := f"other:boot:{pid}:1:x"):
        (desks / left).mkdir(parents=True)
    with Desk(at, "log.txt"):
        assert not (desks / gone).exists()
        assert (desks / of_another).exists()


def hold_until_killed(lock: str, ready, beat: float) -> None:
    holding.BEAT_SECONDS = beat
    with held(place(lock), place(lock)):
        ready.set()
        time.sleep(60)


def test_one_writer(at, monkeypatch):
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(holding, "LOST_SECONDS", 2.0)
    lock, context = at / "lock", multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold_until_killed, args=(str(lock), ready, 0.2))
    other.start()
    assert ready.wait(60)
    assert is_held(lock)
    with pytest.raises(UserError, match="is being written by another process"), held(lock, at):
        pass
    other.kill()
    other.join()
    assert not is_held(lock), "its process is gone"
    with held(lock, at):
        assert is_held(lock)
    assert not lock.exists()


def test_a_holder_of_another_machine_that_was_lost(at, monkeypatch, capsys):
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(holding, "LOST_SECONDS", 1.0)
    (at / "lock").write_text('{"holder": "elsewhere:boot:1:2:3", "beat": 7}')
    with held(at / "lock", at):
        pass
    assert "nothing was heard of elsewhere" in capsys.readouterr().err


def test_a_holder_that_was_taken_for_lost_ends(at, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(holding.os, "_exit", lambda status: ended.set())
    with held(at / "lock", at):
        (at / "lock").write_text('{"holder": "elsewhere:boot:1:2:3", "beat": 1}')
        assert ended.wait(10)


def test_moving_and_writing_whole(at):
    write_whole(at / "a" / "sweep.json", "1")
    write_whole(at / "a" / "sweep.json", "2")
    move(at / "a", at / "b" / "c")
    assert {name: (at / name).read_text() for name in sizes(at)} == {"b/c/sweep.json": "2"}


def test_no_such_bucket(scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path))
    nowhere = place(f"{scheme}://no-such-bucket/x")
    assert not nowhere.exists()
    with pytest.raises(UserError, match=r"no-such-bucket/x.* cannot be written: there is no such bucket"):
        write_whole(nowhere, "1")
    with (
        pytest.raises(UserError, match=r"no-such-bucket/x.* cannot be written: there is no such bucket"),
        resumable(nowhere, {}),
    ):
        pass


@pytest.mark.parametrize("status", long_after(1, [503, 429, 0]))
def test_trouble_that_passes(status, tmp_path, monkeypatch):
    """For a few seconds every request fails, the connection being cut for 0; then all is as if nothing had been."""
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    with emulators.of("gs") as emulator:
        out = place(f"gs://bucket/trouble-{status}/out")
        with resumable(out, {}) as partial:
            (partial / "small").write_text("1")
            (partial / "large").write_bytes(bytes(6 * 2**20))
            until, failed = time.monotonic() + 3, []

            def trouble(method, path):
                if time.monotonic() < until:
                    failed.append(path)
                    return status
                return None

            emulator.trouble = trouble
        emulator.trouble = emulators.none
        assert failed
        check_whole(out)
        assert (out / "small").read_text() == "1"
        assert sizes(out)["large"] == 6 * 2**20


@pytest.mark.parametrize("status", long_after(1, [403, 401]))
def test_no_right_to_write(status, tmp_path, monkeypatch):
    """401 is what Google answers to those without credentials."""
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    with emulators.of("gs") as emulator:
        monkeypatch.setattr(emulator, "trouble", lambda method, path: None if method == "GET" else status)
        out = place("gs://bucket/theirs/out")
        for write in (lambda: write_whole(out, "1"), lambda: resumable(out, {}).__enter__()):
            with pytest.raises(UserError, match=r"gs://bucket/theirs/out.* cannot be written: no right to it"):
                write()
        monkeypatch.setattr(emulator, "trouble", lambda method, path: status)
        with pytest.raises(PermissionError, match="no right to it"):
            out.exists()


@pytest.mark.long
@pytest.mark.parametrize("command", [("inspect", "MODEL"), ("train", "tiny", "--run", "MODEL")])
def test_no_credentials(command, tmp_path):
    """For s3:// they are looked for on this machine, before anything is asked of the service."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true"}
    words = [word.replace("MODEL", "s3://bucket/x") for word in command]
    done = subprocess.run([sys.executable, "-m", "a3jax.cli", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    *_, last = done.stderr.splitlines()
    assert "no right to it (Unable to locate credentials)" in last
    assert "Traceback" not in done.stderr
