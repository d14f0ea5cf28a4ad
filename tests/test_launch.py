"""The scripts in launch/: every process is told its place, signals and statuses pass through, nothing starts twice."""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from a3jax.commands.experiment import parse_experiment
from a3jax.commands.train import TrainOptions
from a3jax.config import Config
from a3jax.devices.mesh import check_mesh, make_mesh

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
NAMES = [
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
    "JAX_PLATFORMS",
    "XLA_FLAGS",
]


def start(*command: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM_")}
    words, environment, pipe = [str(word) for word in command], inherited | environment, subprocess.PIPE
    # Whoever runs the tests in the background has them ignore SIGINT, which what they start would inherit.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, process_group=0)
    finally:
        signal.signal(signal.SIGINT, heeded)


def run(*command: object, cwd: Path | None = None, **environment: str) -> tuple[int, list[str], str]:
    """Exit status, lines of standard output, and standard error."""
    process = start(*command, cwd=cwd, **environment)
    said, errors = process.communicate(timeout=30)
    return process.returncode, said.splitlines(), errors


def local(count: int, program: str, **environment: str) -> tuple[int, list[str], str]:
    begin = "import os, sys\ni = int(os.environ['JAX_PROCESS_ID'])\n"
    return run(LAUNCH / "local.sh", count, sys.executable, "-c", begin + program, **environment)


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
    for file in LAUNCH.iterdir():
        assert not re.search(rf"--({parts})\.\w", file.read_text()), file


@pytest.mark.parametrize("file", ["docs/launch.md", "launch/local.sh"])
def test_what_is_shown_of_local_fits_its_devices(file, monkeypatch):
    monkeypatch.chdir(LAUNCH.parent)
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, axes, **_: SimpleNamespace(shape=dict(zip(axes, sizes))))
    shown = re.findall(r"(?:DEVICES=(\d) )?launch/local\.sh (\d) a3jax train ([-.\w ]+\w)", Path(file).read_text())
    assert len(shown) > 1
    for devices, processes, command in shown:
        config, _ = parse_experiment(TrainOptions, command.split(), "a3jax train", "")
        mesh = make_mesh(config.mesh, [None] * int(devices or 1) * int(processes))
        check_mesh(mesh, config.model, config.data.batch // config.train.accumulate, config.data.length)


def test_local_gives_each_process_its_place_and_marks_its_lines():
    show = f"print(*(os.environ.get(name, '-') for name in {NAMES!r}))\nprint('problem', file=sys.stderr)"
    status, said, errors = local(3, show)
    assert (status, errors) == (0, "")
    places = sorted(line for line in said if "problem" not in line)
    address = places[0].split()[1]
    assert address.startswith("127.0.0.1:")
    assert places == [f"{i}: {address} 3 {i} {i} - -" for i in range(3)]
    assert sorted(line for line in said if "problem" in line) == [f"{i}: problem" for i in range(3)]


def test_local_simulates_devices_beside_other_flags():
    status, said, _ = local(
        2, "print(os.environ['JAX_PLATFORMS'], os.environ['XLA_FLAGS'])", DEVICES="4", XLA_FLAGS="--other"
    )
    assert status == 0
    assert sorted(said) == [f"{i}: cpu --other --xla_force_host_platform_device_count=4" for i in range(2)]


@pytest.mark.parametrize(
    ("ends", "status"),
    [([0, 0, 0], 0), ([75, 0, 75], 75), ([75, 1, 2], 1), ([0, 75, 2], 2), ([143, 143, 143], 143), ([75, 75, -9], 137)],
)
def test_local_exits_with_the_first_status_that_is_no_consequence(ends, status):
    assert local(len(ends), f"end = {ends}[i]\nos.kill(os.getpid(), -end) if end < 0 else sys.exit(end)")[0] == status


def test_local_waits_for_all_when_one_process_ends():
    assert local(2, "import time\nif i == 0: sys.exit(2)\ntime.sleep(0.5)\nprint('went on')")[:2] == (2, ["1: went on"])


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the script", "to its group, as a terminal does"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_passes_a_signal_to_each_process_once_and_waits_for_it(number, send):
    program = """import os, signal, sys, time
caught = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: caught.append(number))
print('ready')
until = time.monotonic() + 20
while not caught and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.3)
print(*caught)
sys.exit(40 + caught[0])"""
    process = start(LAUNCH / "local.sh", 2, sys.executable, "-c", program)
    ready = {process.stdout.readline() for _ in range(2)}
    assert ready == {"0: ready\n", "1: ready\n"}
    send(process.pid, number)
    said, _ = process.communicate(timeout=30)
    assert sorted(said.splitlines()) == [f"{i}: {int(number)}" for i in range(2)]
    assert process.returncode == 40 + number  # its own, not that of the wait


@pytest.fixture
def slurm(tmp_path):
    """`slurm.sh` with a `srun` that ends as it is told; returns the status, and what `srun` and `scontrol` were asked."""
    for name, status in (("srun", "$SRUN_STATUS"), ("scontrol", "0")):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >>{shlex.quote(str(tmp_path))}/asked\nexit {status}\n')
        fake.chmod(0o755)

    def submit(status: int, **environment: str) -> tuple[int, list[str]]:
        place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SRUN_STATUS": str(status)}
        ended = run(LAUNCH / "slurm.sh", "a3jax", "train", "a b", **place, **environment)[0]
        return ended, (tmp_path / "asked").read_text().splitlines()

    return submit


REQUEUE = ["scontrol", "requeue", "42"]


def test_slurm_starts_the_command_as_it_is_in_every_task_and_lets_the_others_end_by_themselves(slurm):
    status, asked = slurm(0, SLURM_CPUS_PER_TASK="6")
    assert status == 0
    assert asked[0] == "srun"
    assert asked[-3:] == ["a3jax", "train", "a b"]
    assert set(asked[1:-3]) == {"--kill-on-bad-exit=0", "--wait=300", "--cpus-per-task=6"}


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (130, 0, False),
        (139, 0, False),
        (75, 0, True),
        (137, 0, True),
        (143, 0, True),
        (75, 19, True),
        (75, 20, False),
        (137, 20, False),
        (143, 500, True),
    ],
)
def test_slurm_queues_again_what_was_stopped_or_lost_but_not_for_ever(status, restarts, again, slurm):
    ended, asked = slurm(status, SLURM_RESTART_COUNT=str(restarts))
    assert ended == status
    assert asked[-3:] == (REQUEUE if again else ["a3jax", "train", "a b"])


