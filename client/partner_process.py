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
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.listening import AGENT_SOCKET, SOCKET_HANDLE, private_socket
from client.node_settings import NODE_FOLDER
from shared.errors import ConfigError, VeilrecError
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, passphrase_copy
from shared.launched import die_with_parent
from shared.logs import Log, take_over
from shared.watched import Command, Watched, end_on_signals, python

AGENT, NODE = "agent", "node"


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
        for name in (self.agent, self.node):
            with suppress(KeyError):
                pwd.getpwnam(str(name))
                continue
            raise ConfigError("Expected agent-user and node-user to be users of this machine.")
        if self.agent == self.node:
            raise ConfigError("Expected agent-user and node-user to differ: the node may not read what the agent may.")


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
        agent, node = Command(AGENT, agent_argv), Command(NODE, node_argv)
    else:
        separate(folder, users.agent, users.node)
        handed = _socket_for(folder, users.node)
        told = {"HOME": str(folder), SOCKET_HANDLE: str(handed.fileno())}
        agent = _as_user(AGENT, agent_argv, users.agent, told, handed.fileno())
        node = _as_user(NODE, node_argv, users.node, {"HOME": str(folder / NODE_FOLDER)})
    async with asyncio.TaskGroup() as group:
        group.create_task(Watched(agent, log).keep())
        group.create_task(Watched(node, log).keep())


def separate(folder: Path, agent: str, node: str) -> None:
    """Give each user its own: ``node/`` to the node's, all else to the agent's; neither can read the other's.

    The folder itself may be passed through, on the way to the socket, but not listed.
    """
    agents, nodes = pwd.getpwnam(agent), pwd.getpwnam(node)
    for path in (folder, *sorted(folder.rglob("*"))):
        mine = nodes if folder / NODE_FOLDER in (path, *path.parents) else agents
        os.chown(path, mine.pw_uid, mine.pw_gid, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o711 if path == folder else 0o700 if path.is_dir() else 0o600)


def _as_user(name: str, argv: list[str], user: str, environment: dict[str, str], *handles: int) -> Command:
    """A command of another user, which is handed the passphrase in memory: its file need be root's alone."""
    owner = pwd.getpwnam(user)
    copy = passphrase_copy(owner.pw_uid, owner.pw_gid)
    if copy is not None:
        environment, handles = {**environment, PASSPHRASE_VARIABLE: f"/proc/self/fd/{copy}"}, (*handles, copy)
    return Command(name, argv, environment, handles, user)


def _socket_for(folder: Path, node: str) -> socket.socket:
    """The agent's socket, made for the node's user before either runs: mode 0600, so that nobody else can open it."""
    made = private_socket(folder / AGENT_SOCKET)
    owner = pwd.getpwnam(node)
    os.chown(folder / AGENT_SOCKET, owner.pw_uid, owner.pw_gid)
    return made


def be_agent(folder: Path, device: str = "auto") -> None:
    """Be the agent of a folder until a signal ends it."""
    from client.agent_service import serve_agent

    serve_agent(folder, device, _ready)


def be_node(folder: Path) -> None:
    """Be the node of a node's folder until a signal ends it."""
    from client.node import run_node

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        run_node(folder, Log(process=NODE), _ready)


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


def main(what: str, folder: str, device: str = "auto") -> None:
    """One of the two processes; an error is one line of log and its family's exit code."""
    die_with_parent()
    os.umask(0o077)
    log = Log(process=what)
    take_over(log)
    try:
        if what == AGENT:
            be_agent(Path(folder), device)
        else:
            be_node(Path(folder))
    except VeilrecError as error:
        log.trouble(error)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
