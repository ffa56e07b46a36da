"""The agent behind its two sockets, as it is served: who may open them, what each is told, what is too large."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from partner_setting import Federation

from client import agent_service
from client.agent_service import serve_agent
from client.agent_socket import MESSAGES, METRICS, STATUS, AgentUnavailableError, ask, post_message
from client.listening import AGENT_SOCKET, OPERATOR_SOCKET, SOCKET_HANDLE, handed_socket, private_socket
from shared.errors import ConfigError
from shared.exchange import KeyOffer
from shared.requests import KeysRequest
from shared.wire import pack_request
from shared.wire_answers import unpack_answer
from shared.wire_frames import from_frame, pack_error, to_frame

LIMIT = 300_000


@dataclass
class Served:
    """An agent's folder, while it is served."""

    federation: Federation
    folder: Path

    @property
    def agent(self) -> Path:
        return self.folder / AGENT_SOCKET

    @property
    def operator(self) -> Path:
        return self.folder / OPERATOR_SOCKET

    def metrics(self) -> dict[str, float]:
        status, told = ask(self.operator, "GET", METRICS)
        assert status == 200
        lines = [line.rsplit(" ", 1) for line in told.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


def serving(folder: Path, patch: pytest.MonkeyPatch) -> tuple[threading.Thread, list[uvicorn.Server]]:
    """Serve in a thread, by the very function that the process calls."""
    servers: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def noted(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        servers.append(self)
        run(self, sockets)
        for each in sockets:
            each.close()  # the process would end here

    patch.setattr(uvicorn.Server, "run", noted)
    thread = threading.Thread(target=serve_agent, args=(folder, "cpu"))
    thread.start()
    until = time.monotonic() + 30
    while not (servers and servers[0].started):
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.005)
    return thread, servers


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="va") as short, pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_service, "LARGEST_MESSAGE", LIMIT)
        federation = Federation.of(Path(short))
        before = os.umask(0)  # what a careless start script may leave
        try:
            thread, servers = serving(federation.folder, patch)
        finally:
            os.umask(before)
        yield Served(federation, federation.folder)
        servers[0].should_exit = True
        thread.join()


# --- the sockets ----------------------------------------------------------------------------------


def test_both_sockets_are_their_owners_alone_whatever_the_umask(served: Served) -> None:
    for address in (served.agent, served.operator):
        mode = address.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is taken by root alone")
def test_another_user_cannot_open_them(served: Served) -> None:
    for folder in (served.folder, *served.folder.parents):
        if folder != Path("/") and folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o711)
    nobody = pwd.getpwnam("nobody")
    for address in (served.agent, served.operator):
        child = os.fork()
        if child == 0:  # of which nothing but this is wanted
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            try:
                socket.socket(socket.AF_UNIX).connect(str(address))
            except PermissionError:
                os._exit(13)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 13


def test_a_socket_that_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    address = tmp_path / "x.sock"
    private_socket(address).close()
    assert address.exists()
    with pytest.raises(AgentUnavailableError):
        ask(address, "GET", STATUS)
    with private_socket(address) as made:
        assert made.getsockname() == str(address)


def test_a_path_that_is_too_long_for_a_socket_is_refused_on_both_sides(tmp_path: Path) -> None:
    address = tmp_path / ("x" * 120)
    for act in (lambda: private_socket(address), lambda: ask(address, "GET", STATUS)):
        with pytest.raises(ConfigError, match="Expected a socket's path of at most 107 bytes"):
            act()


def test_where_no_socket_can_be_made_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made \(FileNotFoundError\)"):
        private_socket(tmp_path / "none" / "x.sock")


def test_a_socket_that_was_handed_over_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handed_socket() is None
    with private_socket(tmp_path / "x.sock") as made:
        monkeypatch.setenv(SOCKET_HANDLE, str(os.dup(made.fileno())))
        with handed_socket() or pytest.fail("none") as handed:
            assert handed.getsockname() == str(tmp_path / "x.sock") and handed.family == socket.AF_UNIX


@pytest.mark.parametrize(("whose", "told"), [("os.getpid()", "x.sock"), ("1", "None")])
def test_a_socket_of_systemd_is_used_by_the_process_that_it_is_for(tmp_path: Path, whose: str, told: str) -> None:
    """As sd_listen_fds(3) has it: descriptor 3, and the number of the process."""
    program = (
        "import os\n"
        f"os.environ |= {{'LISTEN_PID': str({whose}), 'LISTEN_FDS': '1'}}\n"
        "from client.listening import handed_socket\n"
        "made = handed_socket()\n"
        "print(made and made.getsockname())\n"
    )
    with private_socket(tmp_path / "x.sock") as made:
        handle = made.fileno()
        command = ["/bin/sh", "-c", f'exec 3</dev/null; exec "$@" 3<&{handle}', "sh", sys.executable, "-c", program]
        if handle > 9:  # of a shell's redirections, which know one digit
            os.dup2(handle, 9, inheritable=True)
            command[2], handle = command[2].replace(f"&{handle}", "&9"), 9
        done = subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=(handle,))
    assert told in done.stdout


