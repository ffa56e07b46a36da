"""Keys between two parties: X25519 agreement, and sealed messages under an agreed key.

Source: RFC 7748 (X25519), RFC 5869 (HKDF-SHA256), NIST SP 800-38D (AES-256-GCM).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import ProtocolError, UnmaskError
from shared.hazmat.randomness import Randomness

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class EphemeralKey:
    """An X25519 key for one session.

    Attributes
    ----------
    secret : bytes
        32 bytes; not in `repr`.

    Raises
    ------
    ProtocolError
        If `secret` has another length.

    Guarantees
    ----------
    Keys are not comparable: no comparison of secrets that takes a telling time.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ProtocolError(f"Expected an X25519 secret of {KEY_BYTES} bytes, got {len(self.secret)}.")

    @classmethod
    def generate(cls, source: Randomness, context: str) -> EphemeralKey:
        """A key from 32 bytes of `source`; a seeded source gives one key a `context`."""
        return cls(source.read(KEY_BYTES, context))

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return X25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw()

    def agree(self, peer_public: bytes, *, salt: bytes, info: bytes) -> bytes:
        """Return 32 bytes that only the holders of the two secrets can compute.

        Parameters
        ----------
        peer_public : bytes
            32 bytes.
        salt, info : bytes
            Both sides must give the same: `salt` binds the key to a session, `info` to a use.

        Raises
        ------
        ProtocolError
            If `peer_public` is no X25519 key, or one of low order, with which anybody knows the result.

        Guarantees
        ----------
        HKDF-SHA256 of the shared point: keys of different `salt` or `info` are independent. It does not bind
        the public keys: a caller that needs that puts them into `salt` or `info`, or signs them.
        """
        try:
            peer = X25519PublicKey.from_public_bytes(peer_public)
            shared = X25519PrivateKey.from_private_bytes(self.secret).exchange(peer)
        except ValueError as error:
            raise ProtocolError("Expected an X25519 public key of 32 bytes that is not of low order.") from error
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(shared)


def seal(key: bytes, plaintext: bytes, associated: bytes, source: Randomness, context: str) -> bytes:
    """Encrypt by AES-256-GCM: nonce (12 bytes), ciphertext, tag (16 bytes).

    Parameters
    ----------
    key : bytes
        32 bytes.
    plaintext : bytes
    associated : bytes
        Not sent, but must be the same to unseal: who, whom, when.
    source, context
        Where the nonce comes from.

    Raises
    ------
    ProtocolError
        If `key` has another length.

    Guarantees
    ----------
    Secret and authentic while no nonce repeats under one key: use fresh keys, and with a seeded source a
    `context` that names the message. With random nonces a key serves for 2^32 messages (SP 800-38D, 8.3).
    """
    nonce = source.read(NONCE_BYTES, context)
    return nonce + _cipher(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return the plaintext of `seal`.

    Raises
    ------
    UnmaskError
        If key, message and associated data do not fit together.
    ProtocolError
        If `key` is not 32 bytes long.

    Guarantees
    ----------
    Nothing of a message that was changed is returned.
    """
    cipher = _cipher(key)
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise UnmaskError(f"Expected a sealed message of {NONCE_BYTES + TAG_BYTES} bytes or more, got {len(sealed)}.")
    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except InvalidTag as error:
        raise UnmaskError("Expected a sealed message under this key and for this place.") from error


def _cipher(key: bytes) -> AESGCM:
    # AESGCM would take shorter keys, for weaker ciphers.
    if len(key) != KEY_BYTES:
        raise ProtocolError(f"Expected a sealing key of {KEY_BYTES} bytes, got {len(key)}.")
    return AESGCM(key)
