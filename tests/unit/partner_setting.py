"""A partner with real data, its coordinator and three peers, for the tests of one agent.

The round of the prior's sum needs no BERT, so most of what an agent decides is tested with it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from client.agent import PartnerAgent
from client.app import partner_folder
from client.data.ingest import RawData, write
from client.learner import Learner
from client.premises import IDENTITY_FILE, Premises, write_partner
from client.secure_sum import MaskingSession
from server.secure_sum import SecureSum
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import VeilrecError
from shared.exchange import Consent, KeyOffer, Opening, Outbox
from shared.hazmat.randomness import SystemRandomness
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, RoundPlan, SignedPlan, model_digest
from shared.model.prior import CollaborativePrior, uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.ledger import Receipt
from shared.privacy.plan import Stage
from shared.requests import (
    Answer,
    Attempt,
    BareRequest,
    ConsentRequest,
    Contribution,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)

R = TypeVar("R", KeysRequest, SharesRequest, SumRequest, ConsentRequest, OpenRequest)
ITEMS, USERS = 10, 6
NO_MODEL = Model()
SECRET = "hates her neighbour"
NAME = "partner-000"
PEERS = ("partner-001", "partner-002", "partner-003")
TINY = ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8)
CONFIG = RunConfig(
    simulation=False,
    seed=None,
    model=TINY,
    prior=PriorConfig(kind="popularity"),
    training=TrainingConfig(rounds=2, sampling_rate=1.0, drop_events=0.0),
    privacy=PrivacyConfig(population=60, noise_multiplier=3.0),
    federation=FederationConfig(partners=4, quorum=3),
)
"""Of real data: private, masked, with noise that is not calibrated, so quick to plan. Epsilon is 6.83."""
NO_PRIOR: dict[str, Any] = {"prior": {"kind": "none"}}
SIMULATED: dict[str, Any] = {"simulation": True, "seed": 0}
BARE: dict[str, Any] = {"federation": {"secure_sum": False}}
LOCAL: dict[str, Any] = {**BARE, "privacy": {"mode": "local"}}
FLOOR: dict[str, Any] = {"max_epsilon": 12.0, "max_delta": 1e-4, "min_cohort": 3}


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Another configuration; values of a section are laid over those that are there."""
    tree = config.model_dump()
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(tree)


def raw(users: int = USERS) -> RawData:
    """Users with five purchases each, one of them with a review."""
    rows = [
        (f"user {u}", f"item {(3 * u + e) % ITEMS}", e, "purchase", None, f"{SECRET} {u}" if e == 2 else "")
        for u in range(users)
        for e in range(5)
    ]
    schema = {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "event": pl.String,
        "rating": pl.Float64,
        "review": pl.String,
    }
    items = pl.DataFrame(
        {
            "item_id": [f"item {k}" for k in range(ITEMS)],
            "title": [f"Lamp {k}" for k in range(ITEMS)],
            "text": "A lamp.",
            "categories": "",
        }
    )
    return RawData("lamps", pl.DataFrame(rows, schema=schema, orient="row"), items)


def simulated_premises(folder: Path, cache: Path, name: str = NAME) -> Premises:
    """A simulated partner without peers."""
    write(raw(), folder)
    return write_partner(folder, {"name": name, "simulated": True, "cache": str(cache)})


@dataclass
class Federation:
    """One partner on disk, the keys of all, and the coordinator that asks.

    Attributes
    ----------
    root : Path
        Holds the partner's folder.
    config : RunConfig
    server : SigningKey
    keys : dict of str to SigningKey
    """

    root: Path
    config: RunConfig = CONFIG
    server: SigningKey = field(default_factory=SigningKey.generate)
    keys: dict[str, SigningKey] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        root: Path,
        *,
        config: RunConfig = CONFIG,
        users: int = USERS,
        cache: Path | None = None,
        simulated: bool = False,
        **floor: Any,
    ) -> Federation:
        """Write the partner's folder, with an empty ledger: real data, unless it says otherwise."""
        made = cls(root, config)
        folder = partner_folder(root, 0)
        write(raw(users), folder)
        made.keys = {NAME: SigningKey.load_or_create(folder / IDENTITY_FILE)}
        made.keys |= {peer: SigningKey.generate() for peer in PEERS}
        told = {
            "name": NAME,
            "simulated": simulated,
            "policy": {**({} if simulated else FLOOR), "server_key": made.server.public.text, **floor},
            "peers": {name: key.public.text for name, key in made.keys.items()},
        }
        write_partner(folder, told if cache is None else {**told, "cache": str(cache)})
        made.agent()  # begins the ledger
        return made

    @property
    def folder(self) -> Path:
        """The partner's."""
        return partner_folder(self.root, 0)

    @property
    def ledger_file(self) -> Path:
        """The partner's."""
        return self.folder / "ledger.jsonl"

    def agent(self) -> PartnerAgent:
        """The partner, as a new process has it."""
        return PartnerAgent(Premises.open(self.folder), "cpu")

    def ask(self, request: Request) -> Callable[[], Answer]:
        """To be called: a new process answers, or refuses."""
        return partial(self.agent().answer, request)

    def learner(self) -> Learner:
        """What the partner holds."""
        return Learner(Premises.open(self.folder), "cpu")

    def order(self, number: int = 1, stage: Stage = "prior", **changes: Any) -> RoundPlan:
        """What an honest coordinator asks, in a fresh attempt, but for `changes`."""
        config = changes.get("config", self.config)
        told: dict[str, Any] = {
            "run_id": "run",
            "round": number,
            "stage": stage,
            "config": config,
            "plan": build_plan(config),
            "catalogue_digest": self.learner().catalogue.digest,
            "model_digest": "",
            "attempt": secrets.token_hex(16),
        }
        return RoundPlan(**{**told, **changes})

    def training(self, number: int, model: Model, **changes: Any) -> RoundPlan:
        """A training round over a model that comes with its prior."""
        assert model.parameters is not None and model.prior is not None
        digest = model_digest(model.parameters, model.prior)
        return self.order(number, "train", **{"model_digest": digest, **changes})

    def signed(self, order: RoundPlan) -> SignedPlan:
        """Signed by the coordinator."""
        return SignedPlan(order.text(), self.server.sign(ROUND_PLAN, order.text().encode()))

    def bare(self, order: RoundPlan, model: Model = NO_MODEL, receipt: Receipt | None = None) -> BareRequest:
        """A round without masks."""
        return BareRequest(self.signed(order), model, receipt)

    def play(self, order: RoundPlan | None = None, **told: Any) -> Play:
        """A masked round, not begun."""
        return Play(self, self.order() if order is None else order, **told)


