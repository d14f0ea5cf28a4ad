"""Commands in two processes, over the devices of both: what one process on one device gives, written once."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serve.serving import Server

import a3jax

pytestmark = [pytest.mark.slow, pytest.mark.long]

TEXTS = ["def f(x, y=None):\n    return x + 1\n", "a = 3\nb = 4\nprint(a)\n", "for i in range(9):\n    print(i)\n"]
REQUESTS = [
    {"text": "def f(x): [[4]] * r"},
    {"prompt": "for i in", "tokens": 6},
    {"text": "a = [[2-4]]\nb = 1", "order": "random_2"},
    {"text": "if [[3]]: return [[2]]", "temperature": 1.0},
]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def ran(model_folder, tmp_path_factory):
    """The folders of what one process wrote and what two did, and their standard outputs."""
    here = tmp_path_factory.mktemp("hosts")
    (here / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (here / "texts" / f"{number}.py").write_text(text)
    (here / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (here / "requests.jsonl").write_text("".join(json.dumps(one) + "\n" for one in REQUESTS))
    started = {}
    address = free_address()
    for name, place in [("one", []), ("two.0", [address, "0"]), ("two.1", [address, "1"])]:
        out = here / name.partition(".")[0]
        out.mkdir(exist_ok=True)
        model, tasks = str(model_folder), ["--tasks", "likelihood", "code", "--orders", "ar", "random_4", "--settings", "one"]
        texts = ["--text", str(here / "texts"), "--code", str(here / "texts"), "--limit", "3", "--batch", "2"]
        lines = [
            ["evaluate", model, *tasks, *texts, "--longest", "60", "--out", str(out / "results")],
            ["generate", model, "--file", str(here / "requests.jsonl"), "--out", str(out / "answers.jsonl"), "--batch", "2"],
            ["score", model, "--file", str(here / "texts.jsonl"), "--order", "random_2", "--json"],
            ["export", model, str(out / "exported"), "--verify", "--json"],
        ]
        # What is there already is gone on with, which process 0 alone can know.
        lines.append([*lines[1][:-1], "2"])
        file = here / f"{name}.json"
        file.write_text(json.dumps(lines))
        command = [sys.executable, Path(__file__).with_name("hosts_process.py"), file, *place]
        with (here / f"{name}.out").open("w") as said, (here / f"{name}.err").open("w") as errors:
            started[name] = subprocess.Popen(command, stdout=said, stderr=errors, env=environment(2 if place else 1))
    try:
        for name, process in started.items():
            assert process.wait(300) == 0, (here / f"{name}.err").read_text()[-3000:]
    finally:
        for process in started.values():
            process.kill()
    return here


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]


def alike(found, expected) -> None:
    """The same but for the rounding of numbers."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"seconds", "out"}:
            alike(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            alike(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-5) if isinstance(expected, float) else expected)


def test_results_are_those_of_one_device(ran):
    for file in ("likelihood.jsonl", "code.jsonl"):
        alike(rows(ran / "two" / "results" / file), rows(ran / "one" / "results" / file))
    found, expected = (json.loads((ran / name / "results" / "results.json").read_text()) for name in ("two", "one"))
    assert found["models"] == expected["models"], "the hash of weights that lie on two hosts too"
    assert {path.name for path in (ran / "two" / "results").iterdir()} == {
        path.name for path in (ran / "one" / "results").iterdir()
    }


def test_texts_are_those_of_one_device(ran):
    found, expected = rows(ran / "two" / "answers.jsonl"), rows(ran / "one" / "answers.jsonl")
    assert [row["text"] for row in found] == [row["text"] for row in expected]
    alike(found, expected)


def test_scores_are_those_of_one_device_and_process_0_alone_prints(ran):
    alike(rows(ran / "two.0.out"), rows(ran / "one.out"))
    assert rows(ran / "two.1.out") == []
    assert "Traceback" not in (ran / "two.1.err").read_text()


def test_an_export_is_written_once_byte_for_byte(ran):
    one, two = (
        {path.name: path.read_bytes() for path in (ran / name / "exported").iterdir() if path.is_file()}
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.fixture
def served(model_folder):
    """A service of two processes, and the second of them."""
    place = ["--coordinator", free_address(), "--processes", "2", "--mesh.data", "2"]
    how = {"env": environment(1) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}, "stdout": -1, "stderr": -1, "text": True}
    command = [sys.executable, "-m", "a3jax.cli", "serve", str(model_folder), *place, "--process", "1"]
    second = subprocess.Popen(command, **how)
    try:
        with Server(model_folder, *place, "--process", "0", environment=environment(1)) as first:
            yield first, second
    finally:
        second.kill()
        second.communicate()


def check_answers(server, model):
    """Texts of different lengths, which join and leave while others are filled."""
    prompts, tokens = ["for i in", "a = ", "while True", "import this and that, or"], (14, 5, 9, 3)

    def ask(prompt, most):
        return server.post("/v1/completions", prompt=prompt, max_tokens=most, temperature=0)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, prompts, tokens))
    for (status, body), prompt, most in zip(answers, prompts, tokens):
        assert status == 200, body
        (alone,) = a3jax.complete(model, [prompt], tokens=most)
        assert body["choices"][0]["text"] == alone.blanks[0].text


def test_a_service_of_two_processes_answers_as_one_and_both_end_when_the_first_is_told_to(served, model):
    first, second = served
    check_answers(first, model)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(60) == 0
    assert second.wait(60) == 0


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_a_service_of_two_devices_answers_as_one(axis, model_folder, model):
    with Server(model_folder, f"--mesh.{axis}", "2", environment=environment(2)) as server:
        check_answers(server, model)


def test_a_killed_process_of_a_service_ends_the_other(served):
    first, second = served
    second.kill()
    assert first.process.wait(60) == 75
    assert any("(process 1) was lost" in line for line in first.log), first.log
