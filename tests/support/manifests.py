"""Checks of Kubernetes manifests without a cluster.

Kustomize build, schemas, and mistakes that the operator does not report.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra/kubernetes"
KUBERNETES_VERSION = "1.37"
CRDS = Path(os.environ.get("IMAGEMILL_CRDS", ROOT.parent / "shared/crds"))
OVERLAYS = ("cpu", "gpu", "spot")
Manifest = dict[str, Any]


@cache
def built(folder: Path) -> list[Manifest]:
    """Return what `kubectl apply -k` would send."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


@cache
def crd_schema(kind: str) -> Manifest:
    """Return the schema of a KubeRay kind; it refuses unknown fields."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there: set IMAGEMILL_CRDS to a folder with KubeRay's CRDs to have RayClusters checked")
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    return strict(next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"))


def strict(schema: Any) -> Any:
    """Return a JSON Schema of what Kubernetes accepts; it fills in defaults and refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in schema.items() if key not in ("properties", "description", "required")}
    if "properties" in schema:
        made["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
        needed = [n for n in schema.get("required", []) if "default" not in schema["properties"].get(n, {})]
        if needed:
            made["required"] = needed
    return made


def problems(manifest: Manifest) -> list[str]:
    """Return the problems of a manifest."""
    # Tests that only build manifests need no validators.
    import jsonschema
    import kubernetes_validate

    if not manifest["apiVersion"].startswith("ray.io/"):
        try:
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
            return []
        except kubernetes_validate.ValidationError as e:
            return [f"{'/'.join(map(str, e.path))}: {e.message}"]
    schema = crd_schema(manifest["kind"])
    schema["properties"]["metadata"] = {}  # Kinds of Kubernetes itself.
    found = [f"{'/'.join(map(str, e.path))}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(manifest)]
    return found or pitfalls(manifest)


def pitfalls(manifest: Manifest) -> list[str]:
    """Return settings that KubeRay accepts but ignores, or refuses only at run time."""
    spec = manifest["spec"]
    job = spec.get("jobTemplate", spec)
    cluster = spec if manifest["kind"] == "RayCluster" else job.get("rayClusterSpec")
    found = []
    if cluster:
        if cluster.get("authOptions", {}).get("mode") != "token":
            found.append("authOptions without mode: token asks nobody for a token")
        if tuple(map(int, str(cluster.get("rayVersion", "0.0")).split(".")[:2])) < (2, 52):
            found.append("rayVersion is below 2.52, the first with tokens, or missing")
        group_names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
        if len(group_names) != len(set(group_names)):
            found.append("two worker groups of one name")
        for group in cluster.get("workerGroupSpecs", []):
            if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 1 << 31):
                found.append(f"{group['groupName']}: replicas are not between minReplicas and maxReplicas")
    elif manifest["kind"] != "RayCluster" and not job.get("clusterSelector"):
        found.append("neither rayClusterSpec nor clusterSelector")
    if job.get("shutdownAfterJobFinishes") and job.get("deletionStrategy", {}).get("deletionRules"):
        found.append("deletionRules together with shutdownAfterJobFinishes are refused")
    if job.get("suspend") and not job.get("shutdownAfterJobFinishes"):
        found.append("suspend without shutdownAfterJobFinishes is refused")
    if job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished without shutdownAfterJobFinishes is refused")
    if job.get("backoffLimit") and job.get("clusterSelector"):
        found.append("backoffLimit makes new clusters, which clusterSelector forbids")
    if len(manifest["metadata"]["name"]) > 47:
        found.append("the name is longer than 47 characters")
    return found


def pod_specs(value: Any) -> list[Manifest]:
    """Yield each pod spec of a manifest."""
    if isinstance(value, list):
        return [found for inner in value for found in pod_specs(inner)]
    if not isinstance(value, dict):
        return []
    return ([value] if "containers" in value else []) + [found for inner in value.values() for found in pod_specs(inner)]
