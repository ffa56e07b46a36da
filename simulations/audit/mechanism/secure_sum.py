"""The secure sum: exact, uniform under its masks, fresh in every attempt, and closed to whoever asks for more."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from client.privatize import mask
from client.secure_sum import MaskingSession
from server.secure_sum import SecureSum
from shared.errors import CohortTooSmallError, InvalidSignatureError, ReplayError, UnmaskError
from shared.exchange import (
    Consents,
    Inbox,
    KeyOffer,
    Opening,
    Outbox,
    Roster,
    Survivors,
    consent_statement,
    mask_info,
    mask_sign,
    offer_statement,
    roster_digest,
    sealed_for,
    sealing_info,
)
from shared.hazmat.agreement import EphemeralKey
from shared.hazmat.fixed_point import to_ring
from shared.hazmat.masking import mask_of
from shared.hazmat.randomness import SeededRandomness, SystemRandomness
from shared.hazmat.signing import SigningKey
from shared.messages import NoisedSum
from simulations.audit.mechanism.checks import (
    REFERENCE,
    Check,
    Finding,
    Setting,
    at_most,
    check,
    equal,
    near,
    none_of,
    refused,
)
from simulations.audit.mechanism.rehearsal import MOST_PARTNERS, SIZE
from simulations.benchmarks.secure_sum import Federation, Step, play

CHECKS: list[Check] = []
LENGTH = 1000
PLAN = replace(REFERENCE, partners=5, survivors=4)
CHUNK_WORDS = 2**14


@check(CHECKS, "masks that do not cancel, or cannot be taken off when a partner is lost")
def exact(setting: Setting) -> Iterator[Finding]:
    """The opened sum is the sum of those who delivered, to the bit, whoever falls silent at which step."""
    n = min(max(setting.plan.partners, 3), MOST_PARTNERS)
    for partners in dict.fromkeys((n, 5)):
        none: tuple[Step, ...] = ()
        yield _off(setting, partners, none)
    for step in ("offer", "share", "mask", "consent", "open"):
        yield _off(setting, 5, (step,))


@check(CHECKS, "a sum that leaves without its masks, or under masks that are not uniform")
def uniform(setting: Setting) -> Iterator[Finding]:
    """Two sums that could not be less alike: under masks both are uniform in the ring."""
    for name, value in (("zeros", 0), ("large numbers", 10**8)):
        play_ = _Play.of(5, 3, size=SIZE)
        inboxes = play_.to_inboxes()
        for partner, session in play_.sessions.items():
            session.receive(inboxes[partner])
            sent = mask(NoisedSum(np.full(SIZE, value, dtype=np.int64)), PLAN, session).values
            told = f"a masked sum of {name}, {partner}"
            mean, error = float((sent * 2.0**-32).mean()), 1 / np.sqrt(12 * SIZE)
            yield near(f"{told}, mean over the ring", mean, 0.5, float(error), "a sum that leaves without its masks")
            bins = np.bincount((sent >> np.uint32(28)).astype(np.int64), minlength=16)
            chi = float(((bins - SIZE / 16) ** 2 / (SIZE / 16)).sum())
            name_ = f"{told}, chi-square of 16 bins"
            yield at_most(name_, chi, 62.0, "a mask that is not uniform", false_alarm=1.2e-7)


@check(CHECKS, "a mask, key or secret that is used twice")
def fresh(setting: Setting) -> Iterator[Finding]:
    """Another attempt has other keys, also from a seeded source; no part of a long key stream comes back."""
    key = SigningKey.generate()
    sessions = [
        MaskingSession("a", bytes([attempt]) * 32, key, {"a": key.public}, 2, source)
        for source in (SeededRandomness(setting.seed, "a"), SystemRandomness())
        for attempt in range(2)
    ]
    offers = [session.offer() for session in sessions]
    keys = {each for offer in offers for each in (offer.sealing_key, offer.mask_key)}
    yield none_of("keys of four attempts that are there twice", 8 - len(keys), "secrets that forget the attempt")
    rows = mask_of(SeededRandomness(setting.seed, "stream").read(32, "seed"), 4 * CHUNK_WORDS).reshape(-1, 8)
    repeated = len(rows) - len(np.unique(rows, axis=0))
    yield none_of(
        "rows of 8 words of a key stream that come back", repeated, "a key stream that repeats", false_alarm=1e-60
    )


@check(CHECKS, "statements of different things with the same bytes")
def statements(setting: Setting) -> Iterator[Finding]:
    """What is signed, and what keys are derived from, hangs on attempt, roster, sender and recipient."""
    key, context, other = EphemeralKey(b"\1" * 32).public, bytes(range(32)), bytes(32)
    roster, changed = (Roster((KeyOffer(name, key, key, bytes(64)),)) for name in "ab")
    different = (
        (roster_digest(context, roster), roster_digest(other, roster), roster_digest(context, changed)),
        (offer_statement(context, "ab", key, key), offer_statement(context, "a", b"b" + key, key)),
        (consent_statement(context, Survivors(("a", "bc"))), consent_statement(context, Survivors(("ab", "c")))),
        (sealing_info("a", "b"), sealing_info("b", "a")),
        (sealed_for(context, "a", "b"), sealed_for(context, "b", "a"), sealed_for(other, "a", "b")),
    )
    same = sum(len(each) - len(set(each)) for each in different)
    yield none_of("statements of different things with the same bytes", same, "one digest for all rosters")
    yield none_of("mask seeds with a direction", mask_info("a", "b") != mask_info("b", "a"), "masks that do not cancel")
    yield equal("signs of a pair's mask, added", mask_sign("a", "b") + mask_sign("b", "a"), 0, "masks of one sign")


@check(CHECKS, "a sum over two, or two sums of one round")
def cohorts(setting: Setting) -> Iterator[Finding]:
    """Rosters that no partner goes on with."""
    three = _Play.of(3, 2)
    offers = three.offers()
    few = Roster(tuple(offers[:2]))
    yield refused(
        "a cohort of two at threshold two", CohortTooSmallError, lambda: three.first.share(few), "a cohort of two"
    )
    six = _Play.of(6, 3)
    whole = Roster(tuple(six.offers()))
    yield refused("six at threshold three", UnmaskError, lambda: six.first.share(whole), "two sums that can be opened")
    five = _Play.of(5, 3)
    offers = five.offers()
    offers[2] = replace(offers[2], mask_key=EphemeralKey(b"\3" * 32).public)
    substituted = Roster(tuple(offers))
    yield refused(
        "a key that was exchanged", InvalidSignatureError, lambda: five.first.share(substituted), "keys nobody signed"
    )


@check(CHECKS, "consents that nobody gave, or steps that are taken twice")
def turns(setting: Setting) -> Iterator[Finding]:
    """Each step once, in order; an opening needs the consent of t members to one set."""
    four = _Play.of(5, 4)
    survivors = four.to_survivors()
    signed = [four.sessions[name].consent(survivors) for name in survivors.names]
    fewer = Survivors(survivors.names[:4])
    digest = four.digest()
    forged = [
        replace(each, signature=four.federation.identities[each.name].sign("secure sum: consent", statement))
        for each, statement in zip(signed, [consent_statement(digest, fewer)] * len(signed), strict=True)
    ]
    yield refused(
        "consents to another set",
        InvalidSignatureError,
        lambda: four.first.open(Consents((signed[0], *forged[1:]))),
        "consents that nobody signed",
    )
    for step, act in _SECOND.items():
        again = _Play.of(5, 3)
        yield refused(f"{step} a second time", ReplayError, partial(act, again), "a step that can be taken twice")


@check(CHECKS, "both secrets of one member opened")
def openings(setting: Setting) -> Iterator[Finding]:
    """Of a survivor one share of its seed, of a lost member one of its key: never both of anybody."""
    some = _Play.of(5, 3)
    survivors = some.to_survivors(lost=1)
    consents = some.server.consents([some.sessions[name].consent(survivors) for name in survivors.names])
    opened: list[Opening] = [some.sessions[name].open(consents) for name in survivors.names]
    both = sum(len(set(one.self_seeds) & set(one.mask_keys)) for one in opened)
    yield none_of("members of whom both shares were handed out", both, "both shares of one member handed out")
    wrong = sum(set(one.self_seeds) != set(survivors.names) for one in opened)
    yield none_of("openings with seeds of others than the survivors", wrong, "a seed of a lost member opened")
    dead = set(some.sessions) - set(survivors.names)
    wrong = sum(set(one.mask_keys) != dead for one in opened)
    yield none_of("openings with keys of others than the lost", wrong, "masks of a survivor taken off")


@dataclass
class _Play:
    """A federation in a masked sum, as far as it went."""

    federation: Federation
    sessions: dict[str, MaskingSession]
    server: SecureSum
    size: int
    context: bytes
    roster: Roster | None = None

    @classmethod
    def of(cls, partners: int, threshold: int, size: int = 40) -> _Play:
        federation, context = Federation.of(partners, threshold), secrets.token_bytes(32)
        return cls(federation, federation.sessions(context), federation.coordinator(context, size), size, context)

    @property
    def first(self) -> MaskingSession:
        return next(iter(self.sessions.values()))

    def offers(self) -> list[KeyOffer]:
        return [session.offer() for session in self.sessions.values()]

    def digest(self) -> bytes:
        assert self.roster is not None
        return roster_digest(self.context, self.roster)

    def to_outboxes(self) -> list[Outbox]:
        self.roster = roster = self.server.roster(self.offers())
        return [session.share(roster) for session in self.sessions.values()]

    def to_inboxes(self) -> dict[str, Inbox]:
        return self.server.inboxes(self.to_outboxes())

    def to_survivors(self, lost: int = 0) -> Survivors:
        inboxes, masked = self.to_inboxes(), {}
        for name in list(self.sessions)[: len(self.sessions) - lost]:
            self.sessions[name].receive(inboxes[name])
            masked[name] = self.sessions[name].mask(np.zeros(self.size, dtype=np.uint32))
        return self.server.survivors(masked)


def _consent_twice(play_: _Play) -> object:
    survivors = play_.to_survivors()
    play_.first.consent(survivors)
    return play_.first.consent(Survivors(survivors.names[:4]))


def _open_twice(play_: _Play) -> object:
    survivors = play_.to_survivors()
    consents = Consents(tuple(play_.sessions[name].consent(survivors) for name in survivors.names))
    play_.first.open(consents)
    return play_.first.open(consents)


def _mask_twice(play_: _Play) -> object:
    play_.to_survivors()
    return play_.first.mask(np.zeros(play_.size, dtype=np.uint32))


_SECOND: dict[str, Callable[[_Play], object]] = {
    "an offer": lambda play_: (play_.first.offer(), play_.first.offer()),
    "shares": lambda play_: (play_.to_outboxes(), play_.first.share(play_.roster or Roster(()))),
    "a masked vector": _mask_twice,
    "a consent": _consent_twice,
    "an opening": _open_twice,
}


def _off(setting: Setting, partners: int, silent: tuple[Step, ...]) -> Finding:
    """How far an opened sum is off that of those who delivered."""
    federation, context = Federation.of(partners), secrets.token_bytes(32)
    names = list(federation.identities)
    values = _vectors(setting.seed, names)
    rings = {name: to_ring(value, partners) for name, value in values.items()}
    leaving = {step: {names[1]} for step in silent}
    played = play(federation.sessions(context), federation.coordinator(context, LENGTH), rings, leaving)
    plain = sum((values[name] for name in played.survivors), np.zeros(LENGTH, np.int64))
    told = f", one silent at step {silent[0]}" if silent else ""
    name = f"largest error of an opened sum of {partners}{told}, in steps"
    return none_of(name, float(np.abs(played.sum_ - plain).max()), "masks that do not cancel")


def _vectors(seed: int, names: list[str]) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-(2**26), 2**26, LENGTH, dtype=np.int64) for name in names}
