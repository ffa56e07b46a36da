"""A partner refuses all that could open more than one sum, whoever asks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from masking_setting import CONTEXT, SIZE, Setting, fresh, masked, setting, signed

from shared.errors import (
    CohortTooSmallError,
    InvalidSignatureError,
    ProtocolError,
    ReplayError,
    UnmaskError,
)
from shared.exchange import (
    CONSENT,
    OFFER,
    Consent,
    Consents,
    Inbox,
    KeyOffer,
    Roster,
    Survivors,
    consent_statement,
    offer_statement,
)
from shared.hazmat.signing import SigningKey


@pytest.fixture
def five() -> Setting:
    return setting()


# Round 1: the roster


def test_fewer_members_than_the_threshold_are_refused(five: Setting) -> None:
    offers = five.offers()
    with pytest.raises(CohortTooSmallError, match="threshold=3 members, got 2"):
        five.first.share(Roster(tuple(offers[:2])))


def test_two_members_are_refused_even_at_threshold_two() -> None:
    three = setting(3, 2)
    with pytest.raises(CohortTooSmallError, match="threshold=3 members, got 2"):
        three.first.share(Roster(tuple(three.offers()[:2])))


def test_a_threshold_at_which_two_sums_could_be_opened_is_refused() -> None:
    six = setting(6, 3)
    with pytest.raises(UnmaskError, match="2 threshold > members=6"):
        six.first.share(Roster(tuple(six.offers())))


def test_a_roster_without_the_own_offer_is_refused(five: Setting) -> None:
    offers = five.offers()
    with pytest.raises(ProtocolError, match="own offer as it was made"):
        five.first.share(Roster(tuple(offers[1:])))


@pytest.mark.parametrize("part", ["sealing_key", "mask_key", "signature"])
def test_a_roster_with_the_own_offer_changed_is_refused(five: Setting, part: str) -> None:
    offers = five.offers()
    offers[0] = replace(offers[0], **{part: bytes(64 if part == "signature" else 32)})
    with pytest.raises(ProtocolError, match="own offer as it was made"):
        five.first.share(Roster(tuple(offers)))


@pytest.mark.parametrize("kind", ["twice", "out of order"])
def test_a_name_twice_or_out_of_order_is_refused(kind: str) -> None:
    five = setting(5, 4)
    offers = five.offers()
    second = signed(five.federation, five.names[1], fresh(0), fresh(1))
    wrong = [*offers[:2], second, *offers[2:]] if kind == "twice" else offers[::-1]
    with pytest.raises(ProtocolError, match="no name and no key twice"):
        five.first.share(Roster(tuple(wrong)))


@pytest.mark.parametrize("kind", ["own both", "another's"])
def test_a_key_twice_is_refused(five: Setting, kind: str) -> None:
    offers = five.offers()
    taken = fresh(1) if kind == "own both" else offers[3].sealing_key
    offers[1] = signed(five.federation, five.names[1], fresh(1), taken)
    with pytest.raises(ProtocolError, match="no key twice"):
        five.first.share(Roster(tuple(offers)))


def test_a_substituted_key_is_refused(five: Setting) -> None:
    offers = five.offers()
    offers[2] = replace(offers[2], mask_key=fresh(3))
    with pytest.raises(InvalidSignatureError):
        five.first.share(Roster(tuple(offers)))


def test_a_member_that_is_not_pinned_is_refused(five: Setting) -> None:
    offers = five.offers()
    stranger = SigningKey.generate()
    statement = offer_statement(CONTEXT, "zed", fresh(3), fresh(4))
    offers[4] = KeyOffer("zed", fresh(3), fresh(4), stranger.sign(OFFER, statement))
    with pytest.raises(InvalidSignatureError, match="pinned"):
        five.first.share(Roster(tuple(offers)))


def test_another_identity_than_the_pinned_one_is_refused(five: Setting) -> None:
    offers = five.offers()
    statement = offer_statement(CONTEXT, five.names[4], fresh(3), fresh(4))
    offers[4] = KeyOffer(five.names[4], fresh(3), fresh(4), SigningKey.generate().sign(OFFER, statement))
    with pytest.raises(InvalidSignatureError):
        five.first.share(Roster(tuple(offers)))


def test_a_partner_that_was_told_another_plan_is_refused(five: Setting) -> None:
    offers = five.offers()
    other = five.federation.sessions(bytes(32))[five.names[2]]
    offers[2] = other.offer()
    with pytest.raises(InvalidSignatureError):
        five.first.share(Roster(tuple(offers)))


def test_a_key_of_low_order_is_refused(five: Setting) -> None:
    offers = five.offers()
    offers[2] = signed(five.federation, five.names[2], bytes(32), fresh(3))
    with pytest.raises(ProtocolError, match="low order"):
        five.first.share(Roster(tuple(offers)))


# Round 2: the inbox and the vector


def test_shares_from_outside_the_roster_or_from_oneself_are_refused(five: Setting) -> None:
    inboxes = five.to_inboxes()
    for name, sender in ((five.names[0], "stranger"), (five.names[1], five.names[1])):
        inbox = inboxes[name]
        wrong = Inbox(inbox.sealed | {sender: next(iter(inbox.sealed.values()))})
        with pytest.raises(ProtocolError, match="other members of the roster"):
            five.sessions[name].receive(wrong)


def test_fewer_that_shared_than_the_threshold_are_refused(five: Setting) -> None:
    sealed = five.to_inboxes()[five.names[0]].sealed
    with pytest.raises(CohortTooSmallError, match="threshold=3 members that shared, got 2"):
        five.first.receive(Inbox({five.names[1]: sealed[five.names[1]]}))


@pytest.mark.parametrize("kind", ["changed", "of another sender", "for another recipient", "of another session"])
def test_shares_that_do_not_open_are_refused(five: Setting, kind: str) -> None:
    inboxes = five.to_inboxes()
    own, one, two = five.names[:3]
    sealed = dict(inboxes[own].sealed)
    other = Setting(
        five.federation, five.federation.sessions(bytes(32)), five.federation.coordinator(bytes(32), SIZE), {}
    )
    sealed[one] = {
        "changed": bytes([sealed[one][0] ^ 1]) + sealed[one][1:],
        "of another sender": sealed[two],
        "for another recipient": inboxes[two].sealed[one],
        "of another session": other.to_inboxes()[own].sealed[one],
    }[kind]
    with pytest.raises(UnmaskError, match="sealed message"):
        five.first.receive(Inbox(sealed))
    assert five.first.next_step == "over"


def test_sealed_contents_that_are_no_two_shares_are_refused(five: Setting) -> None:
    roster = five.to_roster()
    own, one = five.names[:2]
    outboxes = {name: five.sessions[name].share(roster) for name in five.names}
    sealed = {name: outboxes[name].sealed[own] for name in five.names[1:]}
    sealed[one] = five.sessions[one]._seal(own, roster.offers[0].sealing_key, bytes(33))
    with pytest.raises(UnmaskError, match="two shares"):
        five.first.receive(Inbox(sealed))


@pytest.mark.parametrize(
    "ring",
    [np.zeros(SIZE, np.int64), np.zeros(SIZE, np.float32), np.zeros((2, SIZE), np.uint32), np.zeros(0, np.uint32)],
)
def test_only_a_vector_of_ring_elements_is_masked(five: Setting, ring: Any) -> None:
    inbox = five.to_inboxes()[five.names[0]]
    with pytest.raises(ProtocolError, match="Expected a vector of 1 to"):
        masked(five.first, inbox, ring)


def test_the_long_secrets_are_gone_once_the_vector_is_masked(five: Setting) -> None:
    five.to_masked()
    known = five.first._known
    assert known.sealing_key is known.mask_key is known.self_seed is None


# Round 3: consent


@pytest.mark.parametrize("kind", ["a stranger", "without oneself", "twice", "not sorted", "did not share"])
def test_a_wrong_set_of_survivors_is_refused(five: Setting, kind: str) -> None:
    roster = five.to_roster()
    inboxes = five.server.inboxes([five.sessions[name].share(roster) for name in five.names[:4]])
    names = five.names
    masked(five.first, inboxes[names[0]], five.rings[names[0]])
    told = {
        "a stranger": [*names[:3], "stranger"],
        "without oneself": names[1:4],
        "twice": [names[0], names[1], names[1], names[2]],
        "not sorted": [names[0], names[2], names[1]],
        "did not share": [*names[:2], names[4]],
    }[kind]
    with pytest.raises(UnmaskError, match="survivors among those that shared"):
        five.first.consent(Survivors(tuple(told)))


def test_fewer_survivors_than_the_threshold_are_refused(five: Setting) -> None:
    five.to_masked()
    with pytest.raises(CohortTooSmallError, match="threshold=3 survivors, got 2"):
        five.first.consent(Survivors(tuple(five.names[:2])))


def test_a_partner_consents_once(five: Setting) -> None:
    five.to_masked()
    five.first.consent(Survivors(tuple(five.names[:4])))
    with pytest.raises(ReplayError):
        five.first.consent(Survivors(tuple(five.names[:3])))


# Round 4: opening


def test_a_member_loses_one_share_and_never_both(five: Setting) -> None:
    for opening in five.to_openings():
        assert set(opening.self_seeds) == set(five.names[:4])
        assert set(opening.mask_keys) == {five.names[4]}


def test_a_sum_is_opened_once_and_the_session_is_erased(five: Setting) -> None:
    consents = five.to_consents()
    five.first.open(consents)
    with pytest.raises(ReplayError, match="step=over"):
        five.first.open(consents)
    known = five.first._known
    assert all(getattr(known, part) is None for part in known.__slots__)
    assert set(json.loads(five.first.to_bytes())["known"].values()) == {None}


def test_too_few_consents_do_not_open(five: Setting) -> None:
    consents = five.to_consents()
    with pytest.raises(CohortTooSmallError, match="threshold=3 consents, got 2"):
        five.first.open(Consents(consents.consents[:2]))


def test_a_consent_twice_does_not_count_twice(five: Setting) -> None:
    one, two, _ = five.to_consents().consents
    with pytest.raises(ProtocolError, match="each once"):
        five.first.open(Consents((one, two, two)))


def test_a_consent_of_somebody_who_did_not_survive_does_not_open(five: Setting) -> None:
    survivors = five.to_survivors()
    consents = [five.sessions[name].consent(survivors) for name in five.names[:2]]
    dropped = Consent(five.names[4], consents[0].signature)
    with pytest.raises(ProtocolError, match="consents of survivors"):
        five.first.open(Consents((*consents, dropped)))


def test_consents_to_different_sets_do_not_open(five: Setting) -> None:
    five.to_masked(lost=0)
    some, all_ = Survivors(tuple(five.names[:4])), Survivors(tuple(five.names))
    consents = [
        five.sessions[name].consent(told) for name, told in zip(five.names[:3], [all_, all_, some], strict=True)
    ]
    with pytest.raises(InvalidSignatureError):
        five.first.open(Consents(tuple(consents)))


def test_a_consent_by_another_identity_does_not_open(five: Setting) -> None:
    survivors = five.to_survivors()
    consents = [five.sessions[name].consent(survivors) for name in five.names[:3]]
    statement = consent_statement(five.server._digest, survivors)
    consents[2] = Consent(five.names[2], SigningKey.generate().sign(CONSENT, statement))
    with pytest.raises(InvalidSignatureError):
        five.first.open(Consents(tuple(consents)))
