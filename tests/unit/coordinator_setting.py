"""A coordinator's folder as a run leaves it, for the tests of what operators see and keep."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation import NoOpFederationManager

from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState
from server.partners import Registry
from server.receipts import ReceiptBook
from server.settings import ServerSettings
from shared.config import FederationConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.enrolment import EnrolmentRequest
from shared.files import write_json, write_lines
from shared.hazmat import key_files
from shared.hazmat.certificates import create_authority, issue_server_certificate
from shared.hazmat.key_files import Passphrase
from shared.hazmat.node_keys import NodeKey, superlink_form
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import LedgerHead

PARTNERS = ("anna", "ben", "carl", "dora")
RUN_ID, ROUNDS = "0123456789abcdef", 6
PASSPHRASE = Passphrase(b"of the test and of nobody else")
CONFIG = RunConfig(
    simulation=False,
    seed=None,
    training=TrainingConfig(rounds=9),
    privacy=PrivacyConfig(epsilon=8.0, population=5000),
    federation=FederationConfig(partners=4, quorum=3),
)
_made: list[tuple[Path, dict[str, int]]] = []


def quick_keys(patch: pytest.MonkeyPatch) -> None:
    """Stretch passphrases little: what they are worth is tested elsewhere."""
    patch.setattr(key_files, "SCRYPT_LOG_N", 4)


def home_once(factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A home as `make_home` makes it, once for all tests; it is to be copied, never changed."""
    if not _made:
        with pytest.MonkeyPatch.context() as patch:
            quick_keys(patch)
            home = factory.mktemp("coordinator") / "home"
            _made.append((home, make_home(home)))
    return _made[0]


def record(number: int) -> dict[str, Any]:
    """A line of ``rounds.jsonl``."""
    return {
        "round": number,
        "stage": "prior" if number == 1 else "train",
        "cohort": 4 - number % 2,
        "bytes_up": 1000 * number,
        "bytes_down": 2000 * number,
        "epsilon": 0.5 * number,
        "update_norm": 1.0 / number,
        "noise_norm": 0.25,
        "seconds": float(number),
    }


def make_home(home: Path) -> dict[str, int]:
    """Write a home with four enrolled partners, of whom the last is revoked, and a run under way.

    Returns
    -------
    dict
        The SuperLink's ids of their nodes; none has ever connected.
    """
    home.mkdir(parents=True)
    create_authority(home / "ca.key", home / "ca.crt", "test", PASSPHRASE)
    issue_server_certificate(
        (home / "ca.key", home / "ca.crt"), home / "tls.key", home / "tls.crt", ["coordinator.example"], PASSPHRASE
    )
    key = SigningKey.load_or_create(home / "server.key", PASSPHRASE)
    nodes = {name: NodeKey.load_or_create(home.parent / f"{name}.key", PASSPHRASE) for name in PARTNERS}
    requests = [EnrolmentRequest.make(name, 1, [SigningKey.generate()], [nodes[name]]) for name in PARTNERS]
    registry = Registry(serial=4)
    for request in requests:
        registry = registry.admit(request, (key.public.text,))
    registry.revoke(PARTNERS[-1]).save(home)
    ServerSettings(address="coordinator.example:9443").write(home)
    write_json(home / "config.json", CONFIG.model_dump(mode="json"))
    ReceiptBook(home / "receipts.json").add({"anna": LedgerHead(12, "a" * 64), "ben": LedgerHead(9, "b" * 64)}, key)
    write_json(home / "releases.json", [hashlib.sha256(b"1").hexdigest()])
    write_run(home / "run", ROUNDS)
    with_superlink = superlink(home)
    return {name: register(with_superlink, name, node) for name, node in nodes.items()}


def write_run(folder: Path, rounds: int) -> None:
    """The run folder after so many rounds."""
    records = [record(number) for number in range(1, rounds + 1)]
    state = ServerState.start(np.zeros(50, dtype=np.float32))
    CheckpointStore(folder / "checkpoints").save(Checkpoint(RUN_ID, rounds, state, None, records))
    write_json(folder / "config.json", CONFIG.model_dump(mode="json"))
    write_lines(folder / "rounds.jsonl", records)


def superlink(home: Path) -> SqlLinkState:
    """Flower's own database of nodes."""
    (home / "superlink").mkdir(exist_ok=True)
    state = SqlLinkState(str(home / "superlink" / "state.db"), NoOpFederationManager(), InMemoryObjectStore())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alembic, on Flower's own configuration of it
        state.initialize()
    return state


def register(state: SqlLinkState, name: str, key: NodeKey) -> int:
    """As `server.registry.sync_nodes` has the SuperLink do it."""
    return state.create_node("owner", "owner", superlink_form(key.public_text), 30.0, name=name)
