"""A federation of five in a masked sum, for the tests of both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.secure_sum import MaskingSession
from server.secure_sum import SecureSum
from shared.exchange import (
    OFFER,
    Consents,
    Inbox,
    KeyOffer,
    Opening,
    Outbox,
    Roster,
    Survivors,
    offer_statement,
)
from shared.hazmat.agreement import EphemeralKey
from simulations.benchmarks.secure_sum import Federation

SIZE = 40
CONTEXT = bytes(range(32))
Ring = NDArray[np.uint32]


@dataclass
class Setting:
    """Five partners of whom three must survive, and the messages of a round as far as it went."""

    federation: Federation
    sessions: dict[str, MaskingSession]
    server: SecureSum
    rings: dict[str, Ring]

    @property
    def names(self) -> list[str]:
        return list(self.sessions)

    @property
    def first(self) -> MaskingSession:
        return self.sessions[self.names[0]]

    def offers(self) -> list[KeyOffer]:
        return [session.offer() for session in self.sessions.values()]

    def to_roster(self) -> Roster:
        return self.server.roster(self.offers())

    def to_outboxes(self) -> list[Outbox]:
        roster = self.to_roster()
        return [session.share(roster) for session in self.sessions.values()]

    def to_inboxes(self) -> dict[str, Inbox]:
        return self.server.inboxes(self.to_outboxes())

    def to_masked(self, lost: int = 1) -> dict[str, Ring]:
        """All but the last `lost` deliver."""
        inboxes = self.to_inboxes()
        names = self.names[: len(self.names) - lost]
        return {name: masked(self.sessions[name], inboxes[name], self.rings[name]) for name in names}

    def to_survivors(self, lost: int = 1) -> Survivors:
        return self.server.survivors(self.to_masked(lost))

    def to_consents(self, lost: int = 1) -> Consents:
        survivors = self.to_survivors(lost)
        return self.server.consents([self.sessions[name].consent(survivors) for name in survivors.names])

    def to_openings(self, lost: int = 1) -> list[Opening]:
        consents = self.to_consents(lost)
        return [self.sessions[name].open(consents) for name in self.server.live]

    def sum_of(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        return sum((self.rings[name].view(np.int32).astype(np.int64) for name in names), np.zeros(SIZE, np.int64))


def setting(partners: int = 5, threshold: int = 3, context: bytes = CONTEXT) -> Setting:
    federation = Federation.of(partners, threshold)
    random = np.random.default_rng(partners)
    rings = {
        name: random.integers(-(2**27), 2**27, SIZE, dtype=np.int32).view(np.uint32) for name in federation.identities
    }
    return Setting(federation, federation.sessions(context), federation.coordinator(context, SIZE), rings)


def signed(federation: Federation, name: str, sealing: bytes, mask: bytes, context: bytes = CONTEXT) -> KeyOffer:
    """An offer that a dishonest partner would make."""
    statement = offer_statement(context, name, sealing, mask)
    return KeyOffer(name, sealing, mask, federation.identities[name].sign(OFFER, statement))


def fresh(number: int) -> bytes:
    return EphemeralKey(bytes([number + 1]) * 32).public


def pins(some: Setting) -> dict[str, Any]:
    return {name: key.public for name, key in some.federation.identities.items()}


def masked(session: MaskingSession, inbox: Inbox, ring: Ring) -> Ring:
    """Round 2, both halves."""
    session.receive(inbox)
    return session.mask(ring)
