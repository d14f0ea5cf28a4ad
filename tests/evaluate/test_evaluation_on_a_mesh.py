"""Evaluation over several devices gives the numbers and the texts of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_process import MESHES
from typed import fails

DEVICES = "--xla_force_host_platform_device_count=8"


@pytest.fixture(scope="module")
def evaluated(model_folder, tmp_path_factory):
    """The folder of results of every mesh."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "texts").mkdir()
    for name in "fgh":  # every blank comes late, so that all texts are padded to the same size and few programs compiled
        (folder / "texts" / f"{name}.py").write_text(f"def {name}(x, y=None, z=None, other=0):\n    return x + 1\n")
    stories = [{"sentences": ["Al ran up a long way.", "He fell down.", f"It hurt {n}.", "Al sat.", "No."]} for n in range(3)]
    (folder / "stories.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {DEVICES}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, Path(__file__).with_name("evaluation_process.py"), model_folder]
    command += [folder / "texts", folder / "stories.jsonl", folder / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "donated" not in done.stderr, "a state is copied in every pass"
    return folder / "out"


@pytest.mark.long
@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_numbers_and_texts_are_those_of_one_device(evaluated, name):
    for task in MESHES[name][1]:
        first, *expected = map(json.loads, (evaluated / "one device" / f"{task}.jsonl").read_text().splitlines())
        same, *rows = map(json.loads, (evaluated / name / f"{task}.jsonl").read_text().splitlines())
        assert same == first, "the weights are the same, and the protocol"
        assert len(rows) == len(expected) > 2
        for row, one in zip(rows, expected):
            assert row.get("texts") == one.get("texts")
            assert shares(row) == {key: pytest.approx(share, rel=1e-5) for key, share in shares(one).items()}


def shares(row: dict) -> dict[tuple, list[float]]:
    tables = row["figures"].items()
    return {(t, r, c): share for t, rows in tables for r, columns in rows.items() for c, share in columns.items()}


def test_meshes_that_cannot_be(model_folder, capsys):
    words = ["evaluate", model_folder, "--tasks", "code", "--limit", 1]
    assert "does not cover 1 devices" in fails(capsys, *words, "--mesh.data", 4)
    assert "--mesh.context splits windows" in fails(capsys, *words, "--mesh.context", 2)
