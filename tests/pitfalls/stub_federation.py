"""Whole federations in which all is real but BERT: a user's gradient is a vector that follows from the name.

Sampling, clipping, lattice, noise, ledger, masks, wire, gathering and optimiser are those of production. A round of
three partners takes milliseconds, so that the pitfalls can be looked for in what really crosses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from recording import RecordingGrid

from client.agent import PartnerAgent
from client.app import app as client_app
from client.app import partner_folder
from client.learner import Learner
from client.premises import IDENTITY_FILE, Premises, write_partner
from client.training import ROUNDING_SLACK, clip_and_sum
from server.admission import Admission
from server.app import RECEIPTS_FILE
from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState
from server.receipts import ReceiptBook
from server.strategy import Run, VeilrecStrategy
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.hazmat.randomness import SeededRandomness
from shared.hazmat.signing import SigningKey
from shared.messages import ClippedSum, NoisedSum, RoundPlan
from shared.model.prior import uninformed
from shared.privacy.accounting import build_plan
from shared.schema import EVENT_KINDS, Histories

ITEMS, CATALOGUE, RUN = 12, "c" * 64, "run"
Gradient = Callable[[str], NDArray[np.float64]]
Sections = dict[str, Any]


def config_of(partners: int = 3, top: Sections | None = None, /, **sections: Sections) -> RunConfig:
    """All users in every round, noise that is not calibrated (so quick to plan), a plain sum on the server."""
    plain = RunConfig(
        prior=PriorConfig(kind="none"),
        training=TrainingConfig(rounds=3, sampling_rate=1.0, server_optimizer="average", learning_rate=1.0),
        privacy=PrivacyConfig(population=50, noise_multiplier=2.0),
        federation=FederationConfig(partners=partners),
    )
    tree = plain.model_dump()
    for name, values in sections.items():
        tree[name].update(values)
    return RunConfig.model_validate({**tree, **(top or {})})


def gradient_of(size: int, length: float = 3.0) -> Gradient:
    """A direction of a user's own, longer than the clip norm."""

    def gradient(user: str) -> NDArray[np.float64]:
        direction = np.random.default_rng(zlib.crc32(user.encode())).normal(size=size)
        return length * direction / np.linalg.norm(direction)

    return gradient


def nothing(size: int) -> Gradient:
    """Users without a gradient: what is released is noise alone."""
    return lambda user: np.zeros(size)


def histories(users: Sequence[str]) -> Histories:
    """Four events a user."""
    return Histories(
        users=tuple(users),
        offsets=np.arange(len(users) + 1, dtype=np.int64) * 4,
        items=np.array([(zlib.crc32(u.encode()) + k) % ITEMS for u in users for k in range(4)], dtype=np.int32),
        timestamps=np.arange(4 * len(users), dtype=np.int64),
        events=np.full(4 * len(users), EVENT_KINDS.index("purchase"), dtype=np.int8),
        ratings=np.full(4 * len(users), np.nan, dtype=np.float32),
        reviews=np.full(4 * len(users), -1, dtype=np.int32),
    )


class StubLearner(Learner):
    """The real learner over users whose gradients are given."""

    def __init__(self, premises: Premises, users: Sequence[str], gradient: Gradient) -> None:
        super().__init__(premises, "cpu")
        self.users, self.gradient, self.size = users, gradient, len(gradient(""))
        self.precisions: list[bool] = []
        self.stands_alone = False

    @property
    def catalogue(self) -> Any:  # type: ignore[override]
        return _Catalogue()

    def histories(self, model: ModelConfig) -> Histories:
        return histories(self.users)

    def workbench(self, model: ModelConfig, seed: int) -> Any:
        gradients = SimpleNamespace(size=self.size, clipped_sum=self._clipped_sum)
        return SimpleNamespace(model=None, catalogue=None, gradients=gradients, bf16_stands_alone=self.stands_alone)

    def batch_maker(self, model: ModelConfig, seed: int) -> Any:
        return SimpleNamespace(training=lambda taken, training, key: [self.users[int(k)] for k in taken])

    def _logits(self, prior: Any, config: Any, bench: Any) -> Any:
        return None

    def _clipped_sum(
        self, users: list[str], catalogue: Any, logits: Any, clip_norm: float, *, bf16: bool
    ) -> ClippedSum:
        self.precisions.append(bf16)
        if not users:
            return ClippedSum(np.zeros(self.size), clip_norm)
        rows = torch.from_numpy(np.array([self.gradient(user) for user in users]))
        total = clip_and_sum(rows, clip_norm * (1 - ROUNDING_SLACK)).numpy()
        return ClippedSum(total, clip_norm, private_loss=float(len(users)))