def paid(federation: Federation) -> dict[str, bytes]:
    """All that says what was spent and drawn: the ledger, and the noised sums of all runs."""
    files = [federation.ledger_file, *federation.folder.glob("runs/*/sum")]
    return {str(file): file.read_bytes() for file in files}


def refused(federation: Federation, family: type[VeilrecError], told: str, act: Callable[[], object]) -> None:
    """Check that `act` is refused, the ledger has every byte that it had, and no noised sum was written."""
    before = paid(federation)
    with pytest.raises(family, match=told) as error:
        act()
    assert type(error.value) is family
    assert paid(federation) == before


def entries(federation: Federation) -> list[str]:
    """Kinds of the ledger's lines."""
    return [json.loads(line)["kind"] for line in federation.ledger_file.read_bytes().splitlines()]


def keys(federation: Federation, order: RoundPlan) -> Callable[[], object]:
    """Exchange 1."""
    return federation.ask(KeysRequest(federation.signed(order)))


def begin(learner: Learner, config: RunConfig, prior: CollaborativePrior | None = None) -> Model:
    """A model to train from."""
    size = learner.workbench(config.model, config.seed or 0).gradients.size
    parameters = np.random.default_rng(0).normal(scale=0.05, size=size).astype(np.float32)
    return Model(parameters, prior or uninformed(ITEMS))


class Play:
    """One attempt at a masked round, exchange by exchange, between the agent and all the others in memory.

    The peers add vectors of zeros, so that the opened sum is the agent's own noised sum.

    Parameters
    ----------
    federation : Federation
    order : RoundPlan
    model : Model
        Goes with exchange 3.
    delivering : tuple of str
        The peers that deliver a masked vector.
    receipt : Receipt or None
        Goes with exchange 2.
    agent : PartnerAgent or None
        Answers all exchanges; None: a new process for each.
    """

    def __init__(
        self,
        federation: Federation,
        order: RoundPlan,
        *,
        model: Model = NO_MODEL,
        delivering: tuple[str, ...] = PEERS,
        receipt: Receipt | None = None,
        agent: PartnerAgent | None = None,
    ) -> None:
        self.federation, self.agent = federation, agent
        self.signed = federation.signed(order)
        self.attempt = Attempt(order.run_id, order.attempt)
        self.request: Request = KeysRequest(self.signed)
        self.answers: list[Answer] = []
        self.total: NDArray[np.int64] | None = None
        self._model, self._delivering, self._receipt = model, delivering, receipt
        size = ITEMS if model.parameters is None else model.parameters.size
        pinned = {name: key.public for name, key in federation.keys.items()}
        context, threshold, source = self.signed.context, order.plan.survivors, SystemRandomness()
        self._server = SecureSum(context, threshold, pinned, size)
        self._peers = {
            name: MaskingSession(name, context, federation.keys[name], pinned, threshold, source) for name in PEERS
        }

    def to(self, kind: type[R]) -> R:
        """Go on until a request of this kind comes next."""
        while not isinstance(self.request, kind):
            self.step()
        return self.request

    def step(self) -> Answer:
        """One exchange."""
        answer = (self.agent or self.federation.agent()).answer(self.request)
        self.answers.append(answer)
        match answer:
            case KeyOffer():
                self._ask_shares(answer)
            case Outbox():
                self._ask_sum(answer)
            case Contribution():
                self._ask_consent(answer)
            case Consent():
                self._ask_opening(answer)
            case Opening():
                others = [self._peers[peer].open(self._consents) for peer in self._delivering]
                self.total = self._server.open([answer, *others])
        return answer

    def finish(self) -> NDArray[np.int64]:
        """All exchanges that are left; the opened sum."""
        while self.total is None:
            self.step()
        return self.total

    def _ask_shares(self, offer: KeyOffer) -> None:
        self._roster = self._server.roster([offer, *(peer.offer() for peer in self._peers.values())])
        self.request = SharesRequest(self.attempt, self._roster, self._receipt)

    def _ask_sum(self, outbox: Outbox) -> None:
        self._inboxes = self._server.inboxes([outbox, *(peer.share(self._roster) for peer in self._peers.values())])
        self.request = SumRequest(self.attempt, self._inboxes[NAME], self._model)

    def _ask_consent(self, contribution: Contribution) -> None:
        values = contribution.update.values
        masked = {NAME: values}
        for peer in self._delivering:
            self._peers[peer].receive(self._inboxes[peer])
            masked[peer] = self._peers[peer].mask(np.zeros_like(values))
        self._survivors = self._server.survivors(masked)
        self.request = ConsentRequest(self.attempt, self._survivors)

    def _ask_opening(self, consent: Consent) -> None:
        others = [self._peers[peer].consent(self._survivors) for peer in self._delivering]
        self._consents = self._server.consents([consent, *others])
        self.request = OpenRequest(self.attempt, self._consents)
