"""Rounds that are split into buckets: a public split that every partner works out itself, and noise in each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from server.admission import Admission
from shared.buckets import assign, own_bucket
from shared.config import RunConfig
from shared.errors import LedgerError, PolicyViolationError, UnmaskError
from shared.exchange import KeyOffer, Roster
from shared.messages import ROUND_PLAN, RoundPlan, SignedPlan, model_digest
from shared.model.prior import uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.plan import PrivacyPlan
from shared.requests import Answer, Attempt, KeysRequest, Model, SharesRequest
from simulations.audit.mechanism.checks import (
    BUCKETED,
    Check,
    Finding,
    Setting,
    at_least,
    at_most,
    check,
    equal,
    near,
    none_of,
    refused,
)
from simulations.audit.mechanism.lattice import billed
from simulations.audit.mechanism.rehearsal import (
    ITEMS,
    RUN,
    SIZE,
    Rehearsal,
    config_of,
    gradient_of,
    order_of,
    without_noise,
)

CHECKS: list[Check] = []
NAMES = tuple(f"partner-{k:03d}" for k in range(10))
ROUNDS = 200


@check(CHECKS, "one split for all rounds, or one that hangs on more than public numbers")
def split(setting: Setting) -> Iterator[Finding]:
    """Every round deals anew, whoever asks: each pair of ten partners meets with chance 12 / 45."""
    met = dict.fromkeys(combinations(NAMES, 2), 0)
    wrong = 0
    for number in range(1, ROUNDS + 1):
        dealt = assign(RUN, number, NAMES, 3)
        wrong += dealt != assign(RUN, number, reversed(NAMES), 3) or sorted(sum(dealt, ())) != sorted(NAMES)
        for bucket in dealt:
            for pair in combinations(bucket, 2):
                met[pair] += 1
    yield none_of(
        "rounds whose split hangs on the order of names, or leaves somebody out", wrong, "a split nobody shares"
    )
    chance, pairs = 12 / 45, len(met)
    # SHA-256 of fixed names: the same in every audit, so that nothing is left to chance.
    most = chance + 5 * math.sqrt(chance * (1 - chance) / ROUNDS)
    rates = [times / ROUNDS for times in met.values()]
    name = f"part of {ROUNDS} rounds in which a pair meets"
    yield at_least(f"{name}, the least of {pairs}", min(rates), 2 * chance - most, "one split for all rounds")
    yield at_most(f"{name}, the most of {pairs}", max(rates), most, "one split for all rounds")
    same = assign("one", 1, NAMES, 3) == assign("other", 1, NAMES, 3)
    yield none_of("runs with the split of another", same, "one split for all runs")


@check(CHECKS, "a quorum at which two sums of one bucket can be opened")
def quorums(setting: Setting) -> Iterator[Finding]:
    """Plans that protect nobody cannot be made."""
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("a quorum of half of a bucket and all colluders", {"colluders": 2}),
        ("buckets without masks", {"masked": False}),
        ("two buckets", {"buckets": 2}),
        ("buckets of two", {"buckets": 4}),
        ("a quorum of two", {"survivors": 2}),
    )
    for name, changes in cases:
        yield refused(name, PolicyViolationError, partial(_plan, **changes), "two sums of one bucket")


@check(CHECKS, "a member of another bucket, or other partners than are pinned")
def members(setting: Setting) -> Iterator[Finding]:
    """A partner goes on with its own bucket alone, of all who are pinned."""
    config = _config(setting)
    federation = Rehearsal.of(setting.folder(), *[1] * 10, size=10)
    order = order_of(config)
    dealt = assign(RUN, 1, NAMES, 3)
    own = next(bucket for bucket in dealt if NAMES[0] in bucket)
    foreign = next(bucket for bucket in dealt if NAMES[0] not in bucket)[0]
    offers = {name: _offer(federation, order, name) for name in (*own, foreign)}
    away = next(name for name in own if name != NAMES[0])
    mixed = tuple(sorted({*own, foreign} - {away}))
    yield refused(
        "a roster with a member of another bucket",
        UnmaskError,
        lambda: _share(federation, order, [offers[name] for name in mixed]),
        "a member of another bucket",
    )
    fewer = order_of(_config(setting, partners=9))
    yield refused(
        "a plan for nine partners where ten are pinned",
        PolicyViolationError,
        lambda: _offer(federation, fewer, NAMES[0]),
        "buckets of fewer partners than are pinned",
    )


@check(CHECKS, "one noised sum for two buckets of one round")
def kept(setting: Setting) -> Iterator[Finding]:
    """A sum that was kept for one bucket is not sent to another that the partner is dealt to since."""
    federation = Rehearsal.of(setting.folder(), *[1] * 10, size=10)
    agent, own = federation.agent(0), NAMES[0]
    model = Model(np.zeros(10, dtype=np.float32), uninformed(ITEMS))
    digest = model_digest(np.zeros(10, dtype=np.float32), uninformed(ITEMS))
    order = replace(order_of(_config(setting)), model_digest=digest)
    first = agent._noised_sum(order, model).values
    again = agent._noised_sum(order, model).values
    yield none_of(
        "coordinates of a sum that is asked for again that differ", int(np.sum(first != again)), "a second draw"
    )
    bucket, peers = own_bucket(RUN, 1, NAMES, 3, own), dict(agent.premises.peers)
    others = ({(f"new-{at}" if name == NAMES[-1] else name): pin for name, pin in peers.items()} for at in range(100))
    renamed = next(each for each in others if own_bucket(RUN, 1, each, 3, own) != bucket)
    agent.premises = replace(agent.premises, peers=renamed)
    yield refused(
        "a kept sum for partners that were pinned since",
        LedgerError,
        lambda: agent._noised_sum(order, model),
        "one noised sum for two buckets of one round",
    )


@check(CHECKS, "noise for all buckets together")
def opened(setting: Setting) -> Iterator[Finding]:
    """Every bucket's sum has all of the noise, so that the total of three has three times the variance."""
    config = _config(setting, partners=9)
    federation = Rehearsal.of(setting.folder(), *[2] * 9, gradient=gradient_of(SIZE))
    federation.train(config, setting.folder())
    bare, plan = without_noise(config), build_plan(config)
    plain = sum(federation.noised(k, bare).values for k in range(9))
    ratio = (federation.totals[0] - plain).std() / billed(plan, "train", SIZE)
    error = math.sqrt(3 / (2 * SIZE))
    name = "noise of the total of three buckets over that of a sum"
    yield near(name, float(ratio), math.sqrt(3), error, "noise for all buckets together")
    yield equal("rounds that were opened", len(federation.totals), 1, "a check of nothing")


def _config(setting: Setting, partners: int = 10) -> RunConfig:
    federation = {"buckets": 3, "quorum": 3}
    return config_of(partners, {"seed": setting.seed}, training={"rounds": 1}, federation=federation)


def _plan(**changes: Any) -> PrivacyPlan:
    return replace(BUCKETED, **changes)


def _offer(federation: Rehearsal, order: RoundPlan, name: str) -> Answer:
    key = Admission.open(federation.root).key
    signed = SignedPlan(order.text(), key.sign(ROUND_PLAN, order.text().encode()))
    return federation.agent(NAMES.index(name)).answer(KeysRequest(signed))


def _share(federation: Rehearsal, order: RoundPlan, offers: list[Answer]) -> Answer:
    roster = Roster(tuple(offer for offer in offers if isinstance(offer, KeyOffer)))
    return federation.agent(0).answer(SharesRequest(Attempt(order.run_id, order.attempt), roster))
