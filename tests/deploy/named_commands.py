"""What the packaging names of Veilrec: commands, their options, and variables of the environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from deploy_setting import DEPLOY, DOCKER, HELM, SYSTEMD

_FLOW_LIST = re.compile(r"^\s*(?:- )?(?:args|command|CMD|entrypoint):? \[(.*?)\]$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"```sh\n(.*?)```|`([^`\n]+)`", re.DOTALL)
_CALL = re.compile(r"(?:^|[\s'\"(]|bin/)veilrec((?: [^\s'\"`;|&()]+)+)", re.MULTILINE)
_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")

Call = tuple[str, list[str]]


def calls_in(text: str) -> Iterator[list[str]]:
    """The words after each ``veilrec`` of a text in which it stands for the command."""
    text = re.sub(r"--entrypoint veilrec \S+", " veilrec", text.replace("\\\n", " "))  # of a service, then its command
    for found in _CALL.finditer(text):
        yield found[1].split()


def named_calls() -> list[Call]:
    """Every call of the command in `deploy/`: (file, words)."""
    calls: list[Call] = []
    for file in sorted(SYSTEMD.glob("*.service")):
        for line in file.read_text().splitlines():
            if line.startswith("Exec"):
                calls += [(file.name, words) for words in calls_in(line)]
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    calls += [("compose.yaml", service["command"]) for service in document["services"].values()]
    for file in [DOCKER / "Dockerfile", DOCKER / "compose.yaml", *sorted(HELM.rglob("*.yaml"))]:
        comments = "\n".join(line for line in file.read_text().splitlines() if line.lstrip().startswith("#"))
        calls += [(file.name, words) for code in _code(comments) for words in calls_in(code)]
    for file in sorted(HELM.glob("*/templates/*.yaml")):
        for found in _FLOW_LIST.finditer(file.read_text()):
            words = shlex.split(found[1].replace(",", " "))
            if words and words[0] in ("server", "partner", "serve"):
                calls.append((file.name, words))
    for file in sorted(HELM.glob("*/templates/NOTES.txt")):
        calls += [(file.name, words) for words in calls_in(file.read_text())]
    readme = DEPLOY / "README.md"
    calls += [(readme.name, words) for code in _code(readme.read_text()) for words in calls_in(code)]
    return calls


def _code(markdown: str) -> Iterator[str]:
    for found in _CODE.finditer(markdown):
        yield found[1] or found[2]


def call_fault(root: click.Command, words: list[str]) -> str:
    """What of a call the command does not know; empty if it knows all."""
    command, path = root, ["veilrec"]
    words = [word for word in words if word not in ("...", "\\")]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        child = command.commands.get(name)
        path.append(name)
        if child is None:
            return " ".join(path)
        command = child
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("--") and word.split("=")[0] not in known:
            return " ".join([*path, word])
    return ""


def named_variables() -> dict[str, set[str]]:
    """Variables of the environment that `deploy/` sets: name -> files."""
    found: dict[str, set[str]] = {}
    for file in SYSTEMD.glob("*.service"):
        for line in file.read_text().splitlines():
            if line.startswith("Environment="):
                for pair in line.removeprefix("Environment=").split():
                    found.setdefault(pair.split("=")[0], set()).add(file.name)
    document: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for service in document["services"].values():
        for name in service.get("environment", {}):
            found.setdefault(name, set()).add("compose.yaml")
    last = (DOCKER / "Dockerfile").read_text().rsplit("\nENV ", 1)[1].split("\nUSER", 1)[0]
    for name in re.findall(r"\b([A-Z_]+)=", last):
        found.setdefault(name, set()).add("Dockerfile")
    for file in HELM.glob("*/templates/*"):
        for name in re.findall(r"\{name: ([A-Z][A-Z_]+), value: ", file.read_text()):
            found.setdefault(name, set()).add(file.name)
    return found


def variables_of_code(folder: Path) -> set[str]:
    """Names of that form that stand as text in the Python files of a folder."""
    literal = re.compile(rf"[\"']({_VARIABLE.pattern})[\"']")
    return {name for file in folder.rglob("*.py") for name in literal.findall(file.read_text(encoding="utf-8"))}
