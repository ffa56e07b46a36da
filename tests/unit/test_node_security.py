"""What the node, its user and the outside can do to a partner, beyond what they are there for."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from partner_setting import Federation

from client import agent_service
from client.agent_monitor import AgentMonitor
from client.agent_service import agent_app
from client.agent_socket import MESSAGES
from client.listening import private_socket
from client.node import Link, Node
from client.node_settings import NodeSettings
from client.partner_process import FOR_NODES, Users, node_command, separate
from client.premises import PARTNER_FILE, Premises
from client.resident import ResidentAgent
from client.spool import Spool
from shared.errors import ConfigError
from shared.hazmat import key_files
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, create_passphrase_file
from shared.hazmat.node_keys import NodeKey
from shared.logs import Log
from shared.requests import KeysRequest
from shared.watched import Command, Watched, python
from shared.wire import pack_request
from shared.wire_frames import from_frame, pack_error, to_frame

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files and processes to other users")
NOBODY = "nobody"


def message(message_id: str, *, run_id: int = 1, error: Error | None = None) -> Message:
    """One from a coordinator, which names it as it likes."""
    told = Metadata(
        run_id=run_id, message_id=message_id, src_node_id=1, dst_node_id=1, reply_to_message_id="", group_id="",
        created_at=time.time(), ttl=3600.0, message_type="train",
    )  # fmt: skip
    return make_message(told, RecordDict({"a": ConfigRecord({"b": 1})}) if error is None else None, error)


class Run:
    """One whose bundle is pinned."""

    fab_hash = "0" * 64


SETTINGS = NodeSettings(address="localhost:1", bundles=(Run.fab_hash,), socket="/nowhere")


def unused(*_: object) -> Any:
    """A part of the connection that a test does not need."""


# --- the node --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../planted", "/tmp/veilrec-planted", "a/b", "", ".", "x" * 4000, "nul\0byte"])
def test_no_message_id_names_a_file_outside_the_spool(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path / "node" / "spool")
    spool.keep(message(name))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 1 and kept[0].parent == spool.folder
    assert [left.metadata.message_id for left in spool.left()] == [name]
    spool.drop(message(name))
    assert not list(spool.folder.iterdir())


def test_the_coordinator_is_not_told_how_long_an_answer_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a round grows with the users in it."""
    told: list[float] = []

    def send(reply: Message, tree: object, seconds: float) -> tuple[set[str], str]:
        told.append(seconds)
        return set(), ""

    def slow(*_: object) -> RecordDict:
        asyncio.run(asyncio.sleep(0.02))
        return pack_error("ProtocolError")

    monkeypatch.setattr("client.node.post_message", slow)
    link = Link(1, unused, send, lambda _: Run(), *[unused] * 4)
    Node(link, SETTINGS, Spool(tmp_path), Log(None))._deliver(message("0" * 64))
    assert told == [0.0]


def test_a_message_that_cannot_be_answered_does_not_end_every_life_of_a_node(tmp_path: Path) -> None:
    """It lies in the spool when the node is started again, and would be the first thing that it looks at."""
    sent: list[RecordDict] = []

    def run_of(run_id: int) -> Run:
        if run_id == 2:
            raise LookupError("of a SuperLink that lost its database")
        return Run()

    def send(reply: Message, tree: object, seconds: float) -> tuple[set[str], str]:
        sent.append(reply.content)
        return set(), ""

    link = Link(1, unused, send, run_of, unused, unused, unused, unused)
    spool = Spool(tmp_path / "spool")
    spool.keep(message("of a lost run", run_id=2))
    spool.keep(message("an error in place of a content", error=Error(1, "")))
    node = Node(link, SETTINGS, spool, Log(None))
    for left in spool.left():
        node._deliver(left)
    assert sent == [pack_error("ProtocolError")]
    assert list(spool.left()) == []


