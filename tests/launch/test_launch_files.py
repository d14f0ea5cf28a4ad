"""The YAML files in launch/, against the fields that JobSet, Kueue, Kubernetes and SkyPilot publish (launch_fields.yaml)."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from a3jax.plan.topology import CHIPS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

LAUNCH = Path(__file__).parents[2] / "launch"
FIELDS = yaml.safe_load(Path(__file__).with_name("launch_fields.yaml").read_text())
FILES = sorted(LAUNCH.glob("*.yaml"))
NAMES = {"object": dict, "array": list, "string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}
CHOSEN = {
    **{
        "NAME": "llama",
        "IMAGE": "eu-docker.pkg.dev/p/r/a3jax:1",
        "ACCOUNT": "a3jax",
        "QUEUE": "team",
        "NAMESPACE": "default",
    },
    **{"ACCELERATOR": "tpu-v5p-slice", "TOPOLOGY": "4x4x4", "HOSTS": "16", "SLICES": "2", "HOST_NETWORK": "true"},
    **{"RESTARTS": "20", "CACHE": "gs://bucket/xla", "DAEMON": "v1", "CHIPS": "64", "FLEX_CHIPS": "0"},
    **{"TRIALS": "12", "AT_ONCE": "3", "COMMAND": "a3jax train x --run '/shared/x: #'"},
    "CAPACITY": 'cloud.google.com/gke-spot: "true"',
    "SHARED": "persistentVolumeClaim: {claimName: shared}",
}
NOTHING_CHOSEN = {"QUEUE": "", "CAPACITY": "", "SHARED": "emptyDir: {}", "HOST_NETWORK": "false"}
"""Without a queue, a special kind of capacity, a disk, several slices."""


class Once(yaml.SafeLoader):
    """Refuses a name that stands twice in one object, as `kubectl` does and YAML does not."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep) for key, _ in node.value]
        assert len(names) == len(set(names)), f"a name stands twice: {names}"
        return super().construct_mapping(node, deep)


def documents(file: Path, **chosen: str) -> list[Any]:
    """What a file holds once its choices are made; its first lines, which tell of them, left out."""
    body = re.sub(r"\A(#.*\n)+", "", file.read_text())
    values = CHOSEN | chosen
    return list(yaml.load_all(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], body), Once))


def kind_of(document: Any) -> str:
    return f"{document['kind']} {document['apiVersion']}" if "kind" in document else "SkyPilot task"


def check(value: Any, field: Any, path: str) -> None:
    """Fails with the path of the first thing that the published fields do not allow."""
    if isinstance(field, dict):
        assert isinstance(value, dict), f"{path} is an object, not {value!r}"
        known = {name.rstrip("!"): inner for name, inner in field.items()}
        for name in value:
            assert name in known or "*" in known, f"{path}.{name} is not among the fields"
            check(value[name], known.get(name, known.get("*")), f"{path}.{name}")
        lacking = {name[:-1] for name in field if name.endswith("!")} - value.keys()
        assert not lacking, f"{path} lacks {lacking}"
    elif isinstance(field, list):
        assert isinstance(value, list), f"{path} is a list, not {value!r}"
        for number, inner in enumerate(value):
            check(inner, field[0], f"{path}[{number}]")
    else:
        words = field.split(" | ")
        types = tuple(NAMES[word] for word in words if word in NAMES)
        fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
        assert fits or value in set(words) - set(NAMES), f"{path} is {field}, not {value!r}"


PODS = [file for file in FILES if file.name not in ("gke_queue.yaml", "skypilot.yaml")]


@pytest.mark.parametrize(
    ("file", "chosen"),
    [(file, {}) for file in FILES] + [(file, NOTHING_CHOSEN) for file in PODS],
    ids=[file.name for file in FILES] + [f"{file.name}, nothing chosen" for file in PODS],
)
def test_every_field_is_one_that_is_published(file, chosen):
    found = documents(file, **chosen)
    assert found
    for document in found:
        check(document, FIELDS[kind_of(document)], kind_of(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec["failurePolicy"].update(maxRestart=3), r"failurePolicy\.maxRestart is not among the fields"),
        (lambda spec: spec["replicatedJobs"][0].update(replicas="2"), r"replicatedJobs\[0\]\.replicas is integer, not '2'"),
        (lambda spec: spec["replicatedJobs"][0].pop("name"), r"replicatedJobs\[0\] lacks {'name'}"),
        (
            lambda spec: spec["failurePolicy"]["rules"][0].update(action="Fail"),
            r"rules\[0\]\.action is FailJobSet \| .*, not 'Fail'",
        ),
    ],
)
def test_a_mistake_would_be_found(change, message):
    (jobset,) = documents(LAUNCH / "gke.yaml")
    change(jobset["spec"])
    with pytest.raises(AssertionError, match=message):
        check(jobset, FIELDS[kind_of(jobset)], "JobSet")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_choice_stands_in_the_first_lines(file):
    head = re.match(r"(#.*\n)+", file.read_text())[0]
    used = set(re.findall(r"\$\{(\w+)\}", file.read_text()))
    assert set(re.findall(r"\b([A-Z_]+)=", head)) - {"COMMAND"} == used - {"COMMAND"}


