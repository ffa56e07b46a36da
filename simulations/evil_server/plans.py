"""Attacks by plans: less privacy than the partner allows, or than the plan says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from shared.errors import (
    AdapterMismatchError,
    InvalidSignatureError,
    PolicyViolationError,
    ProtocolError,
    ReplayError,
    VeilrecError,
)
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, SignedPlan
from shared.requests import BareRequest, KeysRequest, Model
from simulations.evil_server.adversary import Adversary, other_attempt
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play, roster_of

ATTACKS: list[Attack] = []
Changes = Mapping[str, object]
Asked = Callable[[Adversary], Changes]
"""A partner's limits say what is beyond them."""


# --- who asks ---------------------------------------------------------------------------------------


@attack(ATTACKS, "unsigned plan", "anybody could ask", InvalidSignatureError)
def _unsigned(evil: Adversary) -> None:
    text = evil.order().text()
    for signature in (b"", bytes(64), b"x" * 1000):
        evil.aim(evil.victim, KeysRequest(SignedPlan(text, signature)))


@attack(ATTACKS, "plan signed by another key", "a second coordinator, or a partner, asks", InvalidSignatureError)
def _other_key(evil: Adversary) -> None:
    for key in (SigningKey.generate(), *evil.helpers.values()):
        evil.aim(evil.victim, KeysRequest(evil.sign(evil.order(), key)))


@attack(ATTACKS, "signature of another plan", "a plan that was changed on the way", InvalidSignatureError)
def _other_text(evil: Adversary) -> None:
    signature, other = evil.sign(evil.order()).signature, evil.order().text()
    evil.aim(evil.victim, KeysRequest(SignedPlan(other, signature)))
    for purpose in ("ledger head", f"{ROUND_PLAN} "):
        evil.aim(evil.victim, KeysRequest(SignedPlan(other, evil.server_key.sign(purpose, other.encode()))))


# --- what the configuration asks for ----------------------------------------------------------------


def _configured(evil: Adversary, changes: Asked) -> None:
    """An honest plan of another configuration."""
    order = evil.order(config=evil.config(**changes(evil)))
    evil.aim(evil.victim, KeysRequest(evil.sign(order)))


def _above(evil: Adversary, limit: str) -> int:
    return int(getattr(evil.practice.policy, limit)) + 1


def _quick(noise: float) -> dict[str, object]:
    """Noise that is fixed and no prior: nothing has to be calibrated."""
    return {"privacy__noise_multiplier": noise, "prior__kind": "none"}


_CONFIGURED: tuple[tuple[str, str, Asked], ...] = (
    ("simulation over real data", "rules of invented data for real ones", lambda _: {"simulation": True}),
    ("seeded noise", "noise that can be drawn again and taken off", lambda _: {"simulation": True, "seed": 7}),
    ("mode none", "sums without noise", lambda _: {"simulation": True, "privacy__mode": "none"}),
    (
        "less noise, honestly",
        "more epsilon than the floor allows",
        lambda _: {**_quick(0.3), "training__sampling_rate": 1.0},
    ),
    ("delta above the floor", "a guarantee that fails too often", lambda _: {**_quick(50.0), "privacy__delta": 0.01}),
    (
        "more rounds than allowed",
        "more sums",
        lambda evil: {**_quick(50.0), "training__rounds": _above(evil, "max_rounds")},
    ),
    (
        "larger adapter",
        "more that could be remembered",
        lambda evil: {"model__lora_rank": _above(evil, "max_lora_rank")},
    ),
    ("item residuals", "a number for every item", lambda evil: {"model__item_rank": _above(evil, "max_item_rank")}),
    ("another base model", "weights that were made to tell", lambda _: {"model__base": "somebody/else"}),
    ("a base model that is a path", "read a folder of the partner's", lambda _: {"model__base": "/etc"}),
)
for _name, _gain, _changes in _CONFIGURED:
    attack(ATTACKS, _name, _gain, PolicyViolationError)(partial(_configured, changes=_changes))


# --- what the plan says, against its configuration --------------------------------------------------


def _edited(evil: Adversary, changes: tuple[Changes, ...]) -> None:
    """A plan whose text was changed before it was signed."""
    for each in changes:
        evil.aim(evil.victim, KeysRequest(evil.edited(evil.order(), each)))


