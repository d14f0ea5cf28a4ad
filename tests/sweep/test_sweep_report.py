"""The report of a sweep, against numbers worked out by hand from metrics that were made up."""

import dataclasses
import re

import pytest
from browser import laid_out, viewed
from typed import answer, run

from a3jax.config import Stage
from a3jax.sweep import chain, product, seeds, zip_
from a3jax.sweep.comparison import compare
from a3jax.sweep.curves import differences
from a3jax.sweep.page import print_report, write_page
from a3jax.sweep.plots import stage_changes
from a3jax.sweep.trials import make_sweep, save_sweep
from a3jax.train import flops


def evaluation(ar: float, random_4: float) -> dict:
    parts = {"nll_by_rank/ar": [ar, ar, ar, None], "nll_by_visible/ar": [ar] * 4}
    parts |= {"nll_by_rank/random_4": [random_4 + i for i in range(4)], "nll_by_visible/random_4": [random_4] * 4}
    return {"nll/ar": ar, "nll/random_4": random_4, **parts}


@pytest.fixture
def report(experiment, write_run, tmp_path):
    """Four settings: A keeps the most, B is between and gains the most, C is worse than B, D is not done. A and B have two
    seeds each."""
    factors = ({"optimizer.peak_lr": [0.1, 0.2]}, seeds(2))
    trials = product(*factors)
    others = product({"optimizer.peak_lr": [0.3, 0.4], "data.batch": [2]})
    sweep = make_sweep(experiment, dataclasses.replace(trials, changes=trials.changes + others.changes), tmp_path)
    save_sweep(sweep, tmp_path)
    ends = [(3.1, 5.5), (3.3, 5.1), (3.6, 4.5), (3.6, 4.7), (3.7, 4.8), (2.0, 2.0)]
    for trial, (ar, random_4) in zip(sweep.trials, ends):
        first, between = evaluation(3.0, 6.0), evaluation(3.05, 5.9)
        last = 5 if trial is sweep.trials[-1] else 8
        write_run(trial, {0: first, 3: between, last: evaluation(ar, random_4)})
    return compare(tmp_path, sweep, "random_4")


def test_what_is_forgotten_and_gained_over_seeds(report):
    assert [(one.name, one.runs, one.done) for one in report.settings] == [
        ("optimizer.peak_lr=0.1", 2, True),
        ("optimizer.peak_lr=0.2", 2, True),
        ("data.batch=2,optimizer.peak_lr=0.3", 1, True),
        ("data.batch=2,optimizer.peak_lr=0.4", 1, False),
    ]
    assert [one.forgotten for one in report.settings] == pytest.approx([0.2, 0.6, 0.7, -1.0])
    assert [one.gained for one in report.settings] == pytest.approx([0.7, 1.4, 1.2, 4.0])
    assert report.settings[0].forgotten_sd == pytest.approx(0.02**0.5)
    assert report.settings[0].gained_sd == pytest.approx(0.08**0.5)
    assert report.settings[2].forgotten_sd is None
    assert [one.front for one in report.settings] == [True, True, False, False]


