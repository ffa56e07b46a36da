"""Shamir's secret sharing of 32-byte secrets.

Source: A. Shamir, "How to share a secret", CACM 22 (1979). The field is that of the integers modulo the
smallest prime above 2^256, so that every 32-byte secret is an element of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from shared.errors import ProtocolError, UnmaskError
from shared.hazmat.randomness import Randomness

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_COEFFICIENT_BYTES = 48


def split(secret: bytes, holders: int, threshold: int, source: Randomness, context: str) -> list[bytes]:
    """Split `secret` into `holders` shares of 33 bytes, any `threshold` of which restore it.

    Holder k, counted from 0, gets the value of the polynomial at ``k + 1``, big-endian.

    Parameters
    ----------
    secret : bytes
        32 bytes.
    holders, threshold : int
        ``1 <= threshold <= holders``.
    source, context
        Where the coefficients come from; `context` must be a fresh one for each secret.

    Raises
    ------
    ProtocolError
        If the secret is not 32 bytes long, or the numbers do not fit.

    Guarantees
    ----------
    Fewer than `threshold` shares say nothing about the secret: coefficients are 384 random bits modulo the
    prime, uniform but for a statistical distance below 2^-128 each. Shares are not authenticated.
    """
    if len(secret) != SECRET_BYTES:
        raise ProtocolError(f"Expected a secret of {SECRET_BYTES} bytes to split, got {len(secret)}.")
    if not 1 <= threshold <= holders:
        raise ProtocolError(f"Expected 1 <= threshold <= holders={holders}, got threshold={threshold}.")
    stream = source.read(_COEFFICIENT_BYTES * (threshold - 1), context)
    coefficients = [
        int.from_bytes(stream[i : i + _COEFFICIENT_BYTES]) % PRIME for i in range(0, len(stream), _COEFFICIENT_BYTES)
    ]
    return [_value(int.from_bytes(secret), coefficients, k + 1).to_bytes(SHARE_BYTES) for k in range(holders)]


def _value(constant: int, coefficients: list[int], x: int) -> int:
    """The polynomial at a small x, by Horner's rule; reduced once, because x adds few bits a step."""
    value = 0
    for coefficient in coefficients:
        value = (value + coefficient) * x
    return (value + constant) % PRIME


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Restore a secret from `threshold` of `shares`, those with the lowest holder numbers.

    Parameters
    ----------
    shares : mapping of int to bytes
        Holder, counted from 0, to its share.
    threshold : int
        As it was when the secret was split.

    Raises
    ------
    UnmaskError
        If there are too few shares, one is none, or they give no 32-byte secret.

    Guarantees
    ----------
    The secret, if all shares used are true. A false share gives another secret, mostly without an error: who
    needs to know must compare with something public that depends on the secret.
    """
    if not 1 <= threshold <= len(shares):
        raise UnmaskError(f"Expected 1 <= threshold <= shares={len(shares)}, got threshold={threshold}.")
    holders = tuple(sorted(shares)[:threshold])
    if holders[0] < 0:
        raise UnmaskError("Expected holders counted from 0, got a negative number.")
    values = [_element(shares[holder]) for holder in holders]
    secret = sum(weight * value for weight, value in zip(_weights(holders), values, strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise UnmaskError("Expected shares of one 32-byte secret, got some that do not fit together.")
    return secret.to_bytes(SECRET_BYTES)


def _element(share: bytes) -> int:
    """A share as an element of the field."""
    value = int.from_bytes(share)
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise UnmaskError(f"Expected a share of {SHARE_BYTES} bytes below the prime, got {len(share)} bytes.")
    return value


@lru_cache(maxsize=256)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients at 0; the same for all secrets that the same holders open."""
    points = [holder + 1 for holder in holders]
    weights = []
    for x in points:
        others = [y for y in points if y != x]
        above, below = math.prod(others), math.prod(y - x for y in others)
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
