"""Whole federations in which all is real but BERT: a user's gradient is a vector that follows from the name.

Sampling, clipping, lattice, noise, ledger, masks, wire, gathering and optimiser are those of production. A round of
three partners takes milliseconds, so that checks can look at what really crosses. The people are invented.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from client.agent import PartnerAgent, agent_for
from client.app import app as client_app
from client.app import partner_folder
from client.learner import Learner
from client.premises import IDENTITY_FILE, Premises, write_partner
from client.training import ROUNDING_SLACK, clip_and_sum
from server.admission import Admission
from server.checkpoint import Checkpoint, CheckpointStore
from server.gathering import Gathered
from server.optimizer import ServerState
from server.receipts import RECEIPTS_FILE, ReceiptBook
from server.strategy import Run, VeilrecStrategy
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.hazmat.randomness import SeededRandomness
from shared.hazmat.signing import SigningKey
from shared.messages import ClippedSum, NoisedSum, RoundPlan
from shared.model.prior import uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.plan import PrivacyPlan, Stage
from shared.schema import EVENT_KINDS, Histories
from simulations.audit.mechanism.recording import RecordingGrid

ITEMS, CATALOGUE, RUN = 12, "c" * 64, "run"
SIZE = 20_000
"""Coordinates of a gradient where a deviation is measured: 0.5 % a standard error."""
MOST_PARTNERS = 10
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


def config_like(plan: PrivacyPlan, *, seed: int | None, rounds: int = 3) -> RunConfig:
    """A configuration with the noise, rate, clip norm and cohort of a plan, for as many partners as can be played.

    A larger federation is played by `MOST_PARTNERS` of which the same part must answer.
    """
    members = max(1, plan.partners // plan.buckets)
    n = min(members, MOST_PARTNERS)
    t, c = plan.survivors, plan.colluders
    if n < members:
        t, c = -(-n * t // members), n * c // members
    masked = n >= 3 and (plan.masked or plan.mode == "distributed")
    t = max(t, (n + c) // 2 + 1) if masked else t
    if t > n:
        t, c = n, min(c, n - 1)
    private = {
        "mode": plan.mode,
        "delta": plan.delta,
        "clip_norm": plan.clip_norm,
        "noise_multiplier": plan.noise_multiplier,
        "population": plan.population,
        "partners_per_user": plan.partners_per_user,
        "colluders": c if plan.mode == "distributed" else 0,
    }
    training = {
        "rounds": rounds,
        "sampling_rate": plan.sampling_rate,
        "local_steps": plan.local_steps,
        "local_learning_rate": 1e-30,
    }
    return config_of(
        n, {"seed": seed}, privacy=private, training=training, federation={"quorum": t, "secure_sum": masked}
    )


def without_noise(config: RunConfig) -> RunConfig:
    """The same in mode ``none``."""
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"mode": "none"})})


def gradient_of(size: int, length: float = 3.0) -> Gradient:
    """A direction of a user's own, longer than the clip norm."""

    def gradient(user: str) -> NDArray[np.float64]:
        direction = np.random.default_rng(zlib.crc32(user.encode())).normal(size=size)
        return length * direction / np.linalg.norm(direction)

    return gradient


def nothing(size: int) -> Gradient:
    """Users without a gradient: what is released is noise alone."""
    return lambda user: np.zeros(size)


def names(partner: str, count: int) -> list[str]:
    """Users of a partner."""
    return [f"{partner}-user-{k:03d}" for k in range(count)]


def histories(users: Sequence[str]) -> Histories:
    """Four events a user."""
    return histories_of([[(zlib.crc32(u.encode()) + k) % ITEMS for k in range(4)] for u in users], users)


def histories_of(items: Sequence[Sequence[int]], users: Sequence[str] | None = None) -> Histories:
    """Purchases of these item rows, one list a user."""
    flat = np.array([row for user in items for row in user], dtype=np.int32)
    n = len(flat)
    return Histories(
        users=tuple(users if users is not None else names("u", len(items))),
        offsets=np.concatenate([[0], np.cumsum([len(user) for user in items])]).astype(np.int64),
        items=flat,
        timestamps=np.arange(n, dtype=np.int64),
        events=np.full(n, EVENT_KINDS.index("purchase"), dtype=np.int8),
        ratings=np.full(n, np.nan, dtype=np.float32),
        reviews=np.full(n, -1, dtype=np.int32),
    )


