"""The files for Kubernetes have the fields that KubeRay's RayCluster and RayJob (ray.io/v1) and Kubernetes publish."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAY_VERSION = next(
    line.split("==")[1] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
)

# A schema is a type, a list of one schema, or a table of fields; a name that ends in "!" is required.
Schema = Any

# Kubernetes API reference, core/v1: what pods here use of Container, Volume and PodSpec.
RESOURCES: Schema = {"requests": dict, "limits": dict}
CONTAINER: Schema = {
    "name!": str,
    "image!": str,
    "imagePullPolicy": str,
    "command": [str],
    "args": [str],
    "workingDir": str,
    "env": [dict],
    "envFrom": [dict],
    "ports": [{"containerPort!": int, "name": str, "protocol": str}],
    "resources": RESOURCES,
    "securityContext": dict,
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool, "subPath": str}],
}
VOLUME: Schema = {
    "name!": str,
    "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
    "configMap": dict,
    "secret": dict,
}
POD_TEMPLATE: Schema = {
    "metadata": {"labels": dict, "annotations": dict},
    "spec": {
        "containers!": [CONTAINER],
        "initContainers": [CONTAINER],
        "volumes": [VOLUME],
        "nodeSelector": dict,
        "tolerations": [{"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}],
        "affinity": dict,
        "imagePullSecrets": [{"name": str}],
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int},
        "serviceAccountName": str,
    },
}

# KubeRay API reference (docs/reference/api.md of ray-project/kuberay), ray.io/v1: RayClusterSpec and RayJobSpec.
RAY_CLUSTER_SPEC: Schema = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "resources": RESOURCES,
        "image": str,
        "imagePullPolicy": str,
        "securityContext": dict,
        "idleTimeoutSeconds": int,
        "upscalingMode": str,
        "version": str,
        "env": [dict],
        "envFrom": [dict],
        "volumeMounts": [dict],
    },
    "gcsFaultToleranceOptions": dict,
    "headServiceAnnotations": dict,
    "managedBy": str,
    "suspend": bool,
    "headGroupSpec!": {
        "template!": POD_TEMPLATE,
        "headService": dict,
        "enableIngress": bool,
        "labels": dict,
        "resources": dict,
        "rayStartParams": dict,
        "serviceType": str,
    },
    "workerGroupSpecs": [
        {
            "groupName!": str,
            "replicas": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "idleTimeoutSeconds": int,
            "numOfHosts": int,
            "labels": dict,
            "resources": dict,
            "rayStartParams": dict,
            "scaleStrategy": dict,
            "suspend": bool,
            "template!": POD_TEMPLATE,
        }
    ],
}
RAY_JOB_SPEC: Schema = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "rayClusterSpec": RAY_CLUSTER_SPEC,
    "submitterPodTemplate": POD_TEMPLATE,
    "metadata": dict,
    "clusterSelector": dict,
    "submitterConfig": {"backoffLimit": int},
    "managedBy": str,
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "jobId": str,
    "submissionMode": str,
    "entrypointResources": str,
    "entrypointNumCpus": (int, float),
    "entrypointNumGpus": (int, float),
    "ttlSecondsAfterFinished": int,
    "shutdownAfterJobFinishes": bool,
    "suspend": bool,
}
METADATA: Schema = {"name": str, "generateName": str, "namespace": str, "labels": dict, "annotations": dict}
PVC_SPEC: Schema = {"accessModes!": [str], "storageClassName": str, "resources!": RESOURCES}
KINDS: dict[str, tuple[str, str, Schema]] = {
    "kuberay-raycluster": ("ray.io/v1", "RayCluster", RAY_CLUSTER_SPEC),
    "kuberay-rayjob": ("ray.io/v1", "RayJob", RAY_JOB_SPEC),
    "kuberay-runs-pvc": ("v1", "PersistentVolumeClaim", PVC_SPEC),
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def check(value: Any, schema: Schema, path: str) -> None:
    """Raises ValueError where `value` is not of the schema: unknown or missing fields, or another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{path}={value!r}: it must be an object")
        known = {name.removesuffix("!"): child for name, child in schema.items()}
        for name in schema:
            if name.endswith("!") and name[:-1] not in value:
                raise ValueError(f"{path}: {name[:-1]} is missing")
        for key, child in value.items():
            if key not in known:
                raise ValueError(f"{path}.{key}: no such field")
            check(child, known[key], f"{path}.{key}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{path}={value!r}: it must be a list")
        for item in value:
            check(item, schema[0], f"{path}[]")
    elif not isinstance(value, schema) or (isinstance(value, bool) and schema is int):
        raise ValueError(f"{path}={value!r}: it must be {schema}")


@pytest.mark.parametrize("name", KINDS)
def test_every_field_is_published(name: str) -> None:
    version, kind, spec = KINDS[name]
    document = load(name)
    check(document, {"apiVersion!": str, "kind!": str, "metadata!": METADATA, "spec!": spec}, kind)
    assert (document["apiVersion"], document["kind"]) == (version, kind)


def test_no_file_is_left_out() -> None:
    assert sorted(KINDS) == sorted(path.stem for path in (ROOT / "cluster").glob("kuberay*.yaml"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda spec: spec["workerGroupSpecs"][0].pop("groupName"), "groupName is missing"),
        (lambda spec: spec["workerGroupSpecs"][0].update(minReplica=1), "minReplica: no such field"),
        (lambda spec: spec.update(enableInTreeAutoscaling="yes"), "enableInTreeAutoscaling='yes'"),
        (lambda spec: spec["workerGroupSpecs"][0].update(replicas=True), "replicas=True"),
    ],
)
def test_the_check_notices_mistakes(change: Any, match: str) -> None:
    spec = copy.deepcopy(cluster_spec("kuberay-raycluster"))
    change(spec)
    with pytest.raises(ValueError, match=match):
        check(spec, RAY_CLUSTER_SPEC, "spec")


def test_both_files_describe_one_cluster() -> None:
    assert cluster_spec("kuberay-raycluster") == cluster_spec("kuberay-rayjob")


def test_versions_token_and_groups() -> None:
    spec = cluster_spec("kuberay-raycluster")
    assert spec["rayVersion"] == RAY_VERSION
    assert spec["authOptions"] == {"mode": "token"}
    learner, rollout = spec["workerGroupSpecs"]
    assert (learner["labels"], rollout["labels"]) == ({"pool": "learner"}, {"pool": "rollout"})
    assert learner["replicas"] == learner["minReplicas"] == learner["maxReplicas"] == 1
    assert rollout["replicas"] == rollout["minReplicas"] < rollout["maxReplicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_pod_has_the_runs_and_an_object_store_that_fits() -> None:
    spec = cluster_spec("kuberay-raycluster")
    claim = load("kuberay-runs-pvc")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        params = group["rayStartParams"]
        assert all(isinstance(value, str) for value in params.values()), "the CRD has a map of strings"
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/workspace/runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        shm = mounts["/dev/shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        gib = 1 << 30
        assert int(params["object-store-memory"]) < int(shm["sizeLimit"].removesuffix("Gi")) * gib
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert int(shm["sizeLimit"].removesuffix("Gi")) * 2 <= int(limits["memory"].removesuffix("Gi"))
        gpus = limits.get("nvidia.com/gpu", "0")
        assert container["image"].endswith("-gpu") == (gpus != "0")
