"""Running a sweep: so many at once, failures set apart, and whatever stops it, the same call ends it the same way."""

import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import emulators
import jax
import pytest
from typed import answer, fails, run

from a3jax.config import settled
from a3jax.curriculum.plateau import PlateauState
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.devices.passing import TRY_AGAIN
from a3jax.errors import UserError
from a3jax.experiment.files import load_sweep
from a3jax.files.folders import hold
from a3jax.files.places import place
from a3jax.files.strict import to_json
from a3jax.sweep import product, schedule, seeds
from a3jax.sweep.schedule import run_one, run_sweep, share_of_gpus
from a3jax.sweep.status import reached, status
from a3jax.sweep.trials import LOG, Halving, make_sweep, save_sweep
from a3jax.train.loop import train
from a3jax.train.run import check_same, is_training, only_process


@pytest.fixture
def stand_in(monkeypatch) -> None:
    """No run trains anything."""
    monkeypatch.setattr(schedule, "COMMAND", (sys.executable, str(Path(__file__).with_name("stand_in.py"))))


@pytest.fixture
def sweep(experiment, tmp_path):
    """Four trials, of which the third will fail."""
    return make_sweep(experiment, product({"optimizer.peak_lr": [0.3, 0.1, 5.0, 0.2]}), tmp_path)


def most_at_once(folder: Path) -> int:
    now = most = 0
    for line in (folder / "times").read_text().splitlines():
        now += 1 if line.startswith("+") else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_failure_is_set_apart_and_told_and_the_others_end(at_once, stand_in, sweep, tmp_path, capsys):
    assert run_sweep(sweep, tmp_path, at_once) == 0
    assert most_at_once(tmp_path) == at_once
    found = status(tmp_path, sweep)
    assert [one.state for one in found] == ["done", "done", "failed", "done"]
    assert [one.step for one in found] == [8, 8, 2, 8]
    assert found[2].log == "something\nbroke\na3jax sweep: exit status 3"
    assert found[0].nll == {"ar": 0.3 - 8, "random_4": 0.3 - 16}
    assert sorted(path.name for path in (tmp_path / "failed").iterdir()) == ["optimizer.peak_lr=5"]
    assert "optimizer.peak_lr=5 failed" in capsys.readouterr().err
    before = (tmp_path / "times").read_text()
    assert run_sweep(sweep, tmp_path, at_once) == 0
    assert (tmp_path / "times").read_text() == before, "nothing is left to do"
    run_sweep(sweep, tmp_path, at_once, retry=True)
    assert (tmp_path / "times").read_text().count("+ optimizer.peak_lr=5") == 2
    assert [one.state for one in status(tmp_path, sweep)] == ["done", "done", "failed", "done"]


def test_a_signal_stops_all_runs_and_the_same_call_goes_on(stand_in, sweep, tmp_path, monkeypatch):
    start, started = schedule._start, []

    def start_and_interrupt(*args):
        started.append(start(*args))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "_start", start_and_interrupt)
        assert run_sweep(sweep, tmp_path, 2) == signal.SIGINT
    assert [one.process.returncode for one in started] == [-signal.SIGTERM] * 2
    assert [one.state for one in status(tmp_path, sweep)] == ["stopped", "stopped", "waiting", "waiting"]
    assert run_sweep(sweep, tmp_path, 2) == 0
    assert [one.state for one in status(tmp_path, sweep)] == ["done", "done", "failed", "done"]


def test_halving_stops_the_worst_and_goes_on_with_the_best(stand_in, experiment, tmp_path):
    trials = product({"optimizer.peak_lr": [0.3, 0.1, 5.0, 0.2]})
    sweep = make_sweep(experiment, trials, tmp_path, Halving(2, "random_4"))
    assert run_sweep(sweep, tmp_path, 2) == 0
    found = [(one.state, one.step) for one in status(tmp_path, sweep)]
    assert found == [("dropped", 2), ("done", 8), ("dropped", 2), ("dropped", 4)]
    before = (tmp_path / "times").read_text()
    assert run_sweep(sweep, tmp_path, 2) == 0
    assert (tmp_path / "times").read_text() == before


def test_the_log_in_a_bucket_has_every_try(experiment, monkeypatch, tmp_path):
    """Of a run that was cut off from its bucket and tried again at once, before anything of its first log was sent."""
    program = tmp_path / "program.py"
    program.write_text(f"""
from pathlib import Path
tried = Path({str(tmp_path / "tried")!r})
print("second" if tried.exists() else "first")
status = 0 if tried.exists() else {TRY_AGAIN}
tried.touch()
raise SystemExit(status)
""")
    monkeypatch.setattr(schedule, "COMMAND", (sys.executable, str(program)))
    monkeypatch.setenv("A3JAX_SCRATCH", str(tmp_path / "scratch"))
    with emulators.of("gs"):
        folder = place("gs://bucket/sweep")
        sweep = make_sweep(experiment, seeds(1), folder)
        assert run_sweep(sweep, folder, 1) == 0
        assert (sweep.trials[0].config.run_folder / LOG).read_text() == "first\nsecond\n"
    assert threads_of_desks() == 0


