"""The coordinator's premises, kept running: SuperLink, gate, operator's page, and the run, which nobody has to resume.

::

    partners --TLS--> gate (public)  --TLS--> flower-superlink (loopback) --starts--> server.app, one process a try
                      operator's page (loopback)

Whatever ends is started again. A run that failed, because the SuperLink was killed under it or because a round could
not be had, is submitted again after a pause, and goes on from its last whole round (`server.checkpoint`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import uvicorn
from starlette.applications import Starlette

from server.gate import Gate, key_header
from server.monitor import CoordinatorMonitor
from server.operator_page import operator_app
from server.partners import PARTNERS_FILE, Registry
from server.patience import Patience
from server.registry import sync_nodes
from server.runs import start_run, state_of
from server.settings import RUN, ServerSettings
from shared.errors import ConfigError, ProtocolError, VeilrecError
from shared.hazmat.key_files import memory_copy
from shared.hazmat.node_keys import superlink_form
from shared.logs import Log
from shared.watched import Command, Watched, end_on_signals, python

LOOK_S, BEAT_S = 2.0, 5.0
"""Between two looks at the run, and between two lines of ``status.json``."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 600.0
"""Before a run that failed is submitted again."""
PATIENCE = Patience(gather_s=600.0, exchange_s=120.0, grace_s=60.0, attempts=5)
"""Of an on-premise federation, where partners come late and are started again."""
LOOPBACK = "127.0.0.1"
T = TypeVar("T")


