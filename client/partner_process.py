"""A partner's two processes, kept running: the agent, which has the data, and the node, which has the network.

::

    coordinator <--TLS-- node (no data) --agent.sock--> agent (no network)

As root, each gets a user of its own, so that the node cannot read what the agent may; under systemd or containers each
is a unit of its own, which starts with ``--only``.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.listening import AGENT_SOCKET, SOCKET_HANDLE, private_socket
from client.node_settings import NODE_FOLDER, NODE_KEY_FILE, NODE_KEY_HANDLE
from shared.errors import ConfigError, VeilrecError
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, memory_copy, passphrase_copy, refresh_copy
from shared.launched import die_with_parent
from shared.logs import Log, take_over
from shared.watched import Command, Watched, end_on_signals, python

AGENT, NODE = "agent", "node"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
FOR_NODES = frozenset(
    {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", *_PROXIES, *map(str.lower, _PROXIES)}
)
"""All that a node of another user is told of the environment: passwords of databases stand in it, and more."""


@dataclass(frozen=True, slots=True)
class Users:
    """The operating system's users of the two processes; None: whoever starts them.

    Attributes
    ----------
    agent, node : str, optional
    """

    agent: str | None = None
    node: str | None = None

    def check(self) -> None:
        """Refuse users that cannot be taken, or that do not separate.

        Raises
        ------
        ConfigError
        """
        if (self.agent is None) != (self.node is None):
            raise ConfigError("Expected both of agent-user and node-user, or none.")
        if self.agent is None:
            return
        if os.geteuid() != 0:
            raise ConfigError("Expected to be started by root where agent-user and node-user are given.")
        try:
            ids = [pwd.getpwnam(str(name)).pw_uid for name in (self.agent, self.node)]
        except KeyError:
            raise ConfigError("Expected agent-user and node-user to be users of this machine.") from None
        if ids[0] == ids[1] or 0 in ids:
            raise ConfigError(
                "Expected agent-user and node-user to differ, and neither to be root: the node may not read what the "
                "agent may."
            )


async def run_partner(folder: Path, device: str, users: Users, log: Log) -> None:
    """Keep agent and node running until a signal ends it.

    Raises
    ------
    ConfigError
        If the users cannot be taken.
    """
    users.check()
    task = asyncio.create_task(_keep(folder.resolve(), device, users, log))
    end_on_signals(task)
    with suppress(asyncio.CancelledError):
        await task
    log.tell("stopped")


async def _keep(folder: Path, device: str, users: Users, log: Log) -> None:
    agent_argv = python("client.partner_process", AGENT, str(folder), device)
    node_argv = python("client.partner_process", NODE, str(folder / NODE_FOLDER))
    if users.agent is None or users.node is None:
        agent, node = Command(AGENT, agent_argv, place=str(folder)), Command(NODE, node_argv, place=str(folder))
    else:
        separate(folder, users.agent, users.node)
        handed = _socket_for(folder, users.node)
        agent = agent_command(folder, agent_argv, users.agent, handed)
        node = node_command(folder, node_argv, users.node)
    async with asyncio.TaskGroup() as group:
        group.create_task(Watched(agent, log).keep())
        group.create_task(Watched(node, log).keep())


def separate(folder: Path, agent: str, node: str) -> None:
    """Give each user its own: ``node/`` to the node's, all else to the agent's; neither can read the other's.

    The folder itself may be passed through, on the way to the socket, but not listed.

    Guarantees
    ----------
    Folders are entered by handles and no link is followed, so that a process of either user, left over from before,
    can have nothing else given to it by changing names meanwhile.

    Raises
    ------
    ConfigError
        If a file has a second name: it may be somebody else's.
    """
    agents, nodes = pwd.getpwnam(agent), pwd.getpwnam(node)
    for where, _, names, at in os.fwalk(folder):
        mine = nodes if folder / NODE_FOLDER in (Path(where), *Path(where).parents) else agents
        os.fchown(at, mine.pw_uid, mine.pw_gid)
        os.fchmod(at, 0o711 if Path(where) == folder else 0o700)
        for name in names:
            _give(name, at, mine)


def _give(name: str, at: int, owner: pwd.struct_passwd) -> None:
    """One entry of the folder that is open as `at`."""
    found = os.stat(name, dir_fd=at, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):  # a link, or a socket or pipe, which its owner makes anew
        os.chown(name, owner.pw_uid, owner.pw_gid, dir_fd=at, follow_symlinks=False)
        return
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        if os.fstat(handle).st_nlink > 1:
            raise ConfigError("Expected files of one name in the partner's folder, got one that has another one too.")
        os.fchown(handle, owner.pw_uid, owner.pw_gid)
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def agent_command(folder: Path, argv: Sequence[str], user: str, handed: socket.socket) -> Command:
    """The agent's, of a user of its own: it is handed the passphrase in memory, whose file need be root's alone."""
    owner, told, handles = pwd.getpwnam(user), {"HOME": str(folder)}, [handed.fileno()]
    told[SOCKET_HANDLE] = str(handed.fileno())
    copy = passphrase_copy(owner.pw_uid, owner.pw_gid)
    if copy is not None:
        told[PASSPHRASE_VARIABLE] = f"/proc/self/fd/{copy}"
        handles.append(copy)
    return Command(AGENT, argv, told, handles, str(folder), user)


def node_command(folder: Path, argv: Sequence[str], user: str) -> Command:
    """The node's, of a user of its own: it is handed its key in memory; the passphrase opens the agent's keys too."""
    owner, file = pwd.getpwnam(user), folder / NODE_FOLDER / NODE_KEY_FILE
    handle = memory_copy(file)
    os.fchmod(handle, 0o600)
    os.fchown(handle, owner.pw_uid, owner.pw_gid)

    def renew() -> None:
        with suppress(VeilrecError):  # the node says what is wrong, once its key is refused
            refresh_copy(handle, file)

    told = {"HOME": str(folder / NODE_FOLDER), NODE_KEY_HANDLE: str(handle)}
    return Command(NODE, argv, told, (handle,), str(folder), user, FOR_NODES, renew)


def _socket_for(folder: Path, node: str) -> socket.socket:
    """The agent's socket, made for the node's user before either runs: mode 0600, so that nobody else can open it."""
    made = private_socket(folder / AGENT_SOCKET)
    owner = pwd.getpwnam(node)
    os.chown(folder / AGENT_SOCKET, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    return made


def _be_agent(folder: Path, device: str) -> None:
    from client.agent_service import serve_agent

    serve_agent(folder, device, _ready)


def _be_node(folder: Path) -> None:
    from shared.hazmat.node_keys import NodeKey

    handed = os.environ.get(NODE_KEY_HANDLE)
    # Before Flower is loaded: to open the key takes 32 MB for a moment.
    key = NodeKey.load(folder / NODE_KEY_FILE if handed is None else Path(f"/proc/self/fd/{handed}"))
    from client.node import run_node

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        run_node(folder, key, Log(process=NODE), _ready)


def _ready() -> None:
    """Tell systemd that the process serves, and that it lives where it watches for that (``sd_notify``)."""
    _notify(b"READY=1")
    limit_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    if limit_us and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        threading.Thread(target=_beat, args=(limit_us / 3e6,), daemon=True).start()


def _beat(every_s: float) -> None:
    while True:
        _notify(b"WATCHDOG=1")
        time.sleep(every_s)


def _notify(word: bytes) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made, suppress(OSError):
        made.connect("\0" + address[1:] if address.startswith("@") else address)
        made.sendall(word)


def be(what: str, folder: Path, device: str = "auto") -> None:
    """Be one of the two processes until a signal ends it; nothing that it writes is for others to read.

    Raises
    ------
    VeilrecError
        See `client.agent_service.serve_agent` and `client.node.run_node`.
    """
    os.umask(0o077)
    take_over(Log(process=what))
    if what == AGENT:
        _be_agent(folder, device)
    else:
        _be_node(folder)


def main(what: str, folder: str, device: str = "auto") -> None:
    """One of the two processes, under its watcher; an error is one line of log and its family's exit code."""
    die_with_parent()
    try:
        be(what, Path(folder), device)
    except VeilrecError as error:
        Log(process=what).trouble(error)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
