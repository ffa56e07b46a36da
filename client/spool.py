"""What a node has taken from the coordinator and not yet answered: a killed node goes on with it.

The coordinator hands a message out once. It is written here, whole, before it counts as received.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Frame
from google.protobuf.message import DecodeError

from shared.files import write_bytes


@dataclass(frozen=True, slots=True)
class Spool:
    """Messages that wait for an answer, one file each.

    Attributes
    ----------
    folder : Path
        The node's own; nobody else reads or writes in it.
    """

    folder: Path

    def keep(self, message: Message) -> None:
        """Keep a message until `drop`, durably."""
        frame = message_to_proto(message).SerializeToString(deterministic=True)
        write_bytes(self._file(message), frame)

    def drop(self, message: Message) -> None:
        """Forget a message that was answered."""
        self._file(message).unlink(missing_ok=True)

    def left(self) -> Iterator[Message]:
        """The messages of an earlier life, oldest first; a file that holds none is dropped."""
        found = []
        for file in self.folder.glob("*.message") if self.folder.is_dir() else ():
            try:
                found.append(message_from_proto(Frame.FromString(file.read_bytes())))
            except (DecodeError, ValueError):
                file.unlink()
        yield from sorted(found, key=lambda message: message.metadata.created_at)

    def _file(self, message: Message) -> Path:
        # Flower's message ids are hex digests; but what the coordinator sends as one may be a path.
        name = hashlib.sha256(message.metadata.message_id.encode()).hexdigest()
        return self.folder / f"{name}.message"
