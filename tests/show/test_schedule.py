"""`a3jax curriculum`: what it draws and prints is what training draws."""

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from typed import answer, fails, run

from a3jax.config import Config, OptimizerConfig, Stage
from a3jax.curriculum.presets import paper
from a3jax.curriculum.stage import Plateau
from a3jax.show import schedule
from a3jax.terminal import Terminal

EXPERIMENT = """
from a3jax.config import Config, DataConfig, Stage
from a3jax.curriculum.stage import Part

def experiment():
    stages = (
        Stage(fraction=0.25),
        Stage(0, "spans", 4),
        Stage(None, "right_to_left", 2, fraction=0.5, ramp=20),
        Stage(fraction=0.25, mixture=(Part(1.0, "random", 3, sizes="geometric"), Part(3.0, "infill", 4)), batch=2),
    )
    return Config("drawn", source="nowhere", data=DataConfig(length=16, batch=4), curriculum=stages, total_steps=80)
"""


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "drawn.py").write_text(EXPERIMENT)
    return tmp_path / "drawn.py"


def test_stages_and_examples_in_json(experiment, capsys):
    found = answer(capsys, "curriculum", experiment, "--examples", 3, "--ar-share", 0.2)
    assert found["steps"] == 80
    assert [stage["stage"] for stage in found["stages"]] == [0, 2, 3]
    assert [(stage["begin"], stage["steps"], stage["tokens"]) for stage in found["stages"]] == [
        (0, 20, 20 * 64), (20, 40, 40 * 64), (60, 20, 20 * 32)
    ]  # fmt: skip
    assert found["stages"][2]["mixture"] == pytest.approx({"random_about_3": 0.2, "infill_4": 0.6, "in_order_1": 0.2})
    words = schedule.SENTENCE.split()
    for stage in found["stages"]:
        assert len(stage["examples"]) == 3
        assert all(len(groups) == len(words) and groups[0] == 0 for groups in stage["examples"])
    assert found["stages"][0]["examples"] == [list(range(len(words)))] * 3


@pytest.mark.long
def test_the_picture_shows_every_order_and_is_the_same_every_time(experiment, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        run("curriculum", experiment, "--out", file)
    assert files[0].read_bytes() == files[1].read_bytes()
    ElementTree.parse(files[0])
    assert all(f">{name}<" in files[0].read_text() for name in ("in_order_1", "right_to_left_2", "infill_4"))
    printed = capsys.readouterr().out
    assert "right_to_left_2" in printed
    assert "[The] old" in printed
    (tmp_path / "photo.png").write_text("a summer")
    assert "photo.png exists already" in fails(capsys, "curriculum", experiment, "--out", tmp_path / "photo.png")
    assert (tmp_path / "photo.png").read_text() == "a summer"
    assert "its name must end in .svg, .png, .pdf" in fails(capsys, "curriculum", experiment, "--out", tmp_path / "a.jpeg")


def test_the_bars_are_the_shares_and_learning_rates_of_the_steps():
    stages = (Stage(4), Stage(12, "random", 4, ramp=8, lr_factor=0.5, plateau=Plateau()))
    config = Config("x", curriculum=stages, optimizer=OptimizerConfig(1.0, "constant", 0))
    seen = schedule.curve(config, 100)
    assert seen.step_C.tolist() == list(range(16))
    ramp = np.clip((np.arange(16) - 4) / 8, 0, 1)
    np.testing.assert_allclose(seen.share_C["random_4"], ramp, atol=1e-6)
    np.testing.assert_allclose(seen.share_C["in_order_1"], 1 - ramp, atol=1e-6)
    np.testing.assert_allclose(seen.size_C, 1 + 3 * ramp, atol=1e-5)
    np.testing.assert_allclose(seen.rate_C, [1.0] * 4 + [0.5] * 12)
    file = io.StringIO()
    schedule.show(config, 1, Terminal(file=file, width=100))
    assert "random_4           ▁▂▃▄▅▆▇████" in file.getvalue()
    assert "at most 12" in file.getvalue()


def test_the_paper_is_five_stages_of_one_length():
    assert [stage.length for stage in paper(4000)] == [800] * 5