# --- what they say --------------------------------------------------------------------------------


def test_the_node_is_told_what_depends_on_no_data(served: Served) -> None:
    status, told = ask(served.agent, "GET", STATUS)
    assert status == 200 and set(json.loads(told)) == {"partner", "version", "state"}


def test_the_partners_own_people_are_told_more(served: Served) -> None:
    status, told = ask(served.operator, "GET", STATUS)
    shown = json.loads(told)
    assert status == 200 and {"budget", "ledger", "last_error", "device", "partner"} <= set(shown)
    assert shown["ledger"]["entries"] >= 1


def test_metrics_are_for_the_partners_own_people(served: Served) -> None:
    status, told = ask(served.agent, "GET", METRICS)
    assert (status, json.loads(told)) == (403, {"error": "Expected the operator's socket."})
    assert served.metrics()["veilrec_agent_ledger_ok"] == 1.0


def test_nothing_else_is_there(served: Served) -> None:
    for method, path in (("GET", "/"), ("GET", "/docs"), ("POST", "/v1/status/x")):
        assert ask(served.agent, method, path)[0] == 404
    assert ask(served.agent, "GET", MESSAGES)[0] == ask(served.agent, "DELETE", STATUS)[0] == 405


# --- messages -------------------------------------------------------------------------------------


def test_a_message_is_answered_and_the_same_again_alike(served: Served) -> None:
    content = pack_request(KeysRequest(served.federation.signed(served.federation.order())))
    first = post_message(served.agent, content)
    assert isinstance(unpack_answer(first), KeyOffer)
    assert to_frame(post_message(served.agent, content)) == to_frame(first)
    assert served.metrics()['veilrec_agent_answers_total{step="keys"}'] >= 2


def test_what_is_no_message_is_refused_by_the_name_of_its_family(served: Served) -> None:
    status, told = ask(served.agent, "POST", MESSAGES, b"junk")
    assert status == 200 and from_frame(told) == pack_error("ProtocolError")


@pytest.mark.parametrize("size", [LIMIT + 1, 20 * LIMIT])
def test_a_message_over_the_limit_is_refused_counted_and_told_as_that(served: Served, size: int) -> None:
    """The larger one does not fit into the socket's buffer: the node must hear the refusal all the same."""
    counter = 'veilrec_agent_refusals_total{family="ProtocolError"}'
    before = served.metrics()[counter]
    status, told = ask(served.agent, "POST", MESSAGES, bytes(size), timeout_s=20)
    assert (status, json.loads(told)) == (413, {"error": f"Expected a message of <= {LIMIT} bytes."})
    assert served.metrics()[counter] == before + 1
    assert ask(served.agent, "GET", STATUS)[0] == 200


def test_the_node_says_of_a_refused_message_what_the_agent_said(served: Served) -> None:
    from flwr.app import ConfigRecord, RecordDict

    content = RecordDict({"big": ConfigRecord({"bytes": bytes(LIMIT)})})
    with pytest.raises(ConfigError, match="Expected the agent to take a message of version v1, got HTTP status=413"):
        post_message(served.agent, content)


def test_a_message_of_just_the_limit_is_read(served: Served) -> None:
    status, told = ask(served.agent, "POST", MESSAGES, b"\xff" * LIMIT)
    assert status == 200 and from_frame(told) == pack_error("ProtocolError")


def test_a_caller_that_never_finishes_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_service, "READ_S", 0.2)
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(10)
        made.connect(str(served.agent))
        made.sendall(f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf".encode())
        answer = http.client.HTTPResponse(made)
        answer.begin()
        assert answer.status == 408
    assert ask(served.agent, "POST", MESSAGES, b"junk")[0] == 200


def test_a_caller_that_is_gone_in_the_middle_stops_nobody(served: Served) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as made:
            made.connect(str(served.agent))
            made.sendall(f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf".encode())
    assert ask(served.agent, "POST", MESSAGES, b"junk")[0] == 200


def test_a_folder_that_is_no_partners_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        serve_agent(tmp_path)
    assert list(tmp_path.iterdir()) == []
