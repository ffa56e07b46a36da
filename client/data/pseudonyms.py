"""Keyed pseudonyms: a user's id never enters a history, an index or a log.

Pseudonymised, not anonymised: who holds the key can recompute every pseudonym. The key is the partner's own
and stays on its disk, so that two partners never share pseudonyms and cannot link their users by them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigError, IntegrityError
from shared.hazmat.key_files import Passphrase, is_sealed, open_secret, read_private_file, seal_secret, write_once

KEY_BYTES = 32
PURPOSE = "pseudonym key"
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
    def load_or_create(cls, path: str | Path, passphrase: Passphrase | None = None) -> PseudonymKey:
        """The key in `path`, made there (mode 0600) on first use.

        Parameters
        ----------
        path : str or Path
        passphrase : Passphrase, optional
            That of the environment by default (`shared.hazmat.key_files`). With one, a new key is encrypted; a key
            that is not, as simulations have them, is read all the same.

        Raises
        ------
        ConfigError
            If others than the owner may read the file, or it is encrypted and there is no passphrase.
        IntegrityError
            If the file does not hold 32 bytes, or not under this passphrase.
        """
        path = Path(path)
        if not path.exists():
            told = passphrase or Passphrase.of_environment()
            fresh = os.urandom(KEY_BYTES)
            write_once(path, fresh if told is None else seal_secret(fresh, PURPOSE, told))
        secret = read_private_file(path, "pseudonym key")
        if is_sealed(secret):
            secret = open_secret(secret, PURPOSE, path.name, passphrase)
        if len(secret) != KEY_BYTES:
            raise IntegrityError(f"Expected bytes={KEY_BYTES} in the pseudonym key {path}, got bytes={len(secret)}.")
        return cls(secret)

    def pseudonym(self, user_id: str) -> str:
        """HMAC-SHA256 of the user's id under this key: 32 hexadecimal characters."""
        return hmac.digest(self.secret, user_id.encode(), "sha256").hex()[:PSEUDONYM_CHARS]

    def pseudonyms(self, user_ids: Iterable[str]) -> list[str]:
        """`pseudonym` of each id, in the order given."""
        return [self.pseudonym(user_id) for user_id in user_ids]
