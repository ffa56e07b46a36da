"""A partner's node: Flower's connection to the coordinator, and nothing of what it carries.

It takes messages, hands each to the agent's socket, and sends the answer. Flower's own SuperNode would install the
app bundle that comes with a run and start it in a new process for every message; this node never asks for a bundle,
so that no code of the coordinator's ever runs here, and answers in milliseconds. A run whose bundle is not one of
those that the partner pinned is refused all the same: what is agreed is agreed as a whole.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.agent_socket import AgentUnavailableError, post_message
from client.coordinator_link import check_coordinator
from client.node_settings import NodeSettings
from client.spool import Spool
from shared.errors import PolicyViolationError, ProtocolError, VeilrecError
from shared.files import write_bytes
from shared.hazmat.node_keys import NodeKey
from shared.logs import Log
from shared.wire_frames import pack_error

BUSY_S, IDLE_S = 0.2, 3.0
"""Between two questions for a message: while a round goes on, and otherwise (Flower's own)."""
ROUND_S = 120.0
"""How long after a message another one of the same round is expected."""
EARLIER_FILE = "connected.id"
RETRY_S, PATIENCE_S = 1.0, 900.0
"""Between two tries to reach the agent, and until the node gives a message up."""


@dataclass(frozen=True, slots=True)
class Link:
    """Flower's connection, by the names that Flower gives its parts."""

    node_id: int
    receive: Callable[[], tuple[Message, Any] | None]
    send: Callable[[Message, Any, float], tuple[set[str], str]]
    get_run: Callable[[int], Any]
    get_fab: Callable[[str, int], Any]  # never called
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm_message_received: Callable[[int, str], None]


class Node:
    """One partner's node.

    Parameters
    ----------
    link : Link
    settings : NodeSettings
    spool : Spool
    log : Log
    """

    def __init__(self, link: Link, settings: NodeSettings, spool: Spool, log: Log) -> None:
        self._link, self._settings, self._spool, self._log = link, settings, spool, log
        self._bundles: dict[int, str] = {}
        self._last = -ROUND_S

    def run(self) -> None:
        """Carry messages until a signal ends the process; first those of an earlier life."""
        for message in self._spool.left():
            self._deliver(message)
        while True:
            with suppress(RunNotRunningException):
                taken = self._take()
                if taken is not None:
                    self._deliver(taken)
                    self._last = time.monotonic()
                    continue
            time.sleep(self._pause())

    def _take(self) -> Message | None:
        """The next message, whole and safe on the disk before the coordinator hears that it came."""
        received = self._link.receive()
        if received is None:
            return None
        head, tree = received
        run_id, message_id = head.metadata.run_id, head.metadata.message_id
        ids = [each.object_id for each in iterate_object_tree(tree)]
        pull = partial(self._link.pull_object, run_id)
        try:
            contents = pull_objects(ids, pull, max_time=None, initial_backoff=BUSY_S, backoff_cap=IDLE_S)
        except ObjectPullError as error:  # its sender was ended before it had sent all of it
            self._log.trouble(error, "not_whole", level="warning")
            return None
        message = inflate_object_from_contents(message_id, contents)
        if not isinstance(message, Message):
            return None
        message.metadata.__dict__["_message_id"] = message_id
        self._keep(message)
        self._link.confirm_message_received(run_id, message_id)
        return message

    def _keep(self, message: Message, reply: Message | None = None) -> None:
        """Make it safe; on a full disk go on without: the agent, not the node, then refuses the round."""
        try:
            self._spool.keep(message, reply)
        except OSError as error:
            self._log.trouble(error, "not_kept", level="warning")

    def _deliver(self, message: Message) -> None:
        began = time.monotonic()
        try:
            self._send(self._spool.reply_to(message) or self._reply(message))
            self._log.tell("message", seconds=round(time.monotonic() - began, 3), bundle=self._bundle(message)[:16])
        except RunNotRunningException:
            self._log.tell("run_over")  # nobody waits for the answer; the agent keeps it
        except httpx.TransportError:
            raise
        except Exception as error:  # a message that cannot be answered would end every life of this node
            self._log.trouble(error)
        self._spool.drop(message)

    def _reply(self, message: Message) -> Message:
        """The one reply to a message, safe on the disk before any of it is sent."""
        reply = Message(self._answer(message), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self._keep(message, reply)
        return reply

    def _answer(self, message: Message) -> RecordDict:
        try:
            if self._bundle(message) not in self._settings.bundles:
                raise PolicyViolationError("Expected a run of a bundle that this partner pinned, got another.")
            if not message.has_content():
                raise ProtocolError("Expected a message with a content, got an error's.")
            return self._from_agent(message)
        except VeilrecError as error:
            self._log.trouble(error)
            return pack_error(error.wire_name)

    def _bundle(self, message: Message) -> str:
        run_id = message.metadata.run_id
        if run_id not in self._bundles:
            self._bundles = {run_id: str(self._link.get_run(run_id).fab_hash)}
        return self._bundles[run_id]

    def _from_agent(self, message: Message) -> RecordDict:
        """The agent's answer; one that is restarted is waited for, and asked the same again."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return post_message(Path(self._settings.socket), message.content)
            except AgentUnavailableError as error:
                if time.monotonic() > until:
                    self._log.trouble(error)
                    return pack_error(VeilrecError.__name__)
                time.sleep(RETRY_S)

    def _send(self, reply: Message) -> None:
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            # Flower would tell the coordinator how long the answer took: it grows with the users in the round.
            wanted, session = self._link.send(reply, tree, 0.0)
            contents: Iterator[tuple[str, bytes]] = ((key, objects[key].deflate()) for key in wanted)
            push = partial(self._link.push_object, reply.metadata.run_id, session)
            push_object_contents_from_iterable(contents, push_object_fn=push)

    def _pause(self) -> float:
        busy = time.monotonic() - self._last < ROUND_S
        return (BUSY_S if busy else IDLE_S) * random.uniform(0.8, 1.2)


def run_node(folder: Path, key: NodeKey, log: Log, ready: Callable[[], None] = lambda: None) -> None:
    """Be a partner's node until a signal ends it.

    Parameters
    ----------
    folder : Path
        The node's own: ``node.toml``, ``ca.crt``, ``spool/``.
    key : NodeKey

    Raises
    ------
    ConfigError, IntegrityError, VersionMismatchError
        See `client.coordinator_link.check_coordinator`.
    """
    settings = NodeSettings.open(folder)
    certificate = folder / "ca.crt"
    check_coordinator(settings.address, certificate)
    keys = key.pair
    earlier = folder / EARLIER_FILE
    leave(settings.address, certificate.read_bytes(), keys, earlier)
    with http_request_response(settings.address, False, certificate.read_bytes(), keys) as connection:
        link = Link(*connection)
        write_bytes(earlier, str(link.node_id).encode())
        ready()
        log.tell("connected")
        Node(link, settings, Spool(folder / "spool"), log).run()


def leave(address: str, certificate: bytes, keys: Any, earlier: Path) -> None:
    """Sign off the node that this one was before it was killed.

    A SuperLink refuses a node that it takes to be there still, for as long as two heartbeats: a minute of a round.
    """
    if not earlier.exists():
        return
    as_this_node: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(*keys),
    ]
    client = FleetHttpClient.from_server_address(address, False, certificate, as_this_node)
    with client, suppress(httpx.HTTPError, ValueError):  # it may be gone already: connecting shows
        client.DeactivateNode(DeactivateNodeRequest(node_id=int(earlier.read_text(encoding="ascii"))))
    earlier.unlink()