def test_slurm_does_not_queue_again_a_job_that_was_cancelled(tmp_path):
    """`scancel` sends SIGTERM to tasks and to the shell."""
    (tmp_path / "srun").write_text("#!/bin/bash\necho started\ntrap 'sleep 0.2; exit 143' TERM\nsleep 20 & wait\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho queued again\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    process = start(LAUNCH / "slurm.sh", "a3jax", PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="42")
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == ""


def tpu_vm(*arguments: str, **environment: str) -> list[list[str]]:
    """The commands that it would run, as lists of words."""
    status, said, errors = run(LAUNCH / "tpu_vm.sh", *arguments, DRY_RUN="1", **environment)
    assert (status, errors) == (0, "")
    unquoted = 'eval "words=($0)"; printf "%s\\0" "${words[@]}"'
    return [subprocess.run(["bash", "-c", unquoted, line], stdout=-1, text=True).stdout.split("\0")[:-1] for line in said]


SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-east5-a", "--worker=all"]


def test_tpu_vm_copies_installs_and_starts_on_every_worker():
    copy, install, begin = tpu_vm("pod", "us-east5-a", "a3jax", "train", "my run", "--run", "/shared/$x")
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[6:] == ["pod:a3jax.tar.gz", "--zone=us-east5-a", "--worker=all"]
    assert not Path(copy[5]).exists()
    assert install[:-1] == begin[:-1] == SSH
    assert '".[tpu]"' in install[-1]
    assert "mount" not in install[-1]
    assert "sudo mount -t nfs 10.0.0.2:/share /shared" in tpu_vm("pod", "z", "a3jax", SHARED="10.0.0.2:/share")[1][-1]
    assert tpu_vm("pod", "us-east5-a")[0][:-1] == SSH
    assert tpu_vm("pod", "us-east5-a", "stop")[0][:-1] == SSH


@pytest.mark.long
def test_what_tpu_vm_would_run_on_a_worker_starts_the_command_logs_its_status_and_stops_it(tmp_path):
    (tmp_path / "a3jax").mkdir()
    program = tmp_path / "it's a program.py"
    program.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print(*sys.argv[1:])\ntime.sleep(20)\n"
    )

    def worker(*arguments: str) -> tuple[int, list[str], str]:
        *_, command = tpu_vm("pod", "z", *arguments)
        return run("bash", "-c", command[-1].removeprefix("--command="), cwd=tmp_path)

    def log_ends_with(line: str) -> None:
        until = time.monotonic() + 20
        while not (log := tmp_path / "a3jax" / "run.log").exists() or not log.read_text().endswith(line):
            assert time.monotonic() < until
            time.sleep(0.01)

    assert worker(sys.executable, str(program), "a  b", "$HOME") == (0, [], "")
    log_ends_with("a  b $HOME\n")
    assert worker()[1][1:] == ["a  b $HOME"]
    _, install, _ = tpu_vm("pod", "z", "a3jax")
    status, _, errors = run("bash", "-c", install[-1].removeprefix("--command="), cwd=tmp_path)
    assert (status, errors) == (1, "it still runs; stop it first\n")
    assert worker("stop")[0] == 0
    log_ends_with("exit status 143\n")