class _Catalogue:
    digest = CATALOGUE

    def __len__(self) -> int:
        return ITEMS


@dataclass
class StubFederation:
    """Partners on disk, and their coordinator."""

    root: Path
    agents: dict[Path, PartnerAgent]
    size: int
    totals: list[NDArray[np.int64]] = field(default_factory=list)
    """Of every round that was opened, in lattice steps."""

    def agent(self, partition: int) -> PartnerAgent:
        return self.agents[partner_folder(self.root, partition)]

    def grid(self) -> RecordingGrid:
        return RecordingGrid(client_app, range(len(self.agents)), self.root)

    def strategy(self, config: RunConfig, out: Path) -> VeilrecStrategy:
        """A coordinator that has just started, and goes on from its checkpoint."""
        store = CheckpointStore(out)
        start = ServerState.start(np.zeros(self.size, dtype=np.float32))
        checkpoint = store.load(RUN) or Checkpoint(RUN, 0, start, None, [])
        run = Run(RUN, config, build_plan(config), ITEMS, CATALOGUE)
        book = ReceiptBook(self.root / RECEIPTS_FILE)
        return VeilrecStrategy(run, checkpoint, store, Admission.open(self.root), book, lambda record: None)

    def train(self, config: RunConfig, out: Path, grid: RecordingGrid | None = None) -> VeilrecStrategy:
        """Do the rounds that are left."""
        strategy = self.strategy(config, out)
        in_units = strategy._in_units

        def kept(stage: Any, gathered: Any) -> Any:
            self.totals.append(gathered.total)
            return in_units(stage, gathered)

        strategy._in_units = kept  # type: ignore[method-assign]
        strategy.start(grid or self.grid(), ArrayRecord(), num_rounds=strategy.rounds_left, timeout=10)
        return strategy

    def noised(self, partition: int, config: RunConfig, round_: int = 1) -> NoisedSum:
        """What one partner's learner makes of a training round, before masks."""
        start = np.zeros(self.size, dtype=np.float32)
        return self.agent(partition).learner.noised_gradients(order_of(config, round_), start, uninformed(ITEMS))


def order_of(config: RunConfig, round_: int = 1) -> RoundPlan:
    return RoundPlan(RUN, round_, "train", config, build_plan(config), CATALOGUE, "", "0" * 32)


def set_up(
    root: Path, users: Sequence[Sequence[str]], gradient: Gradient, *, real: Sections | None = None
) -> StubFederation:
    """Partners with keys, peers and ledgers; `real` holds the policy of partners that are no simulation."""
    folders = [partner_folder(root, k) for k in range(len(users))]
    for folder in folders:
        folder.mkdir(parents=True)
    keys = {folder.name: SigningKey.load_or_create(folder / IDENTITY_FILE).public for folder in folders}
    server = Admission.create(root, keys).key.public
    agents = {}
    for folder, own in zip(folders, users, strict=True):
        policy = {"server_key": server.text, **(real or {})}
        told = {"name": folder.name, "simulated": real is None, "cache": "c", "tie_seed": 0, "policy": policy}
        premises = write_partner(folder, {**told, "peers": {name: key.text for name, key in keys.items()}})
        agents[folder] = PartnerAgent(premises, "cpu")
        agents[folder].learner = StubLearner(premises, own, gradient)
    return StubFederation(root, agents, len(gradient("")))


def seed_secrets(federation: StubFederation) -> None:
    """Masks and keys that can be reproduced, to compare whole messages."""
    for folder, agent in federation.agents.items():
        agent._secrets = SeededRandomness(1, folder.name)


Federate = Callable[..., StubFederation]
"""(users a partner, gradient=a direction of each user's own, size=200, real=None, at=a folder's name)"""


def names(partner: str, count: int) -> list[str]:
    return [f"{partner}-user-{k:03d}" for k in range(count)]
