"""The Kubernetes example: official schemas, what refers to what, and that it promises what the compose file does."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api.guard import Hosts
from core.settings import Settings
from tests.containers import ROOT, dockerfile, final_stage, image_variables, seconds, service

FOLDER = ROOT / "deploy/kubernetes"
COMPONENTS = ("gpu", "autoscaling")
Document = dict[str, Any]


def kustomization(folder: Path) -> Document:
    found: Document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


def documents(folder: Path) -> list[Document]:
    """What a kustomization names, in its order."""
    return [
        document
        for name in kustomization(folder)["resources"]
        for document in yaml.safe_load_all((folder / name).read_text())
    ]


EVERYTHING = [
    document for folder in (FOLDER, *(FOLDER / name for name in COMPONENTS)) for document in documents(folder)
]
PODS = {d["metadata"]["name"]: d["spec"]["template"] for d in EVERYTHING if "template" in d.get("spec", {})}
WORKERS = ("worker-cpu", "worker-gpu")


def of_kind(kind: str) -> dict[str, Document]:
    return {d["metadata"]["name"]: d for d in EVERYTHING if d["kind"] == kind}


def container(name: str) -> Document:
    (found,) = PODS[name]["spec"]["containers"]
    return dict(found)


def in_bytes(size: str) -> int:
    """A size as Kubernetes spells it."""
    return int(size[:-2]) << {"Mi": 20, "Gi": 30}[size[-2:]]


def variables(name: str) -> dict[str, str]:
    """As the container has them: the image's, then those of what it names, then its own."""
    each = container(name)
    named = [of_kind("ConfigMap")[one["configMapRef"]["name"]]["data"] for one in each.get("envFrom", [])]
    own = {one["name"]: one["value"] for one in each.get("env", [])}
    return {key: value for given in (image_variables(), *named, own) for key, value in given.items()}


# --- schemas and references --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", EVERYTHING, ids=lambda d: f"{d['kind']} {d['metadata']['name']}")
def test_document_fits_the_official_schema(document: Document) -> None:
    if document["apiVersion"].startswith(
        "keda.sh/"
    ):  # whose own schema is not at hand; the part that is Kubernetes' is
        behavior = document["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
        spec = {"scaleTargetRef": target, "maxReplicas": 1, "behavior": behavior}
        document = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {}, "spec": spec}
    kubernetes_validate.validate(document, "1.37", strict=True)


