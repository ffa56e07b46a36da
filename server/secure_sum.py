"""The coordinator's side of one masked sum: Bonawitz et al., CCS 2017, full graph, malicious-server variant.

One method a round, named after what it makes::

    0 AdvertiseKeys         roster()    <- offers
    1 ShareKeys             inboxes()   <- outboxes
    2 MaskedInputCollection survivors() <- masked vectors
    3 ConsistencyCheck      consents()  <- consents
    4 Unmasking             open()      <- openings, the sum

A partner that does not answer, or whose answer is not what the round asks for, is dropped: the others go on,
as long as `threshold` of them are left. It holds one vector, whatever the number of partners.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from server.transcript import SumTranscript, total_digest
from shared.errors import CohortTooSmallError, InvalidSignatureError, ProtocolError, ReplayError, UnmaskError
from shared.exchange import (
    CONSENT,
    OFFER,
    SMALLEST_COHORT,
    Consent,
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
)
from shared.hazmat.agreement import NONCE_BYTES, TAG_BYTES, EphemeralKey
from shared.hazmat.fixed_point import from_ring
from shared.hazmat.masking import add_mask
from shared.hazmat.randomness import SystemRandomness
from shared.hazmat.shamir import SHARE_BYTES, combine
from shared.hazmat.signing import Pin
from shared.privacy.ledger_heads import LedgerHead

SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES
"""The two shares that one partner seals for another."""
_STEPS = ("roster", "inboxes", "survivors", "consents", "open", "over")
_OVER = _STEPS[-1]


class SecureSum:
    """One attempt of one round.

    Parameters
    ----------
    context : bytes
        SHA-256 of the signed round plan.
    threshold : int
        t: partners that must be left after every round.
    identities : mapping
        Name to the identity of every partner that was asked.
    size : int
        P, the coordinates of the sum.

    Guarantees
    ----------
    The sum is exact: that of the survivors' vectors modulo 2^32, read as centred integers. It is over all
    vectors that were taken or it is not returned. One partner that gives false shares in the last round is
    outvoted if two more than the threshold open; if one more does, the round fails; if none, only false
    shares of mask keys are seen. What a vector holds, or a partner shared for itself, cannot be checked: a
    partner can always spoil the sum to which it adds.
    """

    def __init__(self, context: bytes, threshold: int, identities: Mapping[str, Pin], size: int) -> None:
        self._context, self._threshold, self._identities = context, threshold, identities
        self._total = np.zeros(size, dtype=np.uint32)
        self._next = self._following = _STEPS[0]
        self._probe = EphemeralKey.generate(SystemRandomness(), "probe")
        self._live: tuple[str, ...] = ()
        self._offers: dict[str, KeyOffer] = {}
        self._digest = b""
        self._shared: frozenset[str] = frozenset()
        self._delivered: set[str] = set()
        self._survivors = Survivors(())
        self._consents: tuple[Consent, ...] = ()

    @property
    def live(self) -> tuple[str, ...]:
        """The partners that gave all that was asked so far: whom to send the next message."""
        return self._live

    def roster(self, offers: Iterable[KeyOffer]) -> Roster:
        """Round 0, AdvertiseKeys: the signed key offers (U1), sorted.

        Raises
        ------
        CohortTooSmallError
            If fewer than the threshold, or than three, are valid.
        """
        self._begin("roster")
        keys: set[bytes] = set()
        for offer in offers:
            if offer.name not in self._offers and self._is_offer(offer, keys):
                self._offers[offer.name] = offer
                keys |= {offer.sealing_key, offer.mask_key}
        roster = Roster(tuple(self._offers[name] for name in sorted(self._offers)))
        self._digest = roster_digest(self._context, roster)
        self._go_on(roster.names, at_least=max(self._threshold, SMALLEST_COHORT))
        return roster

    def inboxes(self, outboxes: Iterable[Outbox]) -> dict[str, Inbox]:
        """Round 1, ShareKeys: sort the sealed shares of those that shared (U2) by recipient.

        Raises
        ------
        CohortTooSmallError
            If fewer than the threshold shared with all others.
        """
        self._begin("inboxes")
        sealed: dict[str, dict[str, bytes]] = {}
        for outbox in outboxes:
            others = self._offers.keys() - {outbox.name}
            if outbox.name in self._live and outbox.name not in sealed and _fits(outbox.sealed, others, SEALED_BYTES):
                sealed[outbox.name] = outbox.sealed
        self._shared = frozenset(sealed)
        self._go_on(sealed)
        return {
            name: Inbox({peer: box[name] for peer, box in sealed.items() if peer != name}) for name in sorted(sealed)
        }

    def add(self, name: str, masked: NDArray[np.uint32]) -> bool:
        """Round 2, MaskedInputCollection: add a vector to the sum as it comes; False if it cannot be taken.

        Raises
        ------
        ReplayError
            If the round has not begun, or is over.
        """
        if self._next != "survivors":
            raise ReplayError(f"Expected step={self._next} of the sum, got a masked vector.")
        known = name in self._live and name not in self._delivered
        if not known or masked.dtype != np.uint32 or masked.shape != self._total.shape:
            return False
        self._total += masked
        self._delivered.add(name)
        return True

    def survivors(self, masked: Mapping[str, NDArray[np.uint32]] | None = None) -> Survivors:
        """Round 2, MaskedInputCollection: who delivered (U3), by `add` or in `masked`.

        Raises
        ------
        CohortTooSmallError
            If fewer than the threshold delivered a vector that fits.
        """
        for name, vector in (masked or {}).items():
            self.add(name, vector)
        self._begin("survivors")
        self._go_on(self._delivered)
        self._survivors = Survivors(self._live)
        return self._survivors

    def consents(self, consents: Iterable[Consent]) -> Consents:
        """Round 3, ConsistencyCheck: the survivors' signatures under their own set (U4).

        Raises
        ------
        CohortTooSmallError
            If fewer than the threshold are valid.
        """
        self._begin("consents")
        statement = consent_statement(self._digest, self._survivors)
        valid: dict[str, Consent] = {}
        for consent in consents:
            if consent.name in self._live and consent.name not in valid:
                with suppress(InvalidSignatureError):
                    self._identities[consent.name].verify(CONSENT, statement, consent.signature)
                    valid[consent.name] = consent
        self._go_on(valid)
        self._consents = tuple(valid[name] for name in self._live)
        # A partner needs t of them, and verifies each: more would only cost it time.
        return Consents(self._consents[: self._threshold])

    def open(self, openings: Iterable[Opening]) -> NDArray[np.int64]:
        """Round 4, Unmasking: take all masks off the sum, int64, shape ``(P,)``.

        Raises
        ------
        CohortTooSmallError
            If fewer than the threshold opened their shares.
        UnmaskError
            If the shares of a secret do not fit together.
        """
        self._begin("open")
        alive, dropped = set(self._survivors.names), self._shared - set(self._survivors.names)
        valid: dict[str, Opening] = {}
        for opening in openings:
            whole = _fits(opening.self_seeds, alive, SHARE_BYTES) and _fits(opening.mask_keys, dropped, SHARE_BYTES)
            if opening.name in self._live and opening.name not in valid and whole:
                valid[opening.name] = opening
        self._go_on(valid)
        places = {name: place for place, name in enumerate(sorted(self._offers))}  # as the shares were dealt
        for name in self._survivors.names:
            self._take_self_mask_off({places[o.name]: o.self_seeds[name] for o in valid.values()})
        for name in dropped:
            self._take_pair_masks_off(name, {places[o.name]: o.mask_keys[name] for o in valid.values()})
        return from_ring(self._total)

    def transcript(self, heads: Mapping[str, LedgerHead], total: NDArray[np.int64]) -> SumTranscript:
        """What is public of a sum that was opened as `total`; `heads` are the ledger entries that paid, by name."""
        names = self._survivors.names
        roster = tuple(self._offers[name] for name in sorted(self._offers))
        paid = {name: heads[name] for name in names}
        return SumTranscript(True, roster, names, self._consents, paid, total_digest(total))

    def _begin(self, step: str) -> None:
        """Take a step in its turn, once; one that fails ends the sum."""
        if self._next != step:
            raise ReplayError(f"Expected step={self._next} of the sum, got {step}.")
        self._next, self._following = _OVER, _STEPS[_STEPS.index(step) + 1]

    def _go_on(self, names: Collection[str], at_least: int = 0) -> None:
        """End a step with the partners that are left."""
        needed, left = max(at_least, self._threshold), len(names)
        self._live = tuple(sorted(names))
        if left < needed:
            raise CohortTooSmallError(f"Expected at least {needed} partners before step={self._following}, got {left}.")
        self._next = self._following

    def _is_offer(self, offer: KeyOffer, keys: AbstractSet[bytes]) -> bool:
        """Whether the partners will take it: signed, of a known name, with two new keys that can be agreed with."""
        new = offer.sealing_key != offer.mask_key and not keys & {offer.sealing_key, offer.mask_key}
        if offer.name not in self._identities or not new:
            return False
        statement = offer_statement(self._context, offer.name, offer.sealing_key, offer.mask_key)
        try:
            self._identities[offer.name].verify(OFFER, statement, offer.signature)
            for key in (offer.sealing_key, offer.mask_key):  # one of low order would stop every partner
                self._probe.agree(key, salt=b"", info=b"")
        except (InvalidSignatureError, ProtocolError):
            return False
        return True

    def _take_self_mask_off(self, shares: Mapping[int, bytes]) -> None:
        """PRG(b_u) of a survivor. Nothing public tells its seed, so two sets of shares must give the same."""
        seen: set[bytes] = set()
        for seed in self._candidates(shares):
            if seed in seen or len(shares) == self._threshold:
                add_mask(self._total, seed, -1)
                return
            seen.add(seed)
        raise UnmaskError("Expected shares of one self-mask seed, got some that do not fit together.")

    def _take_pair_masks_off(self, dropped: str, shares: Mapping[int, bytes]) -> None:
        """Delta_{u,v} PRG(s_{u,v}) of a dropped v, for every survivor u. Its public key tells its mask key."""
        offered = self._offers[dropped].mask_key
        key = next((k for k in map(EphemeralKey, self._candidates(shares)) if k.public == offered), None)
        if key is None:
            raise UnmaskError("Expected shares of an offered mask key, got some that do not fit together.")
        for name in self._survivors.names:
            seed = key.agree(self._offers[name].mask_key, salt=self._digest, info=mask_info(name, dropped))
            add_mask(self._total, seed, -mask_sign(name, dropped))

    def _candidates(self, shares: Mapping[int, bytes]) -> Iterator[bytes]:
        """The secret by `threshold` holders in a row, from every start: some row leaves a false share out."""
        holders = sorted(shares)
        for start in range(len(holders)):
            row = (holders[start:] + holders[:start])[: self._threshold]
            with suppress(UnmaskError):
                yield combine({holder: shares[holder] for holder in row}, self._threshold)


def _fits(shares: Mapping[str, bytes], names: AbstractSet[str], size: int) -> bool:
    return shares.keys() == names and all(len(share) == size for share in shares.values())
