"""What every rendered pod of the charts has to be, and what is missing from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]

CONTAINER = {
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
NEVER = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The pod templates: name of what makes them -> template."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield manifest["metadata"]["name"], spec["template"]


def pod_faults(template: Manifest) -> list[str]:
    """What is wrong with a pod: the restricted profile of Kubernetes' pod security standards, and a bit more."""
    spec = template["spec"]
    found = [key for key in NEVER if spec.get(key)]
    if spec.get("automountServiceAccountToken") is not False:
        found.append("automountServiceAccountToken")
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        found.append("runAsNonRoot")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("seccompProfile")
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        name = container["name"]
        if container.get("securityContext") != CONTAINER:
            found.append(f"{name}: securityContext")
        if not container.get("resources", {}).get("limits", {}).get("memory"):
            found.append(f"{name}: memory limit")
        if any("valueFrom" in variable for variable in container.get("env", [])) or "envFrom" in container:
            found.append(f"{name}: a secret in the environment")
    if any("hostPath" in volume for volume in spec.get("volumes", [])):
        found.append("hostPath")
    return found


def policy_of(manifests: list[Manifest], template: Manifest) -> list[Manifest]:
    """The network policies that pick a pod."""
    labels = template["metadata"]["labels"]
    return [
        manifest["spec"]
        for manifest in manifests
        if manifest["kind"] == "NetworkPolicy"
        and manifest["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]


def claims_of(template: Manifest) -> set[str]:
    """The persistent volumes that a pod mounts."""
    volumes = template["spec"].get("volumes", [])
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}
