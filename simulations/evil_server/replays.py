"""Attacks by true messages at the wrong time: repeated, out of order, or of another attempt, round or run."""

from __future__ import annotations

import secrets

from shared.errors import ProtocolError, ReplayError, UnmaskError
from shared.exchange import Consents, Inbox, Survivors
from shared.requests import (
    Attempt,
    ConsentRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)
from simulations.evil_server.adversary import RUN, Adversary, other_attempt
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play

ATTACKS: list[Attack] = []


@attack(ATTACKS, "every exchange repeated", "a second answer to the same request", ReplayError)
def _repeated(evil: Adversary) -> None:
    play, everybody = Play(evil).keys(), Survivors(evil.names)
    evil.aim(evil.victim, play.keys_request)
    play = Play(evil, other_attempt(play.order)).shares()
    evil.aim(evil.victim, play.shares_request())
    play = Play(evil, other_attempt(play.order)).summed()
    evil.aim(evil.victim, play.sum_request(evil.victim))
    consents = play.consents(everybody)
    evil.aim(evil.victim, play.consent_request(*everybody.names))
    opening = play.open_request(*consents.consents)
    evil.ask(evil.victim, opening)
    evil.aim(evil.victim, opening)


@attack(ATTACKS, "every exchange too early", "an answer before what has to come first was checked", ReplayError)
def _too_early(evil: Adversary) -> None:
    nobody = Attempt(RUN, secrets.token_hex(16))
    for request in _following(nobody, evil):
        evil.aim(evil.victim, request)
    begun, shared, summed = Play(evil).keys(), Play(evil).shares, Play(evil).summed
    for request in _following(begun.attempt, evil)[1:]:
        evil.aim(evil.victim, request)
    for request in _following(shared().attempt, evil)[2:]:
        evil.aim(evil.victim, request)
    for request in _following(summed().attempt, evil)[3:]:
        evil.aim(evil.victim, request)


def _following(attempt: Attempt, evil: Adversary) -> list[Request]:
    """Exchanges 2 to 5 of an attempt; what is in them does not matter, as their turn has not come."""
    offers = Play(evil).roster
    return [
        SharesRequest(attempt, offers),
        SumRequest(attempt, Inbox({}), Model()),
        ConsentRequest(attempt, Survivors(evil.names)),
        OpenRequest(attempt, Consents(())),
    ]


@attack(ATTACKS, "a whole attempt replayed", "a second session with the same messages", ReplayError)
def _whole_attempt(evil: Adversary) -> None:
    play = Play(evil).opened()
    for request in (play.keys_request, play.shares_request(), play.sum_request(evil.victim)):
        evil.aim(evil.victim, request)
    evil.aim(evil.victim, play.consent_request(*evil.names))
    evil.aim(evil.victim, play.open_request())


@attack(ATTACKS, "an attempt replayed after another round", "have the nonce forgotten, then use it again", ReplayError)
def _replayed_after_a_detour(evil: Adversary) -> None:
    play = Play(evil).keys()
    Play(evil, evil.order(2, model_digest="0" * 64)).keys()
    evil.aim(evil.victim, play.keys_request)


@attack(ATTACKS, "message of another attempt, round or run", "mix what belongs to different sessions", ReplayError)
def _other_session(evil: Adversary) -> None:
    old = Play(evil).shares()
    other_round = Play(evil, evil.order(2, model_digest="0" * 64)).shares()
    other_run = Play(evil, evil.order(run_id="another"), evil.names).shares()
    play = Play(evil, other_attempt(old.order)).shares()
    evil.aim(evil.victim, old.sum_request(evil.victim))
    evil.aim(evil.victim, other_round.sum_request(evil.victim))
    crossed = Attempt(other_run.attempt.run_id, play.attempt.nonce)
    evil.aim(evil.victim, SumRequest(crossed, play.inbox(evil.victim), Model()))


@attack(ATTACKS, "shares of another session", "have the partner open what is not meant for it", UnmaskError)
def _other_shares(evil: Adversary) -> None:
    first = Play(evil).shares()
    play = Play(evil, other_attempt(first.order)).shares()
    evil.aim(evil.victim, play.sum_request(evil.victim, inbox=first.inbox(evil.victim)))


@attack(ATTACKS, "shares under other names", "a partner's shares counted as another's", UnmaskError)
def _swapped_shares(evil: Adversary) -> None:
    play = Play(evil).shares()
    names, boxes = zip(*play.inbox(evil.victim).sealed.items(), strict=True)
    evil.aim(
        evil.victim, play.sum_request(evil.victim, inbox=Inbox(dict(zip(names, boxes[1:] + boxes[:1], strict=True))))
    )


@attack(ATTACKS, "shares that are none", "bytes that the attacker made up", UnmaskError)
def _garbage(evil: Adversary) -> None:
    for size in (0, 94, 1_000_000):
        play = Play(evil).shares()
        inbox = Inbox(dict.fromkeys(play.inbox(evil.victim).sealed, secrets.token_bytes(size)))
        evil.aim(evil.victim, play.sum_request(evil.victim, inbox=inbox))


@attack(ATTACKS, "inbox of strangers", "shares of members that are not in the roster", ProtocolError)
def _strangers(evil: Adversary) -> None:
    for stranger in ("zz-stranger", "z" * 1_000_000):
        play = Play(evil).shares()
        sealed = {**play.inbox(evil.victim).sealed, stranger: secrets.token_bytes(94)}
        evil.aim(evil.victim, play.sum_request(evil.victim, inbox=Inbox(sealed)))
