"""A partner whose node is Flower's own SuperNode takes part in real rounds, with its agent behind the socket.

It fetches the coordinator's bundle and starts a process for every message; the bundle's ClientApp (`client.app`)
hands each to the agent that ``agent-socket`` names. Flower reads no encrypted node key: it lies in the clear here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile_setting import CARELESS, CONFIG, given, soon, stock_node

from shared.privacy.ledger_audit import read_ledger
from simulations.one_machine import Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.soak]


@dataclass
class Mixed(Deployment):
    """Of one partner only the agent is ours."""

    def _command(self, name: str) -> Sequence[str]:
        command = super()._command(name)
        return [*command, "--only", "agent"] if name == CARELESS else command


@pytest.fixture
def mixed() -> Iterator[Mixed]:
    with tempfile.TemporaryDirectory(prefix="vr") as folder:  # short: a socket's path is
        root = Path(folder)
        items, events = given(root)
        deployment = Mixed.prepare(root, items, events, CONFIG)
        assert isinstance(deployment, Mixed)
        with deployment.running():
            log = root / "server.log"
            soon(lambda: '"registered"' in log.read_text(errors="replace"), 60, "registered nodes")
            yield deployment


def test_a_round_with_a_partner_whose_node_is_flowers_own(mixed: Mixed) -> None:
    folder = mixed.folder(CARELESS)
    began = time.monotonic()
    with stock_node(mixed, CARELESS, None, f'agent-socket="{folder / "agent.sock"}"') as log:
        mixed.wait_for_rounds(1, 100)
    print(f"{time.monotonic() - began:.1f} s for a round")
    (record, *_) = mixed.rounds()
    assert record["cohort"] == 3  # all are needed: the sum was opened with its part in it
    assert not (folder / "node" / "spool").exists()  # ours never ran
    ledgers = [read_ledger(mixed.folder(name) / "ledger.jsonl") for name in mixed.names]
    assert [ledger.runs[0].opened >= 1 for ledger in ledgers] == [True] * 3
    assert "Traceback" not in log.read_text(errors="replace")
