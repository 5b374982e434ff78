"""Check the manifests of infra/kubernetes without a cluster."""

import copy
import json
import shlex
from datetime import date
from typing import Any

import pytest
import yaml

from imagemill.jobs.night_config import NightlyConfig, plan_night
from imagemill.pipeline.config import RunConfig, validate
from tests.support.manifests import KUBERNETES, OVERLAYS, ROOT, Manifest, built, of_kind, pod_specs, problems

pytestmark = pytest.mark.external
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def manifests(overlay: str) -> list[Manifest]:
    return built(KUBERNETES / "overlays" / overlay)


@overlays
def test_manifests_are_valid(overlay: str) -> None:
    problems_by_name = {f"{m['kind']} {m['metadata']['name']}": problems(m) for m in manifests(overlay)}
    assert {name: errors for name, errors in problems_by_name.items() if errors} == {}
    assert len(problems_by_name) == len(manifests(overlay)) == 16


def test_example_manifest_is_valid() -> None:
    assert problems(yaml.safe_load((KUBERNETES / "examples/raycronjob.yaml").read_text())) == []


def change_value(kind: str, name: str, path: str, value: Any) -> Manifest:
    """Return a manifest of the GPU overlay with one value changed; None removes the value."""
    manifest = copy.deepcopy(of_kind(manifests("gpu"), kind)[name])
    *outer, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inner: Any = manifest
    for part in outer:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return manifest


CLUSTER, JOB = ("RayCluster", "imagemill"), ("RayJob", "imagemill-nightly")


