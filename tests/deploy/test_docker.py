"""The image and the compose file."""

from __future__ import annotations

import copy
import http.client
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_rules import compose_faults
from deploy_setting import DOCKER, ENVIRONMENT, REPOSITORY, tool

DOCUMENT: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
Change = Callable[[dict[str, Any]], Any]


def run(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)


def test_the_compose_files_are_valid_to_compose_itself() -> None:
    files = ["-f", str(DOCKER / "compose.yaml")]
    for more in ([], ["-f", str(DOCKER / "compose.gpu.yaml")]):
        done = run(tool("docker-compose"), *files, *more, "--profile", "*", "config", "--format", "json")
        assert done.returncode == 0, done.stderr
        services = json.loads(done.stdout)["services"]
        assert set(services) == set(DOCUMENT["services"])
        assert services["agent"]["network_mode"] == "none"
        assert ("deploy" in services["agent"]) == bool(more)


def test_compose_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text((DOCKER / "compose.yaml").read_text().replace("read_only:", "read_onyl:"))
    done = run(tool("docker-compose"), "-f", str(file), "--profile", "*", "config", "-q")
    assert done.returncode != 0 and "read_onyl" in done.stderr


def test_every_service_is_closed_as_it_should_be() -> None:
    assert compose_faults(DOCUMENT) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s["node"]["environment"].update(NODE_PASSPHRASE="x"), "node: environment.NODE_PASSPHRASE"),
        (lambda s: s["node"]["environment"].update(VEILREC_PASSPHRASE_FILE="/tmp/x"), "VEILREC_PASSPHRASE_FILE"),
        (lambda s: s["agent"].update(network_mode="bridge"), "agent: a network"),
        (lambda s: s["agent"].update(networks=["outward"]), "agent: a network"),
        (lambda s: s["node"]["volumes"].append("agent:/data:ro"), "shares agent"),
        (lambda s: s["serve"]["volumes"].append("agent:/data:ro"), "agent: shares agent with serve"),
        (lambda s: s["node"]["volumes"].append("/var/run/docker.sock:/s"), "a path of the host"),
        (lambda s: s["serve"].update(read_only=False), "serve: read_only"),
        (lambda s: s["coordinator"].pop("cap_drop"), "coordinator: cap_drop"),
        (lambda s: s["coordinator"].update(privileged=True), "coordinator: privileged"),
        (lambda s: s["node"].update(user="10001:10001"), "two services of one user"),
        (lambda s: s["node"].update(secrets=["agent.passphrase"]), "two services of one secret"),
    ],
)
def test_a_service_that_lacks_a_wall_is_found(change: Change, fault: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document["services"])
    assert any(fault in found for found in compose_faults(document))


def test_a_secret_from_the_environment_is_found() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["secrets"]["agent.passphrase"] = {"environment": "AGENT_PASSPHRASE"}
    assert compose_faults(document) == ["a secret that is not a file"]


def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    done = run(tool("hadolint"), str(DOCKER / "Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")
    planted = run(tool("hadolint"), "-", text=DOCKERFILE.replace("USER 10001:10001", "USER root"))
    assert "DL3002" in planted.stdout


def test_the_image_runs_as_nobody_in_particular_and_calls_nowhere() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]
    assert "\nHEALTHCHECK " in last
    assert all(f"{name}={value}" in last for name, value in ENVIRONMENT.items())
    # No index is asked where the packages are installed, and no stage takes a secret.
    assert "RUN --network=none --mount=type=bind,from=wheels,target=/wheels wheelhouse install" in DOCKERFILE
    assert not re.search(r"(?i)passphrase|secret", DOCKERFILE)


def test_only_code_reaches_the_builder() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert all((REPOSITORY / rule[1:]).exists() for rule in rules if rule[0] == "!" and "*" not in rule)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert all((REPOSITORY / name).exists() for names in copied for name in names.split())
    shown = [rule[1:].split("/")[0] for rule in rules if rule[0] == "!"]
    assert all(name.split("/")[0] in shown for names in copied for name in names.split())


ANSWER = """
import os, socket, sys
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_PID"] == str(os.getpid())
caller, _ = socket.socket(fileno=3).accept()
caller.recv(9999)
caller.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""


def test_the_agent_is_handed_a_socket_that_its_group_alone_may_open(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    command = [sys.executable, str(DOCKER / "listen.py"), str(path), str(os.getgid()), sys.executable, "-c", ANSWER]
    with subprocess.Popen(command) as agent:
        try:
            while not healthy(str(path)):  # until the new socket is in the old one's place
                assert agent.poll() is None
            assert path.stat().st_mode & 0o777 == 0o660
            assert path.stat().st_gid == os.getgid()
            assert agent.wait(10) == 0
        finally:
            agent.kill()
    assert not healthy(str(path))


@pytest.mark.parametrize("arguments", [[], ["a.sock", "staff", "true"], ["/no/such/folder/a.sock", "0", "true"]])
def test_a_socket_that_cannot_be_made_is_one_clear_line(arguments: list[str]) -> None:
    done = run(sys.executable, str(DOCKER / "listen.py"), *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("listen.py: ") and done.stderr.count("\n") == 1


def healthy(*addresses: str) -> bool:
    return run(sys.executable, "-S", str(DOCKER / "healthy.py"), *addresses).returncode == 0


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(http.client.OK if self.path == "/healthz" else http.client.SERVICE_UNAVAILABLE)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name of the base class)
        pass


@pytest.fixture
def page() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_what_answers_200_is_healthy_and_nothing_else(page: str, tmp_path: Path) -> None:
    assert healthy(str(tmp_path / "none.sock"), f"{page}/healthz")
    assert not healthy(f"{page}/readyz")
    assert not healthy(str(tmp_path / "none.sock"), "http://127.0.0.1:1/healthz")
    assert not healthy()
