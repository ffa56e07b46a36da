"""The in-process engine: Flower's `Grid` over the real client app, without processes or polling."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared.errors import ProtocolError

FIRST_NODE = 1


class InProcessGrid(Grid):
    """Deliver messages to simulated partners one after another, in this process.

    The arrays of a message are bytes already (`flwr.app.Array`), so each side reads its own copy.

    Parameters
    ----------
    client_app : ClientApp
    partitions : sequence of int
        The partners that take part, by the number of their folder.
    data_root : Path
        The folder of the partners' folders.
    """

    def __init__(self, client_app: ClientApp, partitions: Sequence[int], data_root: Path) -> None:
        # Flower reads the identity of the running task from here when a message is made.
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        logging.getLogger("flwr").setLevel(logging.ERROR)  # its round log would tear the progress bar
        self._client_app = client_app
        self._run = Run.create_empty(1)
        self._contexts = {
            FIRST_NODE + k: Context(
                run_id=1,
                node_id=FIRST_NODE + k,
                node_config={"partition-id": k, "num-partitions": len(partitions)},
                state=RecordDict(),
                run_config={"data-root": str(data_root)},
            )
            for k in partitions
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; Flower deprecates this in favour of the constructor."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All partners, always."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message at once and keep the answer."""
        ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._replies[message_id] = self._deliver(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the answers to messages, once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver each message when its answer is asked for: neither messages nor answers pile up."""
        return map(self._deliver, messages)

    def _deliver(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            raise ProtocolError(f"Expected a node of 1 to {len(self._contexts)}, got {message.metadata.dst_node_id}.")
        return self._client_app(message, context)