def test_schema_finds_a_misspelt_key() -> None:
    wrong = copy.deepcopy(of_kind("Deployment")["api"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProbes"):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_file_is_named_by_its_kustomization() -> None:
    for folder in (FOLDER, *(FOLDER / name for name in COMPONENTS)):
        assert {file.name for file in folder.glob("*.yaml")} == {
            "kustomization.yaml",
            *kustomization(folder)["resources"],
        }
    offered = re.findall(r"^  # - (\w+) #", (FOLDER / "kustomization.yaml").read_text(), re.MULTILINE)
    assert (
        offered
        == list(COMPONENTS)
        == [folder.name for folder in sorted(FOLDER.iterdir(), reverse=True) if folder.is_dir()]
    )


@pytest.mark.parametrize("chosen", [(), ("gpu",), COMPONENTS], ids=str)
def test_kubectl_puts_the_chosen_parts_together(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    file = tmp_path / "kubernetes/kustomization.yaml"
    file.write_text(re.sub(rf"(?m)^  # - ({'|'.join(chosen) or 'none'}) #", r"  - \1 #", file.read_text()))

    done = subprocess.run(["kubectl", "kustomize", file.parent], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == sum(len(documents(folder)) for folder in (FOLDER, *(FOLDER / name for name in chosen)))
    assert {d["metadata"]["namespace"] for d in built if d["kind"] != "Namespace"} == {"descent"}
    (cpu,) = [d for d in built if d["metadata"]["name"] == "worker-cpu" and d["kind"] == "Deployment"]
    assert ("replicas" in cpu["spec"]) is ("autoscaling" not in chosen)


def selected(selector: Document) -> set[str]:
    """The workloads whose pods a selector means."""
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    found = set()
    for name, pod in PODS.items():
        labels = pod["metadata"]["labels"]
        listed = all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
        if listed and wanted.items() <= labels.items():
            found.add(name)
    return found


def test_selectors_mean_the_pods_that_they_are_named_after() -> None:
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget", "Service"):
        for name, document in of_kind(kind).items():
            assert selected(document["spec"]["selector"]) == {name}
    assert set(of_kind("ScaledObject")) == {
        d["spec"]["scaleTargetRef"]["name"] for d in of_kind("ScaledObject").values()
    }
    assert set(of_kind("ScaledObject")) <= set(of_kind("Deployment"))


def test_ports_and_volumes_that_are_named_exist() -> None:
    for name, pod in PODS.items():
        each = container(name)
        claims = {
            claim["metadata"]["name"]
            for claim in of_kind("StatefulSet").get(name, {"spec": {}})["spec"].get("volumeClaimTemplates", [])
        }
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        assert {mount["name"] for mount in each["volumeMounts"]} == claims | set(volumes)
        asked = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        }
        assert asked <= set(of_kind("PersistentVolumeClaim"))
        if name in of_kind("Service"):
            (port,) = of_kind("Service")[name]["spec"]["ports"]
            assert {one["name"]: one["containerPort"] for one in each["ports"]} == {port["name"]: port["port"]}
            assert port.get("targetPort", port["port"]) in (port["name"], port["port"])


def test_api_and_workers_share_one_home_over_nodes() -> None:
    home = {"name": "data", "mountPath": image_variables()["DESCENT_HOME"]}

    assert all(home in container(name)["volumeMounts"] for name in ("api", *WORKERS))
    assert of_kind("PersistentVolumeClaim")["data"]["spec"]["accessModes"] == ["ReadWriteMany"]


# --- what the pods may and what they get -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PODS)
def test_pod_has_no_rights_it_does_not_need(name: str) -> None:
    pod, each = PODS[name]["spec"], container(name)

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert each["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert in_bytes(each["resources"]["requests"]["memory"]) <= in_bytes(each["resources"]["limits"]["memory"])
    if name != "redis":
        user, group = final_stage("USER")[0].split(":")
        context = pod["securityContext"]
        assert [context["runAsUser"], context["runAsGroup"], context["fsGroup"]] == [int(user), int(group), int(group)]


def test_the_namespace_refuses_pods_with_more_rights() -> None:
    labels = of_kind("Namespace")["descent"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def peers(policy: Document, way: str) -> Iterator[tuple[str, str]]:
    """Whom a policy lets talk to whom, within the namespace."""
    for rule in policy["spec"].get(way, []):
        for peer in rule.get("from" if way == "ingress" else "to", []):
            if "podSelector" in peer:
                for one in selected(policy["spec"]["podSelector"]):
                    yield from (
                        (other, one) if way == "ingress" else (one, other) for other in selected(peer["podSelector"])
                    )


def test_redis_is_reached_by_the_api_and_the_workers_alone() -> None:
    policies = of_kind("NetworkPolicy")
    let_in = {pair for policy in policies.values() for pair in peers(policy, "ingress")}
    let_out = {pair for policy in policies.values() for pair in peers(policy, "egress")}

    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert let_in == let_out == {(name, "redis") for name in ("api", *WORKERS)}
    open_to_all = [
        name for name, p in policies.items() if any("from" not in rule for rule in p["spec"].get("ingress", []))
    ]
    assert open_to_all == ["api"]


@pytest.mark.parametrize("name", ["api", *WORKERS])
def test_variables_are_settings_that_the_server_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PODS[name]["spec"]["enableServiceLinks"] is False  # else a service could set a DESCENT_ variable
    given = {key: value for key, value in variables(name).items() if key.startswith("DESCENT_")}
    assert {key.removeprefix("DESCENT_").lower() for key in given} <= set(Settings.model_fields)
    for key, value in given.items():
        monkeypatch.setenv(key, value)

    settings = Settings()

    assert settings.keys_required
    assert settings.store_url == service(name.partition("-")[0])["environment"]["DESCENT_REDIS_URL"]
    assert settings.device == {"worker-cpu": "cpu", "worker-gpu": "gpu"}.get(name, "auto")
    for host in (b"api:8000", b"api.descent.svc:8000", b"10.1.2.3:8000"):
        assert Hosts(settings).has(host)


def test_a_trainer_meets_its_own_limit_before_the_containers() -> None:
    for name in WORKERS:
        trainer = int(variables(name)["DESCENT_TRAINER_MEMORY_MB"]) << 20
        assert trainer + (768 << 20) <= in_bytes(container(name)["resources"]["limits"]["memory"])


def test_workers_on_gpus_have_one_each_and_the_image_for_it() -> None:
    assert container("worker-gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {name: container(name)["image"] for name in ("api", *WORKERS)} == {
        "api": "descent",
        "worker-cpu": "descent",
        "worker-gpu": "descent-gpu",
    }
    assert [image["name"] for image in kustomization(FOLDER)["images"]] == ["descent", "descent-gpu"]
    assert {"PADDLE", "PADDLE_INDEX"} <= {i.words.partition("=")[0] for i in dockerfile() if i.name == "ARG"}


# --- as in docker-compose.yml ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PODS)
def test_container_runs_what_compose_runs(name: str) -> None:
    assert container(name)["command"] == service(name.partition("-")[0])["command"]
    image = container(name)["image"]
    assert image == service("redis")["image"] if name == "redis" else image.startswith("descent")


@pytest.mark.parametrize("name", PODS)
def test_probes_ask_what_compose_asks(name: str) -> None:
    probes = [
        container(name)[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container(name)
    ]
    checked = service(name.partition("-")[0])["healthcheck"]["test"]

    assert len(probes) == (2 if name == "redis" else 3)
    if name == "api":
        assert {probe["httpGet"]["path"] for probe in probes} == set(re.findall(r'"GET", "(\S+)"', checked[-1]))
    else:
        assert all(["CMD", *probe["exec"]["command"]] == checked for probe in probes)


def test_a_redis_that_is_away_for_minutes_ends_no_worker() -> None:
    for name in WORKERS:
        probe = container(name)["livenessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 600


@pytest.mark.parametrize("name", PODS)
def test_pod_may_take_as_long_to_stop_as_in_compose(name: str) -> None:
    before = container(name).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = Settings.model_fields["stop_s"].default + 10 if name in WORKERS else 0
    allowed = PODS[name]["spec"]["terminationGracePeriodSeconds"] - before

    assert allowed >= seconds(service(name.partition("-")[0])["stop_grace_period"])
    assert allowed > drain


# --- autoscaling -------------------------------------------------------------------------------------------------------


def test_workers_follow_the_jobs_and_leave_slowly() -> None:
    spec = of_kind("ScaledObject")["worker-cpu"]["spec"]
    (trigger,) = spec["triggers"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]

    assert trigger["type"] == "prometheus"
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA takes no other
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert float(trigger["metadata"]["threshold"]) == 1
    assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    (down,) = behavior["scaleDown"]["policies"]
    assert down["value"] == 1
    assert down["periodSeconds"] > PODS["worker-cpu"]["spec"]["terminationGracePeriodSeconds"]
    assert json.dumps(kustomization(FOLDER / "autoscaling")["patches"]).count("/spec/replicas") == 1
