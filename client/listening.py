"""Unix sockets that only their owner may open."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from client.agent_socket import LONGEST_PATH
from shared.errors import ConfigError

AGENT_SOCKET, OPERATOR_SOCKET = "agent.sock", "operator.sock"
SOCKET_HANDLE = "VEILREC_AGENT_SOCKET_FD"
_FIRST_HANDED_FD = 3  # of systemd's: sd_listen_fds(3)


def private_socket(address: Path) -> socket.socket:
    """A listening Unix socket that its owner alone may open; one that a killed agent left is replaced.

    Raises
    ------
    ConfigError
        If its path is too long, or it cannot be made.
    """
    if len(bytes(address)) > LONGEST_PATH:
        raise ConfigError(f"{address}: Expected a socket's path of at most {LONGEST_PATH} bytes: a shorter folder.")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # the socket is never there with another mode
    try:
        address.unlink(missing_ok=True)
        made.bind(str(address))
        made.listen()
    except OSError as error:
        made.close()
        raise ConfigError(
            f"{address}: cannot be made ({type(error).__name__}). Expected a folder of one's own."
        ) from None
    finally:
        os.umask(before)
    return made


def handed_socket() -> socket.socket | None:
    """The socket that systemd, or whoever started this process, opened for it; None if there is none."""
    if SOCKET_HANDLE in os.environ:
        return socket.socket(fileno=int(os.environ[SOCKET_HANDLE]))
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") == "0":
        return None
    return socket.socket(fileno=_FIRST_HANDED_FD)