class _Weights(torch.nn.Module):
    """What a round's parameters are loaded into."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.flat = torch.nn.Parameter(torch.zeros(size))


class GivenLearner(Learner):
    """The real learner over users whose gradients are given.

    Attributes
    ----------
    clips : list of float
        The norms that were clipped to.
    precisions : list of bool
        Whether bfloat16 was asked for.
    taken : list of list of str
        Who took part in each step.
    drawn : list of (int, ndarray)
        The round and the noised sum of each draw.
    fail_in : set of int
        Rounds in which the process ends between the reservation and the noise.
    """

    def __init__(self, premises: Premises, users: Sequence[str], gradient: Gradient) -> None:
        super().__init__(premises, "cpu")
        self.users, self.gradient, self.size = users, gradient, len(gradient(""))
        self.clips: list[float] = []
        self.precisions: list[bool] = []
        self.taken: list[list[str]] = []
        self.drawn: list[tuple[int, NDArray[np.int64]]] = []
        self.fail_in: set[int] = set()
        self.stands_alone = False

    @property
    def catalogue(self) -> Any:
        """A catalogue of `ITEMS`."""
        return _Catalogue()

    def histories(self, model: ModelConfig) -> Histories:
        """Four events a user."""
        return histories(self.users)

    def workbench(self, model: ModelConfig, seed: int) -> Any:
        """The given gradients in the place of BERT's."""
        gradients = SimpleNamespace(size=self.size, clipped_sum=self.clipped_sum)
        return SimpleNamespace(
            model=_Weights(self.size),
            catalogue=None,
            gradients=gradients,
            bf16_stands_alone=lambda prior, logits: self.stands_alone,
        )

    def batch_maker(self, model: ModelConfig, seed: int) -> Any:
        """One row a user that was taken."""

        def training(taken: Any, config: TrainingConfig, key: bytes) -> list[str]:
            self.taken.append([self.users[int(k)] for k in taken])
            return self.taken[-1]

        return SimpleNamespace(training=training)

    def noised_gradients(self, order: RoundPlan, *rest: Any, **named: Any) -> NoisedSum:
        """As production does, written down."""
        if order.round in self.fail_in:
            raise MemoryError
        noised = super().noised_gradients(order, *rest, **named)
        self.drawn.append((order.round, noised.values))
        return noised

    def _logits(self, prior: Any, order: Any, bench: Any) -> Any:
        return None

    def clipped_sum(self, users: list[str], catalogue: Any, logits: Any, clip_norm: float, *, bf16: bool) -> ClippedSum:
        """The users' gradients, clipped by the production code. The loss tells how many they are."""
        self.precisions.append(bf16)
        self.clips.append(clip_norm)
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
class Rehearsal:
    """Partners on disk, and their coordinator.

    Attributes
    ----------
    root : Path
    size : int
        Coordinates of a gradient.
    partners : int
    totals : list of ndarray of int64
        Of every round that was opened, in lattice steps.
    comparable : bool
        Attempts and masks can be reproduced, so that whole messages of two federations can be compared.
    """

    root: Path
    size: int
    partners: int
    totals: list[NDArray[np.int64]] = field(default_factory=list)
    comparable: bool = False

    @classmethod
    def of(
        cls, root: Path, *counts: int, gradient: Gradient | None = None, size: int = 200, real: Sections | None = None
    ) -> Rehearsal:
        """Partners with so many users each; `real` holds the policy of partners that are no simulation."""
        users = [names(f"p{k}", count) for k, count in enumerate(counts)]
        return cls.with_users(root, users, gradient or gradient_of(size), real=real)

    @classmethod
    def with_users(
        cls, root: Path, users: Sequence[Sequence[str]], gradient: Gradient, *, real: Sections | None = None
    ) -> Rehearsal:
        """Partners with these users: keys, peers and ledgers."""
        folders = [partner_folder(root, k) for k in range(len(users))]
        for folder in folders:
            folder.mkdir(parents=True)
        keys = {folder.name: SigningKey.load_or_create(folder / IDENTITY_FILE).public for folder in folders}
        server = Admission.create(root, keys).key.public
        for folder in folders:
            policy = {"server_key": server.text, **(real or {})}
            told = {"name": folder.name, "simulated": real is None, "cache": "c", "tie_seed": 0, "policy": policy}
            write_partner(folder, {**told, "peers": {name: key.text for name, key in keys.items()}})
        return cls.opened(root, users, gradient)

    @classmethod
    def opened(cls, root: Path, users: Sequence[Sequence[str]], gradient: Gradient) -> Rehearsal:
        """The partners that lie below `root`, as processes that have just started, with these users."""
        made = cls(root, len(gradient("")), len(users))
        for k, own in enumerate(users):
            agent = made.agent(k)
            agent.learner = GivenLearner(agent.premises, own, gradient)
        return made

    def agent(self, partition: int) -> PartnerAgent:
        """The agent that answers what comes through the client app."""
        return agent_for(partner_folder(self.root, partition))

    def learner(self, partition: int) -> GivenLearner:
        """What a partner computes with."""
        learner = self.agent(partition).learner
        assert isinstance(learner, GivenLearner)
        return learner

    def compare(self) -> Rehearsal:
        """Make its messages comparable with those of a copy."""
        self.comparable = True
        for k in range(self.partners):
            agent = self.agent(k)
            agent._secrets = SeededRandomness(1, agent.premises.name)  # type: ignore[assignment]
        return self

    def grid(self) -> RecordingGrid:
        """Real messages to the real client app."""
        return RecordingGrid(client_app, range(self.partners), self.root)

    def strategy(self, config: RunConfig, out: Path, store: CheckpointStore | None = None) -> VeilrecStrategy:
        """A coordinator that has just started, and goes on from its checkpoint."""
        store = store or CheckpointStore(out)
        start = ServerState.start(np.zeros(self.size, dtype=np.float32))
        checkpoint = store.load(RUN) or Checkpoint(RUN, 0, start, None, [])
        run = Run(RUN, config, build_plan(config), ITEMS, CATALOGUE)
        book = ReceiptBook(self.root / RECEIPTS_FILE)
        return VeilrecStrategy(
            run, checkpoint, store, Admission.open(self.root), book, lambda record: None, witness=self._witness
        )

    def _witness(self, number: int, stage: Stage, gathered: Gathered) -> None:
        self.totals.append(gathered.total)

    def train(
        self, config: RunConfig, out: Path, grid: RecordingGrid | None = None, store: CheckpointStore | None = None
    ) -> VeilrecStrategy:
        """Do the rounds that are left."""
        strategy = self.strategy(config, out, store)
        if self.comparable:
            self._reproducible(strategy)
        strategy.start(grid or self.grid(), ArrayRecord(), num_rounds=strategy.rounds_left, timeout=10)
        return strategy

    def _reproducible(self, strategy: VeilrecStrategy) -> None:
        order = strategy._order
        strategy._order = lambda number: replace(order(number), attempt=f"{number:032x}")  # type: ignore[method-assign]

    def noised(self, partition: int, config: RunConfig, round_: int = 1, plan: PrivacyPlan | None = None) -> NoisedSum:
        """What one partner's learner makes of a training round, before masks."""
        start = np.zeros(self.size, dtype=np.float32)
        order = order_of(config, round_) if plan is None else order_under(plan, config, round_)
        return self.learner(partition).noised_gradients(order, start, uninformed(ITEMS))


def order_of(config: RunConfig, round_: int = 1) -> RoundPlan:
    """A training round of a configuration."""
    return order_under(build_plan(config), config, round_)


def order_under(plan: PrivacyPlan, config: RunConfig, round_: int = 1) -> RoundPlan:
    """A training round under this very plan, whichever configuration it came from."""
    return RoundPlan(RUN, round_, "train", config, plan, CATALOGUE, "", "0" * 32)
