"""``docs/deployment.md``, followed word for word: its commands as they stand there, from nothing to a release.

A block of the page says who runs it: ``sh coordinator``, ``sh partner``, with ``stays`` if it does not end; or it is a
file, by its name. What people carry between the parties, files and digits, the test carries.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

from simulations.simulate import Request, prepare_for_flower

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
BLOCK = re.compile(r"^```(?P<kind>sh|json|toml) (?P<info>[^\n]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
DIGITS = re.compile(r"(?:\d{5} ){7}\d{5}")
NAMES = ("baker", "butcher", "grocer")
MOST_COMMANDS = 10
TIMEOUT_S = 240.0


@dataclass
class Party:
    """One who follows the page, in a folder of its own."""

    folder: Path
    environment: dict[str, str]
    stays: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def do(self, body: str, how: list[str]) -> str:
        """A block, as its heading says; what it told."""
        if "environment" in how:
            self.export(body)
        elif "stays" in how:
            self.begin(body)
        else:
            return self.follow(body)
        return ""

    def follow(self, body: str) -> str:
        """Run a block's lines; each has to end well."""
        told = []
        for line in body.strip().splitlines():
            done = subprocess.run(
                line, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            told.append(done.stdout)
        return "".join(told)

    def export(self, body: str) -> None:
        """Take the variables that a block exports."""
        for line in body.strip().splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environment[name] = self.follow(f"printf %s {value}")

    def begin(self, body: str) -> None:
        """Start a block that stays."""
        with (self.folder / "stays.log").open("ab") as log:
            begun = subprocess.Popen(
                body, shell=True, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.stays.append(begun)

    def end(self) -> None:
        for process in self.stays:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.stays:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vr") as folder:  # short: a socket's path is
        yield Path(folder)


@pytest.fixture
def parties(root: Path) -> Iterator[tuple[Party, list[Party]]]:
    """A coordinator with a catalogue, and three partners each with a till that wrote a CSV file."""
    shop = root / "shop"
    prepare_for_flower(Request("marketplace", len(NAMES), "iid", 0, "inprocess", 150, 140, False, {}), shop)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    bin_folder = Path(sys.executable).parent
    common = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    common.pop("VEILREC_PASSPHRASE_FILE", None)
    coordinator = Party(root / "c", {**common, "ADDRESS": address})
    coordinator.folder.mkdir()
    shutil.copy(shop / "items.parquet", coordinator.folder)
    partners = []
    for k, name in enumerate(NAMES):
        partner = Party(root / name[0], {**common, "NAME": name})
        drops = partner.folder / name / "drops"
        drops.mkdir(parents=True)
        pl.read_parquet(shop / f"partner-{k:03d}" / "interactions.parquet").write_csv(drops / "till.csv")
        partners.append(partner)
    yield coordinator, partners
    for party in (coordinator, *partners):
        party.end()


def folders_of(partners: list[Party]) -> list[Path]:
    """The folders that the partners' commands name."""
    return [partner.folder / name for partner, name in zip(partners, NAMES, strict=True)]


def carry(coordinator: Party, partners: list[Party]) -> None:
    """What people carry: requests one way, the bundle the other."""
    for partner, name in zip(partners, NAMES, strict=True):
        request = partner.folder / name / f"{name}.request.json"
        if request.exists():
            shutil.copy(request, coordinator.folder)
        bundle = coordinator.folder / "coordinator" / "bundle"
        if bundle.exists():
            shutil.copytree(bundle, partner.folder / "bundle", dirs_exist_ok=True)


def test_the_runbook_leads_from_nothing_to_a_release(parties: tuple[Party, list[Party]]) -> None:
    coordinator, partners = parties
    blocks = [(found["info"].split(), found["body"]) for found in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
    commands = 0
    for (who, *how), body in blocks:
        if who not in ("coordinator", "partner"):  # a file of one or the other
            for folder in [coordinator.folder] if who == "config.json" else folders_of(partners):
                (folder / who).write_text(body)
            continue
        if "environment" not in how:
            commands += len(body.strip().splitlines())
        if "status" in body:  # the page's people look when they like: here, once it is done
            wait_for_release(coordinator)
        for party in [coordinator] if who == "coordinator" else partners:
            for digits in DIGITS.findall(party.do(body, how)):
                for each in partners:  # the last that were read out
                    each.environment["DIGITS"] = digits
        carry(coordinator, partners)
    assert commands <= MOST_COMMANDS, commands
    rounds = coordinator.folder / "coordinator" / "run" / "rounds.jsonl"
    assert len(rounds.read_text().splitlines()) == 4  # that of the prior, and three of training


def wait_for_release(coordinator: Party) -> None:
    until = time.monotonic() + TIMEOUT_S
    released = coordinator.folder / "coordinator" / "run" / "adapter" / "manifest.sig"
    while not released.exists():
        assert all(process.poll() is None for process in coordinator.stays), "the coordinator ended"
        assert time.monotonic() < until, (coordinator.folder / "stays.log").read_text()[-2000:]
        time.sleep(0.5)
