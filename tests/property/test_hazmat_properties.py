"""Properties of the hazardous material that hold for all inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from shared.hazmat.agreement import EphemeralKey, seal, unseal
from shared.hazmat.fixed_point import from_ring, limit_sum, room, round_to_lattice, to_ring
from shared.hazmat.masking import add_mask
from shared.hazmat.noise import skellam
from shared.hazmat.randomness import SeededRandomness, SystemRandomness
from shared.hazmat.shamir import combine, split
from shared.hazmat.signing import SigningKey

SOURCE = SeededRandomness(1, "properties")
KEY = SigningKey.generate()
int64s = st.integers(-(2**63), 2**63 - 1)
reals = st.floats(-1e9, 1e9, allow_subnormal=False)
secrets = st.binary(min_size=32, max_size=32)


@given(st.integers(1, 50), st.data())
def test_a_sum_in_the_ring_is_the_sum_of_the_clamped_integers(parties: int, data: st.DataObject) -> None:
    values = [data.draw(arrays(np.int64, 3, elements=int64s)) for _ in range(min(parties, 5))]
    total = np.zeros(3, dtype=np.uint32)
    for value in values:
        total += to_ring(value, parties)
    expected = [sum(max(-room(parties), min(room(parties), int(v[i]))) for v in values) for i in range(3)]
    assert from_ring(total).tolist() == expected


@given(arrays(np.int64, 4, elements=st.integers(-room(3), room(3))))
def test_what_fits_the_ring_comes_back(values: NDArray[np.int64]) -> None:
    assert np.array_equal(from_ring(to_ring(values, 3)), values)


@given(int64s, int64s, st.integers(1, 50))
def test_limiting_is_1_lipschitz(a: int, b: int, parties: int) -> None:
    limited = limit_sum(np.array([a, b], dtype=np.int64), parties)
    assert abs(int(limited[0]) - int(limited[1])) <= abs(a - b)
    assert (np.abs(limited) <= room(parties) // 2).all()


@given(arrays(np.float64, 5, elements=reals), st.sampled_from([2.0**-10, 0.01, 1.0, 3.7]), st.text(max_size=5))
def test_rounding_goes_to_one_of_the_two_neighbours(values: NDArray[np.float64], step: float, context: str) -> None:
    steps = round_to_lattice(values, step, SOURCE, context)
    below = np.floor(values / step)
    assert ((steps == below) | (steps == np.ceil(values / step))).all()


@given(arrays(np.int64, 5, elements=st.integers(-(2**52), 2**52)), st.text(max_size=5))
def test_values_on_the_lattice_stay(steps: NDArray[np.int64], context: str) -> None:
    assert np.array_equal(round_to_lattice(steps.astype(np.float64) / 8, 0.125, SOURCE, context), steps)


@given(reals, st.floats(0, 1e6), st.text(max_size=5))
def test_rounding_is_monotone_under_one_dither(value: float, more: float, context: str) -> None:
    low, high = (int(round_to_lattice(np.array([v]), 0.5, SOURCE, context)[0]) for v in (value, value + more))
    assert low <= high <= low + np.ceil(((value + more) - value) / 0.5)


@given(arrays(np.uint32, st.integers(0, 40)), st.lists(st.tuples(secrets, st.sampled_from([1, -1])), max_size=4))
def test_masks_of_both_signs_cancel(values: NDArray[np.uint32], masks: list[tuple[bytes, int]]) -> None:
    total = values.copy()
    for seed, sign in masks:
        add_mask(total, seed, sign)
    for seed, sign in reversed(masks):
        add_mask(total, seed, -sign)
    assert np.array_equal(total, values)


@given(secrets, st.integers(1, 12), st.data())
def test_any_threshold_of_shares_restores_any_secret(secret: bytes, holders: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, holders))
    shares = split(secret, holders, threshold, SOURCE, data.draw(st.text(max_size=5)))
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    assert combine({k: shares[k] for k in chosen}, threshold) == secret


@given(secrets, st.binary(max_size=200), st.binary(max_size=50))
def test_a_sealed_message_opens_to_itself(key: bytes, plaintext: bytes, associated: bytes) -> None:
    sealed = seal(key, plaintext, associated, SystemRandomness(), "c")
    assert unseal(key, sealed, associated) == plaintext
    assert len(sealed) == len(plaintext) + 28


@given(secrets, secrets, st.binary(max_size=40), st.binary(max_size=40))
@settings(max_examples=50)
def test_both_sides_agree(a: bytes, b: bytes, salt: bytes, info: bytes) -> None:
    one, other = EphemeralKey(a), EphemeralKey(b)
    assert one.agree(other.public, salt=salt, info=info) == other.agree(one.public, salt=salt, info=info)


@given(st.text("abc/", min_size=1), st.binary(), st.text("abc/", min_size=1), st.binary())
@settings(max_examples=50)
def test_two_statements_never_have_one_signature(p: str, m: bytes, q: str, n: bytes) -> None:
    assume((p, m) != (q, n))
    assert KEY.sign(p, m) != KEY.sign(q, n)


@given(st.integers(0, 300), st.floats(0, 1e12), st.text(max_size=5))
@settings(max_examples=60)
def test_noise_is_whole_reproducible_and_of_its_size(n: int, variance: float, context: str) -> None:
    """20 standard deviations and 40 for the table's small rates: p < 1e-15 each."""
    values = skellam(SOURCE, context, n, variance)
    assert values.shape == (n,)
    assert np.array_equal(values, skellam(SOURCE, context, n, variance))
    assert (np.abs(values) <= 20 * variance**0.5 + 40).all()
