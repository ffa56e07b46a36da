"""What partners and coordinator say to each other in a masked sum, and the exact bytes that are signed.

Five exchanges make one sum; their names are those of rounds 0 to 4 of Bonawitz et al., "Practical Secure
Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4, with the consistency check of the
malicious-server variant. Nothing here holds a secret in the clear but `Opening`, which is meant to be opened.

Statements are built of length-prefixed parts, so that no two of them share their bytes. Every one of them
hangs on the `context`, the SHA-256 of the signed round plan: what was said in one attempt of one round of one
run says nothing in another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

CONTEXT_SIZE = 32
"""Bytes of a session's context: a SHA-256."""
SMALLEST_COHORT = 3
"""Between two partners a sum tells each of them the other's part."""
OFFER, CONSENT = "secure sum: offer", "secure sum: consent"
"""The purposes of the two signatures (`shared.hazmat.signing`)."""


@dataclass(frozen=True, slots=True)
class KeyOffer:
    """Round 0, AdvertiseKeys: a partner's two fresh X25519 public keys (32 bytes each), signed by its identity."""

    name: str
    sealing_key: bytes
    mask_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Roster:
    """Round 0, the coordinator's answer: all offers of the session (U1), sorted by name."""

    offers: tuple[KeyOffer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The members; a member's place is the number of its Shamir share."""
        return tuple(offer.name for offer in self.offers)


@dataclass(frozen=True, slots=True)
class Outbox:
    """Round 1, ShareKeys: for every other member, a share of each of the sender's two secrets, sealed."""

    name: str
    sealed: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Inbox:
    """Round 1, the coordinator's answer: what the members that shared (U2) sealed for this one."""

    sealed: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Survivors:
    """Round 2, the coordinator's answer: who delivered a masked vector (U3), sorted."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Consent:
    """Round 3, ConsistencyCheck: a survivor's signature under the set of survivors that it was told."""

    name: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Consents:
    """Round 3, the coordinator's answer: the signatures of those that consented (U4)."""

    consents: tuple[Consent, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """Round 4, Unmasking: shares of the survivors' self-mask seeds and of the dropped members' mask keys."""

    name: str
    self_seeds: dict[str, bytes]
    mask_keys: dict[str, bytes]


def offer_statement(context: bytes, name: str, sealing_key: bytes, mask_key: bytes) -> bytes:
    """What the signature of a `KeyOffer` is over."""
    return _join(context, name.encode(), sealing_key, mask_key)


def roster_digest(context: bytes, roster: Roster) -> bytes:
    """SHA-256 (32 bytes) of the context and all offers: the salt of every pairwise key."""
    fields = [
        part for o in roster.offers for part in (o.name.encode(), o.sealing_key, o.mask_key, o.signature)
    ]  # four an offer, so that their number tells the members apart
    return hashlib.sha256(_join(b"veilrec/v1/roster", context, *fields)).digest()


def consent_statement(digest: bytes, survivors: Survivors) -> bytes:
    """What the signature of a `Consent` is over: the roster's digest and the survivors."""
    return _join(digest, *(name.encode() for name in survivors.names))


def sealing_info(sender: str, recipient: str) -> bytes:
    """HKDF info of the key under which `sender` seals for `recipient`: one key a direction."""
    return _join(b"veilrec/v1/seal", sender.encode(), recipient.encode())


def mask_info(one: str, other: str) -> bytes:
    """HKDF info of the seed of a pair's mask: the same seen from both ends."""
    return _join(b"veilrec/v1/mask", *(name.encode() for name in sorted((one, other))))


def sealed_for(context: bytes, sender: str, recipient: str) -> bytes:
    """The associated data of sealed shares: they open in one session, from one sender, for one recipient."""
    return _join(context, sender.encode(), recipient.encode())


def mask_sign(own: str, peer: str) -> int:
    """Delta of the paper, section 4: +1 or -1, opposite at the two ends of a pair, so that its masks cancel."""
    return 1 if own > peer else -1


def ascending(names: Iterable[str]) -> bool:
    """Whether names are sorted and none is there twice: one order, hence one statement, for one set."""
    return all(earlier < later for earlier, later in pairwise(names))


def _join(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
