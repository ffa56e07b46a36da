"""What a partner refuses in a masked sum, whatever the coordinator says.

The checks that Bonawitz et al., CCS 2017, figure 4, put before each answer, with the threshold, the smallest
cohort and all identities held by the partner. None of them returns a verdict: they raise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from shared.errors import CohortTooSmallError, InvalidSignatureError, ProtocolError, UnmaskError
from shared.exchange import (
    CONSENT,
    OFFER,
    SMALLEST_COHORT,
    Consents,
    KeyOffer,
    Roster,
    Survivors,
    ascending,
    offer_statement,
)
from shared.hazmat.signing import Pin
from shared.privacy.lattice import LARGEST_VECTOR


def check_size(size: int, threshold: int, what: str) -> None:
    """Refuse fewer than `threshold`.

    Raises
    ------
    CohortTooSmallError
    """
    if size < threshold:
        raise CohortTooSmallError(f"Expected at least threshold={threshold} {what}, got {size}.")


def check_roster(roster: Roster, own: KeyOffer, context: bytes, peers: Mapping[str, Pin], threshold: int) -> None:
    """Round 1, before secrets are shared: enough members, each of them who it says, in this very session.

    Raises
    ------
    CohortTooSmallError
        If there are fewer members than the threshold, or than three.
    UnmaskError
        If the threshold is not above half of the members: two sums could then be opened.
    ProtocolError
        If the own offer is absent or changed, names are not sorted, or a name or key is there twice.
    InvalidSignatureError
        If an offer is not signed, over this context, by the identity that is pinned for its name.
    """
    offers = roster.offers
    check_size(len(offers), max(threshold, SMALLEST_COHORT), "members")
    if 2 * threshold <= len(offers):
        raise UnmaskError(f"Expected 2 threshold > members={len(offers)}, got threshold={threshold}.")
    keys = {key for offer in offers for key in (offer.sealing_key, offer.mask_key)}
    if own not in offers or not ascending(roster.names) or len(keys) != 2 * len(offers):
        raise ProtocolError("Expected the own offer as it was made, and no name and no key twice in the roster.")
    for offer in offers:
        if offer.name not in peers:
            raise InvalidSignatureError("Expected members whose identities are pinned, got another.")
        if offer != own:
            statement = offer_statement(context, offer.name, offer.sealing_key, offer.mask_key)
            peers[offer.name].verify(OFFER, statement, offer.signature)


def check_bucket(roster: Roster, bucket: Collection[str]) -> None:
    """Round 1, with buckets: nobody from another bucket than this partner's, which it has worked out itself.

    In every attempt at the round its one noised sum then meets the same partners, so that the threshold within the
    bucket is enough for it to be opened once.

    Raises
    ------
    UnmaskError
    """
    foreign = set(roster.names) - set(bucket)
    if foreign:
        raise UnmaskError(f"Expected members of the own bucket alone, got {len(foreign)} of another.")


def check_vector(ring: NDArray[np.uint32]) -> None:
    """Round 2: only a vector of ring elements is masked.

    Raises
    ------
    ProtocolError
    """
    if ring.dtype != np.uint32 or ring.ndim != 1 or not 0 < ring.size <= LARGEST_VECTOR:
        raise ProtocolError(
            f"Expected a vector of 1 to {LARGEST_VECTOR} uint32, got dtype={ring.dtype} and shape={ring.shape}."
        )


def check_survivors(survivors: Survivors, own: str, shared: AbstractSet[str], threshold: int) -> None:
    """Round 3: enough survivors (U3), all of those that shared (U2), this partner with them.

    Raises
    ------
    UnmaskError
        If not, or if names are not sorted or one is there twice: one set has one statement.
    CohortTooSmallError
        If there are fewer than the threshold.
    """
    names = survivors.names
    if not ascending(names) or own not in names or not set(names) <= shared:
        raise UnmaskError("Expected survivors among those that shared, each once, and this partner with them.")
    check_size(len(names), threshold, "survivors")


def check_consents(
    consents: Consents, survivors: Survivors, statement: bytes, peers: Mapping[str, Pin], threshold: int
) -> None:
    """Round 4, before a share is opened: enough survivors (U4) signed the same `statement` as this partner.

    Raises
    ------
    ProtocolError
        If a consent is there twice, or not by a survivor.
    CohortTooSmallError
        If there are fewer than the threshold.
    InvalidSignatureError
        If one is not by the pinned identity, or to another set.
    """
    names = [consent.name for consent in consents.consents]
    if len(set(names)) != len(names) or not set(names) <= set(survivors.names):
        raise ProtocolError("Expected consents of survivors, each once.")
    check_size(len(names), threshold, "consents")
    for consent in consents.consents:
        peers[consent.name].verify(CONSENT, statement, consent.signature)
