"""What each service of compose.yaml has to say, and what is missing from it."""

from __future__ import annotations

import re
from typing import Any

SECRET_NAME = re.compile(r"(?i)pass|secret|token|key|credential")
NEVER = ("privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "extra_hosts", "env_file", "volumes_from")
PARTNER = {"agent", "node"}


def source_of(volume: str | dict[str, Any]) -> str:
    """What a service mounts: a named volume or a path of the host."""
    return str(volume["source"]) if isinstance(volume, dict) else volume.split(":")[0]


def service_faults(service: dict[str, Any]) -> list[str]:
    """What is wrong with one service, merged."""
    found = [key for key in NEVER if key in service]
    if service.get("read_only") is not True:
        found.append("read_only")
    if service.get("cap_drop") != ["ALL"]:
        found.append("cap_drop")
    if "no-new-privileges:true" not in service.get("security_opt", []):
        found.append("no-new-privileges")
    if not re.fullmatch(r"1000\d:1000\d", str(service.get("user", ""))):
        found.append("user")
    found += [limit for limit in ("pids_limit", "mem_limit", "healthcheck") if limit not in service]
    if service.get("network_mode") == "host":
        found.append("network_mode")
    for name, value in service.get("environment", {}).items():
        if SECRET_NAME.search(name) and not (name.endswith("_FILE") and str(value).startswith("/run/secrets/")):
            found.append(f"environment.{name}")
    if any(source_of(volume).startswith((".", "/", "~")) for volume in service.get("volumes", [])):
        found.append("volumes: a path of the host")
    return found


def compose_faults(document: dict[str, Any]) -> list[str]:
    """What is wrong with a compose file: of each service, and of what the agent shares."""
    services = document["services"]
    found = [f"{name}: {fault}" for name, service in services.items() for fault in service_faults(service)]
    if (
        services["agent"].get("network_mode") != "none"
        or "networks" in services["agent"]
        or "ports" in services["agent"]
    ):
        found.append("agent: a network")
    for name in ("node", "agent"):
        shared = {source_of(volume) for volume in services[name]["volumes"]}
        for other in services.keys() - {name}:
            allowed = {"socket"} if {name, other} == PARTNER else set()
            if ours := (shared & {source_of(volume) for volume in services[other].get("volumes", [])}) - allowed:
                found.append(f"{name}: shares {', '.join(sorted(ours))} with {other}")
    if len({service["user"] for service in services.values()}) < len(services):
        found.append("two services of one user")
    if any(set(secret) != {"file"} for secret in document["secrets"].values()):
        found.append("a secret that is not a file")
    held = [secret for service in services.values() for secret in service.get("secrets", [])]
    if len(set(map(str, held))) < len(held):
        found.append("two services of one secret")
    return found
