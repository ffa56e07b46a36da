"""Shamir's sharing: any threshold of shares restores the secret, fewer say nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ProtocolError, UnmaskError
from shared.hazmat import shamir
from shared.hazmat.randomness import SeededRandomness, SystemRandomness
from shared.hazmat.shamir import PRIME, SHARE_BYTES, combine, split

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "hazmat.json").read_text())
SOURCE = SeededRandomness(3, "shamir")
SECRET = bytes(range(32))


class Ones:
    """Coefficients that are all 1: the polynomial can be checked by hand."""

    name = "ones"

    def read(self, n: int, context: str) -> bytes:
        return (bytes(47) + b"\1") * (n // 48)


def is_probable_prime(n: int) -> bool:
    """Miller and Rabin's test to 20 bases; a composite number passes with p < 1e-12."""
    odd = (n - 1) >> ((n - 1) & -(n - 1)).bit_length() - 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71):
        power, exponent = pow(base, odd, n), odd
        while power not in {1, n - 1} and exponent < (n - 1) // 2:
            power, exponent = power * power % n, 2 * exponent
        if (power != n - 1 and exponent != odd) or power not in {1, n - 1}:
            return False
    return True


def test_the_field_is_of_the_smallest_prime_above_2_to_the_256() -> None:
    assert is_probable_prime(PRIME)
    assert not any(is_probable_prime(2**256 + k) for k in range(1, 297))


def test_shares_are_the_frozen_ones() -> None:
    case = VECTORS["own"]["shamir"]
    shares = split(
        bytes.fromhex(case["secret"]),
        case["holders"],
        case["threshold"],
        SeededRandomness(20261122, "vectors"),
        "vector",
    )
    assert [share.hex() for share in shares] == case["shares"]


def test_shares_are_values_of_the_polynomial() -> None:
    """7 + x + x^2 at 1, 2, 3."""
    secret = (7).to_bytes(32)
    assert [int.from_bytes(share) for share in split(secret, 3, 3, Ones(), "c")] == [9, 13, 19]


def test_any_threshold_of_shares_restores_the_secret() -> None:
    shares = split(SECRET, 6, 4, SOURCE, "c")
    for holders in itertools.combinations(range(6), 4):
        assert combine({k: shares[k] for k in holders}, 4) == SECRET


def test_more_shares_than_the_threshold_are_welcome() -> None:
    shares = split(SECRET, 50, 34, SystemRandomness(), "c")
    assert combine(dict(enumerate(shares)), 34) == SECRET


def test_fewer_shares_fit_every_secret() -> None:
    """To any 2 of 3 shares and any secret there is a third share: the two say nothing."""
    shares = split(SECRET, 3, 3, SOURCE, "c")
    for candidate in (bytes(32), b"\xff" * 32, SECRET):
        # f(0) = 3 f(1) - 3 f(2) + f(3)
        first, second = (int.from_bytes(share) for share in shares[:2])
        third = (int.from_bytes(candidate) - 3 * first + 3 * second) % PRIME
        assert combine({0: shares[0], 1: shares[1], 2: third.to_bytes(SHARE_BYTES)}, 3) == candidate


def test_a_lower_threshold_does_not_open() -> None:
    shares = split(SECRET, 5, 4, SOURCE, "c")
    assert combine({k: shares[k] for k in range(3)}, 3) != SECRET


def test_a_secret_is_split_anew_in_every_context() -> None:
    assert not set(split(SECRET, 5, 3, SOURCE, "a")) & set(split(SECRET, 5, 3, SOURCE, "b"))


def test_coefficients_reach_the_whole_field() -> None:
    """Shares of 200 secrets: their mean is the middle of the field to 5 standard errors (p < 6e-7)."""
    values = [int.from_bytes(split(bytes(32), 1 + 1, 2, SOURCE, str(i))[0]) / PRIME for i in range(200)]
    assert abs(sum(values) / 200 - 0.5) < 5 / (12 * 200) ** 0.5


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="Expected a secret of 32 bytes"):
        split(bytes(length), 3, 2, SOURCE, "c")


@pytest.mark.parametrize(("holders", "threshold"), [(3, 4), (3, 0), (0, 0)])
def test_a_threshold_that_cannot_be_met_is_refused(holders: int, threshold: int) -> None:
    with pytest.raises(ProtocolError, match="Expected 1 <= threshold"):
        split(SECRET, holders, threshold, SOURCE, "c")


@pytest.mark.parametrize("threshold", [0, 4])
def test_too_few_shares_are_refused(threshold: int) -> None:
    shares = dict(enumerate(split(SECRET, 3, 2, SOURCE, "c")))
    with pytest.raises(UnmaskError, match="Expected 1 <= threshold"):
        combine(shares, threshold)


@pytest.mark.parametrize(
    "share",
    [b"", bytes(32), bytes(34), PRIME.to_bytes(SHARE_BYTES), b"\xff" * SHARE_BYTES],
    ids=["empty", "short", "long", "the prime", "above the prime"],
)
def test_what_is_no_share_is_refused(share: bytes) -> None:
    good = split(SECRET, 3, 2, SOURCE, "c")[0]
    with pytest.raises(UnmaskError, match="Expected a share of 33 bytes"):
        combine({0: good, 1: share}, 2)


def test_a_holder_before_the_first_is_refused() -> None:
    """Holder -1 would sit at 0, where the secret is."""
    with pytest.raises(UnmaskError, match="Expected holders counted from 0"):
        combine({-1: bytes(SHARE_BYTES), 0: bytes(SHARE_BYTES)}, 2)


def test_shares_that_give_no_secret_are_refused() -> None:
    with pytest.raises(UnmaskError, match="do not fit together"):
        combine({0: (2**256).to_bytes(SHARE_BYTES)}, 1)


@pytest.mark.parametrize("holder", [0, 1])
def test_a_share_of_another_secret_gives_another_result(holder: int) -> None:
    shares = dict(enumerate(split(SECRET, 3, 2, SOURCE, "c")))
    shares[holder] = split(SECRET, 3, 2, SOURCE, "another")[holder]
    assert combine(shares, 2) != SECRET


def test_coefficients_are_computed_once_for_one_set_of_holders() -> None:
    shamir._weights.cache_clear()
    shares = dict(enumerate(split(SECRET, 5, 3, SOURCE, "c")))
    for _ in range(4):
        combine(shares, 3)
    assert shamir._weights.cache_info().misses == 1
