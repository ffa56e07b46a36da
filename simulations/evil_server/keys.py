"""Attacks by substituted keys: who knows a partner's peers' secrets takes its masks off."""

from __future__ import annotations

from dataclasses import replace

from shared.errors import InvalidSignatureError, ProtocolError
from shared.exchange import OFFER, Inbox, KeyOffer, offer_statement, roster_digest, sealed_for, sealing_info
from shared.hazmat.agreement import EphemeralKey, seal
from shared.hazmat.randomness import SystemRandomness
from shared.hazmat.shamir import SHARE_BYTES
from simulations.evil_server.adversary import Adversary, other_attempt
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play, roster_of
from simulations.evil_server.roster import forged_offer

ATTACKS: list[Attack] = []


def _with(play: Play, offer: KeyOffer) -> list[KeyOffer]:
    """All offers, one of them exchanged."""
    return [offer if each.name == offer.name else each for each in play.offers.values()]


def _helping(play: Play, *, sealing: bytes | None = None, mask: bytes | None = None) -> KeyOffer:
    """The offer of a helper, validly signed, with a key that is not its own."""
    name, key = next(iter(play.evil.helpers.items()))
    own = play.offers[name]
    keys = (sealing or own.sealing_key, mask or own.mask_key)
    return KeyOffer(name, *keys, key.sign(OFFER, offer_statement(play.signed.context, name, *keys)))


@attack(ATTACKS, "man in the middle", "exchange a peer's keys for the attacker's", InvalidSignatureError)
def _exchanged(evil: Adversary) -> None:
    play = Play(evil).keys()
    name = evil.honest[1]
    false = forged_offer(play, name, evil.server_key)
    evil.aim(evil.victim, play.shares_request(roster_of(_with(play, false))))


@attack(
    ATTACKS, "man in the middle, signature kept", "other keys under the peer's own signature", InvalidSignatureError
)
def _swapped_under_the_signature(evil: Adversary) -> None:
    play = Play(evil).keys()
    own = play.offers[evil.honest[1]]
    false = replace(forged_offer(play, own.name, evil.server_key), signature=own.signature)
    evil.aim(evil.victim, play.shares_request(roster_of(_with(play, false))))


@attack(ATTACKS, "keys of an earlier attempt", "use keys whose secrets were opened", InvalidSignatureError)
def _earlier_keys(evil: Adversary) -> None:
    first = Play(evil).keys()
    play = Play(evil, other_attempt(first.order)).keys()
    evil.aim(evil.victim, play.shares_request(roster_of(_with(play, first.offers[evil.honest[1]]))))


@attack(ATTACKS, "one key under two names", "masks that cancel where they should not", ProtocolError)
def _one_key_twice(evil: Adversary) -> None:
    for which in ("sealing", "mask"):
        play = Play(evil).keys()
        theirs = play.offers[evil.honest[1]]
        false = _helping(play, **{which: theirs.sealing_key if which == "sealing" else theirs.mask_key})
        evil.aim(evil.victim, play.shares_request(roster_of(_with(play, false))))


@attack(ATTACKS, "own keys exchanged", "a roster in which the partner is not itself", ProtocolError)
def _own_keys(evil: Adversary) -> None:
    earlier = Play(evil).keys().offers[evil.victim]
    for forged in (False, True):
        play = Play(evil).keys()
        false = forged_offer(play, evil.victim, evil.server_key) if forged else earlier
        evil.aim(evil.victim, play.shares_request(roster_of(_with(play, false))))


@attack(ATTACKS, "a sealing key of low order", "shares sealed with a key that everybody knows", ProtocolError)
def _low_order_sealing(evil: Adversary) -> None:
    play = Play(evil).keys()
    evil.aim(evil.victim, play.shares_request(roster_of(_with(play, _helping(play, sealing=bytes(32))))))


@attack(ATTACKS, "a mask key of low order", "a mask that everybody knows", ProtocolError)
def _low_order_mask(evil: Adversary) -> None:
    play, known, source = Play(evil).keys(), EphemeralKey.generate(SystemRandomness(), "known"), SystemRandomness()
    false = _helping(play, sealing=known.public, mask=bytes(32))
    play.offers[false.name] = false
    play.sealed(false.name)
    digest, context = roster_digest(play.signed.context, play.roster), play.signed.context
    theirs, info = play.offers[evil.victim].sealing_key, sealing_info(false.name, evil.victim)
    shares, bound = bytes(2 * SHARE_BYTES), sealed_for(context, false.name, evil.victim)
    sealed = seal(known.agree(theirs, salt=digest, info=info), shares, bound, source, "nonce")
    inbox = Inbox({**play.inbox(evil.victim).sealed, false.name: sealed})
    evil.aim(evil.victim, play.sum_request(evil.victim, inbox=inbox))


@attack(ATTACKS, "roster out of order", "the same members, other places for their shares", ProtocolError)
def _out_of_order(evil: Adversary) -> None:
    play = Play(evil).keys()
    shuffled = replace(play.roster, offers=play.roster.offers[::-1])
    evil.aim(evil.victim, play.shares_request(shuffled))


@attack(ATTACKS, "a name twice in the roster", "one member counted as two", ProtocolError)
def _name_twice(evil: Adversary) -> None:
    play = Play(evil).keys()
    *others, last = (offer for offer in play.roster.offers if offer.name != evil.honest[1])
    twice = replace(play.roster, offers=(*others, last, last))
    evil.aim(evil.victim, play.shares_request(twice))