@pytest.mark.parametrize(
    ("of", "path", "value", "message"),
    [
        (CLUSTER, "spec/workerGroupSpec", [], "workerGroupSpec"),
        (CLUSTER, "spec/headGroupSpec/template/spec/containers/0/resource", {}, "resource"),
        (CLUSTER, "spec/workerGroupSpecs/0/maxReplicas", "four", "is not of type 'integer'"),
        (CLUSTER, "spec/workerGroupSpecs/1/groupName", "cpu", "two worker groups of one name"),
        (CLUSTER, "spec/workerGroupSpecs/0/replicas", 9, "not between"),
        (CLUSTER, "spec/autoscalerOptions/version", "v3", "'v3' is not one of"),
        (CLUSTER, "spec/authOptions/mode", None, "authOptions without mode"),
        (CLUSTER, "spec/rayVersion", "2.51.1", "rayVersion"),
        (CLUSTER, "spec/headGroupSpec", None, "'headGroupSpec' is a required property"),
        (JOB, "spec/backofLimit", 2, "backofLimit"),
        (JOB, "spec/deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}, "are refused"),
        (JOB, "spec/shutdownAfterJobFinishes", False, "suspend without"),
        (JOB, "spec/rayClusterSpec", None, "neither rayClusterSpec nor clusterSelector"),
        (JOB, "spec/rayClusterSpec/authOptions", {}, "authOptions without mode"),
        (("CronJob", "imagemill-nightly"), "spec/concurencyPolicy", "Forbid", "concurencyPolicy"),
        (("CronJob", "imagemill-nightly"), "spec/startingDeadlineSeconds", "2h", "is not of type"),
        (("NetworkPolicy", "imagemill-ray"), "spec/podSelector/matchLabel", {}, "matchLabel"),
        (("Role", "imagemill-nightly"), "rules/0/verb", ["get"], "verb"),
    ],
)  # fmt: skip
def test_check_of_manifests_finds_planted_errors(of: tuple[str, str], path: str, value: Any, message: str) -> None:
    assert message in "; ".join(problems(change_value(*of, path, value)))


@overlays
def test_pods_meet_the_restricted_standard(overlay: str) -> None:
    """The namespace enforces Pod Security's `restricted`; the root is read-only, temporary files are on a volume."""
    pods = [pod for manifest in manifests(overlay) for pod in pod_specs(manifest)]
    assert len(pods) >= 9
    for pod in pods:
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert_closed(container["securityContext"])
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts["tmp"] == "/tmp"
            assert set(mounts) <= {volume["name"] for volume in pod["volumes"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
        assert not any(volume.get("hostPath") for volume in pod["volumes"])
        assert pod["serviceAccountName"] in of_kind(manifests(overlay), "ServiceAccount")
    for cluster in clusters(overlay):
        assert_closed(cluster["autoscalerOptions"]["securityContext"])


def assert_closed(context: dict[str, Any]) -> None:
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["seccompProfile"]["type"] == "RuntimeDefault"


def clusters(overlay: str) -> list[dict[str, Any]]:
    jobs = of_kind(manifests(overlay), "RayJob").values()
    return [of_kind(manifests(overlay), "RayCluster")["imagemill"]["spec"], *(job["spec"]["rayClusterSpec"] for job in jobs)]


def test_overlays_set_what_their_names_say() -> None:
    for overlay, names in {"cpu": ["cpu"], "gpu": ["cpu", "gpu"], "spot": ["spot"]}.items():
        for cluster in clusters(overlay):
            groups = cluster["workerGroupSpecs"]
            assert [group["groupName"] for group in groups] == names
            assert all(group["minReplicas"] == 0 for group in groups)
            assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
            assert not cluster["headGroupSpec"]["template"]["spec"].get("tolerations")
            # Autoscaler v2 requires `Never`: KubeRay replaces a pod, and a node never returns under its old name.
            assert all(g["template"]["spec"]["restartPolicy"] == "Never" for g in [cluster["headGroupSpec"], *groups])
    gpu = clusters("gpu")[0]["workerGroupSpecs"][1]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["containers"][0]["image"].endswith("-gpu")
    spot = clusters("spot")[0]["workerGroupSpecs"][0]["template"]["spec"]
    assert spot["tolerations"][0]["value"] == spot["nodeSelector"]["imagemill/pool"] == "spot"


def test_configs_of_pods_are_valid() -> None:
    data = of_kind(manifests("cpu"), "ConfigMap")["imagemill"]["data"]
    validate(RunConfig, yaml.safe_load(data["job.yaml"]), "job.yaml")
    night = validate(NightlyConfig, yaml.safe_load(data["night.yaml"]), "night.yaml")
    assert plan_night(night, date(2026, 3, 1))
    # The RayJob has the deadline of the night: exit 7 would count as a failure there and be retried until the next morning.
    assert night.until is None


def test_cluster_has_workers_when_a_run_begins() -> None:
    for overlay, begin in {"cpu": {"cpu": 2}, "gpu": {"cpu": 0, "gpu": 1}, "spot": {"spot": 2}}.items():
        for cluster in clusters(overlay):
            assert {group["groupName"]: group["replicas"] for group in cluster["workerGroupSpecs"]} == begin


def test_manifests_name_secrets_without_values() -> None:
    for overlay in OVERLAYS:
        assert not of_kind(manifests(overlay), "Secret")
        for pod in (pod for manifest in manifests(overlay) for pod in pod_specs(manifest)):
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    assert not any(word in variable["name"] for word in ("KEY", "SECRET", "TOKEN", "PASSWORD"))


def test_night_starter_has_minimal_permissions() -> None:
    role = of_kind(manifests("cpu"), "Role")["imagemill-nightly"]
    rights = {(verb, *rule.get("resourceNames", [])) for rule in role["rules"] for verb in rule["verbs"]}
    assert rights == {("get", "imagemill-nightly"), ("create",)}
    assert all((rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"]) for rule in role["rules"])
    assert not of_kind(manifests("cpu"), "ClusterRole")
    assert of_kind(manifests("cpu"), "RayJob")["imagemill-nightly"]["spec"]["suspend"] is True


def test_network_policy_admits_submitter_and_operator_only() -> None:
    policies = of_kind(manifests("cpu"), "NetworkPolicy")
    assert policies["imagemill-closed"]["spec"]["podSelector"] == {}
    assert "ingress" not in policies["imagemill-closed"]["spec"]
    internal_rule, external_rule = policies["imagemill-ray"]["spec"]["ingress"]
    assert "ports" not in internal_rule
    assert [port["port"] for port in external_rule["ports"]] == [8265]
    selectors = json.dumps(external_rule["from"])
    assert "submitter" in selectors
    assert "kuberay-operator" in selectors
    for job in of_kind(manifests("cpu"), "RayJob").values():
        assert job["spec"]["submitterPodTemplate"]["metadata"]["labels"]["imagemill/role"] == "submitter"
        assert shlex.split(job["spec"]["entrypoint"])[0] == "imagemill"


def test_image_and_cluster_use_the_pinned_ray() -> None:
    pinned = next(line[5:] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert {cluster["rayVersion"] for overlay in OVERLAYS for cluster in clusters(overlay)} == {pinned}
    assert f"rayproject/ray:{pinned}-py311-cpu" in (ROOT / "infra/container/Dockerfile").read_text()
