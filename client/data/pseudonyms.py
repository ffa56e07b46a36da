"""Keyed pseudonyms: a user's id never enters a history, an index or a log.

Pseudonymised, not anonymised: who holds the key can recompute every pseudonym. The key is the partner's own
and stays on its disk, so that two partners never share pseudonyms and cannot link their users by them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigError, IntegrityError

KEY_BYTES = 32
PSEUDONYM_CHARS = 32  # 128 bits of HMAC-SHA256: a collision among 10^9 users has probability below 10^-20


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The secret with which one partner pseudonymises its users.

    Parameters
    ----------
    secret : bytes
        32 bytes; never shown by ``repr``.

    Raises
    ------
    ConfigError
        If the secret has another length.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ConfigError(f"Expected a pseudonym key of bytes={KEY_BYTES}, got bytes={len(self.secret)}.")

    @classmethod
    def generate(cls) -> PseudonymKey:
        """A new key from the operating system's random source."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def derive(cls, seed: int) -> PseudonymKey:
        """A reproducible key. For simulations only: who knows the seed knows the key."""
        return cls(hashlib.sha256(b"veilrec simulated pseudonym key|" + str(seed).encode()).digest())

    @classmethod
    def load_or_create(cls, path: str | Path) -> PseudonymKey:
        """The key in `path`, made there (mode 0600) on first use.

        Raises
        ------
        ConfigError
            If others than the owner may read the file.
        IntegrityError
            If the file does not hold 32 bytes.
        """
        path = Path(path)
        if not path.exists():
            _create_once(path, os.urandom(KEY_BYTES))
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"Expected mode=0600 of the pseudonym key {path}: others than its owner may read it.")
        secret = path.read_bytes()
        if len(secret) != KEY_BYTES:
            raise IntegrityError(f"Expected bytes={KEY_BYTES} in the pseudonym key {path}, got bytes={len(secret)}.")
        return cls(secret)

    def pseudonym(self, user_id: str) -> str:
        """HMAC-SHA256 of the user's id under this key: 32 hexadecimal characters."""
        return hmac.digest(self.secret, user_id.encode(), "sha256").hex()[:PSEUDONYM_CHARS]

    def pseudonyms(self, user_ids: Iterable[str]) -> list[str]:
        """`pseudonym` of each id, in the order given."""
        return [self.pseudonym(user_id) for user_id in user_ids]


def _create_once(path: Path, secret: bytes) -> None:
    """Write a whole key file or none; of two processes at once the first wins and the other reads its key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp: mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        Path(temporary).unlink()