class Coordinator:
    """One coordinator's home, while it is running.

    Parameters
    ----------
    home : Path
    log : Log
    patience : Patience
    stay : bool
        Whether to go on serving once the run is complete.
    """

    def __init__(self, home: Path, log: Log, patience: Patience = PATIENCE, *, stay: bool = True) -> None:
        self._home, self._log, self._patience, self._stay = home.resolve(), log, patience, stay
        self._settings = ServerSettings.open(home)
        self._monitor = CoordinatorMonitor(self._home)
        self._tls_key = memory_copy(self._home / "tls.key")
        self._gate = Gate(self._settings.superlink, str(self._home / "ca.crt"), self._monitor, log)
        self._superlink = Watched(self._command(), log, self._monitor.restarted)
        self._public = _listening(*_public_address(self._settings.address))
        self._page = _listening(LOOPBACK, self._settings.page_port)
        self._state = "starting"
        self._synced: tuple[int, int] | None = None

    async def run(self) -> None:
        """Serve until a signal ends it, or until the run is complete where it is not to stay."""
        task = asyncio.create_task(self._all())
        end_on_signals(task)
        try:
            await task
        except asyncio.CancelledError:
            self._log.tell("stopped")
        finally:
            self._monitor.beat("stopped")

    async def _all(self) -> None:
        public = self._served(self._gate.app(), secure=True)
        page = self._served(operator_app(self._monitor), secure=False)
        async with asyncio.TaskGroup() as group:
            kept = [
                group.create_task(self._superlink.keep()),
                group.create_task(public.serve([self._public])),
                group.create_task(page.serve([self._page])),
                group.create_task(self._beat()),
                group.create_task(self._register()),
            ]
            await self._conduct()
            if self._stay:
                await asyncio.Event().wait()
            for each in kept:
                each.cancel()
        await self._gate.close()

    # --- the run ------------------------------------------------------------------------------------

    async def _conduct(self) -> None:
        """Submit the run, and submit it again until it is complete."""
        pause = FIRST_PAUSE_S
        while True:
            before = self._rounds()
            try:
                completed = await self._one_try()
            except VeilrecError as error:
                self._log.trouble(error)
                self._monitor.failed(error.wire_name)
                completed = False
            if completed:
                self._state = "completed"
                self._log.tell("completed")
                return
            pause = FIRST_PAUSE_S if self._rounds() > before else min(LONGEST_PAUSE_S, 2 * pause)
            self._log.tell("run_failed", level="warning", pause_s=pause)
            await asyncio.sleep(pause)

    async def _one_try(self) -> bool:
        settings = {
            "data-root": str(self._home),
            "out": str(self._home / RUN),
            "patience": json.dumps({k: v for k, v in asdict(self._patience).items() if v not in (None, float("inf"))}),
        }
        link = self._settings.superlink
        run_id = await self._asked(lambda: start_run(self._home, link, settings))
        starts = self._superlink.starts
        self._state = "running"
        self._log.tell("run_started", serial=run_id)
        while True:
            await asyncio.sleep(LOOK_S)
            state = await self._asked(lambda: state_of(self._home, link, run_id))
            if state.over:
                return state.completed
            if self._superlink.starts != starts:
                return False  # the process of the run ended with the SuperLink that had started it

    async def _asked(self, ask: Callable[[], T], tries: int = 60) -> T:
        """An answer of the SuperLink, which may just be starting."""
        for left in range(tries - 1, -1, -1):
            try:
                return await asyncio.to_thread(ask)
            except ProtocolError:
                if not left:
                    raise
                await asyncio.sleep(1.0)
        raise AssertionError

    def _rounds(self) -> int:
        lines = self._home / RUN / "rounds.jsonl"
        return len(lines.read_bytes().splitlines()) if lines.exists() else 0

    # --- what goes on beside it -----------------------------------------------------------------------

    async def _register(self) -> None:
        """Keep the SuperLink's nodes those of ``partners.json``, also after the SuperLink was started anew."""
        while True:
            file = self._home / PARTNERS_FILE
            stamp = (file.stat().st_mtime_ns if file.exists() else 0, self._superlink.starts)
            if stamp != self._synced:
                try:
                    await asyncio.to_thread(sync_nodes, self._home, self._settings.superlink)
                    records = Registry.open(self._home).active
                    self._gate.partners = {
                        key_header(superlink_form(key)): record.name
                        for record in records
                        for key in record.request.nodes
                    }
                    self._synced = stamp
                    self._log.tell("registered", count=len(records))
                except VeilrecError as error:
                    self._log.trouble(error, level="info")
            await asyncio.sleep(1.0)

    async def _beat(self) -> None:
        while True:
            await asyncio.to_thread(self._monitor.beat, self._state)
            await asyncio.sleep(BEAT_S)

    # --- processes and servers ------------------------------------------------------------------------

    def _command(self) -> Command:
        home, settings = self._home, self._settings
        (home / "superlink").mkdir(mode=0o700, exist_ok=True)
        program = Path(sys.executable).with_name("flower-superlink")
        argv = [
            *python("shared.launched", str(program)),
            "--ssl-ca-certfile", str(home / "ca.crt"),
            "--ssl-certfile", str(home / "tls.crt"),
            "--ssl-keyfile", f"/proc/self/fd/{self._tls_key}",
            "--enable-supernode-auth",
            "--database", str(home / "superlink" / "state.db"),
            "--host", "127.0.0.1",
            "--port", str(settings.superlink_port),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        path = f"{program.parent}:/usr/bin:/bin"  # Flower finds its own programs by name
        environment = {"FLWR_HOME": str(home / "superlink" / "flwr-home"), "PATH": path}
        return Command("superlink", argv, environment, (self._tls_key,), str(home))

    def _served(self, app: Starlette, *, secure: bool) -> uvicorn.Server:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        config.load()
        if secure:
            config.ssl = self._context()
        return _Server(config)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._home / "tls.crt", f"/proc/self/fd/{self._tls_key}")
        return context


def _public_address(address: str) -> tuple[str, int]:
    """Where to listen for partners: on all of this machine's addresses, unless theirs is its own loopback."""
    host, _, port = address.rpartition(":")
    return (LOOPBACK if host == "localhost" or host.startswith("127.") else "0.0.0.0"), int(port)


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(f"Expected port {port} of {host} to be free, got {type(error).__name__}.") from None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the coordinator."""
        yield