def test_a_winner_is_starred_only_beyond_the_spread_of_its_seeds(experiment, write_run, tmp_path, capsys):
    """Three settings that gain as much: A forgets 0.4 less than B, and C is ahead of A by 0.0002 with a single seed."""

    def front(ends: dict[float, list[float]]) -> dict[str, str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        trials = [product({"optimizer.peak_lr": [rate]}, seeds(len(ars))) for rate, ars in ends.items()]
        sweep = make_sweep(experiment, chain(*trials), folder)
        for trial, ar in zip(sweep.trials, [ar for ars in ends.values() for ar in ars], strict=True):
            write_run(trial, {0: evaluation(3.0, 6.0), 8: evaluation(ar, 5.0)})
        report = compare(folder, sweep, "random_4")
        print_report(report)
        lines = [line.strip().removeprefix("optimizer.peak_lr=") for line in capsys.readouterr().out.splitlines()]
        said = {line[:3]: re.split(r"\+1.0000(?: ± 0.0000)?", line)[1].strip() for line in lines if line[:2] == "0."}
        assert [said[one.name[-3:]] == "yes" for one in report.settings] == [one.clear for one in report.settings]
        return said

    a, b = [3.1, 3.12], [3.5, 3.52]
    assert front({0.1: a, 0.2: b}) == {"0.1": "yes", "0.2": ""}
    assert front({0.1: a, 0.2: [3.11, 3.13]}) == {"0.1": "within noise", "0.2": ""}
    assert front({0.1: a, 0.2: b, 0.3: [3.1098]}) == {"0.1": "", "0.2": "", "0.3": "one seed"}
    assert front({0.1: a, 0.2: b, 0.3: [3.1102]}) == {"0.1": "within noise", "0.2": "", "0.3": ""}
    assert front({0.1: a, 0.2: b, 0.3: [3.6]}) == {"0.1": "yes", "0.2": "", "0.3": ""}
    assert front({0.1: [3.1], 0.2: [3.1002]}) == {"0.1": "one seed", "0.2": ""}


def test_a_run_from_random_weights_has_no_source(report, tmp_path, capsys):
    print_report(report)
    assert "against the start (the source or, without one, random weights)" in capsys.readouterr().out


def test_the_best_first_step_speaks_for_the_source(experiment, write_run, tmp_path, capsys):
    """Three runs with learned seeds: one has a source that another run shows as it was, two have none."""
    learned = {"seeding": ["learned"]}
    trials = chain(product(), learned, product({"source": ["other"]}, learned), product({"data.length": [16]}, learned))
    sweep = make_sweep(dataclasses.replace(experiment, source="base"), trials, tmp_path)
    save_sweep(sweep, tmp_path)
    for trial in sweep.trials:
        start, end = (7.0, 7.0), (3.5, 5.5)
        if trial is sweep.trials[0]:
            start, end = (3.0, 6.0), (3.25, 5.0)
        write_run(trial, {0: evaluation(*start), 8: evaluation(*end)})
    report = compare(tmp_path, sweep, "random_4")
    assert [(one.forgotten, one.gained) for one in report.settings] == [(0.25, 1.0), (0.5, 0.5), (-3.5, 1.5), (-3.5, 1.5)]
    assert [curve.untrained for curve in report.curves] == [False, False, True, True]
    print_report(report)
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("query seed may be untrained: seeding=learned,source=other; data.length=16,seeding=learned")
    _, panels = stage_changes(report.curves[1], "random_4")
    assert panels["by order"] == {"ar": [4.0, 0.5], "random_4": [1.0, -0.5]}
    assert panels["ar by rank in the order"] == {
        "0-25%": [4.0, 0.5],
        "25-50%": [4.0, 0.5],
        "50-75%": [4.0, 0.5],
        "75-100%": [None, None],
    }


def test_settings_are_listed_by_their_gain_those_that_are_done_first(report):
    assert [one.gained for one in report.best_first] == pytest.approx([1.4, 1.2, 0.7, 4.0])


def test_axes_count_tokens_and_the_flops_of_each_stage(report, experiment):
    first, fifth = report.curves[0], report.curves[5]
    one, two = (flops.per_window(experiment.model, stage, 32) for stage in (Stage(1), Stage(1, "random", 4)))
    assert [point.tokens for point in first.points] == [0, 3 * 4 * 32, 8 * 4 * 32]
    assert [point.flops for point in first.points] == pytest.approx([0, 12 * one, 12 * one + 20 * two])
    assert [point.tokens for point in fifth.points] == [0, 3 * 2 * 32, 5 * 2 * 32]
    assert [point.flops for point in fifth.points] == pytest.approx([0, 6 * one, 6 * one + 4 * two])
    assert [(end.name, end.step) for end in first.stages] == [("in_order_1", 3), ("random_4", 8)]
    assert [(name, point.step) for name, point in first.stage_ends] == [("start", 0), ("in_order_1", 3), ("random_4", 8)]
    assert [name for name, _ in fifth.stage_ends] == ["start", "in_order_1"]
    assert first.points[1].by_rank["random_4"] == [5.9, 6.9, 7.9, 8.9]


def test_differences_name_the_fields_that_changed(report, experiment):
    assert report.curves[1].changes == {"optimizer.peak_lr": (0.01, 0.1), "seed": (0, 1)}
    shorter = dataclasses.replace(experiment, curriculum=(Stage(4),), name="other", run="elsewhere")
    assert differences(experiment, shorter) == {
        "curriculum.0.steps": (3, 4),
        "curriculum.1.family": ("random", None),
        "curriculum.1.given": (0.0, None),
        "curriculum.1.group_size": (4, None),
        "curriculum.1.lr_factor": (1.0, None),
        "curriculum.1.slack": (32, None),
        "curriculum.1.prefix": (0.0, None),
        "curriculum.1.ramp": (0, None),
        "curriculum.1.ramp_of": ("probability", None),
        "curriculum.1.sizes": ("fixed", None),
        "curriculum.1.steps": (5, None),
    }


def test_the_page_needs_nothing_but_itself(report, tmp_path):
    pytest.importorskip("matplotlib")
    report = dataclasses.replace(report, curves=report.curves[:2], settings=report.settings[:1])
    page = write_page(report, tmp_path).read_text()
    assert page.count("<svg") == 1 + 2 * 2 + 2 * 5  # retention; both orders, by tokens and by FLOPs; parts of two runs
    assert not re.search(r"<(script |link|img)|url\((?!#)", page)
    assert not re.search(r"#000000|#ffffff|background-color: #", page)  # or it would be one or the other by night
    for text in ("+0.2000 ± 0.1414", "optimizer.peak_lr: 0.01 → 0.1<br>seed: 0 → 1", "in_order_1, step 3", "+0.7000"):
        assert text in page


def test_losses_of_training_are_means_of_steps_that_follow_each_other(experiment, write_run, tmp_path):
    pytest.importorskip("matplotlib")
    sweep = make_sweep(experiment, zip_({"optimizer.peak_lr": [0.1]}), tmp_path)
    rows = {step: {"loss": float(step)} for step in range(1, 121)}
    write_run(sweep.trials[0], {0: evaluation(3.0, 6.0), **rows, 8: {"loss": None, **evaluation(3.5, 5.0)}})
    report = compare(tmp_path, sweep, "random_4")
    losses = report.curves[0].losses
    assert len(losses) == 40
    assert [(one.step, one.loss) for one in losses[:3]] == [(3, 2.0), (6, 5.0), (10, pytest.approx(26 / 3))]  # 8 has none
    page = write_page(report, tmp_path).read_text()
    assert "training loss 2.0000 up to step 3</title>" in page
    assert "random_4 5.0000 at 1,024 tokens</title>" in page


@viewed
def test_a_browser_shows_the_page_by_day_and_night_and_on_a_phone(width, dark, report, tmp_path):
    pytest.importorskip("matplotlib")
    seen = laid_out(write_page(report, tmp_path), width, dark, tmp_path)
    assert seen["letters"] >= 7  # pixels
    assert seen["text"] in seen["labels"]
    assert seen["marks"] > 10
    assert "forgotten +0." in seen["said"]


def test_a_failed_run_is_told_and_not_compared(experiment, write_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    sweep = make_sweep(experiment, zip_({"optimizer.peak_lr": [0.1, 0.2]}), tmp_path)
    save_sweep(sweep, tmp_path)
    for trial in sweep.trials:
        write_run(trial, {0: evaluation(3.0, 6.0), 8: evaluation(3.5, 5.0)})
    (tmp_path / "failed").mkdir()
    failed = sweep.trials[1].config.run_folder.rename(tmp_path / "failed" / sweep.trials[1].name)
    (failed / "log.txt").write_text("out of <memory>\n")
    found = answer(capsys, "sweep", "report", tmp_path)
    assert [one["name"] for one in found["settings"]] == ["optimizer.peak_lr=0.1"]
    assert [curve["state"] for curve in found["curves"]] == ["done", "failed"]
    run("sweep", "report", tmp_path)
    assert "optimizer.peak_lr=0.2 failed:\nout of <memory>" in capsys.readouterr().out
    assert "out of &lt;memory&gt;" in (tmp_path / "report.html").read_text()
