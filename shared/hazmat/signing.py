"""Identity keys: Ed25519 signatures that are bound to their purpose.

Source: RFC 8032. A signature for one purpose is none for another (domain separation).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import ConfigError, InvalidSignatureError
from shared.hazmat.key_files import Passphrase, private_pem, read_private_key, write_once

KEY_BYTES = 32


def _statement(purpose: str, message: bytes) -> bytes:
    """What is really signed. A purpose holds no zero byte, so that no two pairs give one statement."""
    if not purpose or "\0" in purpose:
        raise ConfigError("Expected a purpose of a signature that is not empty and holds no zero byte.")
    return b"veilrec/v1/" + purpose.encode() + b"\0" + message


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """The public half of an identity, 32 raw bytes. Equal and hashable by value.

    Guarantees
    ----------
    `verify` returns nothing and raises unless the signature fits: its result cannot be ignored.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise ConfigError(f"Expected an Ed25519 key of {KEY_BYTES} bytes, got {len(self.raw)}.")

    @classmethod
    def from_text(cls, text: str) -> VerifyKey:
        """Read `text`, as `VerifyKey.text` writes it.

        Raises
        ------
        ConfigError
            If it is not the base64 form of 32 bytes.
        """
        try:
            raw = base64.b64decode(text.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise ConfigError("Expected an identity as base64 of an Ed25519 key.") from error
        key = cls(raw)
        if key.text != text:  # one identity, one text
            raise ConfigError("Expected an identity as canonical base64 of an Ed25519 key.")
        return key

    @property
    def keys(self) -> tuple[VerifyKey, ...]:
        """Itself alone: see `PinnedKeys`."""
        return (self,)

    @property
    def text(self) -> str:
        """Base64 of the raw bytes, 44 characters: what partners pin."""
        return base64.b64encode(self.raw).decode()

    def verify(self, purpose: str, message: bytes, signature: bytes) -> None:
        """Return only if `signature` is this identity's, for this purpose and message.

        Raises
        ------
        InvalidSignatureError
            If not.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, _statement(purpose, message))
        except (InvalidSignature, ValueError) as error:
            raise InvalidSignatureError(f"Expected a signature of key={self.text} for purpose={purpose}.") from error


@dataclass(frozen=True, slots=True)
class PinnedKeys:
    """The two identities of one party whose key is being changed, the old one first.

    Guarantees
    ----------
    `verify` returns only if one of the two signed. It never makes two parties of one: whoever compares parties
    compares all of their `keys` (`distinct`).

    Raises
    ------
    ConfigError
        If there are not two different keys.
    """

    keys: tuple[VerifyKey, ...]

    def __post_init__(self) -> None:
        if len(self.keys) != 2 or len(set(self.keys)) != 2:
            raise ConfigError("Expected two different keys of a party that changes its key.")

    @property
    def text(self) -> str:
        """Both keys, for a message."""
        return " or ".join(key.text for key in self.keys)

    def verify(self, purpose: str, message: bytes, signature: bytes) -> None:
        """Return only if `signature` is by one of the keys, for this purpose and message.

        Raises
        ------
        InvalidSignatureError
            If not.
        """
        old, new = self.keys
        try:
            old.verify(purpose, message, signature)
        except InvalidSignatureError:
            new.verify(purpose, message, signature)


Pin = VerifyKey | PinnedKeys
"""Whom a party is known by: its key, or its two keys while it changes from one to the other."""


def pin(keys: Iterable[VerifyKey]) -> Pin:
    """One key or two as a `Pin`.

    Raises
    ------
    ConfigError
        If there are none, more than two, or one twice.
    """
    told = tuple(keys)
    return told[0] if len(told) == 1 else PinnedKeys(told)


def distinct(parties: Iterable[Pin]) -> bool:
    """Whether no key is held by two parties: whoever holds two parties' keys counts as two."""
    keys = [key for party in parties for key in party.keys]
    return len(set(keys)) == len(keys)


class SigningKey:
    """The secret half of an identity.

    Guarantees
    ----------
    The secret leaves this object only to a file that nobody but its owner may read; it is not in `repr`, and a key
    cannot be pickled or compared by value.
    """

    __slots__ = ("_key", "public")

    public: VerifyKey

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.text})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new identity, from the operating system's CSPRNG."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: Passphrase | None = None) -> SigningKey:
        """Read a PEM file (PKCS8, encrypted or not).

        Parameters
        ----------
        path : Path
        passphrase : Passphrase, optional
            Of an encrypted file; that of the environment by default (`shared.hazmat.key_files`).

        Raises
        ------
        ConfigError
            If there is no such file, others than its owner may read or write it, or it is encrypted and there is
            no passphrase.
        DataError
            If it does not hold an Ed25519 key, or not under this passphrase.
        """
        return cls(read_private_key(path, Ed25519PrivateKey, "Ed25519", passphrase))

    @classmethod
    def load_or_create(cls, path: Path, passphrase: Passphrase | None = None) -> SigningKey:
        """Read the identity in `path`, or make one there (mode 0600) if there is no file.

        A new file is encrypted if there is a passphrase; simulations have none.

        Raises
        ------
        ConfigError, DataError
            As `load`: a file that is there is never replaced.

        Guarantees
        ----------
        Of two processes that start at once, both get the one key that is then in the file.
        """
        if not path.exists():
            told = passphrase or Passphrase.of_environment()
            write_once(path, private_pem(Ed25519PrivateKey.generate(), told))
        return cls.load(path, passphrase)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign `message` for `purpose`: 64 bytes, the same for the same input."""
        return self._key.sign(_statement(purpose, message))