@pytest.mark.parametrize("file", PODS, ids=lambda file: file.name)
def test_pods_have_an_account_a_queue_a_cache_and_room_in_dev_shm(file):
    (document,) = documents(file)
    assert document["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    job = document["spec"] if document["kind"] == "Job" else document["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == "a3jax"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert [t["key"] for t in pod["tolerations"]] == ["cloud.google.com/gke-spot"]
    (container,) = pod["containers"]
    assert {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://bucket/xla"} in container["env"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert places["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert places["/shared"]["persistentVolumeClaim"] == {"claimName": "shared"}


@pytest.mark.parametrize("name", ["gke_gpu_tcpxo.yaml", "gke_gpu_rdma.yaml"])
def test_processes_on_gpus_are_told_their_places_and_have_a_card_for_each_gpu(name):
    (jobset,) = documents(LAUNCH / name)
    (hosts,) = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert (hosts["name"], hosts["replicas"], job["completions"], job["backoffLimit"]) == ("hosts", 1, 16, 0)
    (container,) = job["template"]["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"] == "llama-hosts-0-0.llama:8482"
    assert (environment["JAX_NUM_PROCESSES"], job["completionMode"]) == ("16", "Indexed")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    cards = yaml.safe_load(job["template"]["metadata"]["annotations"]["networking.gke.io/interfaces"])
    assert len({card["network"] for card in cards}) == 9  # one for each GPU, and the pod's own
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_queue_admits_by_slices_of_its_own_shape_and_nodes_that_are_asked_for_come_first():
    found = {kind_of(one).split()[0]: one for one in documents(LAUNCH / "gke_queue.yaml")}
    queue = found["ClusterQueue"]["spec"]
    assert found["LocalQueue"]["spec"]["clusterQueue"] == found["ClusterQueue"]["metadata"]["name"] == "team"
    (group,) = queue["resourceGroups"]
    assert group["coveredResources"] == ["google.com/tpu"]
    assert [flavor["resources"][0]["nominalQuota"] for flavor in group["flavors"]] == ["64", "0"]
    (check_first,) = queue["admissionChecksStrategy"]["admissionChecks"]
    assert check_first == {"name": found["AdmissionCheck"]["metadata"]["name"], "onFlavors": ["team-flex"]}
    assert found["AdmissionCheck"]["spec"]["parameters"]["name"] == found["ProvisioningRequestConfig"]["metadata"]["name"]
    flavors = [one for one in documents(LAUNCH / "gke_queue.yaml") if one["kind"] == "ResourceFlavor"]
    labels = [flavor["spec"]["nodeLabels"] for flavor in flavors]
    (jobset,) = documents(LAUNCH / "gke.yaml", CAPACITY="")
    wanted = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert all(wanted.items() <= each.items() for each in labels), "a run with a queue fits both kinds of nodes"
    assert labels[0]["cloud.google.com/gke-spot"] == labels[1]["cloud.google.com/gke-queued"] == "true"


CORES_IN_NAMES = {"v4": 2, "v5p": 2, "tpu7x": 2, "v5e": 1, "v6e": 1}


def test_names_of_slices_are_of_as_many_chips_and_hosts_as_their_topology():
    page = (LAUNCH.parent / "docs" / "topologies.md").read_text()
    rows = re.findall(r"^\| (\w+)-(\d+) \| (\w+):([\dx]+) \| (\d+) \| (\d+) \| ([\dx]+) \|$", page, re.MULTILINE)
    assert {chip for _, _, chip, *_ in rows} == set(CHIPS)
    for prefix, number, chip, topology, chips, hosts, label in rows:
        assert prefix == {"v5e": "v5litepod"}.get(chip, chip)
        assert topology == label
        assert math.prod(map(int, topology.split("x"))) == int(chips) == 4 * int(hosts)
        assert int(number) == int(chips) * CORES_IN_NAMES[chip]
    assert ("v5p", "64", "v5p", "2x4x4", "32", "8", "2x4x4") in rows
