"""Masks: key streams that are added to a vector and cancel in the sum.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017;
the stream is AES-256 in counter mode (NIST SP 800-38A).
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from shared.errors import ProtocolError

SEED_BYTES = 32
_FIRST_COUNTER = bytes(16)
_CHUNK = 2**16
"""Bytes of key stream at once: the work stays in the processor's cache."""
_ZEROS = memoryview(bytes(_CHUNK))


def add_mask(total: NDArray[np.uint32], seed: bytes, sign: int) -> None:
    """Add ``sign * stream(seed)`` to `total` in place, modulo 2^32.

    Parameters
    ----------
    total : uint32, shape (P,)
    seed : bytes
        32 bytes, the AES key. The counter starts at 0; the stream is read as little-endian words.
    sign : {1, -1}

    Raises
    ------
    ProtocolError
        If `total` is no vector of uint32, `seed` not 32 bytes, or `sign` neither 1 nor -1.

    Guarantees
    ----------
    To anyone who does not hold the seed, a vector under its mask looks uniform, if the seed masks nothing
    else: two vectors under one seed betray their difference. Adding with 1 and -1 restores every bit.
    """
    if total.dtype != np.uint32 or total.ndim != 1:
        raise ProtocolError(f"Expected a vector of uint32 to mask, got {total.ndim} dimensions of {total.dtype}.")
    if len(seed) != SEED_BYTES:
        raise ProtocolError(f"Expected a mask seed of {SEED_BYTES} bytes, got {len(seed)}.")
    if sign not in {1, -1}:
        raise ProtocolError(f"Expected sign=1 or sign=-1 of a mask, got {sign}.")
    combine = np.add if sign == 1 else np.subtract
    stream = Cipher(algorithms.AES(seed), modes.CTR(_FIRST_COUNTER)).encryptor()
    buffer = bytearray(_CHUNK)
    words = np.frombuffer(buffer, dtype="<u4")
    for start in range(0, total.size, words.size):
        part = total[start : start + words.size]
        stream.update_into(_ZEROS[: 4 * part.size], buffer)
        combine(part, words[: part.size], out=part)


def mask_of(seed: bytes, n: int) -> NDArray[np.uint32]:
    """The mask itself, shape ``(n,)``: what `add_mask` adds to a vector of zeros.

    Raises
    ------
    ProtocolError
        If `seed` is not 32 bytes long.

    Guarantees
    ----------
    A shorter mask is the beginning of a longer one of the same seed.
    """
    mask = np.zeros(n, dtype=np.uint32)
    add_mask(mask, seed, 1)
    return mask
