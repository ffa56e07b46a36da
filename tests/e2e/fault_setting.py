"""A small real federation on this machine, for the tests of faults: four partners, three of whom make a round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from client.agent_socket import STATUS, ask
from client.data.ingest import INTERACTIONS_FILE, ITEMS_FILE, RawData, write
from client.listening import OPERATOR_SOCKET
from client.node_settings import NODE_FOLDER, SOCKET, NodeSettings
from server.attempts import ATTEMPTS_FILE
from server.checkpoint import CheckpointStore
from server.enrolment import renew
from server.settings import ServerSettings
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.hazmat.key_files import Passphrase
from simulations.one_machine import PASSPHRASE_FILE, SERVER_FOLDER, Deployment

NAMES = ("anna", "ben", "carl", "dora")
QUORUM = 3
ITEMS, USERS = 10, 6
CONFIG = RunConfig(
    simulation=False,
    seed=None,
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8),
    prior=PriorConfig(kind="popularity"),
    training=TrainingConfig(rounds=200, sampling_rate=0.5, drop_events=0.0),
    privacy=PrivacyConfig(population=60, noise_multiplier=12.0),
    federation=FederationConfig(partners=len(NAMES), quorum=QUORUM),
)
"""Of real data: private and masked. More rounds than any test waits for."""
GATHER_S, EXCHANGE_S, GRACE_S = 4.0, 8.0, 3.0


@dataclass
class Faulty(Deployment):
    """A deployment whose coordinator waits for seconds where one of the real world waits for minutes."""

    grace_s: float = GRACE_S
    gather_s: float = GATHER_S

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts at rounds that failed."""
        file = self.run / ATTEMPTS_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log(self, name: str) -> str:
        """All that a party has written to its log."""
        return (self.root / f"{name}.log").read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of a party's log that are Veilrec's own."""
        found = []
        for line in self.log(name).splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [event for event in found if isinstance(event, dict)]

    def said(self, name: str) -> list[str]:
        """The events in a party's log."""
        return [str(event.get("event")) for event in self.events(name)]

    def troubles(self, name: str) -> list[dict[str, Any]]:
        """The errors in a party's log."""
        return [event for event in self.events(name) if event.get("level") == "error"]

    def agents(self, name: str) -> list[int]:
        """The processes that are a partner's agent."""
        return self.pids(f"client.partner_process agent {self.folder(name).resolve()}")

    def last_refusal(self, name: str) -> str | None:
        """The family of the error of an agent's last refusal, as its own people are told."""
        _, told = ask(self.folder(name).resolve() / OPERATOR_SOCKET, "GET", STATUS, timeout_s=30)
        error = json.loads(told)["last_error"]
        return None if error is None else str(error["family"])

    def of_coordinator(self, program: str = "") -> list[int]:
        """The processes that the coordinator started, and itself: by what they were told of where its home is."""
        mark, found = f"{self.home}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (folder / "cmdline").read_bytes()  # empty for one that ended and was not waited for
                if program.encode() in line and line and mark in line + (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def left(self) -> list[str]:
        """The coordinator's processes by their command lines and states, for whoever asks why."""
        told = []
        for pid in self.of_coordinator():
            with suppress(OSError):
                folder = Path("/proc") / str(pid)
                state = folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()[:4]
                told.append(f"{pid} {state} {folder.joinpath('cmdline').read_bytes().decode()[:120]!r}")
        return told

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the gate."""
        return ServerSettings.open(self.home).address

    def move(self, host: str) -> None:
        """Let partners reach the coordinator by another address of this machine, too."""
        settings = ServerSettings.open(self.home)
        port = settings.address.rpartition(":")[2]
        settings.model_copy(update={"address": f"{host}:{port}"}).write(self.home)
        renew(self.home, Passphrase.read(self.root / PASSPHRASE_FILE))

    def at(self, name: str, host: str) -> None:
        """Let a partner's node use that address."""
        folder = self.folder(name) / NODE_FOLDER
        settings = NodeSettings.open(folder)
        port = settings.address.rpartition(":")[2]
        settings.model_copy(update={"address": f"{host}:{port}", "socket": SOCKET}).write(folder)

    def checkpoint_round(self) -> int:
        """The last whole round, by a checkpoint that is read and verified."""
        run_id = json.loads((self.run / "checkpoints" / "promise.json").read_text())["run_id"]
        kept = CheckpointStore(self.run / "checkpoints").load(run_id)
        return 0 if kept is None else kept.round

    def lose(self, name: str) -> None:
        """Kill a partner's processes, all at once, as a power failure does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def node_alone(self, name: str, environment: Mapping[str, str], timeout_s: float = 60.0) -> tuple[int, str]:
        """Run a partner's node in the foreground until it ends; its exit code, and why it did, by its last line."""
        command = [sys.executable, "-m", "client.partner_process", "node", str(self.folder(name) / "node")]
        env = {**os.environ, **environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
        return done.returncode, str(json.loads(done.stderr.splitlines()[-1])["why"])

    def cohorts(self, after: int = 0) -> list[int]:
        """How many partners were in each round, from the one after `after`."""
        return [record["cohort"] for record in self.rounds()[after:]]

    def wait_for_cohort(self, number: int, timeout_s: float) -> dict[str, Any]:
        """Wait for the first round from now on that has so many partners, and give its record."""
        before = len(self.rounds())
        self.wait(lambda: number in self.cohorts(before), timeout_s, f"a round of {number} partners")
        return next(record for record in self.rounds()[before:] if record["cohort"] == number)

    def gather(self, timeout_s: float) -> None:
        """All partners in one round: those that are not there, as no test has started them yet, are started."""
        if absent := [name for name in NAMES if name not in self.processes]:
            self.start(*absent)
        self.wait_for_cohort(len(NAMES), timeout_s)

    def status(self) -> dict[str, Any]:
        """What the coordinator says of itself."""
        return cast("dict[str, Any]", json.loads((self.run / "status.json").read_text()))

    def _command(self, name: str) -> Sequence[str]:
        if name != SERVER_FOLDER:
            return super()._command(name)
        waits = {"--gather-s": self.gather_s, "--exchange-s": EXCHANGE_S, "--grace-s": self.grace_s}
        told = [text for option, value in waits.items() for text in (option, f"{value:g}")]
        return ["server", "run", str(self.home), "--until-done", *told]


def raw(partner: int) -> RawData:
    """Users with five purchases each."""
    rows = [
        (f"user {partner} {u}", f"item {(partner + 3 * u + e) % ITEMS}", e, "purchase", None, "")
        for u in range(USERS)
        for e in range(5)
    ]
    columns = ("user_id", "item_id", "timestamp", "event", "rating", "review")
    types = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
    titles = [f"Lamp {k}" for k in range(ITEMS)]
    ids = [f"item {k}" for k in range(ITEMS)]
    items = pl.DataFrame({"item_id": ids, "title": titles, "text": "A lamp.", "categories": ""})
    return RawData("lamps", pl.DataFrame(rows, schema=dict(zip(columns, types, strict=True)), orient="row"), items)


def prepare(root: Path, config: RunConfig = CONFIG) -> Faulty:
    """Provision the coordinator and four partners in an empty folder."""
    given = {}
    for k, name in enumerate(NAMES):
        write(raw(k), root / "given" / name)
        given[name] = root / "given" / name / INTERACTIONS_FILE
    return cast("Faulty", Faulty.prepare(root, root / "given" / NAMES[0] / ITEMS_FILE, given, config))


def soon(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until something holds."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"Expected {what} within {timeout_s:g} s."
        time.sleep(0.1)


def ledger_lines(folder: Path) -> list[bytes]:
    """The whole lines of a partner's ledger."""
    return (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)


@contextmanager
def in_memory(root: Path, sizes: Mapping[str, str]) -> Iterator[None]:
    """Folders that are each a small disk of their own, if that can be had: by root alone."""
    with ExitStack() as stack:
        for name, size in sizes.items() if os.geteuid() == 0 else ():
            (root / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(root / name)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(root / name)], check=True)
        yield


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """A disk without a free page, for a while."""
    file = folder / "ballast"
    with file.open("wb", buffering=0) as ballast:
        for size in (2**20, 2**12):
            with suppress(OSError):
                while ballast.write(bytes(size)):
                    pass
    try:
        yield
    finally:
        file.unlink()
