"""The coordinator drops what is wrong, goes on with the others, and opens a sum or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from masking_setting import Setting, fresh, setting, signed

from shared.errors import (
    ReplayError,
    UnmaskError,
)
from shared.exchange import (
    Consents,
    Opening,
    Roster,
)


@pytest.fixture
def five() -> Setting:
    return setting()


# The coordinator


def test_wrong_offers_drop_their_partner_alone() -> None:
    seven = setting(7, 4)
    offers = seven.offers()
    offers[0] = replace(offers[0], signature=bytes(64))
    offers[1] = signed(seven.federation, seven.names[1], bytes(32), fresh(1))  # of low order
    offers[6] = signed(seven.federation, seven.names[6], fresh(2), offers[2].mask_key)  # somebody else's
    stranger = replace(offers[3], name="stranger")
    again = signed(seven.federation, seven.names[3], fresh(3), fresh(4))
    roster = seven.server.roster([*offers, stranger, again])
    assert roster == Roster(tuple(offers[2:6]))
    assert seven.server.live == tuple(seven.names[2:6])


@pytest.mark.parametrize("kind", ["one missing", "wrong size", "stranger", "own name among them"])
def test_a_wrong_outbox_drops_its_partner_alone(five: Setting, kind: str) -> None:
    outboxes = five.to_outboxes()
    first = outboxes[0]
    outboxes[0] = {
        "one missing": replace(first, sealed={name: first.sealed[name] for name in five.names[2:]}),
        "wrong size": replace(first, sealed=first.sealed | {five.names[1]: bytes(93)}),
        "stranger": replace(first, name="stranger"),
        "own name among them": replace(first, sealed=first.sealed | {five.names[0]: bytes(94)}),
    }[kind]
    inboxes = five.server.inboxes(outboxes)
    assert set(inboxes) == set(five.names[1:])
    assert all(set(inbox.sealed) == set(five.names[1:]) - {name} for name, inbox in inboxes.items())


def test_shares_that_are_sent_twice_count_once(five: Setting) -> None:
    outboxes = five.to_outboxes()
    second = replace(outboxes[0], sealed={name: bytes(94) for name in five.names[1:]})
    inboxes = five.server.inboxes([*outboxes, second])
    assert inboxes[five.names[1]].sealed[five.names[0]] == outboxes[0].sealed[five.names[1]]


def test_a_vector_that_does_not_fit_drops_its_partner_alone(five: Setting) -> None:
    masked: dict[str, Any] = dict(five.to_masked(lost=0))
    masked[five.names[0]] = masked[five.names[0]][:-1]
    masked[five.names[1]] = masked[five.names[1]].astype(np.int64)
    masked["stranger"] = masked[five.names[2]]
    assert five.server.survivors(masked).names == tuple(five.names[2:])


def test_a_vector_is_added_once(five: Setting) -> None:
    masked = five.to_masked(lost=0)
    assert five.server.add(five.names[0], masked[five.names[0]])
    assert not five.server.add(five.names[0], masked[five.names[0]])
    survivors = five.server.survivors(masked)
    consents = five.server.consents([session.consent(survivors) for session in five.sessions.values()])
    total = five.server.open([session.open(consents) for session in five.sessions.values()])
    np.testing.assert_array_equal(total, five.sum_of(tuple(five.names)))


def test_a_wrong_consent_drops_its_partner_alone(five: Setting) -> None:
    survivors = five.to_survivors(lost=0)
    consents = [session.consent(survivors) for session in five.sessions.values()]
    consents[0] = replace(consents[0], signature=consents[1].signature)
    told = five.server.consents([*consents, replace(consents[1], name="stranger"), consents[1]])
    assert five.server.live == tuple(five.names[1:])
    assert told == Consents(tuple(consents[1:4]))  # as many as a partner needs


def test_a_wrong_opening_drops_its_partner_alone(five: Setting) -> None:
    openings = five.to_openings()
    openings[0] = replace(openings[0], mask_keys={})
    total = five.server.open([*openings, replace(openings[1], name="stranger"), openings[1]])
    np.testing.assert_array_equal(total, five.sum_of(tuple(five.names[:4])))
    assert five.server.live == tuple(five.names[1:4])


def falsified(opening: Opening, part: str) -> Opening:
    shares = getattr(opening, part)
    return replace(opening, **{part: {name: bytes(32) + b"\x07" for name in shares}})


@pytest.mark.parametrize("part", ["self_seeds", "mask_keys"])
def test_one_false_opening_is_outvoted_by_two_more_than_the_threshold(part: str) -> None:
    for liar in range(6):
        seven = setting(7, 4)
        openings = seven.to_openings()
        openings[liar] = falsified(openings[liar], part)
        np.testing.assert_array_equal(seven.server.open(openings), seven.sum_of(tuple(seven.names[:6])))


@pytest.mark.parametrize("part", ["self_seeds", "mask_keys"])
def test_false_openings_by_several_end_the_round(five: Setting, part: str) -> None:
    openings = five.to_openings()
    openings[1:3] = [falsified(opening, part) for opening in openings[1:3]]
    with pytest.raises(UnmaskError, match="do not fit together"):
        five.server.open(openings)


def test_the_coordinators_steps_are_taken_in_order_and_once(five: Setting) -> None:
    for step in (five.server.inboxes, five.server.survivors, five.server.consents, five.server.open):
        with pytest.raises(ReplayError, match="Expected step=roster of the sum"):
            step({} if step == five.server.survivors else [])  # type: ignore[operator]
    with pytest.raises(ReplayError, match="got a masked vector"):
        five.server.add(five.names[0], five.rings[five.names[0]])
    openings = five.to_openings()
    five.server.open(openings)
    with pytest.raises(ReplayError, match="step=over"):
        five.server.open(openings)
