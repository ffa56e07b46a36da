"""Real servers for the tests of links: uvicorn in a thread, with TLS of a federation's own authority."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from shared.hazmat import key_files
from shared.hazmat.certificates import create_authority, issue_server_certificate
from shared.hazmat.key_files import Passphrase, memory_copy

PASSPHRASE = Passphrase(b"of the test and of nobody else")


@dataclass(frozen=True)
class Authority:
    """A CA and a certificate for 127.0.0.1 by it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Make both; passphrases are stretched little, as what that is worth is tested elsewhere."""
        stretched = key_files.SCRYPT_LOG_N
        key_files.SCRYPT_LOG_N = 4
        try:
            create_authority(folder / "ca.key", folder / "ca.crt", "test", PASSPHRASE)
            issue_server_certificate(
                (folder / "ca.key", folder / "ca.crt"),
                folder / "tls.key",
                folder / "tls.crt",
                ["127.0.0.1"],
                PASSPHRASE,
            )
        finally:
            key_files.SCRYPT_LOG_N = stretched
        return cls(folder)

    @property
    def certificate(self) -> Path:
        """The CA's."""
        return self.folder / "ca.crt"

    def context(self) -> ssl.SSLContext:
        """The server's side of TLS."""
        made, key = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), memory_copy(self.folder / "tls.key", PASSPHRASE)
        made.load_cert_chain(self.folder / "tls.crt", f"/proc/self/fd/{key}")
        os.close(key)
        return made


async def _nothing() -> None:
    return


@contextmanager
def served(
    app: Any,
    authority: Authority | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    at_end: Callable[[], Awaitable[None]] = _nothing,
    **options: Any,
) -> Iterator[int]:
    """An application on a port of loopback, with TLS where there is an authority."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1, **options
    )
    config.load()
    if authority is not None:
        config.ssl = authority.context()
    server = uvicorn.Server(config)

    async def serve() -> None:
        await server.serve([listening])
        await at_end()
        for connection in server.server_state.connections:  # TLS that was cut off is waited for else
            connection.transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(0.05)  # connections close in the next turn of the loop

    with socket.create_server((host, port)) as listening:
        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def free_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])