def test_a_reply_that_was_cut_off_is_sent_again_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the head of a reply and its parts: a SuperLink would wait minutes for those of that very reply."""
    heads: list[str] = []
    asked: list[object] = []

    def answer(*told: object) -> RecordDict:
        asked.append(told)
        return pack_error("ProtocolError")

    def send(reply: Message, tree: object, seconds: float) -> tuple[set[str], str]:
        heads.append(reply.metadata.message_id)
        if len(heads) == 1:
            raise SystemExit  # as a signal would
        return set(), ""

    monkeypatch.setattr("client.node.post_message", answer)
    link = Link(1, unused, send, lambda _: Run(), *[unused] * 4)
    spool = Spool(tmp_path)
    spool.keep(message("0" * 64))
    for _ in range(2):
        node = Node(link, SETTINGS, Spool(tmp_path), Log(None))
        with suppress(SystemExit):
            for left in spool.left():
                node._deliver(left)
    assert len(heads) == 2 and heads[0] == heads[1]
    assert len(asked) == 1 and list(tmp_path.iterdir()) == []


# --- the agent's socket ------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Callable[[list[dict[str, Any]], list[bytes]], Awaitable[int]]:
    """Calls a real agent's application with parts of a body; the status, while `taken` shows what was read."""
    federation = Federation.of(tmp_path)
    monitor = AgentMonitor(Premises.open(federation.folder))
    app = agent_app(ResidentAgent(federation.folder, "cpu", monitor), monitor, federation.folder / "operator.sock")

    async def call(parts: list[dict[str, Any]], taken: list[bytes], **headers: str) -> int:
        status = []

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.Event().wait()
            part = parts.pop(0)
            taken.append(part["body"])
            return part

        async def send(told: Any) -> None:
            status.append(told.get("status"))

        scope = {"type": "http", "method": "POST", "path": MESSAGES, "query_string": b"", "http_version": "1.1"}
        scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope["server"] = ("agent.sock", None)
        await app(scope, receive, send)
        return int(status[0])

    return call


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_of_many_messages_at_once_one_is_in_memory(agent: Any) -> None:
    """Forty connections of the node's user with a large message each would else be forty messages in memory."""

    async def at_once() -> None:
        taken: list[bytes] = []
        one = asyncio.create_task(agent([body(b"x", more=True)], taken))
        other = asyncio.create_task(agent([body(b"junk")], taken))
        await asyncio.sleep(0.05)
        assert taken == [b"x"] and not one.done() and not other.done()
        one.cancel()
        assert await asyncio.wait_for(other, 5) == 200
        assert taken == [b"x", b"junk"]

    asyncio.run(at_once())


def test_what_is_too_large_is_read_to_its_end_and_not_kept(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever sent it hears why, and does not take the closed connection for an agent that is started anew."""
    monkeypatch.setattr(agent_service, "LARGEST_MESSAGE", 10)

    async def asked(**headers: str) -> tuple[int, int]:
        taken: list[bytes] = []
        parts = [body(b"12345678", more=True), body(b"12345678", more=True), body(b"1")]
        return await agent(parts, taken, **headers), len(taken)

    assert asyncio.run(asked()) == (413, 3)
    assert asyncio.run(asked(content_length="17")) == (413, 3)


def test_a_message_that_does_not_end_is_given_up(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_service, "READ_S", 0.05)

    async def asked() -> list[int]:
        return [await agent([body(b"x", more=True)], []), await agent([body(b"junk")], [])]

    assert asyncio.run(asked()) == [408, 200]


# --- users and processes ------------------------------------------------------------------------------


def test_what_lies_where_a_process_is_started_is_not_imported(tmp_path: Path) -> None:
    """``cd /tmp && veilrec partner agent DIR`` as root would else run what anybody has put there, as the agent."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").touch()
    (tmp_path / "shared" / "launched.py").write_text("print('planted')")
    command = python("shared.launched", "/bin/true")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
    assert (
        subprocess.run(
            [word for word in command if word != "-P"], cwd=tmp_path, capture_output=True, check=False
        ).stdout
        == b"planted\n"
    )


def test_a_process_may_be_given_a_part_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGPASSWORD", "of the shop's database")
    file = tmp_path / "told"
    told = f"import os, pathlib; pathlib.Path({str(file)!r}).write_text(' '.join(os.environ))"

    async def started(command: Command) -> str:
        process = await Watched(command, Log(None))._start()
        await process.wait()
        return file.read_text()

    assert "PGPASSWORD" in asyncio.run(started(Command("a", [sys.executable, "-c", told])))
    kept = Command("a", [sys.executable, "-c", told], {"OWN": "1"}, inherits=frozenset({"PATH"}))
    names = set(asyncio.run(started(kept)).split())
    assert {"PATH", "OWN", "HF_HUB_OFFLINE"} <= names and "PGPASSWORD" not in names