def threads_of_desks() -> int:
    return sum(thread.name == "desk" for thread in threading.enumerate())


@pytest.mark.long
def test_what_trains_already_is_waited_for(stand_in, experiment, tmp_path):
    sweep = make_sweep(experiment, seeds(2), tmp_path)
    first = sweep.trials[0].config.run_folder
    first.mkdir(parents=True)
    program = "import sys, time\nfrom pathlib import Path\nfrom a3jax.train.run import only_process\n"
    program += "with only_process(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", program, str(first)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert is_training(first)
        assert status(tmp_path, sweep)[0].state == "training"
        assert run_sweep(sweep, tmp_path, 2) == 0
    assert [one.state for one in status(tmp_path, sweep)] == ["done", "done"]
    assert (tmp_path / "times").read_text().splitlines()[0].startswith("+ seed=1")


def test_two_processes_do_not_run_one_sweep(stand_in, sweep, tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        hold(lock, tmp_path)
        with pytest.raises(UserError, match="is being written by another process"):
            run_sweep(sweep, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another with --out"):
        run_sweep(sweep, tmp_path / "file", 1)


def test_what_somebody_else_has_there_is_not_written_over(stand_in, sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("nothing is to be begun"))
    (tmp_path / "sweep.json").write_text("years of work")
    (tmp_path / "lock").write_text("my keys")
    for begin in (lambda: run_sweep(sweep, tmp_path, 1), lambda: run_one(sweep, tmp_path, 1)):
        with pytest.raises(UserError, match=r"sweep\.json is there and was not written by a3jax"):
            begin()
    assert (tmp_path / "sweep.json").read_text() == "years of work"
    assert (tmp_path / "lock").read_text() == "my keys"


def test_one_trial_of_an_array_leaves_a_run_that_trains_as_it_is(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("nothing is to be begun"))
    run = sweep.trials[1].config.run_folder
    with only_process(run):
        (run / "config.json").write_text(to_json(sweep.trials[1].config).replace("\n", "\n\n"))
        before = (run / "config.json").read_bytes()
        with pytest.raises(UserError, match="is being written by another process"):
            run_one(sweep, tmp_path, 1)
        assert (run / "config.json").read_bytes() == before


def test_a_run_that_may_go_on_is_started_again_until_it_gives_up_by_itself(sweep, tmp_path, monkeypatch):
    """It ends with 75 twice, then with 0 or, as one that gives up, with 1."""
    program = tmp_path / "passing.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nrun = Path(sys.argv[2]).parent\nfile = run / 'starts'\n"
        "starts = int(file.read_text()) + 1 if file.exists() else 1\nfile.write_text(str(starts))\n"
        "if starts < 3: sys.exit(75)\nif run.name.endswith('=5'): sys.exit(1)\n"
        "(run / 'checkpoints' / '8').mkdir(parents=True)\n"
    )
    monkeypatch.setattr(schedule, "COMMAND", (sys.executable, str(program)))
    assert run_sweep(sweep, tmp_path, 2) == 0
    assert [one.state for one in status(tmp_path, sweep)] == ["done", "done", "failed", "done"]
    assert {file.read_text() for file in tmp_path.rglob("starts")} == {"3"}


def test_another_experiment_is_refused_in_the_same_folder(stand_in, experiment, tmp_path):
    run_sweep(make_sweep(experiment, seeds(1), tmp_path), tmp_path, 1)
    run_sweep(make_sweep(experiment, seeds(2), tmp_path), tmp_path, 1)  # more may come
    other = make_sweep(experiment, product({"data.batch": {"": 2}}, seeds(1)), tmp_path)
    changed = make_sweep(other.trials[0].config, seeds(2), tmp_path)
    with pytest.raises(UserError, match=r"seed=0 holds a run with data\.batch = 4, not 2"):
        run_sweep(changed, tmp_path, 1)


def test_one_trial_of_an_array_becomes_a_run_of_its_own(sweep, tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(os, "execv", lambda *args: became.append(args))
    run_one(sweep, tmp_path, 1)
    config = tmp_path / "runs" / "optimizer.peak_lr=0.1" / "config.json"
    assert became == [(sys.executable, [sys.executable, "-m", "a3jax.cli", "train", str(config)])]
    assert config.read_text() == to_json(sweep.trials[1].config)
    with pytest.raises(UserError, match="--index is 4; the sweep has trials 0 to 3"):
        run_one(sweep, tmp_path, 4)
    (tmp_path / "failed").mkdir()
    config.parent.rename(tmp_path / "failed" / config.parent.name)
    with pytest.raises(UserError, match="has failed before; see log"):
        run_one(sweep, tmp_path, 1)
    run_one(sweep, tmp_path, 1, retry=True)
    assert became[0] == became[1]


@pytest.mark.parametrize(
    ("named", "at_once", "shares"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,6", 2, ["4", "6"]),
        ("0,1,2", 2, ["0", "1"]),
        ("5", 3, ["5", "5", "5"]),
        ("0,1", 1, [None]),
        ("", 2, [None, None]),
    ],
)
def test_runs_at_the_same_time_share_the_gpus(named, at_once, shares):
    environment = {"CUDA_VISIBLE_DEVICES": named}
    found = [share_of_gpus(place, at_once, environment).get("CUDA_VISIBLE_DEVICES") for place in range(at_once)]
    assert found == shares


SWEEP = """
from a3jax.files.strict import from_json
from a3jax.config import Config
from a3jax.sweep import product

def experiment():
    return from_json(Config, {config!r}, "test")

def sweep():
    return product({{"optimizer.peak_lr": [1e-2, 1e-3]}})
"""


@pytest.fixture
def varied(experiment, tmp_path) -> Path:
    """The experiment as a file, with a sweep."""
    (tmp_path / "varied.py").write_text(SWEEP.format(config=to_json(experiment)))
    return tmp_path / "varied.py"


def test_a_dry_run_shows_the_trials_and_writes_nothing(varied, capsys):
    found = answer(capsys, "sweep", "run", varied, "--dry-run", "--seed", "3")
    assert [trial["name"] for trial in found["trials"]] == ["optimizer.peak_lr=0.01", "optimizer.peak_lr=0.001"]
    run("sweep", "run", varied, "--dry-run", "--out", varied.parent / "out")
    assert "optimizer.peak_lr=0.001  8 steps" in capsys.readouterr().out
    assert [path.name for path in varied.parent.iterdir()] == ["varied.py"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "varied.py", "--at-once", "0"], "--at-once is 0"),
        (["run", "varied.py", "--halving", "1"], "--halving is 1"),
        (["run", "varied.py", "--halving", "2", "--index", "0"], "exclude each other"),
        (["run", "plain.py"], "plain.py: there is no function sweep() that returns a Trials"),
        (["report", "nowhere"], "nowhere/sweep.json does not exist"),
        (["status", "nowhere"], "nowhere/sweep.json does not exist"),
        (["rnu"], "unknown command 'sweep rnu'; did you mean 'run'?"),
    ],
)
def test_a_mistake_is_one_line(args, message, varied, capsys, monkeypatch):
    monkeypatch.chdir(varied.parent)
    Path("plain.py").write_text(varied.read_text().replace("def sweep", "def other"))
    assert message in fails(capsys, "sweep", *args)
    assert sorted(path.name for path in varied.parent.iterdir()) == ["plain.py", "varied.py"]


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_with_the_table_of_one_that_was_not(varied, experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = random.Random(0)
    Path("texts").mkdir()
    for i in range(30):
        Path(f"texts/{i}.txt").write_text(" ".join(words.choice(["one", "two", "three"]) for _ in range(20)))
    prepare(["texts"], Path("corpus"), Preparation("bytes", held_out=0.2, workers=1))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # bits depend on it, see tests/conftest.py
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    killed = subprocess.Popen([sys.executable, "-m", "a3jax.cli", "sweep", "run", str(varied), "--out", "killed"])
    first = Path("killed/runs/optimizer.peak_lr=0.01")
    until = time.monotonic() + 600
    while not (first / "metrics.jsonl").is_file() or '"step": 2,' not in (first / "metrics.jsonl").read_text():
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    while is_training(first):
        assert time.monotonic() < until, "a child outlives its parent"
    assert [one["state"] for one in answer(capsys, "sweep", "status", "killed")["trials"]] == ["stopped", "waiting"]
    assert answer(capsys, "sweep", "run", varied, "--out", "killed")["complete"]

    whole = make_sweep(experiment, load_sweep(str(varied)), Path("whole"))
    save_sweep(whole, Path("whole"))
    for trial in whole.trials:
        train(trial.config)
    tables = [answer(capsys, "sweep", "report", folder) for folder in ("killed", "whole")]
    assert [curve["state"] for curve in tables[0]["curves"]] == ["done", "done"]
    assert [point["step"] for point in tables[0]["curves"][0]["points"]] == [0, 3, 4, 8]
    for part in ("settings", "curves", "failed"):
        assert tables[0][part] == tables[1][part]


def test_a_run_is_the_same_whether_its_curriculum_is_settled_yet_or_not(experiment, tmp_path):
    """A sweep writes the experiment as it was varied, training as it runs."""
    kept = dataclasses.replace(experiment, ar_share=0.25)
    for written, resumed in itertools.permutations((kept, settled(kept))):
        (tmp_path / "config.json").write_text(to_json(written))
        check_same(tmp_path, resumed)
    with pytest.raises(UserError, match="holds a run with curriculum"):
        check_same(tmp_path, experiment)


def test_a_run_whose_stage_ended_early_is_not_run_again(experiment, tmp_path):
    step = tmp_path / "checkpoints" / "5"
    (step / "standing").mkdir(parents=True)
    assert reached(tmp_path) == 5
    (step / "standing" / "metadata").write_text(to_json(PlateauState(skipped=3)))
    assert reached(tmp_path) == experiment.steps == 8
