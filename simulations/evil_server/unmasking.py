"""Attacks on the opening: secrets that may not be opened, or not twice."""

from __future__ import annotations

import secrets

from shared.errors import InvalidSignatureError, ProtocolError, ReplayError
from shared.exchange import CONSENT, Consent, Survivors, consent_statement, roster_digest
from simulations.evil_server.adversary import Adversary, other_attempt
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play

ATTACKS: list[Attack] = []


@attack(ATTACKS, "alive and dead", "both secrets of one partner, from peers told differently", InvalidSignatureError)
def _alive_and_dead(evil: Adversary) -> None:
    play = Play(evil).summed()
    _, *others, odd = evil.honest
    alive, dead = Survivors(play.members), Survivors(tuple(n for n in play.members if n != evil.victim))
    told_alive = [play.consent(name, alive) for name in others]
    told_dead = [play.consent(odd, dead), *(play.consent(name, dead) for name in evil.helpers)]
    evil.aim(odd, play.open_request(*told_dead, *told_alive))


@attack(ATTACKS, "second unmasking", "the shares of a session once more, or of another set", ReplayError)
def _second_opening(evil: Adversary) -> None:
    play = Play(evil).opened()
    fewer = Survivors(tuple(name for name in play.members if name != evil.honest[1]))
    helping = [play.consent(name, fewer) for name in evil.helpers]
    evil.aim(evil.victim, play.open_request(*helping))
    evil.aim(evil.victim, play.consent_request(*fewer.names))
    evil.aim(evil.victim, play.consent_request(*play.members))


@attack(ATTACKS, "forged consents", "open a sum with signatures that nobody made", InvalidSignatureError)
def _forged(evil: Adversary) -> None:
    everybody = Survivors(evil.names)
    for forge in (_random, _by_the_server, _of_the_plan):
        play = Play(evil).summed()
        own = [play.consent(name, everybody) for name in (evil.victim, *evil.helpers)]
        evil.aim(evil.victim, play.open_request(*own, *(forge(play, name) for name in evil.honest[1:])))


def _random(play: Play, name: str) -> Consent:
    return Consent(name, secrets.token_bytes(64))


def _by_the_server(play: Play, name: str) -> Consent:
    statement = consent_statement(roster_digest(play.signed.context, play.roster), Survivors(play.members))
    return Consent(name, play.evil.server_key.sign(CONSENT, statement))


def _of_the_plan(play: Play, name: str) -> Consent:
    """A true signature of that partner, but under its keys."""
    return Consent(name, play.offers[name].signature)


@attack(ATTACKS, "consents of an earlier attempt", "agreement to another roster's sum", InvalidSignatureError)
def _earlier_consents(evil: Adversary) -> None:
    everybody = Survivors(evil.names)
    first = Play(evil).summed()
    earlier = [first.consent(name, everybody) for name in evil.honest[1:]]
    play = Play(evil, other_attempt(first.order)).summed()
    own = [play.consent(name, everybody) for name in (evil.victim, *evil.helpers)]
    evil.aim(evil.victim, play.open_request(*own, *earlier))


@attack(ATTACKS, "a consent twice", "make up the number with one signature", ProtocolError)
def _consent_twice(evil: Adversary) -> None:
    play = Play(evil).summed()
    consents = play.consents(Survivors(evil.names), by=(evil.victim, *evil.helpers)).consents
    evil.aim(evil.victim, play.open_request(*consents, *[consents[-1]] * play.order.plan.survivors))


@attack(ATTACKS, "consent of somebody dropped", "make up the number with one who is not in the sum", ProtocolError)
def _consent_of_the_dropped(evil: Adversary) -> None:
    play = Play(evil).summed()
    dropped = evil.honest[1]
    survivors = Survivors(tuple(name for name in evil.names if name != dropped))
    consents = [play.consent(name, survivors) for name in (evil.victim, *evil.helpers)]
    evil.aim(evil.victim, play.open_request(*consents, _random(play, dropped)))


@attack(ATTACKS, "session opened after the next began", "the last attempt's shares, later", ReplayError)
def _late_opening(evil: Adversary) -> None:
    first = Play(evil).summed()
    consents = first.consents(Survivors(evil.names))
    Play(evil, other_attempt(first.order)).keys()
    evil.aim(evil.victim, first.open_request(*consents.consents))
