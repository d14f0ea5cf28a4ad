"""What programs try that a model may write by chance: nothing of it may harm, and each ends in a few seconds."""

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from a3jax.errors import UserError
from a3jax.execute import case
from a3jax.execute.sandbox import OUT_OF_TIME, Limits, Sandbox

QUICK = Limits(cpu_seconds=1, seconds=4)
PASSED, KILLED = case.PASSED, "ended by signal 9"


@pytest.fixture(scope="module")
def confined():
    try:
        return Sandbox(True, QUICK)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def unconfined():
    try:
        return Sandbox(False, QUICK)
    except UserError as error:  # where root starts it, and Python lies in its home
        pytest.skip(str(error))


FORK_BOMB = "import os\nwhile True:\n    os.fork()"
HARM = {
    "a loop without end": ("while True: pass", OUT_OF_TIME),
    "a loop that bears signals": ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", KILLED),
    "sleep": ("import time\ntime.sleep(600)", OUT_OF_TIME),
    "a fork bomb": (FORK_BOMB, "BlockingIOError"),
    "a fork bomb that tries again": (FORK_BOMB.replace("os.fork()", "try: os.fork()\n    except OSError: pass"), OUT_OF_TIME),
    "threads": ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
    "a shell": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", "BlockingIOError"),
    "ten gigabytes": ("x = bytearray(10 * 2**30)", "MemoryError"),
    "a large file": ("f = open('x', 'wb')\nwhile True: f.write(bytes(2**20))", "OSError"),
    "many files": ("for n in range(40):\n    with open(str(n), 'wb') as f: f.write(bytes(2**20))", "OSError"),
    "many files at once": ("x = [open(str(n), 'w') for n in range(200)]", "OSError"),
    "printing for ever": ("while True: print('x' * 2**16)", OUT_OF_TIME),
    "writing everywhere": (
        "import os\nwhile True:\n  for n in range(64):\n    try: os.write(n, bytes(2**16))\n    except OSError: pass",
        OUT_OF_TIME,
    ),
    "killing who started it": (f"import os\nos.kill({os.getpid()}, 9)", "ProcessLookupError"),
    "killing the parent": ("import os\ntry: os.kill(os.getppid(), 9)\nexcept PermissionError: pass", PASSED),
    "killing all": ("import os\nos.kill(-1, 9)", "ProcessLookupError"),
    "killing its group": ("import os\nos.killpg(0, 9)", KILLED),
    "leaving early": ("import os\nos._exit(0)", "ended with status 0"),
    "leaving": ("raise SystemExit(0)", "SystemExit"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "ended by signal 11"),
    "no Python": ("def f(:", "SyntaxError"),
    "no text": ("'\ud800'", "UnicodeEncodeError"),
}


def test_what_would_harm_ends_and_nothing_else_does(confined):
    assert dict(zip(HARM, confined.run([program for program, _ in HARM.values()]))) == {
        name: outcome for name, (_, outcome) in HARM.items()
    }
    end = time.monotonic() + 10
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if case.__file__.encode() in _content(path)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def test_files_of_others_and_the_network_are_not_there(confined, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters").write_text("years of work")
    for path in (home, home / "letters"):
        path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"{tmp_path}/socket")
        local.listen()
        found = confined.run(
            [
                f"import shutil\nshutil.rmtree({str(home)!r})",
                f"open({str(home / 'letters')!r}).read()",
                f"open({str(home / 'letters')!r}, 'w')",
                f"import socket\nsocket.create_connection({server.getsockname()!r}, 1)",
                "import socket\nsocket.create_connection(('1.1.1.1', 80), 1)",
                f"import socket\nsocket.socket(socket.AF_UNIX).connect({f'{tmp_path}/socket'!r})",
            ]
        )
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (home / "letters").read_text() == "years of work"
    assert found[:3] == ["FileNotFoundError"] * 3
    assert PASSED not in found


INSIDE = """
import os, sys
assert dict(os.environ) == {"HOME": os.getcwd()} and os.listdir() == [] and os.path.expanduser("~") == os.getcwd()
assert os.getuid() and os.geteuid() and os.getgid()
open("mine", "w").write("a file of its own"); os.remove("mine")
assert sys.stdin.read() == ""
import math, re, collections, hashlib, datetime, decimal, heapq, typing  # the standard library
"""
CONFINED = """
import ctypes
for place in ("/etc", "/proc", "/dev", "/sys", "/tmp", "/var"): assert not os.path.exists(place), place
for place in ("/usr/x", "/lib/x", sys.base_prefix + "/x"):
    try: open(place, "w")
    except OSError: continue
    raise AssertionError(place)
libc = ctypes.CDLL(None)
assert libc.unshare(0x10000000) == -1  # no rights over namespaces of its own
assert libc.mount(b"tmpfs", b"/home", b"tmpfs", 0, None) == -1
assert libc.umount2(b"/usr", 2) == -1 and libc.setuid(0) == -1
"""


def test_a_program_finds_python_and_an_empty_folder(confined):
    assert confined.run([INSIDE, INSIDE + CONFINED]) == [PASSED, PASSED]
    assert confined.facts["python"] == platform.python_version()
    assert (confined.facts["confined"], confined.facts["cpu_seconds"]) == (True, 1)


def test_chance_and_the_order_of_sets_are_the_same_in_every_run(confined):
    (name,) = set(confined.run([f"import random\nraise type(str(random.random()), (Exception,), {{}})  # {n}" for n in "ab"]))
    assert name.startswith("0.")
    assert len(set(confined.run([f"raise type(str(set('abcdefgh')), (Exception,), {{}})  # {n}" for n in "ab"]))) == 1


def test_limits_hold_unconfined_too(unconfined):
    names = ["a loop without end", "a fork bomb", "ten gigabytes", "a large file", "printing for ever", "many files at once"]
    found = unconfined.run([INSIDE, *(HARM[name][0] for name in names)])
    assert found == [PASSED, *(HARM[name][1] for name in names)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize("is_confined", [True, False])
def test_who_is_not_root_is_held_too(is_confined, confined):
    program = INSIDE + (CONFINED if is_confined else "") + FORK_BOMB
    request = {"program": program, "word": "w", "confined": is_confined, **vars(QUICK)}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        other = {"user": 12345, "group": 12345, "extra_groups": [], "env": {}, "cwd": folder}
        for python in (sys.executable, "/usr/bin/python3"):
            command = [python, "-I", "-S", "-B", case.__file__]
            try:
                done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, **other)
            except OSError:  # it lies where others may not look
                continue
            assert done.stdout.decode() == "w BlockingIOError", done.stderr
            return
    pytest.skip("there is no Python that another user can run")


def test_where_the_kernel_does_not_allow_it_nothing_is_run(monkeypatch, tmp_path):
    refusing = tmp_path / "refusing.py"
    refusing.write_text(
        Path(case.__file__)
        .read_text()
        .replace('    _call("unshare", kinds', "    raise OSError('no namespaces')\n    _call(\"unshare\", kinds")
    )
    monkeypatch.setattr("a3jax.execute.sandbox._PYTHON", (sys.executable, "-B", "-P", "-s", "-S", str(refusing)))
    with pytest.raises(UserError, match=r"confined \(no namespaces\).*--execute unconfined"):
        Sandbox(True)
