"""The scripts in launch/: how they are used, and what they leave to the experiment."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest
from starting import LAUNCH, run

from a3jax.config import Config

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_well_formed_and_say_how_they_are_used(script):
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script) == (0, [], "")
    status, said, errors = run(script)
    assert (status, said) == (2, [])
    assert errors.startswith("usage: ")
    assert errors.count("\n") == 1
    if shutil.which("shellcheck"):
        assert run("shellcheck", "--severity=warning", script) == (0, [], "")


def test_no_field_of_an_experiment_is_set_in_launch():
    parts = "|".join(field.name for field in dataclasses.fields(Config))
    for file in filter(Path.is_file, LAUNCH.iterdir()):
        assert not re.search(rf"--({parts})\.\w", file.read_text()), file
