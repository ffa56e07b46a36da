"""What every systemd unit of Veilrec has to say: a unit as lists of values, and what is missing from it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

Unit = dict[str, list[str]]

EVERY_SERVICE = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "PrivateUsers": "yes",
    "ProtectProc": "invisible",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "LockPersonality": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
    "LimitCORE": "0",  # a core file holds keys and rows
    "StateDirectoryMode": "0700",
    "DevicePolicy": "closed",
}
NO_NETWORK = {"PrivateNetwork": "yes", "RestrictAddressFamilies": "AF_UNIX", "IPAddressDeny": "any"}
STATE = {
    "veilrec-agent": "veilrec-agent",
    "veilrec-import": "veilrec-agent",
    "veilrec-node": "veilrec-node",
    "veilrec-server": "veilrec-server",
    "veilrec-backup": "veilrec-server",
    "veilrec-serve": "veilrec-serve",
}
"""Service -> its user, and the only folder of state that it may see."""


def read_unit(text: str) -> Unit:
    """The settings of a unit: each name with its values, in order."""
    settings: Unit = defaultdict(list)
    for line in text.splitlines():
        if "=" in line and not line.startswith(("#", ";", "[")):
            name, _, value = line.partition("=")
            settings[name].append(value)
    return dict(settings)


def faults(name: str, text: str) -> list[str]:
    """What is wrong with a service; nothing if it is as it should be."""
    unit = read_unit(text)
    wanted = EVERY_SERVICE | (NO_NETWORK if name in ("veilrec-agent", "veilrec-backup") else {})
    wanted |= {"User": STATE[name], "StateDirectory": STATE[name]}
    if name == "veilrec-node":
        wanted |= {"MemoryDenyWriteExecute": "yes", "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6"}
    found = [f"{key}={wanted[key]}" for key in wanted if unit.get(key) != [wanted[key]]]
    if unit.get("SystemCallFilter") != ["@system-service", "~@privileged @resources"]:
        found.append("SystemCallFilter")
    hidden = " ".join(unit.get("InaccessiblePaths", []))
    others = {f"-/var/lib/{user}" for user in STATE.values() if user != STATE[name]}
    found += sorted(f"InaccessiblePaths={path}" for path in others if path not in hidden.split())
    return found


def socket_faults(text: str) -> list[str]:
    """What is wrong with the agent's socket: the node's user alone may open it."""
    unit = read_unit(text)
    wanted = {
        "ListenStream": "/run/veilrec/agent.sock",
        "SocketMode": "0600",
        "SocketUser": STATE["veilrec-node"],
        "SocketGroup": STATE["veilrec-node"],
    }
    return [key for key in wanted if unit.get(key) != [wanted[key]]]


def services(folder: Path) -> dict[str, str]:
    """The services in a folder: name -> text."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.service"))}
