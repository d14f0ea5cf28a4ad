"""Stopping on request: one signal is noted, the next ends the process wherever it is."""

import signal
import subprocess
import sys

import pytest

from a3jax.devices.interrupt import stop_requests

PROGRAM = """
import hashlib, signal, sys, time
from a3jax.devices.interrupt import stop_requests
with stop_requests() as caught:
    print("ready", flush=True)
    while not caught():
        time.sleep(0.01)
    print(caught(), flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # minutes in which no Python runs, as while a device computes
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_ends_the_process_whatever_it_waits_for(first, second):
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(first)
            assert process.stdout.readline() == f"{int(first)}\n"
            process.send_signal(second)
            assert process.wait(20) == -second
        finally:
            process.kill()


def test_handlers_are_those_of_before_once_it_is_left():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as caught:
        assert caught() == 0
        signal.raise_signal(signal.SIGTERM)
        assert caught() == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
