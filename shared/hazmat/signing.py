"""Identity keys: Ed25519 signatures that are bound to their purpose.

Source: RFC 8032. A signature for one purpose is none for another (domain separation).
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shared.errors import ConfigError, DataError, InvalidSignatureError
from shared.files import write_bytes

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
    def load(cls, path: Path) -> SigningKey:
        """Read a PEM file (PKCS8, not encrypted).

        Raises
        ------
        ConfigError
            If there is no such file, or others than its owner may read or write it.
        DataError
            If it does not hold an Ed25519 key.
        """
        try:
            with path.open("rb") as file:
                # The opened file, not the path: nobody can swap it in between.
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                pem = file.read()
        except OSError as error:
            raise ConfigError(f"Expected a readable key file {path.name}, got {type(error).__name__}.") from error
        if mode & 0o077:
            raise ConfigError(
                f"Expected mode=0600 of the key file {path.name}, got {mode:04o}: others may use the key."
            )
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            # No cause is attached: a parser's message may quote the file.
            raise DataError(f"Expected an Ed25519 key (PEM, PKCS8, no password) in the file {path.name}.")
        return cls(key)

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read the identity in `path`, or make one there (mode 0600) if there is no file.

        Raises
        ------
        ConfigError, DataError
            As `load`: a file that is there is never replaced.

        Guarantees
        ----------
        Of two processes that start at once, both get the one key that is then in the file.
        """
        if not path.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _write_once(path, pem)
        return cls.load(path)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign `message` for `purpose`: 64 bytes, the same for the same input."""
        return self._key.sign(_statement(purpose, message))


def _write_once(path: Path, data: bytes) -> None:
    """Put `data` whole into `path` (mode 0600) unless another process was first."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_bytes(fresh, data)
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        pass  # the other one's key counts
    finally:
        fresh.unlink()
