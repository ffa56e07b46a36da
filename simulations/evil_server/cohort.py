"""Attacks by small cohorts: a sum over few is almost what one of them added."""

from __future__ import annotations

from shared.errors import CohortTooSmallError, PolicyViolationError, ProtocolError, UnmaskError
from shared.exchange import Inbox, Survivors
from shared.requests import KeysRequest
from simulations.evil_server.adversary import Adversary
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play, roster_of

ATTACKS: list[Attack] = []


@attack(ATTACKS, "cohort of one: roster", "a sum over one partner is its update", CohortTooSmallError)
def _roster_of_one(evil: Adversary) -> None:
    play = Play(evil).keys()
    evil.aim(evil.victim, play.shares_request(roster_of([play.offers[evil.victim]])))


@attack(ATTACKS, "cohort of one: survivors", "a sum over one survivor is its update", CohortTooSmallError)
def _survivors_of_one(evil: Adversary) -> None:
    play = Play(evil).summed()
    evil.aim(evil.victim, play.consent_request(evil.victim))


@attack(ATTACKS, "cohort of one: plan", "a plan for one partner needs no masks", ProtocolError)
def _plan_for_one(evil: Adversary) -> None:
    changes = {"partners": 1, "survivors": 1, "colluders": 0, "masked": False, "mode": "distributed"}
    told: dict[str, object] = {f"plan.{key}": value for key, value in changes.items()}
    told |= {"config.federation.partners": 1, "config.federation.quorum": 1}
    told |= {"config.privacy.mode": "distributed", "config.privacy.colluders": 0}
    evil.aim(evil.victim, KeysRequest(evil.edited(evil.order(), told)))


@attack(ATTACKS, "roster below the threshold", "fewer members than the plan has shares of noise", CohortTooSmallError)
def _small_roster(evil: Adversary) -> None:
    play = Play(evil).keys()
    few = [play.offers[name] for name in evil.names[: play.order.plan.survivors - 1]]
    evil.aim(evil.victim, play.shares_request(roster_of(few)))


@attack(ATTACKS, "shares of too few", "masks with fewer partners than the threshold", CohortTooSmallError)
def _small_inbox(evil: Adversary) -> None:
    play = Play(evil).shares()
    sealed = play.inbox(evil.victim).sealed
    few = dict(list(sealed.items())[: play.order.plan.survivors - 2])
    evil.aim(evil.victim, play.sum_request(evil.victim, inbox=Inbox(few)))


@attack(ATTACKS, "survivors below the threshold", "a sum with less noise than the plan's", CohortTooSmallError)
def _few_survivors(evil: Adversary) -> None:
    play = Play(evil).summed()
    evil.aim(evil.victim, play.consent_request(*evil.names[: play.order.plan.survivors - 1]))


@attack(ATTACKS, "lowered threshold: consents", "open a sum to which too few agreed", CohortTooSmallError)
def _few_consents(evil: Adversary) -> None:
    play = Play(evil).summed()
    everybody = Survivors(play.members)
    consents = play.consents(everybody, by=evil.names[: play.order.plan.survivors - 1]).consents
    evil.aim(evil.victim, play.open_request(*consents))


@attack(ATTACKS, "withheld signatures", "open a sum to which nobody else agreed", CohortTooSmallError)
def _own_consent_alone(evil: Adversary) -> None:
    play = Play(evil).summed()
    evil.aim(evil.victim, play.open_request(play.consent(evil.victim, Survivors(play.members))))


@attack(ATTACKS, "lowered threshold: plan", "a plan with a smaller cohort than the floor", PolicyViolationError)
def _plan_below_the_floor(evil: Adversary) -> None:
    fewer = {"federation__partners": 3, "federation__quorum": 2, "privacy__colluders": 0}
    config = evil.config(**fewer, privacy__mode="distributed")
    evil.aim(evil.victim, KeysRequest(evil.sign(evil.order(config=config))))


@attack(ATTACKS, "roster above the plan", "so many members that two sets reach the threshold", UnmaskError)
def _large_roster(evil: Adversary) -> None:
    survivors = evil.practice.config.federation.survivors
    play = Play(evil, evil.order(config=evil.config(federation__partners=survivors))).keys()
    evil.aim(evil.victim, play.shares_request())
