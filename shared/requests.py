"""What the coordinator asks a partner, and what a partner answers, exchange by exchange.

A masked round has five exchanges (`shared.exchange`), a round without masks one (`BareRequest`). A request
that is not one of these cannot be read, and an answer that is not one of these cannot be sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.exchange import Consent, Consents, Inbox, KeyOffer, Opening, Outbox, Roster, Survivors
from shared.messages import MaskedUpdate, SignedPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.ledger import LedgerHead, Receipt

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which round, in which attempt: `run_id` and the nonce of the round plan."""

    run_id: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Model:
    """What a training round starts from.

    Attributes
    ----------
    parameters : (P,) float32, or None
        None for the prior's sum.
    prior : CollaborativePrior or None
        None where the partner has it already.
    """

    parameters: Vector | None = None
    prior: CollaborativePrior | None = None


@dataclass(frozen=True, slots=True)
class KeysRequest:
    """Exchange 1: here is the plan; send keys."""

    signed: SignedPlan


@dataclass(frozen=True, slots=True)
class SharesRequest:
    """Exchange 2: here is everybody's keys; send sealed shares of your secrets.

    The `receipt` is the last that the coordinator wrote for this partner's ledger.
    """

    attempt: Attempt
    roster: Roster
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class SumRequest:
    """Exchange 3: here are your peers' shares and the model; send your masked sum."""

    attempt: Attempt
    inbox: Inbox
    model: Model


@dataclass(frozen=True, slots=True)
class ConsentRequest:
    """Exchange 4: these delivered; sign that the sum is theirs."""

    attempt: Attempt
    survivors: Survivors


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Exchange 5: these signed; send the shares that open the sum."""

    attempt: Attempt
    consents: Consents


@dataclass(frozen=True, slots=True)
class BareRequest:
    """A round without masks, in one exchange; with the receipt, once the node's name is known."""

    signed: SignedPlan
    model: Model
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """The answer to exchange 3, or to a round without masks.

    Attributes
    ----------
    name : str
        The partner.
    update : MaskedUpdate
    head : LedgerHead
        Of the partner's ledger once the update was paid for: the id of that payment. The coordinator
        countersigns it.
    """

    name: str
    update: MaskedUpdate
    head: LedgerHead


Request = KeysRequest | SharesRequest | SumRequest | ConsentRequest | OpenRequest | BareRequest
Answer = KeyOffer | Outbox | Contribution | Consent | Opening
