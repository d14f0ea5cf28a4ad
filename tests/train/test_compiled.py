"""Steps are compiled once for each kind of stage, ahead of their turn, and what is compiled is kept on disk."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from a3jax.config import Config, DataConfig, Stage
from a3jax.train import compiled
from a3jax.train.compiled import CompiledSteps


@pytest.fixture
def config(tiny) -> Config:
    return Config(name="test", model=tiny(layers=1), data=DataConfig(length=16, batch=2), curriculum=(Stage(3), Stage(2)))


def test_the_next_step_is_compiled_behind_the_one_that_runs(config, monkeypatch):
    begun, may_finish = [], threading.Event()

    def slow(config, model, stage, mesh):
        begun.append(stage.name)
        if stage.name != "in_order_1":
            assert may_finish.wait(10)
        return stage.name

    monkeypatch.setattr(compiled, "compile_step", slow)
    now, later, longer = Stage(3), Stage(2, "random", 4), Stage(9, "random", 4)
    with CompiledSteps(config, config.model, None) as steps:
        assert not steps.ready(now)
        assert steps.at(now, then=later) == "in_order_1"  # does not wait for the other
        assert steps.ready(now)
        assert not steps.ready(later)
        may_finish.set()
        assert steps.at(later, then=None) == steps.at(longer, then=now) == "random_4"
        assert steps.ready(longer)
    assert begun == ["in_order_1", "random_4"]


def test_what_fails_to_compile_fails_where_it_is_needed(config, monkeypatch):
    monkeypatch.setattr(compiled, "compile_step", lambda *_: 1 / 0)
    with CompiledSteps(config, config.model, None) as steps, pytest.raises(ZeroDivisionError):
        steps.at(Stage(1), then=None)


PROGRAM = """
import jax
from a3jax.devices.compilation import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 2)(1.0)
"""


@pytest.mark.long
def test_programs_are_kept_in_the_users_cache_or_where_they_say(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    for own, folder in [
        ({"XDG_CACHE_HOME": str(tmp_path / "a")}, tmp_path / "a/a3jax/xla"),
        ({"HOME": str(tmp_path / "b"), "XDG_CACHE_HOME": ""}, tmp_path / "b/.cache/a3jax/xla"),
        ({"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "c")}, tmp_path / "c"),
    ]:
        subprocess.run([sys.executable, "-c", PROGRAM], env=clean | own, check=True)
        assert list(Path(folder).iterdir())
