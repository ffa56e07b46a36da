"""Where randomness that privacy depends on comes from.

Two sources with one interface. `SystemRandomness` reads the operating system's CSPRNG.
`SeededRandomness` reproduces a simulation; noise that can be reproduced protects nobody, so it is
only handed out when a run is declared a simulation (`randomness_for`).
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import PolicyViolationError

SECRET_BYTES = 32


class Randomness(Protocol):
    """A source of uniform bytes."""

    @property
    def name(self) -> str:
        """``system`` or ``seeded``."""
        ...

    def read(self, n: int, context: str) -> bytes:
        """Return `n` uniform bytes; a seeded source gives the same bytes for the same `context`."""
        ...


class SystemRandomness:
    """The operating system's CSPRNG.

    Guarantees
    ----------
    Bytes come from ``os.urandom``; `context` is ignored and nothing can be replayed.
    """

    name = "system"

    def read(self, n: int, context: str) -> bytes:
        """Return `n` bytes of the CSPRNG."""
        return os.urandom(n)


class SeededRandomness:
    """A reproducible source for simulations: SHAKE-256 of seed, party and context.

    Guarantees
    ----------
    None to anyone who knows or can guess the seed. Different parties and contexts give streams that
    are independent to all who do not know it.
    """

    name = "seeded"

    def __init__(self, seed: int, party: str) -> None:
        self._prefix = f"veilrec simulation\0{seed}\0{party}\0".encode()

    def read(self, n: int, context: str) -> bytes:
        """Return the `n` bytes that belong to `context`."""
        return hashlib.shake_256(self._prefix + context.encode()).digest(n)


class RoundRandomness:
    """All randomness of one round, from one secret of the CSPRNG: SHAKE-256 of secret and context.

    A round that a crash cut short is drawn again to the bit: the same users, the same noise. Drawn anew,
    whoever makes rounds crash could ask again and again.

    Guarantees
    ----------
    For 32 bytes that nobody else knows, streams of different contexts are independent and uniform.
    """

    name = "system"

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise PolicyViolationError(f"Expected a round's secret of {SECRET_BYTES} bytes, got {len(secret)}.")
        self._prefix = b"veilrec round\0" + secret + b"\0"

    def read(self, n: int, context: str) -> bytes:
        """Return the `n` bytes that belong to `context`."""
        return hashlib.shake_256(self._prefix + context.encode()).digest(n)


def randomness_for(*, seed: int | None, simulation: bool, party: str, secret: bytes | None = None) -> Randomness:
    """Choose the source: seeded only in a simulation that names a seed; else of a round's `secret`, or the system's.

    Raises
    ------
    PolicyViolationError
        If a seed is given outside a simulation.
    """
    if seed is None:
        return SystemRandomness() if secret is None else RoundRandomness(secret)
    if not simulation:
        raise PolicyViolationError("Expected seed=none outside simulations: seeded noise protects nobody.")
    return SeededRandomness(seed, party)


def uniforms(source: Randomness, context: str, names: tuple[str, ...]) -> NDArray[np.float64]:
    """One uniform in [0, 1) a name, shape ``(len(names),)``: a fresh key's PRF of the name.

    The value of a name does not depend on the other names or on their order, so that a sample of
    users is a property of the users, not of the file they came from.

    Guarantees
    ----------
    For a `source` with a fresh key, values are independent and uniform (keyed BLAKE2b as PRF).
    """
    key = source.read(32, context)
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(name.encode(), key=key, digest_size=7).digest(), "big") * 2.0**-56
            for name in names
        ],
        dtype=np.float64,
    )
