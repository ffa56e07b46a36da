"""Enrolment and revocation against a real SuperLink: TLS, node authentication, Flower's own connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from enrolled import FLOOR, NAMES, Enrolled

from client.key_rotation import begin, finish
from server.enrolment import revoke
from server.registry import sync_nodes, write_flower_home
from server.settings import ServerSettings
from shared.errors import ProtocolError
from shared.federation_bundle import read_bundle
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, memory_copy

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).parents[2]
NODE = """
import sys
from pathlib import Path
from httpx import HTTPStatusError
from flwr.supernode.fleet_http_connection import http_request_response
from shared.hazmat.node_keys import NodeKey

address, authority, key = sys.argv[1:]
pair = NodeKey.load(Path(key)).pair
try:
    with http_request_response(address, False, Path(authority).read_bytes(), pair, max_retries=0) as connection:
        print(connection[0], flush=True)
        for _ in sys.stdin:
            print(connection[1](), flush=True)
except (HTTPStatusError, KeyboardInterrupt, SystemExit):  # Flower ends the process of a node that is refused
    print("refused", flush=True)
"""
FLOWER = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    made = Enrolled(tmp_path_factory.mktemp("federation"))
    made.init_server("localhost:8443")
    made.enroll(*(made.init_partner(name).file for name in NAMES))
    ServerSettings(address="localhost:8443", superlink_port=_free_port()).write(made.home)
    return made


@pytest.fixture(scope="module")
def superlink(enrolled: Enrolled) -> Iterator[str]:
    """Flower's own, with its key in memory alone."""
    home, address = enrolled.home, ServerSettings.open(enrolled.home).superlink
    key = memory_copy(home / "tls.key", enrolled.passphrase("server"))
    command = [Path(sys.executable).with_name("flower-superlink"), "--host", "127.0.0.1"]
    command += ["--port", address.rpartition(":")[2], "--enable-supernode-auth"]
    command += ["--database", home / "superlink" / "state.db", "--disable-runtime-dependency-installation"]
    command += ["--ssl-ca-certfile", home / "ca.crt", "--ssl-certfile", home / "tls.crt"]
    command += ["--ssl-keyfile", f"/proc/self/fd/{key}"]
    environment = {**os.environ, **FLOWER, "FLWR_HOME": str(write_flower_home(home, address))}
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env=environment, cwd=home, pass_fds=(key,)
        )
        try:
            _wait(home, address, process)
            yield address
        finally:
            process.terminate()
            process.wait(20)
            os.close(key)


def test_partners_are_registered_once_and_a_revoked_one_is_out(enrolled: Enrolled, superlink: str) -> None:
    home = enrolled.home
    first = sync_nodes(home, superlink)
    assert sorted(first.nodes.values()) == sorted(NAMES)
    assert len(first.registered) == 3 and not first.unregistered
    again = sync_nodes(home, superlink)
    assert again.nodes == first.nodes and not again.registered and not again.unregistered

    with _node(enrolled, superlink, enrolled, "birch") as node:
        assert first.nodes[int(_line(node))] == "birch"  # connected
        assert _ask(node) == "None"  # and asked for a message
        revoke(home, "birch", enrolled.passphrase("server"))
        out = sync_nodes(home, superlink)
        assert len(out.unregistered) == 1 and sorted(out.nodes.values()) == ["alder", "cedar"]
        assert _ask(node) == "refused"
    with _node(enrolled, superlink, enrolled, "birch") as node:
        assert _line(node) == "refused"
    assert not sync_nodes(home, superlink).unregistered


def test_both_keys_of_a_node_count_until_its_change_is_finished(enrolled: Enrolled, superlink: str) -> None:
    home, folder, told = enrolled.home, enrolled.folder("alder"), enrolled.passphrase("alder")
    enrolled.join("alder", read_bundle(enrolled.bundle).fingerprint, **FLOOR)
    before = set(sync_nodes(home, superlink).nodes)
    enrolled.enroll(begin(folder, told).file)
    both = sync_nodes(home, superlink)
    assert list(both.nodes.values()).count("alder") == 2 and len(both.registered) == 1 and not both.unregistered
    enrolled.join("alder")
    enrolled.enroll(finish(folder, told).file)
    after = sync_nodes(home, superlink)
    assert len(after.unregistered) == 1 and after.unregistered[0] in before
    with _node(enrolled, superlink, enrolled, "alder") as node:
        assert int(_line(node)) == both.registered[0]  # its new key, under the id of its own


def test_a_node_that_nobody_enrolled_is_refused(enrolled: Enrolled, superlink: str, tmp_path: Path) -> None:
    stranger = Enrolled(tmp_path)
    stranger.init_partner("stranger")
    with _node(enrolled, superlink, stranger, "stranger") as node:
        assert _line(node) == "refused"


def test_a_swapped_authority_is_not_connected_to(enrolled: Enrolled, superlink: str, tmp_path: Path) -> None:
    other = Enrolled(tmp_path)
    other.init_server()
    (enrolled.root / "other").mkdir()
    (enrolled.root / "other" / "ca.crt").write_bytes((other.home / "ca.crt").read_bytes())
    (enrolled.root / "other" / "partners.json").write_bytes((enrolled.home / "partners.json").read_bytes())
    with pytest.raises(ProtocolError, match="ConnectError"):
        sync_nodes(enrolled.root / "other", superlink)


def test_flowers_own_command_reads_the_configuration(enrolled: Enrolled, superlink: str) -> None:
    folder = write_flower_home(enrolled.home, superlink)
    assert (folder / "config.toml").exists()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("flwr")), "supernode", "list", "--format", "json"],
        env={**os.environ, **FLOWER, "FLWR_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert '"success": true' in done.stdout


def test_a_superlink_that_is_not_there_is_one_clear_error(enrolled: Enrolled) -> None:
    with pytest.raises(ProtocolError, match=r"Expected a SuperLink at 127\.0\.0\.1:\d+, got ConnectError"):
        sync_nodes(enrolled.home, f"127.0.0.1:{_free_port()}")


@contextmanager
def _node(enrolled: Enrolled, address: str, owner: Enrolled, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own: Flower interrupts its own process where a node is refused."""
    key, authority = owner.folder(name) / "node" / "node.key", enrolled.home / "ca.crt"
    told = {PASSPHRASE_VARIABLE: str(owner.passphrase_file(name)), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", NODE, address, str(authority), str(key)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **FLOWER, **told}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def _ask(node: subprocess.Popen[str]) -> str:
    assert node.stdin is not None
    node.stdin.write("\n")
    node.stdin.flush()
    return _line(node)


def _line(node: subprocess.Popen[str]) -> str:
    assert node.stdout is not None
    return node.stdout.readline().strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(home: Path, address: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.2)
    raise AssertionError((home / "superlink.log").read_text()[-3000:])
