"""What a node has taken from the coordinator and not yet answered: a killed node goes on with it.

The coordinator hands a message out once: it is written here, whole, before it counts as received. It takes one reply to
it, and waits for the parts of that one: so the reply is written here too before the first of it is sent, and another
life of the node sends the very same.
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

MESSAGE, REPLY = ".message", ".reply"


@dataclass(frozen=True, slots=True)
class Spool:
    """Messages that wait for an answer, one file each.

    Attributes
    ----------
    folder : Path
        The node's own; nobody else reads or writes in it.
    """

    folder: Path

    def keep(self, message: Message, reply: Message | None = None) -> None:
        """Keep a message, or its reply, until `drop`, durably."""
        frame = message_to_proto(reply or message).SerializeToString(deterministic=True)
        write_bytes(self._file(message, MESSAGE if reply is None else REPLY), frame)

    def drop(self, message: Message) -> None:
        """Forget a message that was answered, and the answer."""
        for ending in (MESSAGE, REPLY):  # a reply alone is never found again
            self._file(message, ending).unlink(missing_ok=True)

    def left(self) -> Iterator[Message]:
        """The messages of an earlier life, oldest first; a file that holds none is dropped."""
        files = self.folder.glob(f"*{MESSAGE}") if self.folder.is_dir() else ()
        found = [message for file in files if (message := _read(file)) is not None]
        yield from sorted(found, key=lambda message: message.metadata.created_at)

    def reply_to(self, message: Message) -> Message | None:
        """The reply to a message that an earlier life may have begun to send."""
        file = self._file(message, REPLY)
        return _read(file) if file.exists() else None

    def _file(self, message: Message, ending: str) -> Path:
        # Flower's message ids are hex digests; but what the coordinator sends as one may be a path.
        name = hashlib.sha256(message.metadata.message_id.encode()).hexdigest()
        return self.folder / f"{name}{ending}"


def _read(file: Path) -> Message | None:
    try:
        return message_from_proto(Frame.FromString(file.read_bytes()))
    except (DecodeError, ValueError):
        file.unlink()
        return None
