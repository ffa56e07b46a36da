"""Attacks by changed rosters: the difference of two sums is what one partner added."""

from __future__ import annotations

from dataclasses import replace

from shared.errors import InvalidSignatureError, ReplayError, UnmaskError
from shared.exchange import OFFER, KeyOffer, Survivors, offer_statement
from shared.hazmat.agreement import EphemeralKey
from shared.hazmat.randomness import SystemRandomness
from shared.hazmat.signing import SigningKey
from simulations.evil_server.adversary import Adversary, other_attempt
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play, roster_of

ATTACKS: list[Attack] = []


def forged_offer(play: Play, name: str, key: SigningKey) -> KeyOffer:
    """An offer of fresh keys that the attacker holds, under any name, signed with any key."""
    sealing, masking = (EphemeralKey.generate(SystemRandomness(), "forged").public for _ in range(2))
    return KeyOffer(
        name, sealing, masking, key.sign(OFFER, offer_statement(play.signed.context, name, sealing, masking))
    )


@attack(ATTACKS, "n-1 differencing", "a round of all, then again without one", UnmaskError)
def _differencing(evil: Adversary) -> None:
    first = Play(evil).opened()
    left_out = evil.honest[1]
    fewer = tuple(name for name in evil.names if name != left_out)
    again = Play(evil, other_attempt(first.order), fewer).summed()
    for name in again.honest:
        evil.aim(name, again.consent_request(*fewer))


@attack(ATTACKS, "n-1 differencing, first sum unopened", "agree twice, open the other way round", UnmaskError)
def _differencing_of_consents(evil: Adversary) -> None:
    first = Play(evil).summed()
    for name in first.honest:
        first.consent(name, Survivors(first.members))
    again = Play(evil, other_attempt(first.order)).summed()
    fewer = tuple(name for name in evil.names if name != evil.honest[1])
    for name in (evil.honest[0], evil.honest[2]):
        evil.aim(name, again.consent_request(*fewer))


@attack(ATTACKS, "two survivor sets in one attempt", "each told to other partners, both opened", InvalidSignatureError)
def _two_sets(evil: Adversary) -> None:
    play = Play(evil).summed()
    *most, odd = evil.honest
    everybody, fewer = Survivors(play.members), Survivors(tuple(n for n in play.members if n != evil.victim))
    agreed = [play.consent(name, everybody) for name in most]
    other = play.consent(odd, fewer)
    helping = {survivors: [play.consent(name, survivors) for name in evil.helpers] for survivors in (everybody, fewer)}
    evil.aim(odd, play.open_request(other, *helping[fewer], *agreed[1:]))
    evil.aim(evil.victim, play.open_request(*agreed, *helping[everybody], other))


@attack(ATTACKS, "second set after the first", "one partner agrees to two sums of an attempt", ReplayError)
def _second_set(evil: Adversary) -> None:
    play = Play(evil).summed()
    play.consent(evil.victim, Survivors(play.members))
    evil.aim(evil.victim, play.consent_request(*(n for n in play.members if n != evil.honest[1])))


@attack(
    ATTACKS, "sybil under a new name", "a member that the attacker plays, to make up the number", InvalidSignatureError
)
def _sybil(evil: Adversary) -> None:
    play = Play(evil).keys()
    sybil = forged_offer(play, "zz-sybil", SigningKey.generate())
    others = [play.offers[name] for name in evil.names if name != evil.honest[1]]
    evil.aim(evil.victim, play.shares_request(roster_of([*others, sybil])))


@attack(ATTACKS, "sybil under a pinned name", "play a partner that is not there", InvalidSignatureError)
def _impersonation(evil: Adversary) -> None:
    absent = evil.honest[1]
    play = Play(evil, members=tuple(name for name in evil.names if name != absent)).keys()
    for key in (SigningKey.generate(), evil.server_key):
        play = Play(evil, other_attempt(play.order), play.members).keys()
        evil.aim(evil.victim, play.shares_request(roster_of([*play.offers.values(), forged_offer(play, absent, key)])))


@attack(ATTACKS, "stranger among the survivors", "a set with a member whose masks are known", UnmaskError)
def _stranger(evil: Adversary) -> None:
    play = Play(evil).summed()
    evil.aim(evil.victim, play.consent_request(*play.members, "zz-stranger"))


@attack(ATTACKS, "survivors without the partner itself", "have it open a sum that it is not in", UnmaskError)
def _without_itself(evil: Adversary) -> None:
    play = Play(evil).summed()
    evil.aim(evil.victim, play.consent_request(*(name for name in play.members if name != evil.victim)))


@attack(ATTACKS, "a survivor twice", "make up the number with one name", UnmaskError)
def _named_twice(evil: Adversary) -> None:
    play = Play(evil).summed()
    few = play.members[: play.order.plan.survivors - 1]
    evil.aim(evil.victim, play.consent_request(*few, few[-1]))


@attack(ATTACKS, "survivor who did not share", "a set with a member without shares", UnmaskError)
def _did_not_share(evil: Adversary) -> None:
    play = Play(evil).shares()
    late = evil.honest[1]
    inbox = play.inbox(evil.victim)
    without = replace(inbox, sealed={name: box for name, box in inbox.sealed.items() if name != late})
    evil.ask(evil.victim, play.sum_request(evil.victim, inbox=without))
    evil.aim(evil.victim, play.consent_request(*play.members))
