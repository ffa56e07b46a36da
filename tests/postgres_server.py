"""A real PostgreSQL of the tests' own: started from the binaries of the machine, on a Unix socket in a private folder.

Import the fixture `postgres_url` where it is needed. One server serves all modules of a session.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

ACCOUNT = "postgres"  # the server refuses to run as root
GUARDED = "guarded"  # a role that has to give a password, once a test has made it
START_S = 30.0
FAST = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "lc_messages": "C",
}
_numbers = count()


@pytest.fixture
def postgres_url(pytestconfig: pytest.Config) -> str:
    """The URL of a new, empty schema."""
    server = _running()
    if server is None:
        pytest.skip("no PostgreSQL: initdb and postgres are neither on PATH nor where pg_config says")
    pytestconfig.add_cleanup(server.stop)
    return server.new_schema()


def execute(statement: str, url: str) -> None:
    """Run one statement by itself, outside of any code under test."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


class PostgresServer:
    """A server in a temporary folder, without a network port."""

    def __init__(self, binaries: Path) -> None:
        # Not pytest's folder: its path may be too long for a socket, and closed to another account.
        self.folder = Path(tempfile.mkdtemp(prefix="veilrec-pg-"))
        as_account: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, ACCOUNT, ACCOUNT)
            as_account = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []}
        data = str(self.folder / "data")
        made = [binaries / "initdb", "--pgdata", data, "--auth=trust", f"--username={ACCOUNT}"]
        made += ["--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **as_account)
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {GUARDED} scram-sha-256\n" + rules.read_text())  # the first that fits counts
        settings = [word for name, value in FAST.items() for word in ("-c", f"{name}={value}")]
        command = [binaries / "postgres", "-D", data, "-k", str(self.folder), *settings]
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **as_account)
        self._wait()

    @property
    def url(self) -> str:
        """Of the server's first database."""
        return f"postgresql://{ACCOUNT}@/{ACCOUNT}?host={self.folder}"

    def new_schema(self) -> str:
        """Make a schema, in which tables are made and looked for; its URL."""
        name = f"test_{next(_numbers)}"
        execute(f"CREATE SCHEMA {name}", self.url)  # a database of its own would take ten times as long
        return f"{self.url}&options=-csearch_path%3D{name}"

    def stop(self) -> None:
        """Stop it at once and remove its folder; a second time does nothing."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=START_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        import psycopg

        end = time.monotonic() + START_S
        while True:
            try:
                return psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise
                time.sleep(0.02)


@cache
def _running() -> PostgresServer | None:
    binaries = find_binaries()
    return PostgresServer(binaries) if binaries else None


def find_binaries(which: Callable[[str], str | None] = shutil.which) -> Path | None:
    """The folder with ``initdb`` and ``postgres``: on PATH, where ``pg_config`` says, or Debian's newest."""
    places = [Path(found).parent for found in [which("postgres")] if found]
    if found := which("pg_config"):
        told = subprocess.run([found, "--bindir"], check=True, capture_output=True, text=True)
        places.append(Path(told.stdout.strip()))
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    places += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)
