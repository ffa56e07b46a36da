"""A masked sum opens to the sum of the survivors, once, and its masks serve for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from masking_setting import CONTEXT, SIZE, Ring, Setting, fresh, masked, pins, setting

from client import secure_sum as client_module
from client.secure_sum import MaskingSession
from shared.errors import (
    CohortTooSmallError,
    IntegrityError,
    ProtocolError,
    ReplayError,
)
from shared.exchange import (
    Consents,
    Inbox,
    KeyOffer,
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
from shared.hazmat.randomness import SeededRandomness, SystemRandomness
from shared.hazmat.signing import SigningKey
from simulations.benchmarks.secure_sum import Federation, Step, play


@pytest.fixture
def five() -> Setting:
    return setting()


# The sum


def test_the_opened_sum_is_exact(five: Setting) -> None:
    played = play(five.sessions, five.server, five.rings)
    assert played.survivors == tuple(five.names)
    np.testing.assert_array_equal(played.sum_, five.sum_of(played.survivors))


@pytest.mark.parametrize("step", ["offer", "share", "receive", "mask", "consent", "open"])
def test_two_of_five_may_fall_silent_at_any_step(five: Setting, step: Step) -> None:
    gone = {five.names[1], five.names[4]}
    played = play(five.sessions, five.server, five.rings, {step: gone})
    delivered = set(five.names) - (gone if step in {"offer", "share", "mask"} else set())
    assert set(played.survivors) == delivered
    np.testing.assert_array_equal(played.sum_, five.sum_of(played.survivors))


@pytest.mark.parametrize("step", ["offer", "share", "mask", "consent", "open"])
def test_three_of_five_falling_silent_at_any_step_end_the_round(five: Setting, step: Step) -> None:
    with pytest.raises(CohortTooSmallError, match="Expected at least 3 partners"):
        play(five.sessions, five.server, five.rings, {step: set(five.names[:3])})


def test_a_masked_vector_is_another_one_and_the_input_is_left_alone(five: Setting) -> None:
    before = five.rings[five.names[0]].copy()
    masked = five.to_masked()[five.names[0]]
    np.testing.assert_array_equal(five.rings[five.names[0]], before)
    assert np.mean(masked == before) < 0.1  # (by chance: below 1e-30)


# Bugs planted in the masks are seen in the sum


def sum_is_exact() -> bool:
    five = setting()
    played = play(five.sessions, five.server, five.rings)
    return bool((played.sum_ == five.sum_of(played.survivors)).all())


def test_a_peers_mask_added_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = client_module.add_mask, [0]

    def twice_once(total: Ring, seed: bytes, sign: int) -> None:
        calls[0] += 1
        for _ in range(2 if calls[0] == 2 else 1):  # the first partner's first peer
            real(total, seed, sign)

    monkeypatch.setattr(client_module, "add_mask", twice_once)
    assert not sum_is_exact()


def test_a_missing_self_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = client_module.add_mask, [0]

    def not_the_first(total: Ring, seed: bytes, sign: int) -> None:
        calls[0] += 1
        if calls[0] > 1:
            real(total, seed, sign)

    monkeypatch.setattr(client_module, "add_mask", not_the_first)
    assert not sum_is_exact()


def test_a_wrong_sign_of_the_masks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "mask_sign", lambda own, peer: 1)
    assert not sum_is_exact()
    monkeypatch.undo()
    assert sum_is_exact()


def masks_repeat(monkeypatch: pytest.MonkeyPatch | None = None) -> bool:
    """Whether two rounds of one federation mask a partner's vector in the same way, from one seeded source."""
    federation, masks = Federation.of(3, 2), []
    pinned = {name: key.public for name, key in federation.identities.items()}
    for context in (bytes(32), bytes([1]) * 32):
        sessions = {
            name: MaskingSession(name, context, key, pinned, 2, SeededRandomness(7, name))
            for name, key in federation.identities.items()
        }
        server = federation.coordinator(context, SIZE)
        roster = server.roster([session.offer() for session in sessions.values()])
        inboxes = server.inboxes([session.share(roster) for session in sessions.values()])
        name = roster.names[0]
        masks.append(masked(sessions[name], inboxes[name], np.zeros(SIZE, np.uint32)))
    return bool((masks[0] == masks[1]).any())


