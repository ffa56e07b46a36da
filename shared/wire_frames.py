"""A message's content as bytes, for the way between a partner's node and its agent; and a refusal.

Apart from `shared.wire`, so that the node, which reads nothing of what it carries, loads nothing to read it with.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Frame
from google.protobuf.message import DecodeError

from shared.errors import ProtocolError

ERROR = "error"
PROTOCOL = 1
"""The version of the exchanges: both sides refuse another one, since what a field means is agreed with it."""


def to_frame(content: RecordDict) -> bytes:
    """Flower's own protobuf form of a message's content."""
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


def from_frame(frame: bytes) -> RecordDict:
    """Read what `to_frame` wrote.

    Raises
    ------
    ProtocolError
        If it is not the content of a message.
    """
    try:
        return recorddict_from_proto(Frame.FromString(frame))
    except (DecodeError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise ProtocolError("Expected the content of a message, as Flower's protobuf writes it.") from None


def pack_error(wire_name: str) -> RecordDict:
    """The content of a refusal: the error's family, never its text."""
    return RecordDict({ERROR: ConfigRecord({"family": wire_name})})
