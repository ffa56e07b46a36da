"""One attempt at a round as an honest coordinator would make it: the way to the place where an attack begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from client.secure_sum import MaskingSession
from shared.exchange import (
    CONSENT,
    Consent,
    Consents,
    Inbox,
    KeyOffer,
    Opening,
    Outbox,
    Roster,
    Survivors,
    consent_statement,
    roster_digest,
)
from shared.hazmat.randomness import SystemRandomness
from shared.messages import RoundPlan, SignedPlan
from shared.requests import (
    Attempt,
    ConsentRequest,
    Contribution,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)
from simulations.evil_server.adversary import Adversary

A = TypeVar("A", KeyOffer, Outbox, Contribution, Consent, Opening)


class Play:
    """An attempt in play. Helpers of the attacker take part with sessions in the attacker's own hands.

    Parameters
    ----------
    evil : Adversary
    order : RoundPlan, optional
        By default one for the prior's sum.
    members : tuple of str, optional
        Sorted; by default everybody.
    """

    def __init__(self, evil: Adversary, order: RoundPlan | None = None, members: tuple[str, ...] = ()) -> None:
        self.evil, self.order, self.members = evil, order or evil.order(), members or evil.names
        self.signed: SignedPlan = evil.sign(self.order)
        self.offers: dict[str, KeyOffer] = {}
        self.outboxes: dict[str, Outbox] = {}
        self.sums: dict[str, Contribution] = {}
        self._helping = {name: self._session(name) for name in evil.helpers if name in self.members}

    # --- the exchanges, one after another ---------------------------------------------------------

    def keys(self) -> Play:
        """Exchange 1."""
        self.offers = self._all(KeyOffer, lambda _: self.keys_request, lambda own: own.offer())
        return self

    def shares(self) -> Play:
        """Exchanges 1 and 2."""
        return self.keys().sealed()

    def sealed(self, *but: str) -> Play:
        """Exchange 2 with the offers as they stand, but without these members."""
        roster = self.roster
        self.outboxes = self._all(Outbox, lambda _: self.shares_request(), lambda own: own.share(roster), but)
        return self

    def summed(self) -> Play:
        """Exchanges 1 to 3: every honest member's masked sum is with the attacker."""
        self.shares()
        for name in self.honest:
            self.sums[name] = self._asked(Contribution, name, self.sum_request(name))
        return self

    def opened(self) -> Play:
        """All five exchanges: the sum of all members is open."""
        self.summed()
        consents = self.consents(Survivors(self.members))
        for name in self.honest:
            self._asked(Opening, name, OpenRequest(self.attempt, consents))
        return self

    # --- their parts ------------------------------------------------------------------------------

    @property
    def attempt(self) -> Attempt:
        """Which attempt this is."""
        return Attempt(self.order.run_id, self.order.attempt)

    @property
    def honest(self) -> tuple[str, ...]:
        """The members that keep to the protocol."""
        return tuple(name for name in self.members if name not in self._helping)

    @property
    def roster(self) -> Roster:
        """Of all offers."""
        return roster_of(self.offers.values())

    @property
    def keys_request(self) -> KeysRequest:
        """Of exchange 1."""
        return KeysRequest(self.signed)

    def shares_request(self, roster: Roster | None = None) -> SharesRequest:
        """Of exchange 2, with this roster or the right one."""
        return SharesRequest(self.attempt, roster or self.roster)

    def inbox(self, name: str) -> Inbox:
        """What the others sealed for a member."""
        return Inbox({peer: box.sealed[name] for peer, box in self.outboxes.items() if peer != name})

    def sum_request(self, name: str, *, inbox: Inbox | None = None, model: Model | None = None) -> SumRequest:
        """Of exchange 3, with this inbox or the right one."""
        return SumRequest(self.attempt, self.inbox(name) if inbox is None else inbox, model or Model())

    def consent_request(self, *names: str) -> ConsentRequest:
        """Of exchange 4, for the survivors of these names, as they stand."""
        return ConsentRequest(self.attempt, Survivors(names))

    def consent(self, name: str, survivors: Survivors) -> Consent:
        """A member's signature; a helper signs any set, as often as it is asked."""
        if name not in self._helping:
            return self._asked(Consent, name, ConsentRequest(self.attempt, survivors))
        statement = consent_statement(roster_digest(self.signed.context, self.roster), survivors)
        return Consent(name, self.evil.helpers[name].sign(CONSENT, statement))

    def consents(self, survivors: Survivors, *, by: Iterable[str] | None = None) -> Consents:
        """The signatures of these members, or of all survivors."""
        return Consents(tuple(self.consent(name, survivors) for name in by or survivors.names))

    def open_request(self, *consents: Consent) -> OpenRequest:
        """Of exchange 5."""
        return OpenRequest(self.attempt, Consents(consents))

    def _session(self, name: str) -> MaskingSession:
        identities = self.evil.practice.admission.identities
        context, threshold = self.signed.context, self.order.plan.survivors
        return MaskingSession(name, context, self.evil.helpers[name], identities, threshold, SystemRandomness())

    def _all(
        self,
        kind: type[A],
        request: Callable[[str], Request],
        helper: Callable[[MaskingSession], A],
        but: tuple[str, ...] = (),
    ) -> dict[str, A]:
        """Everybody's answer to an exchange."""
        answers = {}
        for name in (name for name in self.members if name not in but):
            session = self._helping.get(name)
            answers[name] = helper(session) if session else self._asked(kind, name, request(name))
        return answers

    def _asked(self, kind: type[A], name: str, request: Request) -> A:
        answer = self.evil.ask(name, request)
        if not isinstance(answer, kind):
            raise AssertionError(f"expected {kind.__name__}, got {type(answer).__name__}")
        return answer


def roster_of(offers: Iterable[KeyOffer]) -> Roster:
    """A roster in order."""
    return Roster(tuple(sorted(offers, key=lambda offer: offer.name)))
