"""A deployment with processes that are killed at random: it ends where an undisturbed one does, to the bit.

Server and four partners are real processes with keys, TLS and node authentication, each agent and each node a user of
its own where the test is root. Data are marked as simulated, so that noise is drawn from a seed and two runs can be
compared; everything else is as on real premises.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from open_python import python_for_all, two_users

from client.app import app as client_app
from server.app import run_federation
from server.checkpoint import Checkpoint, CheckpointStore
from shared.config import FederationConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.privacy.ledger_audit import read_ledger
from simulations.federation import InProcessGrid
from simulations.one_machine import Deployment
from simulations.simulate import Request, prepare_for_flower
from simulations.workspace import Workspace

pytestmark = pytest.mark.e2e
PARTNERS, ROUNDS, KILLS_SEED = 4, 20, 3
AGENT, NODE, SUPERLINK = "partner_process agent", "partner_process node", "bin/flower-superlink"
TIMEOUT_S = 600.0
CONFIG = RunConfig(
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8),
    training=TrainingConfig(rounds=ROUNDS - 1, sampling_rate=0.3),
    privacy=PrivacyConfig(population=240, epsilon=8.0, delta=1e-5),
    federation=FederationConfig(partners=PARTNERS),
)
"""All four are needed in every round, so that every run has the same participants."""


@pytest.fixture(scope="module")
def users() -> Iterator[tuple[str, str] | None]:
    """Two users of the operating system, where they can be made."""
    if os.geteuid() != 0:
        yield None
        return
    with two_users() as names:
        yield names


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of the partners has."""
    root = tmp_path_factory.mktemp("parts")
    request = Request("marketplace", PARTNERS, "iid", 0, "inprocess", 240, 140, False, {})
    prepare_for_flower(request, root)
    return root


@pytest.fixture(scope="module")
def undisturbed(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same federation in one process."""
    workspace, out = Workspace.open(parts), tmp_path_factory.mktemp("undisturbed")
    return run_federation(InProcessGrid(client_app, range(PARTNERS), parts), CONFIG, workspace.catalogue, out, parts)


def kill_at_random(deployment: Deployment, chance: random.Random) -> list[str]:
    """Kill an agent, a node and the SuperLink, each twice, in the middle of rounds; what was killed when."""
    told, targets = [], [AGENT, NODE, SUPERLINK] * 2
    chance.shuffle(targets)
    for number, target in enumerate(targets):
        deployment.wait_for_rounds(2 + 2 * number, TIMEOUT_S)
        time.sleep(chance.uniform(0.0, 3.0))
        victims = deployment.pids(target)
        if victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
            told.append(f"{target} in round {len(deployment.rounds()) + 1}")
    return told


def test_a_federation_whose_processes_are_killed_ends_as_an_undisturbed_one(
    parts: Path, undisturbed: Checkpoint, users: tuple[str, str] | None
) -> None:
    with tempfile.TemporaryDirectory(prefix="vr") as folder:  # short: a socket's path is
        root = Path(folder)
        root.chmod(0o711)
        events = {folder.name: folder / "interactions.parquet" for folder in sorted(parts.glob("partner-*"))}
        python = (sys.executable,) if users is None else python_for_all(root)
        deployment = Deployment.prepare(root, parts / "items.parquet", events, CONFIG, users=users, python=python)
        with deployment.running():
            killed = kill_at_random(deployment, random.Random(KILLS_SEED))
            deployment.wait_for_release(TIMEOUT_S)
        print(f"killed: {', '.join(killed)}; seconds a round: {[round(r['seconds'], 1) for r in deployment.rounds()]}")
        assert len(killed) == 6
        assert_as_undisturbed(deployment, undisturbed)
        assert_ledgers_agree(deployment, parts)
        if users is not None:
            assert_the_node_reads_nothing(deployment, users)


def assert_as_undisturbed(deployment: Deployment, undisturbed: Checkpoint) -> None:
    ended = CheckpointStore(deployment.run / "checkpoints").load(undisturbed.run_id)
    assert ended is not None
    np.testing.assert_array_equal(ended.state.released, undisturbed.state.released)
    kept = ("round", "stage", "cohort", "epsilon", "update_norm")
    told = [[record[key] for key in kept] for record in deployment.rounds()]
    assert told == [[record[key] for key in kept] for record in undisturbed.records]
    assert (deployment.run / "adapter" / "manifest.sig").exists()


def assert_ledgers_agree(deployment: Deployment, parts: Path) -> None:
    """Each verifies, has paid for every round once, and says what that of the undisturbed run says."""
    for name in deployment.names:
        disturbed = read_ledger(deployment.folder(name) / "ledger.jsonl")
        alone = read_ledger(parts / name / "ledger.jsonl")
        assert [(run.released, run.opened) for run in disturbed.runs] == [(ROUNDS, ROUNDS)]
        assert (disturbed.runs, disturbed.spent) == (alone.runs, alone.spent)


def assert_the_node_reads_nothing(deployment: Deployment, users: tuple[str, str]) -> None:
    """The agent's user can read its things, so that the node's user is refused for what it is."""
    folder = deployment.folder(deployment.names[0])
    things = [folder / name for name in ("identity.key", "pseudonym.key", "partner.toml", "ledger.jsonl")]
    things += [*(folder / "data").glob("*"), *(folder / "runs").rglob("*.json")]
    read = {}
    for user in users:
        read[user] = [bool(_shown(thing, user)) for thing in things]
    assert read == {users[0]: [True] * len(things), users[1]: [False] * len(things)}


def _shown(path: Path, user: str) -> bytes:
    command = ["cat", str(path)]
    return subprocess.run(command, user=user, group=user, extra_groups=[], check=False, capture_output=True).stdout
