"""A partner's side of one masked sum: Bonawitz et al., CCS 2017, full graph, malicious-server variant.

One method a round, named after what it sends::

    0 AdvertiseKeys         offer()    -> KeyOffer
    1 ShareKeys             share()    -> Outbox
    2 MaskedInputCollection receive(), mask() -> the masked vector
    3 ConsistencyCheck      consent()  -> Consent
    4 Unmasking             open()     -> Opening

The coordinator is trusted with nothing but to be there. Each method checks what it was told before it answers;
each can be called once, in this order; whatever goes wrong ends the session and erases its secrets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.masking_rules import (
    check_consents,
    check_roster,
    check_size,
    check_survivors,
    check_vector,
)
from shared.errors import IntegrityError, ProtocolError, ReplayError, UnmaskError
from shared.exchange import (
    CONSENT,
    CONTEXT_SIZE,
    OFFER,
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
    sealed_for,
    sealing_info,
)
from shared.hazmat.agreement import EphemeralKey, seal, unseal
from shared.hazmat.masking import add_mask
from shared.hazmat.randomness import Randomness
from shared.hazmat.shamir import SHARE_BYTES, split
from shared.hazmat.signing import Pin, SigningKey

_STEPS = ("offer", "share", "receive", "mask", "consent", "open", "over")
_OVER = _STEPS[-1]
_VERSION = 1
_T = TypeVar("_T")


@dataclass(slots=True, repr=False)
class _Known:
    """What the session has made and been told so far; an empty one when it is over.

    `held` has the two shares of every member of U2. `self_seed` is the paper's b, `pair_seeds` the s_{u,v}.
    """

    sealing_key: EphemeralKey | None = None
    mask_key: EphemeralKey | None = None
    self_seed: bytes | None = None
    roster: Roster | None = None
    digest: bytes | None = None
    held: dict[str, bytes] | None = None
    pair_seeds: dict[str, bytes] | None = None
    survivors: Survivors | None = None

    def to_json(self) -> dict[str, Any]:
        offers = self.roster and self.roster.offers
        return {
            "sealing_key": self.sealing_key and self.sealing_key.secret.hex(),
            "mask_key": self.mask_key and self.mask_key.secret.hex(),
            "self_seed": self.self_seed and self.self_seed.hex(),
            "roster": offers and [[o.name, o.sealing_key.hex(), o.mask_key.hex(), o.signature.hex()] for o in offers],
            "held": self.held and {name: pair.hex() for name, pair in self.held.items()},
            "pair_seeds": self.pair_seeds and {name: seed.hex() for name, seed in self.pair_seeds.items()},
            "survivors": self.survivors and self.survivors.names,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any], context: bytes) -> _Known:
        sealing, mask, seed = (_bytes(state[key]) for key in ("sealing_key", "mask_key", "self_seed"))
        offers = [KeyOffer(name, *map(bytes.fromhex, rest)) for name, *rest in state["roster"] or ()]
        roster = Roster(tuple(offers)) if offers else None
        return cls(
            sealing_key=None if sealing is None else EphemeralKey(sealing),
            mask_key=None if mask is None else EphemeralKey(mask),
            self_seed=seed,
            roster=roster,
            digest=None if roster is None else roster_digest(context, roster),
            held=_table(state["held"]),
            pair_seeds=_table(state["pair_seeds"]),
            survivors=state["survivors"] and Survivors(tuple(state["survivors"])),
        )


class MaskingSession:
    """One partner's part in one attempt of one round.

    Parameters
    ----------
    name : str
        The partner's own name.
    context : bytes
        SHA-256 of the signed round plan: 32 bytes. Another plan, or another model, told to another
        partner makes another context, in which no signature and no sealed share of this one is valid.
    identity : SigningKey
        The partner's own long-term key.
    peers : mapping
        The pinned identities of all partners, this one among them.
    threshold : int
        t: partners that must survive for the sum to be opened.
    source : Randomness
        Of the ephemeral keys, the self-mask seed and the shares. A seeded one gives the same secrets for
        the same context, so it is for simulations only.

    Raises
    ------
    ProtocolError
        If the context is no digest, or the own identity is not the pinned one.

    Guarantees
    ----------
    With n members of whom c collude with the coordinator, and 2 t > n + c: the coordinator learns the sum over
    one set of at least t members, or nothing, whatever it sends, as long as the pinned identities are right.
    Nothing is promised of the sum itself, to which each member adds what it likes.
    """

    def __init__(
        self,
        name: str,
        context: bytes,
        identity: SigningKey,
        peers: Mapping[str, Pin],
        threshold: int,
        source: Randomness,
    ) -> None:
        if len(context) != CONTEXT_SIZE:
            raise ProtocolError(f"Expected a context of {CONTEXT_SIZE} bytes, got {len(context)}.")
        if name not in peers or identity.public not in peers[name].keys:
            raise ProtocolError("Expected the own identity among the pinned ones, got none or another.")
        self.name, self.context, self.threshold = name, context, threshold
        self._identity, self._peers, self._source = identity, dict(peers), source
        self._next = _STEPS[0]
        self._known = _Known()

    @property
    def next_step(self) -> str:
        """The one method that may be called now, or ``over``."""
        return self._next

    def offer(self) -> KeyOffer:
        """Round 0, AdvertiseKeys: two fresh key pairs, the public halves signed."""
        with self._turn("offer") as known:
            known.sealing_key = EphemeralKey.generate(self._source, self._label("sealing key"))
            known.mask_key = EphemeralKey.generate(self._source, self._label("mask key"))
            return self._own_offer(known.sealing_key, known.mask_key)

    def share(self, roster: Roster) -> Outbox:
        """Round 1, ShareKeys: split the self-mask seed and the mask key among the members.

        Raises
        ------
        CohortTooSmallError
            If there are fewer members than the threshold, or than three.
        UnmaskError
            If two sets of survivors without a common member could both reach the threshold.
        InvalidSignatureError
            If an offer is not signed, for this context, by the identity that is pinned for its name.
        ProtocolError
            If a name or key is there twice, or the own offer is absent or changed.
        """
        with self._turn("share") as known:
            sealing, mask = _present(known.sealing_key), _present(known.mask_key)
            check_roster(roster, self._own_offer(sealing, mask), self.context, self._peers, self.threshold)
            known.roster, known.digest = roster, roster_digest(self.context, roster)
            known.self_seed = self._source.read(32, self._label("self-mask seed"))
            shares = self._shares(roster, known.self_seed, mask.secret)
            known.held = {self.name: shares.pop(self.name)}
            keys = {offer.name: offer.sealing_key for offer in roster.offers}
            return Outbox(self.name, {peer: self._seal(peer, keys[peer], pair) for peer, pair in shares.items()})

    def receive(self, inbox: Inbox) -> None:
        """Round 2, MaskedInputCollection: open the shares of the members that shared theirs (U2, without this one).

        Apart from `mask`, so that a bad share or key is seen while nothing was spent and nothing has left.

        Raises
        ------
        CohortTooSmallError
            If U2 has fewer members than the threshold.
        UnmaskError
            If shares do not open: they are of another session, another sender, or for somebody else.
        ProtocolError
            If somebody outside the roster sent shares, or a mask key is of low order.
        """
        with self._turn("receive") as known:
            self._open_shares(inbox)
            known.pair_seeds = self._pair_seeds()

    def mask(self, ring: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Round 2, MaskedInputCollection: the vector, plus an own mask, plus or minus one mask a peer.

        Parameters
        ----------
        ring : ndarray of uint32, shape (P,)
            Clipped, noised, on the lattice (`shared.hazmat.fixed_point.to_ring`); not changed.

        Raises
        ------
        ProtocolError
            If the vector is not one of 32-bit integers.
        """
        with self._turn("mask") as known:
            check_vector(ring)
            masked = ring.copy()
            add_mask(masked, _present(known.self_seed), 1)  # PRG(b_u)
            for peer, seed in _present(known.pair_seeds).items():
                add_mask(masked, seed, mask_sign(self.name, peer))  # Delta_{u,v} PRG(s_{u,v})
            # From here on, the shares that others hold are all that is left of these.
            known.sealing_key = known.mask_key = known.self_seed = known.pair_seeds = None
            return masked

    def consent(self, survivors: Survivors) -> Consent:
        """Round 3, ConsistencyCheck: sign the one set of survivors for which this partner will open the sum.

        Raises
        ------
        CohortTooSmallError
            If there are fewer survivors than the threshold.
        UnmaskError
            If they are not a sorted subset of U2, or this partner is not among them.
        """
        with self._turn("consent") as known:
            check_survivors(survivors, self.name, set(_present(known.held)), self.threshold)
            known.survivors = survivors
            statement = consent_statement(_present(known.digest), survivors)
            return Consent(self.name, self._identity.sign(CONSENT, statement))

    def open(self, consents: Consents) -> Opening:
        """Round 4, Unmasking: of a survivor the share of its seed, of a dropped member that of its mask key.

        A member is on one side of the survivors' set or on the other, so none ever loses both.

        Raises
        ------
        CohortTooSmallError
            If fewer survivors than the threshold consented.
        InvalidSignatureError
            If a consent is not by the pinned identity, or to another set than this partner's.
        ProtocolError
            If a consent is there twice, or not by a survivor.
        """
        with self._turn("open") as known:
            held, survivors = _present(known.held), _present(known.survivors)
            statement = consent_statement(_present(known.digest), survivors)
            check_consents(consents, survivors, statement, self._peers, self.threshold)
            alive = set(survivors.names)
            return Opening(
                self.name,
                self_seeds={name: pair[:SHARE_BYTES] for name, pair in held.items() if name in alive},
                mask_keys={name: pair[SHARE_BYTES:] for name, pair in held.items() if name not in alive},
            )

    def to_bytes(self) -> bytes:
        """The whole state as JSON. It holds secrets: for a file that only the partner may read.

        An older state that is put back would answer a step a second time. Who keeps states must remember
        apart from them which set of survivors was consented to (`shared.privacy.ledger`).
        """
        state = {
            "version": _VERSION,
            "name": self.name,
            "context": self.context.hex(),
            "threshold": self.threshold,
            "next": self._next,
            "known": self._known.to_json(),
        }
        return json.dumps(state).encode()

    @classmethod
    def from_bytes(
        cls, data: bytes, identity: SigningKey, peers: Mapping[str, Pin], source: Randomness
    ) -> MaskingSession:
        """Go on with a state that `to_bytes` gave.

        Raises
        ------
        IntegrityError
            If it is none.
        ProtocolError
            If it is that of another partner.
        """
        try:
            state = json.loads(data)
            if state["version"] != _VERSION or state["next"] not in _STEPS:
                raise ValueError
            name, context, threshold = str(state["name"]), bytes.fromhex(state["context"]), int(state["threshold"])
            known = _Known.from_json(state["known"], context)
        except (AttributeError, KeyError, TypeError, ValueError, ProtocolError):
            raise IntegrityError(f"Expected the state of a masking session, version={_VERSION}.") from None
        session = cls(name, context, identity, peers, threshold, source)
        session._next, session._known = state["next"], known
        return session

    @contextmanager
    def _turn(self, step: str) -> Iterator[_Known]:
        """Take a step in its turn, once. A step that fails, and the last one, end the session: all is erased."""
        if self._next != step:
            raise ReplayError(f"Expected step={self._next} of the session, got {step}.")
        self._next, following = _OVER, _STEPS[_STEPS.index(step) + 1]
        try:
            yield self._known
            self._next = following
        finally:
            if self._next == _OVER:
                self._known = _Known()

    def _label(self, purpose: str) -> str:
        """Names a draw of the source: another one in another context, so that a seeded source repeats no secret."""
        return f"secure sum/{self.context.hex()}/{purpose}"

    def _own_offer(self, sealing: EphemeralKey, mask: EphemeralKey) -> KeyOffer:
        """The same bytes each time: Ed25519 is deterministic."""
        statement = offer_statement(self.context, self.name, sealing.public, mask.public)
        return KeyOffer(self.name, sealing.public, mask.public, self._identity.sign(OFFER, statement))

    def _shares(self, roster: Roster, seed: bytes, mask_secret: bytes) -> dict[str, bytes]:
        """A share of the seed and one of the mask key, behind each other, for every member."""
        names, size = roster.names, len(roster.names)
        of_seed = split(seed, size, self.threshold, self._source, self._label("shares of the seed"))
        of_key = split(mask_secret, size, self.threshold, self._source, self._label("shares of the mask key"))
        return {name: one + other for name, one, other in zip(names, of_seed, of_key, strict=True)}

    def _seal(self, peer: str, peer_key: bytes, pair: bytes) -> bytes:
        info = sealing_info(self.name, peer)
        key = _present(self._known.sealing_key).agree(peer_key, salt=_present(self._known.digest), info=info)
        return seal(key, pair, sealed_for(self.context, self.name, peer), self._source, self._label(f"nonce/{peer}"))

    def _pair_seeds(self) -> dict[str, bytes]:
        """s_{u,v} for every other v in U2 alone: nobody could take another's mask off again."""
        known = self._known
        mask_key, held = _present(known.mask_key), _present(known.held)
        return {
            peer.name: mask_key.agree(peer.mask_key, salt=_present(known.digest), info=mask_info(self.name, peer.name))
            for peer in _present(known.roster).offers
            if peer.name != self.name and peer.name in held
        }

    def _open_shares(self, inbox: Inbox) -> None:
        known = self._known
        sealing, held = _present(known.sealing_key), _present(known.held)
        keys = {offer.name: offer.sealing_key for offer in _present(known.roster).offers if offer.name != self.name}
        if not set(inbox.sealed) <= set(keys):
            raise ProtocolError("Expected shares from other members of the roster alone.")
        check_size(len(inbox.sealed) + 1, self.threshold, "members that shared")
        for peer, sealed in inbox.sealed.items():
            key = sealing.agree(keys[peer], salt=_present(known.digest), info=sealing_info(peer, self.name))
            pair = unseal(key, sealed, sealed_for(self.context, peer, self.name))
            if len(pair) != 2 * SHARE_BYTES:
                raise UnmaskError(f"Expected two shares of {SHARE_BYTES} bytes, got {len(pair)} bytes.")
            held[peer] = pair


def _table(told: dict[str, str] | None) -> dict[str, bytes] | None:
    return None if told is None else {str(name): bytes.fromhex(text) for name, text in told.items()}


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def _present(value: _T | None) -> _T:
    """A part of the state that the step before has left; only a state that was tampered with lacks it."""
    if value is None:
        raise IntegrityError("Expected a session with the state of its step.")
    return value
