"""infra/kubernetes as kustomize builds it: every resource is valid, confined, and reachable by what needs it alone."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "infra/kubernetes"
VERSION = "1.37"  # of Kubernetes
EXAMPLE = (ROOT / "infra/env.example").read_text(encoding="utf-8")
PORTS = {"postgres": 5432, "s3": 7070, "mlflow": 5000, "prefect": 4200}
Resource = dict[str, Any]


def built(folder: Path) -> list[Resource]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [*yaml.safe_load_all(done.stdout)]


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def resources(overlay: str) -> list[Resource]:
    return built(FOLDER / "overlays" / overlay)


def named(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {each["metadata"]["name"]: each for each in resources if each["kind"] == kind}


def pods(resources: list[Resource]) -> dict[str, Resource]:
    """The template of every workload, by the workload's name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"] for each in resources if "template" in each.get("spec", {})
    }


def containers(pod: Resource) -> list[Resource]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: Resource, pod: Resource) -> bool:
    """Whether a pod is one that a selector names."""
    labels = pod["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


@pytest.mark.slow
def test_every_resource_is_valid(resources: list[Resource]) -> None:
    for resource in resources:
        assert kubernetes_validate.validate(resource, VERSION, strict=True) == VERSION


def test_a_wrong_field_is_found(resources: list[Resource]) -> None:
    wrong = named(resources, "PodDisruptionBudget")["serving"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**wrong, "spec": {**wrong["spec"], "minAvailible": 1}}, VERSION, strict=True)


def test_every_pod_is_confined(resources: list[Resource]) -> None:
    assert pods(resources).keys() == {"storage-setup", "mlflow", "prefect", "worker", "serving", "postgres", "s3"}
    for name, pod in pods(resources).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] == (999 if name == "postgres" else 10001)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name


def test_servers_are_probed_and_serving_stays_up(resources: list[Resource]) -> None:
    for name, pod in pods(resources).items():
        [first, *_] = pod["spec"]["containers"]
        if name not in ("storage-setup", "worker"):
            assert {"livenessProbe", "readinessProbe"} <= first.keys(), name
    budget, serving = named(resources, "PodDisruptionBudget")["serving"], named(resources, "Deployment")["serving"]
    assert matches(budget["spec"]["selector"], serving["spec"]["template"])
    assert serving["spec"]["replicas"] > budget["spec"]["minAvailable"]


def test_only_the_gpu_overlay_asks_for_gpus(resources: list[Resource], overlay: str) -> None:
    with_gpu = {
        name
        for name, pod in pods(resources).items()
        for container in containers(pod)
        if "nvidia.com/gpu" in container["resources"]["limits"]
    }
    images = {container["image"] for pod in pods(resources).values() for container in containers(pod)}

    assert with_gpu == ({"worker", "serving"} if overlay == "gpu" else set())
    assert any(image.endswith(":cuda") for image in images) == (overlay == "gpu")
    assert not [image for image in images if ":" not in image]  # each one was given a registry and a tag


def test_settings_and_secrets_are_by_reference(resources: list[Resource]) -> None:
    assert not named(resources, "Secret")
    settings = named(resources, "ConfigMap")["trueline-config"]["data"]
    keys = {name for name, _ in re.findall(r"^(\w+)=(.*)$", EXAMPLE, flags=re.MULTILINE)}
    for pod in pods(resources).values():
        for container in containers(pod):
            known = set(settings) if "envFrom" in container else set()
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                if "secretKeyRef" in source:
                    assert source["secretKeyRef"]["name"] == "trueline-secrets"
                    assert source["secretKeyRef"]["key"] in keys
                if "configMapKeyRef" in source:
                    assert source["configMapKeyRef"]["key"] in settings
                # Kubernetes replaces only what stands above.
                assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known
                known.add(variable["name"])


def test_volumes_that_are_mounted_exist(resources: list[Resource]) -> None:
    for each in resources:
        if "template" in each.get("spec", {}):
            spec = each["spec"]["template"]["spec"]
            claims = [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
            volumes = {volume["name"] for volume in spec.get("volumes", [])} | {*claims}
            mounted = {mount["name"] for one in containers({"spec": spec}) for mount in one["volumeMounts"]}
            assert mounted == volumes, each["metadata"]["name"]


def test_services_lead_to_their_pods(resources: list[Resource]) -> None:
    for name, service in named(resources, "Service").items():
        pod = pods(resources)[name]
        assert matches({"matchLabels": service["spec"]["selector"]}, pod)
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_only_what_needs_a_server_reaches_it(resources: list[Resource]) -> None:
    """Both sides allow it: the egress of the one, the ingress of the other."""
    policies = [each["spec"] for each in named(resources, "NetworkPolicy").values()]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    templates = pods(resources)

    def allows(server: str, client: str) -> bool:
        sides = [("ingress", "from", server, client), ("egress", "to", client, server)]
        return all(
            any(
                {"port": PORTS[server]} in rule["ports"]
                and any(
                    matches(peer["podSelector"], templates[other])
                    for peer in rule.get(key, [])
                    if "podSelector" in peer
                )
                for policy in policies
                if matches(policy["podSelector"], templates[own])
                for rule in policy.get(side, [])
            )
            for side, key, own, other in sides
        )

    allowed = {(server, client) for server in PORTS for client in templates if allows(server, client)}
    assert allowed == {
        *(("postgres", client) for client in ("mlflow", "prefect", "storage-setup")),
        *(("s3", client) for client in ("mlflow", "worker", "serving", "storage-setup")),
        *(("mlflow", client) for client in ("worker", "serving")),
        ("prefect", "worker"),
    }


def test_the_example_of_secrets_makes_those_that_are_referred_to(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "kubernetes")) / "overlays/secrets"
    (folder / "secrets.env").write_text(EXAMPLE)
    [secret] = named(built(folder), "Secret").values()

    assert secret["metadata"] == {"name": "trueline-secrets", "namespace": "trueline"}
    assert "SERVING_KEY" in secret["data"]
