"""Whether a part of Veilrec in this container answers: exit status 0 if one of the addresses says 200.

``healthy.py ADDRESS...``: an ``http://`` URL, or the Unix socket of an agent (``GET /v1/status``). Only the standard
library, since it runs every half minute. The answer is not printed: what a health check prints is kept by Docker.
"""

from __future__ import annotations

import http.client
import socket
import sys
from urllib.parse import urlsplit

WAIT_S = 5.0
STATUS = "/v1/status"


class _Unix(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(self.host)


def answers(address: str) -> bool:
    """Whether GET of `address` has status 200 within five seconds."""
    url = urlsplit(address)
    connection: http.client.HTTPConnection
    if url.scheme == "http":
        connection, path = http.client.HTTPConnection(url.netloc, timeout=WAIT_S), url.path or "/"
    else:
        connection, path = _Unix(address), STATUS
    try:
        connection.request("GET", path, headers={"Host": url.netloc or "agent"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if any(answers(address) for address in sys.argv[1:]) else 1)
