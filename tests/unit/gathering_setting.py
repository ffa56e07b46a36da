"""A federation of real agents, keys and ledgers whose sums are given: rounds without a model, and partners that fail.

All messages go through the relay and the wire; only what a partner learns from is replaced (`Given`).
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

import client.agent
from client import app as relay
from client.agent import PartnerAgent
from client.app import partner_folder
from client.premises import IDENTITY_FILE, Premises, write_partner
from client.privatize import add_noise_share
from server.admission import Admission
from server.gathering import BareGathering, Exchanges, Gathered, MaskedGathering
from server.promise import Promise
from server.receipts import ReceiptBook
from shared.config import FederationConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.hazmat.randomness import randomness_for
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, ClippedSum, NoisedSum, RoundPlan, SignedPlan, model_digest
from shared.model.prior import CollaborativePrior, uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.ledger_audit import RunReport, read_ledger
from shared.requests import Answer, Model, Request
from shared.wire import pack_request
from simulations.federation import FIRST_NODE, InProcessGrid

SECRET = "user 17 hates her neighbour"
STEPS = ("keys", "shares", "sum", "consent", "open")
SIZE = 60
CONFIG = RunConfig(
    prior=PriorConfig(kind="none"),
    training=TrainingConfig(rounds=6, sampling_rate=1.0),
    privacy=PrivacyConfig(mode="distributed", population=60, noise_multiplier=9.0),
    federation=FederationConfig(partners=4, quorum=3, timeout_s=5),
)
"""Noise that is not calibrated and a sample of everybody: such a plan is accounted for in no time."""
How = Literal["raises", "silent", "confused"]
"""Fails before it does anything; does it, and the answer is lost; answers what nobody asked."""
SHELF_ITEMS = 2
Drawn = defaultdict[tuple[str, int], list[NDArray[np.int64]]]
"""The noised sums that a partner drew for a round: one, if all is well."""
SumOf = Callable[[str, int], NDArray[np.float64]]
"""(partner, round) to its clipped sum, shape (P,)."""


def some_sum(name: str, number: int) -> NDArray[np.float64]:
    random = np.random.default_rng([*name.encode(), number])
    return random.normal(size=SIZE)


def nothing(name: str, number: int) -> NDArray[np.float64]:
    """A sum of nobody: what is opened is noise alone, as zero is on the lattice."""
    return np.zeros(SIZE)


class Shelf:
    """A catalogue of which nobody asks more than this."""

    digest = "catalogue"

    def __len__(self) -> int:
        return SHELF_ITEMS


@dataclass
class Given:
    """A learner whose clipped sums are given; what it draws is added to `drawn`."""

    premises: Premises
    sum_of: SumOf
    drawn: Drawn
    catalogue: Any = field(default_factory=Shelf)

    def check_parameters(self, config: RunConfig, parameters: NDArray[np.float32]) -> None:
        """Any will do."""

    def check_canaries(self, order: RoundPlan) -> None:
        """There are none."""

    def noised_gradients(
        self,
        order: RoundPlan,
        parameters: NDArray[np.float32],
        prior: CollaborativePrior,
        *,
        secret: bytes | None = None,
        canary_seed: bytes | None = None,
    ) -> NoisedSum:
        name, plan = self.premises.name, order.plan
        source = randomness_for(seed=order.config.seed, simulation=self.premises.simulated, party=name, secret=secret)
        clipped = ClippedSum(self.sum_of(name, order.round), plan.partner_clip_norm)
        noised = add_noise_share(clipped, plan, "train", source, f"{order.run_id}/{order.round}")
        self.drawn[name, order.round].append(noised.values)
        return noised


@dataclass
class Fragile:
    """An agent that raises where it is told to."""

    agent: PartnerAgent
    broken: bool = False

    def answer(self, request: Request) -> Answer:
        if self.broken:
            raise RuntimeError(SECRET)
        return self.agent.answer(request)


class Losing(InProcessGrid):
    """A grid on which some answers never come."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [message for message in super().pull_messages(message_ids) if message.content]