_OPEN_SUMS: Changes = {
    "config.federation.secure_sum": False,
    "plan.masked": False,
    "config.privacy.mode": "distributed",
}
_EDITED: tuple[tuple[str, str, type[VeilrecError], tuple[Changes, ...]], ...] = (
    (
        "less noise than the epsilon says",
        "the accountant is told another noise",
        PolicyViolationError,
        (
            *({"plan.noise_multiplier": z} for z in (1e-6, 0.0, -1.0, math.nan)),
            *({"plan.prior_noise_multiplier": z} for z in (1e-6, None)),
        ),
    ),
    (
        "shares of noise for more survivors",
        "each adds less than is needed",
        PolicyViolationError,
        ({"plan.partners": 1000, "plan.survivors": 1000}, {"plan.colluders": 0}),
    ),
    (
        "a larger clip norm than the noise",
        "one user moves the sum further",
        PolicyViolationError,
        tuple({"plan.clip_norm": c} for c in (1e6, math.inf, math.nan)),
    ),
    (
        "other sampling than is billed",
        "everybody takes part in every step",
        PolicyViolationError,
        ({"plan.sampling_rate": 1.0}, {"plan.local_steps": 100}, {"plan.rounds": 1}, {"plan.delta": 0.5}),
    ),
    ("plan without masks", "every partner's own sum", PolicyViolationError, ({"plan.masked": False},)),
    ("configuration without masks", "every partner's own sum", ProtocolError, (_OPEN_SUMS,)),
    ("a seed outside simulations", "noise that can be drawn again", ProtocolError, ({"config.seed": 1},)),
    ("mode none outside simulations", "sums without noise", ProtocolError, ({"config.privacy.mode": "none"},)),
    (
        "more rounds than the plan",
        "a sum that nobody billed",
        PolicyViolationError,
        ({"round": 4, "stage": "train"}, {"round": 10**9, "stage": "train"}),
    ),
    ("round zero", "a round before the first", ProtocolError, ({"round": 0}, {"round": -1})),
    (
        "the wrong stage",
        "the prior's sum twice, or training billed as the prior",
        PolicyViolationError,
        ({"round": 2}, {"stage": "train"}),
    ),
    ("another catalogue", "rows that mean something else", AdapterMismatchError, ({"catalogue_digest": "0" * 64},)),
)
for _name, _gain, _expected, _texts in _EDITED:
    attack(ATTACKS, _name, _gain, _expected)(partial(_edited, changes=_texts))


# --- how it asks ------------------------------------------------------------------------------------


@attack(ATTACKS, "a masked plan asked for bare", "the sum without its masks", ReplayError)
def _bare(evil: Adversary) -> None:
    evil.aim(evil.victim, BareRequest(evil.sign(evil.order()), Model()))


@attack(ATTACKS, "more partners than are known", "members whom nobody pinned", PolicyViolationError)
def _more_partners(evil: Adversary) -> None:
    more = len(evil.names) + 1
    config = evil.config(federation__partners=more, federation__quorum=more)
    evil.aim(evil.victim, KeysRequest(evil.sign(evil.order(config=config))))


@attack(ATTACKS, "changed plan in the same attempt", "keys for one plan, the sum for another", InvalidSignatureError)
def _two_plans(evil: Adversary) -> None:
    odd = evil.honest[1]
    play = Play(evil, members=tuple(name for name in evil.names if name != odd)).keys()
    other = evil.order(config=evil.config(training__learning_rate=0.5), attempt=play.order.attempt)
    changed = Play(evil, other, (odd, *evil.helpers)).keys()
    evil.aim(evil.victim, play.shares_request(roster_of([*play.offers.values(), changed.offers[odd]])))


@attack(ATTACKS, "plan exchanged after the setup", "shares under one plan, the sum under another", ReplayError)
def _exchanged(evil: Adversary) -> None:
    play = Play(evil).shares()
    other = evil.order(config=evil.config(training__learning_rate=0.5), attempt=play.order.attempt)
    evil.aim(evil.victim, KeysRequest(evil.sign(other)))
    again = Play(evil, other_attempt(other)).keys()
    evil.aim(evil.victim, play.sum_request(evil.victim))
    evil.aim(evil.victim, again.sum_request(evil.victim, inbox=play.inbox(evil.victim)))
