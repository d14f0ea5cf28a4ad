"""Damaged checkpoints: found whatever the damage is, set aside, and the one before used."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from compared_runs import parameters
from typed import fails

import a3jax
from a3jax.config import MeshConfig
from a3jax.devices.mesh import make_mesh
from a3jax.errors import UserError
from a3jax.files.strict import to_json
from a3jax.train.checkpoints import Checkpoints, Restored
from a3jax.train.loop import train
from a3jax.train.metrics import read
from a3jax.train.state import abstract_state


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("part", ["params", "optimizer", "record", "data"])
@pytest.mark.parametrize("damage", [halve, flip])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(part, damage, uninterrupted, experiment, capsys):
    config = experiment("damaged")
    shutil.copytree(uninterrupted, config.run)
    saved = config.run_folder / "checkpoints" / "8"
    files = [file for file in (saved / part).rglob("*") if file.is_file() and file.name != "commit_success.txt"]
    damage(max(files, key=lambda file: file.stat().st_size))
    (config.run_folder / "config.json").write_text(to_json(config))
    assert train(config).steps == 8
    assert "checkpoints/8 is damaged" in " ".join(capsys.readouterr().err.split())
    assert (config.run_folder / "checkpoints" / "damaged" / "8").is_dir()
    for x, y in zip(parameters(config.run), parameters(uninterrupted), strict=True):
        np.testing.assert_array_equal(x, y)


def test_who_reads_a_damaged_checkpoint_says_so(uninterrupted, tmp_path, capsys):
    """Any bit of the weights, whatever is asked of them."""
    run = tmp_path / "damaged"
    shutil.copytree(uninterrupted, run)
    assert a3jax.load(run).record.steps == 8
    params = run / "checkpoints" / "8" / "params"
    flip(max((file for file in params.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size))
    with pytest.raises(UserError, match=r"8/params is damaged \(.*is not what was saved\); take another checkpoint"):
        a3jax.load(run)
    assert "is damaged" in fails(capsys, "score", run, "--text", "one two")


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_not_damaged(uninterrupted, experiment, monkeypatch):
    config = experiment("stale")
    shutil.copytree(uninterrupted, config.run)
    (config.run_folder / "config.json").write_text(to_json(config))
    stale = OSError(errno.ESTALE, "Stale file handle")
    in_tensorstore = ValueError(f'Error reading local file "d/1": Failed to open: "d/1": {os.strerror(errno.EIO)} [spec]')
    for error in (stale, in_tensorstore, MemoryError()):
        with monkeypatch.context() as broken:
            broken.setattr(ocp.CompositeCheckpointHandler, "restore", Mock(side_effect=error))
            with pytest.raises(UserError, match=r"checkpoints/8 cannot be read now \(.*\); run the same command again"):
                train(config)
    assert not (config.run_folder / "checkpoints" / "damaged").exists()
    assert train(config).steps == 8


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_unasked(uninterrupted, experiment):
    config = experiment("lost")
    shutil.copytree(uninterrupted, config.run)
    (config.run_folder / "config.json").write_text(to_json(config))
    for step in (config.run_folder / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(step / "params")
    for _ in range(2):
        with pytest.raises(UserError, match=r"has no step that can be read; remove .*damaged to begin the run anew"):
            train(config)
    shutil.rmtree(config.run_folder / "checkpoints" / "damaged")
    assert train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1))).steps == 1


@pytest.mark.long
def test_a_bit_flipped_in_any_file_of_a_checkpoint_is_found_or_changes_nothing(uninterrupted, experiment):
    """Some files hold nothing that is needed to go on."""
    config = experiment("whole")
    folder = config.run_folder / "checkpoints"
    abstract = abstract_state(config, config.model, make_mesh(MeshConfig(), jax.devices()[:1]))

    def restored() -> Restored:
        with Checkpoints(config.run_folder, config.train) as checkpoints:
            return checkpoints.restore(abstract, None)

    whole = {8: restored()}
    (folder / "8").rename(folder.parent / "8")
    whole[6] = restored()
    (folder.parent / "8").rename(folder / "8")
    found = set()
    for file in [file.relative_to(folder) for file in (folder / "8").rglob("*") if file.is_file()]:
        flip(folder / file)
        step, *rest = restored()
        assert step in whole, file
        jax.tree.map(np.testing.assert_array_equal, rest, list(whole[step][1:]))
        if step == 6:
            found.add(file.parts[1])
            (folder / "damaged" / "8").rename(folder / "8")
        flip(folder / file)
    assert {"params", "optimizer", "record", "data", "standing", "checksums"} <= found


def test_a_step_set_aside_is_not_replaced_by_another_of_its_number(uninterrupted, experiment):
    config = experiment("whole")
    for _ in range(2):
        file = max((config.run_folder / "checkpoints" / "8" / "params").rglob("*"), key=lambda path: path.stat().st_size)
        halve(file)
        assert train(config).steps == 8
    aside = config.run_folder / "checkpoints" / "damaged"
    assert sorted(path.name for path in aside.iterdir()) == ["8", "8-2"]


def test_damaged_figures_of_a_checkpoint_that_is_kept_as_the_best_stop_nothing(experiment):
    config = experiment("best", keep_best=1, best_order="ar", save_every=4, stop_at=4)
    train(config)
    (figures,) = (file for file in (config.run_folder / "checkpoints" / "4" / "metrics").iterdir() if file.name == "metrics")
    flip(figures)
    figures.write_bytes(b"\xff" + figures.read_bytes())
    assert train(experiment("best", keep_best=1, best_order="ar", save_every=4)).steps == 8


def test_metrics_of_a_cut_off_line_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read(tmp_path) == [{"step": 1}]