CLUSTER = {
    "ACCOUNT": "a3jax",
    "QUEUE": "team",
    "CAPACITY": 'cloud.google.com/gke-spot: "true"',
    "CACHE": "/shared/xla",
    "SHARED": "persistentVolumeClaim: {claimName: disk}",
}


def test_gke_sweep_runs_each_trial_by_its_own_number():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (LAUNCH / "gke_sweep.yaml").read_text()
    head = text.partition("\napiVersion")[0]
    command = "a3jax sweep run mine --out /shared/sweeps/mine --index $JOB_COMPLETION_INDEX"
    chosen = {"NAME": "rates", "IMAGE": "i", "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "2x2", **CLUSTER}
    chosen |= {"CHIPS": "4", "TRIALS": "12", "AT_ONCE": "3", "COMMAND": command}
    assert all(f"{name}=" in head for name in chosen)
    assert f"COMMAND='{command}'" in head, "the pod's shell is to read the number"
    job = yaml.safe_load(string.Template(text.removeprefix(head)).substitute(chosen))["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 12, 3)
    assert (job["backoffLimitPerIndex"], job["template"]["spec"]["restartPolicy"]) == (20, "Never")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailIndex", [1, 2])
    (container,) = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert [*container["command"], *container["args"]] == ["sh", "-c", f"exec {command}"]


def test_trials_of_several_hosts_are_jobsets_of_their_own(tmp_path):
    """The loop of docs/sweep.md, as it stands there."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    page = (LAUNCH.parent / "docs" / "sweep.md").read_text()
    (loop,) = re.findall(r"^    export IMAGE=\S+ ACCOUNT=.*?^    done$", page, re.MULTILINE | re.DOTALL)
    substitute = "import os, string, sys; print(string.Template(sys.stdin.read()).substitute(os.environ))"
    fakes = {"envsubst": f'{shlex.quote(sys.executable)} -c "{substitute}"', "kubectl": "cat; printf '%s\\n' --- \"$@\" ---"}
    for name, command in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{command}\n")
        (tmp_path / name).chmod(0o755)
    status, said, errors = run("bash", "-ec", loop, cwd=LAUNCH.parent, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (status, errors) == (0, "")
    applied = list(yaml.safe_load_all("\n".join(said)))
    assert applied[1::2] == ["apply -f -"] * 12
    for i, jobset in enumerate(applied[:-1:2]):
        assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", f"rates-{i}")
        job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert job["completions"] == 4
        (container,) = job["template"]["spec"]["containers"]
        assert container["args"] == [f"exec a3jax sweep run mine --out /shared/sweeps/mine --index {i}"]


def test_gke_names_what_it_must_and_every_choice_stands_in_its_first_lines():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (LAUNCH / "gke.yaml").read_text()
    head = text.partition("\napiVersion")[0]
    chosen = {
        "NAME": "llama",
        "IMAGE": "eu-docker.pkg.dev/p/r/a3jax:1",
        **CLUSTER,
        "CAPACITY": "",
        "HOST_NETWORK": "true",
        "RESTARTS": "20",
        "COMMAND": "a3jax train x --run '/shared/x: #'",
        "ACCELERATOR": "tpu-v5-lite-podslice",
        "TOPOLOGY": "4x8",
        "HOSTS": "8",
        "SLICES": "2",
    }
    assert all(f"{name}=" in head for name in chosen)
    jobset = yaml.safe_load(string.Template(text).substitute(chosen))  # raises for a placeholder that is not chosen
    assert (jobset["apiVersion"], jobset["kind"], jobset["metadata"]["name"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        "llama",
    )
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
        "provreq.kueue.x-k8s.io/maxRunDurationSeconds": "604800",
    }
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 8, 8, 0)
    (failure,) = job["podFailurePolicy"]["rules"]
    assert (failure["action"], failure["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert failure["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert container["resources"]["requests"] == container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["image"] == "eu-docker.pkg.dev/p/r/a3jax:1"
    assert [*container["command"], *container["args"]] == ["sh", "-c", f"exec {chosen['COMMAND']}"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]


REQUEST = ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--zone=us-east5-a"]


def requested(*arguments: str, **environment: str) -> list[str]:
    status, said, errors = run(LAUNCH / "tpu_request.sh", *arguments, DRY_RUN="1", **environment)
    assert (status, errors) == (0, "")
    return shlex.split(said[0])


def test_tpu_request_asks_for_one_slice_or_several_and_for_the_image_of_the_chip():
    words = requested("pod", "us-east5-a", "v5p-128")
    assert words[:7] == REQUEST
    assert words[7:] == ["--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--node-id=pod"]
    words = requested("pod", "us-east5-a", "v6e-16", SLICES="2", SPOT="1", ACCOUNT="a3jax@p.iam")
    assert {"--node-count=2", "--node-prefix=pod", "--spot", "--service-account=a3jax@p.iam"} <= set(words)
    assert "--runtime-version=v2-alpha-tpuv6e" in words
    status, _, errors = run(LAUNCH / "tpu_request.sh", "pod", "z", "tpu7x-128")
    assert (status, errors.count("\n")) == (2, 1)
    assert "Cloud TPU has no newer ones: take GKE" in errors


def test_tpu_vm_reaches_every_slice_of_a_request():
    commands = tpu_vm("pod", "us-east5-a", "status", SLICES="2")
    assert [command[5] for command in commands] == ["pod-0", "pod-1"]
    copies = [command[6] for command in tpu_vm("pod", "us-east5-a", "a3jax", SLICES="2") if command[4] == "scp"]
    assert copies == ["pod-0:a3jax.tar.gz", "pod-1:a3jax.tar.gz"]


@pytest.fixture
def cloud(tmp_path):
    """`tpu_request.sh` with a `gcloud` that answers as it is told: the states of the request one after the other, and what
    the workers say of the command; returns the status, and what `gcloud` was asked.
    """
    fake = tmp_path / "gcloud"
    fake.write_text(
        f"""#!/bin/bash
cd {shlex.quote(str(tmp_path))}
next() {{ head -n 1 $1; if (($(wc -l <$1) > 1)); then sed -i 1d $1; fi; }}
case "$4 $5" in
    describe*) next states ;;
    create*) echo request >>asked ;;
    delete*) echo delete >>asked ;;
    ssh*) case "$*" in
        *run.pid*running*) next said ;;
        *nohup*) echo start >>asked ;;
        esac ;;
