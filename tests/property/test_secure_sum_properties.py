"""Whoever falls silent and whenever: the opened sum is that of the survivors, and one vector alone is noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from client import secure_sum as client_module
from client.secure_sum import MaskingSession
from shared.exchange import Inbox
from shared.hazmat.fixed_point import to_ring
from shared.hazmat.randomness import SystemRandomness
from simulations.benchmarks.secure_sum import Federation, Step, play

STEPS: list[Step] = ["offer", "share", "mask", "consent", "open"]
calm = settings(deadline=None, max_examples=60)


class Stored:
    """A session that exists as bytes alone between two steps."""

    def __init__(self, session: MaskingSession, federation: Federation) -> None:
        self._identity = federation.identities[session.name]
        self._peers = {name: key.public for name, key in federation.identities.items()}
        self.data = session.to_bytes()

    def __getattr__(self, step: str) -> Any:
        def take(*given: Any) -> Any:
            session = MaskingSession.from_bytes(self.data, self._identity, self._peers, SystemRandomness())
            answer = getattr(session, step)(*given)
            self.data = session.to_bytes()
            return answer

        return take


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Federation, dict[Step, set[str]], NDArray[np.int64]]:
    """A federation, who leaves at which step with at least the threshold left, and what each one adds."""
    partners = draw(st.integers(3, 8))
    threshold = draw(st.integers(max(2, partners // 2 + 1), partners))
    federation = Federation.of(partners, threshold)
    names = list(federation.identities)
    # (three make a roster, whatever the threshold)
    gone = draw(st.lists(st.sampled_from(names), max_size=partners - threshold, unique=True))
    leaving: dict[Step, set[str]] = {step: set() for step in STEPS}
    for number, name in enumerate(gone):
        leaving[draw(st.sampled_from(STEPS if partners - number > 3 else STEPS[1:]))].add(name)
    bound = (2**31 - 1) // partners
    row = st.lists(st.integers(-bound, bound), min_size=4, max_size=4)
    return federation, leaving, np.array([draw(row) for _ in names], dtype=np.int64)


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored between steps"])
@calm
@given(some=rounds())
def test_the_opened_sum_is_that_of_the_survivors(
    stored: bool, some: tuple[Federation, dict[Step, set[str]], NDArray[np.int64]]
) -> None:
    federation, leaving, values = some
    names, context = list(federation.identities), bytes(32)
    sessions: Any = federation.sessions(context)
    if stored:
        sessions = {name: Stored(session, federation) for name, session in sessions.items()}
    rings = {name: to_ring(row, len(names)) for name, row in zip(names, values, strict=True)}
    played = play(sessions, federation.coordinator(context, values.shape[1]), rings, leaving)

    silent = leaving["offer"] | leaving["share"] | leaving["mask"]
    assert played.survivors == tuple(name for name in names if name not in silent)
    expected = sum(row for name, row in zip(names, values, strict=True) if name not in silent)
    np.testing.assert_array_equal(played.sum_, expected)


def looks_uniform(vector: NDArray[np.uint32]) -> bool:
    """Pearson's chi-square over the 256 values of a byte; false alarm with probability 1e-9 for uniform bytes."""
    seen = np.bincount(vector.view(np.uint8), minlength=256)
    expected = 4 * vector.size / 256
    return bool(((seen - expected) ** 2 / expected).sum() < chi2.isf(1e-9, 255))


def masked_zeros(partners: int) -> list[NDArray[np.uint32]]:
    """What each partner sends when its vector is the least random of all."""
    federation, context = Federation.of(partners), bytes(32)
    sessions, server = federation.sessions(context), federation.coordinator(context, 25_000)
    roster = server.roster([session.offer() for session in sessions.values()])
    inboxes = server.inboxes([session.share(roster) for session in sessions.values()])
    zeros = np.zeros(25_000, np.uint32)
    return [masked(session, inboxes[name], zeros) for name, session in sessions.items()]


def test_a_masked_vector_looks_uniform() -> None:
    # Keys are fresh in each run: 3 + 8 vectors, false failure below 1.1e-8 in all.
    assert all(looks_uniform(vector) for partners in (3, 8) for vector in masked_zeros(partners))


@pytest.mark.parametrize("bits", [0, 24, 31])
def test_a_mask_that_leaves_a_bit_out_does_not_look_uniform(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    real = client_module.add_mask

    def narrow(total: NDArray[np.uint32], seed: bytes, sign: int) -> None:
        real(total, seed, sign)
        total &= np.uint32(2**bits - 1)

    monkeypatch.setattr(client_module, "add_mask", narrow)
    assert not any(looks_uniform(vector) for vector in masked_zeros(3))


def test_the_self_mask_hides_a_vector_whose_pair_masks_are_all_known(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = client_module.add_mask, [0]

    def self_alone(total: NDArray[np.uint32], seed: bytes, sign: int) -> None:
        if calls[0] % 3 == 0:  # of three partners: each one's own mask, then those of its two peers
            real(total, seed, sign)
        calls[0] += 1

    monkeypatch.setattr(client_module, "add_mask", self_alone)
    assert all(looks_uniform(vector) for vector in masked_zeros(3))


def masked(session: MaskingSession, inbox: Inbox, ring: NDArray[np.uint32]) -> NDArray[np.uint32]:
    session.receive(inbox)
    return session.mask(ring)
