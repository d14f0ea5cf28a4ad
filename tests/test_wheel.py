"""From a wheel in an empty folder: chats of one's own, a tuned model, and an editor's and a chat client's request."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from pages import ROOT
from small_models import save_chat_model

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where a wheel of the package is installed, apart from what it needs."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("a3jax", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


@pytest.fixture
def environment(site) -> dict[str, str]:
    """Of a user who has the wheel and no clone."""
    return {**os.environ, "PYTHONPATH": str(site), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_PLATFORMS": "cpu"}


def post(address: str, **fields) -> dict:
    request = urllib.request.Request(address, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_from_chats_to_an_editor_in_ten_commands(site, environment, tmp_path):
    save_chat_model(tmp_path / "source")
    chats = [
        [{"role": "user", "content": f"What is 3 plus {n}?"}, {"role": "assistant", "content": f"It is {3 + n}."}]
        for n in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))

    def typed(line: str) -> subprocess.Popen:
        command = [sys.executable, site / "bin/a3jax", *line.split()]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True)

    def told(line: str) -> str:
        out, errors = (process := typed(line)).communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    where = [sys.executable, "-c", "import a3jax; print(a3jax.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site)), "the wheel, and not a clone"
    told("import source models/mine")
    told("prepare chats.jsonl data/chats --tokenizer models/mine --chat messages --held-out 0.1")
    small = "--curriculum.0.steps 2 --data.length 64 --train.eval-windows 2"
    told(f"train smollm2_instruct --source models/mine --data.path data/chats --run runs/mine {small}")
    assert "steps" in told("inspect runs/mine")
    assert told("generate runs/mine --chat Why? --tokens 4")
    service = typed("serve runs/mine --port 0")
    try:
        port = re.search(r"http://127.0.0.1:(\d+)", service.stderr.readline())[1]
        here = f"http://127.0.0.1:{port}"
        asked = {"input_prefix": "def area(r):\n    return ", "input_suffix": " * r\n", "n_predict": 4, "cache_prompt": True}
        answer = post(f"{here}/infill", **asked, samplers=["top_k", "infill"], t_max_predict_ms=9000, stream=False)
        assert answer.keys() >= {"content", "stop", "tokens_predicted"}
        answer = post(f"{here}/v1/chat/completions", messages=chats[0][:1], max_tokens=4, model="mine")
        assert answer["choices"][0]["message"]["role"] == "assistant"
    finally:
        service.kill()
        service.communicate()


def test_an_experiment_that_is_not_there(site, environment, tmp_path):
    command = [sys.executable, site / "bin/a3jax", "curriculum", "smollm2_instruc"]
    failed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert failed.stderr == (
        "a3jax: experiment experiments/smollm2_instruc.py does not exist; did you mean 'smollm2_instruct'?\n"
    )