@dataclass
class Federation:
    """Partners on disk, their agents, and the coordinator's things.

    Attributes
    ----------
    faults : dict
        What a partner does at an exchange: ``faults[partner, step]``.
    confusion : RecordDict
        What is answered by a partner that is ``confused``.
    forgetful : bool
        Whether every message finds a new process at the partner.
    heard : list
        Who was asked what, in order.
    drawn : dict
        By partner and round.
    """

    root: Path
    config: RunConfig
    sum_of: SumOf
    partners: dict[str, Fragile]
    admission: Admission
    receipts: ReceiptBook
    grid: InProcessGrid
    size: int = SIZE
    names: dict[int, str] = field(default_factory=dict)
    faults: dict[tuple[int, str], How] = field(default_factory=dict)
    confusion: RecordDict = field(default_factory=RecordDict)
    forgetful: bool = False
    heard: list[tuple[int, str]] = field(default_factory=list)
    drawn: Drawn = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(
        cls, root: Path, patch: pytest.MonkeyPatch, config: RunConfig = CONFIG, sum_of: SumOf = some_sum
    ) -> Federation:
        """Write the partners' folders; agents are then found by folder, as the relay does it."""
        folders = [partner_folder(root, k) for k in range(config.federation.partners)]
        keys = {folder.name: SigningKey.load_or_create(folder / IDENTITY_FILE) for folder in folders}
        admission = Admission.create(root, {name: key.public for name, key in keys.items()})
        for folder in folders:
            write_partner(
                folder,
                {
                    "name": folder.name,
                    "simulated": True,
                    "policy": {"server_key": admission.key.public.text},
                    "peers": {name: key.public.text for name, key in keys.items()},
                },
            )
        app = ClientApp()
        made = cls(
            root,
            config,
            sum_of,
            {},
            admission,
            ReceiptBook(root / "receipts.json"),
            Losing(app, range(len(folders)), root),
            size=len(sum_of(folders[0].name, 1)),
        )
        for folder in folders:
            made.restart(folder.name)
        patch.setattr(client.agent, "agent_for", lambda folder: made.partners[folder.name])
        app.train()(made.deliver)
        return made

    def restart(self, name: str) -> None:
        """A new process at a partner: nothing is remembered but what is on its disk."""
        agent = PartnerAgent(Premises.open(self.root / name), "cpu")
        agent.learner = Given(agent.premises, self.sum_of, self.drawn)  # type: ignore[assignment]
        self.partners[name] = Fragile(agent)

    def deliver(self, message: Message, context: Context) -> Message:
        """The relay, unless the partner fails here."""
        partner = int(str(context.node_config["partition-id"]))
        step = str(message.content.config_records["step"]["step"])
        self.heard.append((partner, step))
        how = self.faults.get((partner, step))
        if how == "confused":
            return Message(self.confusion, reply_to=message)
        name = f"partner-{partner:03d}"
        if self.forgetful:
            self.restart(name)
        self.partners[name].broken = how == "raises"
        answer = relay._answer(message.content, context)
        return Message(RecordDict() if how == "silent" else answer, reply_to=message)

    def order(self, number: int) -> RoundPlan:
        """An honest one, in a fresh attempt."""
        model = self.model
        assert model.parameters is not None and model.prior is not None
        digest = model_digest(model.parameters, model.prior)
        plan = build_plan(self.config)
        return RoundPlan("run", number, "train", self.config, plan, "catalogue", digest, secrets.token_hex(16))

    @property
    def model(self) -> Model:
        return Model(np.zeros(3, dtype=np.float32), uninformed(SHELF_ITEMS))

    def attempt(self, number: int) -> Gathered:
        """One attempt at a round, with all partners, as the strategy does it."""
        order, nodes = self.order(number), list(self.grid.get_node_ids())
        signed = SignedPlan(order.text(), self.admission.key.sign(ROUND_PLAN, order.text().encode()))
        promise = Promise(self.root / "checkpoints", order.run_id, number)
        exchanges = Exchanges(order, self.grid, self.admission, self.receipts, self.names, promise)
        kind = MaskedGathering if order.plan.masked else BareGathering
        gathering = kind(exchanges, signed, nodes, self.size)
        requests = gathering.requests(dict.fromkeys(nodes, self.model))
        contents = {node: pack_request(request) for node, request in requests.items()}
        return gathering.finish(self.grid.send_and_receive(exchanges.messages(contents)))

    def noised(self, number: int, *without: int) -> NDArray[np.int64]:
        """The noised sums of a round, added up in the open."""
        names = [name for k, name in enumerate(self.partners) if k not in without]
        total: NDArray[np.int64] = np.sum([self.drawn[name, number][0] for name in names], axis=0)
        return total

    def ledger_file(self, partner: int) -> Path:
        return self.partners[f"partner-{partner:03d}"].agent.premises.ledger_file

    def ledger(self, partner: int) -> RunReport | None:
        """The run in a partner's ledger, if it was declared."""
        return next(iter(read_ledger(self.ledger_file(partner)).runs), None)


def node(partner: int) -> int:
    return FIRST_NODE + partner


def configured(**sections: dict[str, Any]) -> RunConfig:
    """`CONFIG` with some values changed."""
    tree = CONFIG.model_dump()
    for name, values in sections.items():
        tree[name] |= values
    return RunConfig.model_validate(tree)