esac
"""
    )
    fake.chmod(0o755)

    def keep(states: list[str], said: list[str], **environment: str) -> tuple[int, list[str]]:
        (tmp_path / "states").write_text("".join(f"{line}\n" for line in states))
        (tmp_path / "said").write_text("".join(f"{line}\n" for line in said))
        (tmp_path / "asked").write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        ended = run(LAUNCH / "tpu_request.sh", "pod", "z", "v5p-8", "a3jax", "train", PATH=path, EVERY="0", **environment)
        return ended[0], (tmp_path / "asked").read_text().split()

    return keep


@pytest.mark.parametrize(
    ("states", "said", "status", "asked"),
    [
        (["", "PROVISIONING", "ACTIVE"], ["", "running", "exit status 0"], 0, ["request", "start"]),
        (["ACTIVE"], ["exit status 0", "running", "exit status 0"], 0, ["start"]),  # the status before is an older command's
        (["ACTIVE"], ["", "exit status 75", "running", "exit status 0"], 0, ["start", "start"]),
        (["ACTIVE"], ["running", "exit status 2"], 2, []),
        (["ACTIVE", "SUSPENDED", "", "ACTIVE"], ["", "", "exit status 0"], 0, ["start", "delete", "request", "start"]),
        pytest.param(["ACTIVE"], ["", "exit status 137"], 75, ["start"] * 3, marks=pytest.mark.long),
    ],
)
def test_tpu_request_keeps_a_command_running_until_it_is_done_or_hopeless(states, said, status, asked, cloud):
    assert cloud(states, said, RESTARTS="2") == (status, asked)
