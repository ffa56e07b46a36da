"""A grid that keeps every byte that partners are sent and that they send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto

from simulations.federation import InProcessGrid


@dataclass(frozen=True)
class Exchanged:
    """One request to a node and its answer, as they crossed."""

    node: int
    request: RecordDict
    answer: RecordDict


class RecordingGrid(InProcessGrid):
    """An `InProcessGrid` that keeps what it delivers, in order."""

    def __init__(self, client_app: ClientApp, partitions: Sequence[int], data_root: Path) -> None:
        super().__init__(client_app, partitions, data_root)
        self.exchanged: list[Exchanged] = []

    def _deliver(self, message: Message) -> Message:
        reply = super()._deliver(message)
        self.exchanged.append(Exchanged(message.metadata.dst_node_id, message.content, reply.content))
        return reply

    def ask(self, node: int, request: RecordDict) -> RecordDict:
        """Deliver one request and return the answer."""
        message = self.create_message(request, "train", node, "again")
        reply: RecordDict = next(iter(self.send_and_receive([message]))).content
        return reply


def crossed(content: RecordDict) -> bytes:
    """The bytes of a message as Flower's transport sends them."""
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))
