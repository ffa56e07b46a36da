"""The charts, rendered by Helm's own engine and checked by Kubernetes' own schemas."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rules import Manifest, claims_of, pod_faults, pods, policy_of
from deploy_setting import HELM

SERVER, PARTNER = "veilrec-server", "veilrec-partner"
LEAST: dict[str, dict[str, Any]] = {
    SERVER: {"passphrase": {"existingSecret": "coordinator"}},
    PARTNER: {
        "coordinator": {"cidr": "203.0.113.7/32"},
        "agent": {"passphrase": {"existingSecret": "agent"}},
        "node": {"passphrase": {"existingSecret": "node"}},
    },
}
"""What has to be said."""
ALL: dict[str, dict[str, Any]] = {
    SERVER: LEAST[SERVER] | {"image": {"digest": "sha256:" + "a" * 64}, "podAnnotations": {"a": "b"}},
    PARTNER: LEAST[PARTNER]
    | {
        "agent": {"passphrase": {"existingSecret": "agent"}, "gpu": {"count": 1}, "dropsClaim": "drops"},
        "import": {"enabled": True, "databaseCIDRs": ["10.1.2.3/32"]},
        "ranking": {
            "enabled": True,
            "tokens": {"existingSecret": "tokens"},
            "trust": {"existingSecret": "trust"},
            "allowedFrom": [{"podSelector": {"matchLabels": {"app": "shop"}}}],
        },
        "nodeSelector": {"disk": "fast"},
    },
}
"""With all that is off by default."""
CASES = [(chart, settings) for chart in (SERVER, PARTNER) for settings in ("least", "all", "maintenance")]


@cache
def rendered(chart: str, values: str, folder: Path = HELM) -> dict[str, Any]:
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("no Helm: pip install helm-python-sdk")
    asked = json.dumps({"chart": str(folder / chart), "values": json.loads(values)})
    script = str(Path(__file__).with_name("render_chart.py"))
    done = subprocess.run([sys.executable, script], input=asked, capture_output=True, text=True, check=True, timeout=30)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@cache
def manifests(chart: str, settings: str = "all") -> list[Manifest]:
    values = LEAST[chart] if settings == "least" else ALL[chart]
    told = rendered(chart, json.dumps(values | {"maintenance": settings == "maintenance"}))
    assert told["error"] == ""
    texts = [text for name, text in told["manifests"].items() if not name.endswith("NOTES.txt")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def pod(chart: str, part: str) -> Manifest:
    return dict(pods(manifests(chart)))[f"shop-{part}"]


@pytest.mark.parametrize("chart", [SERVER, PARTNER])
def test_kubernetes_knows_every_manifest_from_the_oldest_version_on(chart: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = manifests(chart)
    for manifest in found:
        for version in ("1.25", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)
    assert {manifest["kind"] for manifest in found} >= {"StatefulSet", "NetworkPolicy", "PersistentVolumeClaim"}


@pytest.mark.parametrize("chart", [SERVER, PARTNER])
def test_helm_finds_nothing_to_say_but_that_there_is_no_icon(chart: str) -> None:
    told = rendered(chart, json.dumps(ALL[chart]))["lint"]
    assert [message["error"] for message in told["messages"]] == ["icon is recommended"]


def test_kubernetes_refuses_a_field_that_it_does_not_know() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    broken = copy.deepcopy(next(m for m in manifests(SERVER) if m["kind"] == "StatefulSet"))
    broken["spec"]["template"]["spec"]["containers"][0]["securtyContext"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


@pytest.mark.parametrize(
    ("chart", "values", "where"),
    [
        (SERVER, {}, "/passphrase/existingSecret"),
        (PARTNER, {}, "/coordinator/cidr"),
        (SERVER, {"passphrase": {"existingSecret": "a", "value": "hunter2"}}, "/passphrase"),
        (PARTNER, LEAST[PARTNER] | {"coordinator": {"cidr": "veilrec.example"}}, "/coordinator/cidr"),
        (PARTNER, LEAST[PARTNER] | {"ranking": {"enabled": True}}, "/ranking/tokens/existingSecret"),
        (PARTNER, LEAST[PARTNER] | {"nodes": 2}, "nodes"),
    ],
)
def test_values_that_cannot_be_right_are_refused(chart: str, values: dict[str, Any], where: str) -> None:
    told = rendered(chart, json.dumps(values))
    assert told["manifests"] == {} and where in told["error"]


@pytest.mark.parametrize(("chart", "settings"), CASES)
def test_every_pod_is_closed_as_it_should_be(chart: str, settings: str) -> None:
    found = manifests(chart, settings)
    assert {name: pod_faults(template) for name, template in pods(found)} == {name: [] for name, _ in pods(found)}
    assert all(len(policy_of(found, template)) == 1 for _, template in pods(found))
    assert not any(manifest["kind"] == "Secret" for manifest in found)


def test_a_pod_that_lacks_a_wall_is_found() -> None:
    for key, value, fault in (
        ("hostNetwork", True, "hostNetwork"),
        ("automountServiceAccountToken", True, "automountServiceAccountToken"),
        ("securityContext", {"runAsNonRoot": True, "runAsUser": 1}, "seccompProfile"),
        ("volumes", [{"hostPath": {"path": "/"}}], "hostPath"),
    ):
        broken = copy.deepcopy(pod(PARTNER, "agent"))
        broken["spec"][key] = value
        assert pod_faults(broken) == [fault]
    broken = copy.deepcopy(pod(PARTNER, "node"))
    broken["spec"]["containers"][0]["env"] += [{"name": "P", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]
    assert pod_faults(broken) == ["node: a secret in the environment"]


def test_the_agent_has_no_way_in_or_out_and_the_node_one() -> None:
    found = manifests(PARTNER)
    (agent,) = policy_of(found, pod(PARTNER, "agent"))
    assert agent["policyTypes"] == ["Ingress", "Egress"] and agent["ingress"] == agent["egress"] == []
    (node,) = policy_of(found, pod(PARTNER, "node"))
    coordinator, names = node["egress"]
    assert node["ingress"] == []
    assert coordinator == {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"port": 9443, "protocol": "TCP"}],
    }
    assert {port["port"] for port in names["ports"]} == {53}


def test_agent_and_node_share_the_sockets_volume_and_a_machine_and_nothing_else() -> None:
    agent, node = pod(PARTNER, "agent"), pod(PARTNER, "node")
    assert claims_of(agent) & claims_of(node) == {"shop-socket"}
    assert agent["spec"]["securityContext"]["runAsUser"] != node["spec"]["securityContext"]["runAsUser"]
    (beside,) = node["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert beside["topologyKey"] == "kubernetes.io/hostname"
    assert beside["labelSelector"]["matchLabels"].items() <= agent["metadata"]["labels"].items()


@pytest.mark.parametrize("chart", [SERVER, PARTNER])
def test_keys_and_ledgers_outlive_the_release(chart: str) -> None:
    claims = {m["metadata"]["name"]: m["metadata"] for m in manifests(chart) if m["kind"] == "PersistentVolumeClaim"}
    kept = {name for name, about in claims.items() if about.get("annotations") == {"helm.sh/resource-policy": "keep"}}
    assert claims.keys() - kept == ({"shop-socket"} if chart == PARTNER else set())


def test_a_gpu_is_asked_for_beside_the_other_limits() -> None:
    limits = pod(PARTNER, "agent")["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi", "nvidia.com/gpu": 1}
    least = dict(pods(manifests(PARTNER, "least")))["shop-agent"]["spec"]["containers"][0]["resources"]["limits"]
    assert least == {"memory": "16Gi"}
