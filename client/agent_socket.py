"""The way to a partner's agent: HTTP over a Unix socket that only its owner may open.

Used by the node, by Flower's ClientApp and by commands: it imports no model and nothing of the agent's own.
"""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from flwr.app import RecordDict

MESSAGES, STATUS, METRICS = "/v1/messages", "/v1/status", "/v1/metrics"
LONGEST_PATH = 107
"""Bytes of a Unix socket's name on Linux."""


class AgentUnavailableError(OSError):
    """Nobody answers at the socket, or whoever did was gone before the answer: to be asked again."""


def ask(address: Path, method: str, path: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, bytes]:
    """Send one HTTP request to an agent; its status and the body of its answer.

    Raises
    ------
    ConfigError
        If the socket's path is too long for one.
    AgentUnavailableError
        If nobody answers.
    """
    if len(bytes(address)) > LONGEST_PATH:
        raise ConfigError(f"Expected a socket's path of at most {LONGEST_PATH} bytes, got {len(bytes(address))}.")
    connection = _UnixConnection(address, timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise AgentUnavailableError(f"Expected an agent at its socket, got {type(error).__name__}.") from None
    finally:
        connection.close()


def post_message(address: Path, content: RecordDict) -> RecordDict:
    """Have the agent answer the content of a message.

    Raises
    ------
    ConfigError
        If the agent takes no such request: it is of another version, or the message is larger than it takes.
    AgentUnavailableError
    """
    from shared.wire_frames import from_frame, to_frame

    status, answer = ask(address, "POST", MESSAGES, to_frame(content))
    if status != http.client.OK:
        raise ConfigError(f"Expected the agent to take a message of version v1, got HTTP status={status}.")
    return from_frame(answer)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: Path, timeout_s: float | None) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._address))
