"""A whole deployment on one machine: the real processes, keys, TLS and sockets, each in the folder that it would have.

For the benchmark of a round, for tests of faults, and to try an installation out. Nothing is simulated but distance.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.data.ingest import INTERACTIONS_FILE
from client.enrolment import init_partner, join
from client.premises import PARTNER_FILE
from server.enrolment import enroll, init_home
from server.settings import RUN, ServerSettings
from shared.config import RunConfig
from shared.errors import ConfigError
from shared.files import write_json
from shared.hazmat.key_files import PASSPHRASE_VARIABLE

FLOOR = {"max_epsilon": 50.0, "max_delta": 1e-4, "min_cohort": 3}
PASSPHRASE_FILE, SERVER_FOLDER = "passphrase", "server"


@dataclass
class Deployment:
    """The folders of a coordinator and its partners, and their processes.

    Attributes
    ----------
    root : Path
        Short: the path of a Unix socket has at most 107 bytes.
    names : tuple of str
        Of the partners.
    users : tuple of str, optional
        Users of the operating system for all agents and for all nodes; to be given as root alone.
    python : tuple of str
        The command that starts Python at the partners.
    """

    root: Path
    names: tuple[str, ...]
    users: tuple[str, str] | None = None
    python: tuple[str, ...] = (sys.executable,)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        root: Path,
        items: Path,
        interactions: dict[str, Path],
        config: RunConfig,
        *,
        users: tuple[str, str] | None = None,
        python: tuple[str, ...] = (sys.executable,),
    ) -> Deployment:
        """Provision all parties, as their people would: requests to the coordinator, one bundle back.

        Parameters
        ----------
        root : Path
            An empty folder.
        items : Path
            The public catalogue.
        interactions : dict of str to Path
            Each partner's own events.
        config : RunConfig
            A simulation's too: partners then say in their own ``partner.toml`` that their data are simulated.
        users, python
            See `Deployment`.
        """
        made = cls(root, tuple(sorted(interactions)), users, python)
        root.mkdir(parents=True, exist_ok=True)
        with made._passphrase_named():
            made._provision(items, interactions, config)
        return made

    def _provision(self, items: Path, interactions: dict[str, Path], config: RunConfig) -> None:
        port, link, page = _free_ports(3)
        real = config.model_copy(update={"simulation": False, "seed": None})
        init_home(self.home, f"127.0.0.1:{port}", items, real)
        ServerSettings(address=f"127.0.0.1:{port}", superlink_port=link, page_port=page).write(self.home)
        requests = []
        for name, events in interactions.items():
            data = self.folder(name) / "data"
            data.mkdir(parents=True)
            (data / INTERACTIONS_FILE).write_bytes(events.read_bytes())
            requests.append(init_partner(self.folder(name), name).file)
        bundle = enroll(self.home, requests)
        for name in self.names:
            join(self.folder(name), bundle.folder, fingerprint=bundle.fingerprint, floor=FLOOR)
            if config.simulation:  # which no command would provision
                file = self.folder(name) / PARTNER_FILE
                file.write_text(f"simulated = true\n{file.read_text()}")
        write_json(self.home / "config.json", config.model_dump(mode="json"))

    @contextmanager
    def _passphrase_named(self) -> Iterator[None]:
        """The passphrase in this process's environment, and no longer than needed."""
        before = os.environ.get(PASSPHRASE_VARIABLE)
        os.environ[PASSPHRASE_VARIABLE] = str(self.root / PASSPHRASE_FILE)
        try:
            yield
        finally:
            del os.environ[PASSPHRASE_VARIABLE]
            if before is not None:
                os.environ[PASSPHRASE_VARIABLE] = before

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.root / SERVER_FOLDER

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.home / RUN

    def folder(self, name: str) -> Path:
        """A partner's."""
        return self.root / name

    def start(self, *names: str) -> None:
        """Start the coordinator (``server``) or partners; all of them by default."""
        for name in names or (SERVER_FOLDER, *self.names):
            python = (sys.executable,) if name == SERVER_FOLDER else self.python
            with (self.root / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [*python, "-m", "simulations.cli", *self._command(name)],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1", PASSPHRASE_VARIABLE: str(self.root / PASSPHRASE_FILE)},
                    start_new_session=True,
                )

    def stop(self, *names: str) -> None:
        """End processes in order, with all that they started."""
        for name in names or tuple(self.processes):
            process = self.processes.pop(name)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def running(self) -> Iterator[None]:
        """All of them, for a while."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def rounds(self) -> list[dict[str, Any]]:
        """The records of whole rounds."""
        file = self.run / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something.

        Raises
        ------
        ConfigError
            If it does not come in time, or the coordinator ends before.
        """
        until = time.monotonic() + timeout_s
        while not done():
            process = self.processes.get(SERVER_FOLDER)
            ended = process is not None and process.poll() not in (None, 0)
            if ended or time.monotonic() > until:
                raise ConfigError(f"{self.root}: Expected {what} within {timeout_s:g} s. See the logs there.")
            time.sleep(0.2)

    def wait_for_rounds(self, number: int, timeout_s: float) -> None:
        """Wait until so many rounds are whole."""
        self.wait(lambda: len(self.rounds()) >= number, timeout_s, f"{number} rounds")

    def wait_for_release(self, timeout_s: float) -> None:
        """Wait until the coordinator has released and ended."""
        self.wait(lambda: self.processes[SERVER_FOLDER].poll() == 0, timeout_s, "a release")

    def pids(self, word: str) -> list[int]:
        """The processes of this deployment whose command line holds a word, such as a module's or a program's name."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if word in line and str(self.root) in line:
                    found.append(int(folder.name))
        return found

    def _command(self, name: str) -> Sequence[str]:
        if name == SERVER_FOLDER:
            return ["server", "run", str(self.home), "--until-done", "--exchange-s", "60", "--gather-s", "120"]
        users = [] if self.users is None else ["--agent-user", self.users[0], "--node-user", self.users[1]]
        return ["partner", "agent", str(self.folder(name)), "--device", "cpu", *users]


def _free_ports(n: int) -> list[int]:
    """Ports of loopback that are free now."""
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    try:
        return [each.getsockname()[1] for each in made]
    finally:
        for each in made:
            each.close()
