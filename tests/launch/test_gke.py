"""`launch/gke.yaml` and `launch/gke_sweep.yaml`: what is chosen, and what comes of it."""

import os
import re
import shlex
import string
import sys

import pytest
from starting import LAUNCH, run

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