def test_no_mask_serves_for_two_rounds_even_from_a_seeded_source(monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 words agree by chance with probability 40 / 2^32 < 1e-8.
    assert not masks_repeat()
    # Planted: secrets and salts that forget the round.
    monkeypatch.setattr(MaskingSession, "_label", lambda self, purpose: purpose)
    monkeypatch.setattr(client_module, "roster_digest", lambda context, roster: bytes(32))
    assert masks_repeat()


def test_a_seeded_source_gives_other_secrets_in_another_round() -> None:
    identity = SigningKey.generate()
    sessions = [
        MaskingSession("a", bytes([round_]) * 32, identity, {"a": identity.public}, 2, SeededRandomness(7, "a"))
        for round_ in range(2)
    ]
    offers = [session.offer() for session in sessions]
    assert len({key for offer in offers for key in (offer.sealing_key, offer.mask_key)}) == 4


# The session


@pytest.mark.parametrize("done", range(6))
def test_a_step_out_of_its_turn_is_refused(five: Setting, done: int) -> None:
    name, steps = five.names[0], ["offer", "share", "receive", "mask", "consent", "open"]
    reached: Callable[[], Any] = [
        lambda: None,
        five.offers,
        five.to_outboxes,
        lambda: five.first.receive(five.to_inboxes()[name]),
        five.to_masked,
        five.to_consents,
    ][done]
    reached()
    calls: dict[str, Callable[[], Any]] = {
        "offer": five.first.offer,
        "share": lambda: five.first.share(Roster(())),
        "receive": lambda: five.first.receive(Inbox({})),
        "mask": lambda: five.first.mask(five.rings[name]),
        "consent": lambda: five.first.consent(Survivors(())),
        "open": lambda: five.first.open(Consents(())),
    }
    for step in steps[:done] + steps[done + 1 :]:
        with pytest.raises(ReplayError, match=f"Expected step={steps[done]} of the session, got {step}"):
            calls[step]()
    assert five.first.next_step == steps[done]  # (a message out of turn does not end the session)


def test_a_step_that_fails_ends_the_session(five: Setting) -> None:
    offers = five.offers()
    with pytest.raises(CohortTooSmallError):
        five.first.share(Roster(tuple(offers[:1])))
    with pytest.raises(ReplayError, match="step=over"):
        five.first.share(Roster(tuple(offers)))


def test_a_session_needs_a_digest_and_its_own_pinned_identity() -> None:
    identity, other = SigningKey.generate(), SigningKey.generate()
    with pytest.raises(ProtocolError, match="context of 32 bytes"):
        MaskingSession("a", b"short", identity, {"a": identity.public}, 2, SystemRandomness())
    for peers in ({}, {"a": other.public}):
        with pytest.raises(ProtocolError, match="own identity"):
            MaskingSession("a", CONTEXT, identity, peers, 2, SystemRandomness())


def test_a_session_hides_its_secrets_from_print(five: Setting) -> None:
    five.to_outboxes()
    known = five.first._known
    assert known.self_seed is not None
    assert repr(known.self_seed) not in repr(known) + repr(five.first) + str(vars(five.first))


def test_a_stored_session_that_is_none_is_refused(five: Setting) -> None:
    name, identity = five.names[0], five.federation.identities[five.names[0]]
    inbox = five.to_inboxes()[name]
    whole = json.loads(five.first.to_bytes())
    wrong = [
        b"",
        b"[]",
        json.dumps(whole | {"version": 0}).encode(),
        json.dumps(whole | {"next": "again"}).encode(),
        json.dumps(whole | {"known": whole["known"] | {"mask_key": "00"}}).encode(),
        json.dumps(whole | {"known": {}}).encode(),
    ]
    for data in wrong:
        with pytest.raises(IntegrityError, match="state of a masking session"):
            MaskingSession.from_bytes(data, identity, pins(five), SystemRandomness())
    with pytest.raises(ProtocolError, match="own identity"):
        MaskingSession.from_bytes(
            five.first.to_bytes(), five.federation.identities[five.names[1]], pins(five), SystemRandomness()
        )
    emptied = json.dumps(whole | {"known": whole["known"] | {"self_seed": None}}).encode()
    with pytest.raises(IntegrityError, match="state of its step"):
        masked(MaskingSession.from_bytes(emptied, identity, pins(five), SystemRandomness()), inbox, five.rings[name])


# The statements


def test_statements_of_different_things_have_different_bytes() -> None:
    key = fresh(0)
    assert offer_statement(CONTEXT, "ab", key, key) != offer_statement(CONTEXT, "a", b"b" + key, key)
    assert consent_statement(CONTEXT, Survivors(("a", "bc"))) != consent_statement(CONTEXT, Survivors(("ab", "c")))
    roster = Roster((KeyOffer("a", key, key, bytes(64)),))
    assert roster_digest(CONTEXT, roster) != roster_digest(bytes(32), roster)


def test_sealing_keys_have_a_direction_and_mask_keys_have_none() -> None:
    assert sealing_info("a", "b") != sealing_info("b", "a")
    assert mask_info("a", "b") == mask_info("b", "a")
    assert mask_sign("a", "b") == -mask_sign("b", "a")


def test_sealed_shares_are_for_one_session_one_sender_and_one_recipient() -> None:
    places = [(CONTEXT, "a", "b"), (CONTEXT, "b", "a"), (CONTEXT, "a", "c"), (bytes(32), "a", "b")]
    assert len({sealed_for(*place) for place in places}) == 4
