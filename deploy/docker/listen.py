"""Open the agent's socket and start the agent with it, as systemd does; for where there is no systemd.

``listen.py SOCKET GROUP COMMAND...`` makes the Unix socket SOCKET, which the users of GROUP (a number) may open and
nobody else, and becomes COMMAND, with the socket as file descriptor 3 (sd_listen_fds(3)). So the agent and the node
can run as different users in different containers that share nothing but the folder of this socket.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

FIRST = 3


def listen(path: Path, group: int) -> socket.socket:
    """A listening socket at `path`, mode 0660, of that group; what an ended agent left there is removed.

    Raises
    ------
    OSError
        If the folder cannot be written to, or the caller is not in the group.
    """
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody may open it before its group is right.
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, -1, group)
    path.chmod(0o660)
    listening.listen(128)
    return listening


def main(arguments: list[str]) -> None:
    """Make the socket, hand it on as descriptor 3, become the command."""
    if len(arguments) < 3 or not arguments[1].isdecimal():
        sys.exit("listen.py: Expected SOCKET GROUP COMMAND..., GROUP a number.")
    path, group, *command = arguments
    try:
        handle = listen(Path(path), int(group)).detach()
    except OSError as error:
        sys.exit(f"listen.py: {path}: Expected to open it for group={group}, got {error.strerror}.")
    if handle == FIRST:
        os.set_inheritable(FIRST, True)
    else:
        os.dup2(handle, FIRST)
        os.close(handle)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