@as_root
def test_the_node_is_handed_its_own_key_and_not_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One passphrase opens all keys of a partner."""
    monkeypatch.setattr(key_files, "SCRYPT_LOG_N", 4)
    create_passphrase_file(tmp_path / "passphrase")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(tmp_path / "passphrase"))
    first = NodeKey.load_or_create(tmp_path / "node" / "node.key")
    command = node_command(tmp_path, [], NOBODY)
    assert command.inherits == FOR_NODES and not {PASSPHRASE_VARIABLE, "CREDENTIALS_DIRECTORY"} & FOR_NODES
    assert PASSPHRASE_VARIABLE not in command.environment
    (handle,) = command.handles
    given = os.fstat(handle)
    assert (given.st_uid, given.st_mode & 0o777) == (pwd.getpwnam(NOBODY).pw_uid, 0o600)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    assert NodeKey.load(Path(f"/proc/self/fd/{handle}")).public_text == first.public_text

    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(tmp_path / "passphrase"))
    (tmp_path / "node" / "node.key").unlink()  # as a change of keys does
    second = NodeKey.load_or_create(tmp_path / "node" / "node.key")
    command.prepare()
    assert NodeKey.load(Path(f"/proc/self/fd/{handle}")).public_text == second.public_text
    (tmp_path / "node" / "node.key").write_bytes(b"damaged")
    command.prepare()  # the node is started all the same, with the key of before
    assert NodeKey.load(Path(f"/proc/self/fd/{handle}")).public_text == second.public_text
    os.close(handle)


@pytest.fixture
def premises(tmp_path: Path) -> Iterator[Path]:
    """A folder as `separate` finds it."""
    for file in ("identity.key", "data/interactions.parquet", "node/node.key", "node/spool/identity.key"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(file)
        (tmp_path / file).chmod(0o644)
    yield tmp_path


@as_root
def test_agent_and_node_each_have_their_own_files(premises: Path) -> None:
    (premises / "node" / "link").symlink_to("../identity.key")
    os.mkfifo(premises / "node" / "pipe")
    agent, node = pwd.getpwnam("daemon"), pwd.getpwnam(NOBODY)
    with private_socket(premises / "agent.sock"):
        separate(premises, "daemon", NOBODY)
    for path in (premises, *premises.rglob("*")):
        owner = node if path.is_relative_to(premises / "node") else agent
        assert (path.lstat().st_uid, path.lstat().st_gid) == (owner.pw_uid, owner.pw_gid), path
    modes = {path: path.stat().st_mode & 0o777 for path in (premises, *premises.rglob("*")) if not path.is_symlink()}
    assert modes.pop(premises) == 0o711
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file() or path.is_socket()} == {0o600}


@as_root
def test_a_folder_that_the_nodes_user_swaps_meanwhile_gives_it_nothing(
    premises: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It turns ``node/spool`` into a link to the partner's folder just when its files are to be handed over."""
    chown, fchown, spool = os.chown, os.fchown, (premises / "node" / "spool").stat()

    def swap(of: os.stat_result) -> None:
        if (of.st_dev, of.st_ino) == (spool.st_dev, spool.st_ino) and not (premises / "node" / "spool").is_symlink():
            (premises / "node" / "spool").rename(premises / "node" / "was")
            (premises / "node" / "spool").symlink_to("..")

    def by_path(path: Any, *told: Any, **named: Any) -> None:
        chown(path, *told, **named)
        swap(os.stat(path, dir_fd=named.get("dir_fd"), follow_symlinks=False))

    def by_handle(handle: int, *told: Any) -> None:
        fchown(handle, *told)
        swap(os.fstat(handle))

    monkeypatch.setattr(os, "chown", by_path)
    monkeypatch.setattr(os, "fchown", by_handle)
    separate(premises, "daemon", NOBODY)
    assert (premises / "node" / "spool").is_symlink()  # it did come to that
    assert (premises / "identity.key").stat().st_uid == pwd.getpwnam("daemon").pw_uid


@as_root
def test_a_second_name_of_somebody_elses_file_is_refused(premises: Path) -> None:
    """Where the kernel lets a user make one (``fs.protected_hardlinks = 0``), root would give the file away."""
    (premises / "node" / "mine").hardlink_to(premises / "identity.key")
    with pytest.raises(ConfigError, match="Expected files of one name"):
        separate(premises, "daemon", NOBODY)
    assert (premises / "identity.key").stat().st_uid == 0


@as_root
@pytest.mark.parametrize("users", [Users("root", NOBODY), Users("daemon", "root"), Users(NOBODY, NOBODY)])
def test_users_that_do_not_separate_are_refused(users: Users) -> None:
    with pytest.raises(ConfigError):
        users.check()
    Users("daemon", NOBODY).check()


# --- the agent's floor --------------------------------------------------------------------------------


def test_a_floor_that_is_raised_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation.of(tmp_path)
    opened, file = Premises.open, federation.folder / PARTNER_FILE

    def slowly(folder: Path) -> Premises:
        found = opened(folder)
        monkeypatch.setattr(Premises, "open", opened)
        fresh = file.with_suffix(".new")
        fresh.write_text(file.read_text().replace("max_epsilon = 12.0", "max_epsilon = 1.0"))
        fresh.replace(file)
        return found

    monkeypatch.setattr(Premises, "open", slowly)
    resident = ResidentAgent(federation.folder, "cpu", AgentMonitor(opened(federation.folder)))
    assert resident.premises.policy.max_epsilon == 12.0
    asked = to_frame(pack_request(KeysRequest(federation.signed(federation.order()))))
    assert from_frame(resident.answer(asked)) == pack_error("PolicyViolationError")
