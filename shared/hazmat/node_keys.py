"""Node keys: what a partner's Flower node shows to the SuperLink (ECDSA, NIST P-384).

Flower 1.41 signs each request of a node with such a key and knows nodes by the public half. It says nothing of who
the partner is in a secure sum: that is the identity's to prove (`shared.hazmat.signing`).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from shared.errors import ConfigError, InvalidSignatureError
from shared.hazmat.key_files import Passphrase, private_pem, read_private_key, write_once

_CURVE = ec.SECP384R1
_PURPOSE = b"veilrec/v1/node-enrolment\0"


def check_node_key(text: str) -> None:
    """Refuse a text that is not a P-384 public key in the one spelling of `NodeKey.public_text`.

    Raises
    ------
    ConfigError
    """
    if _ssh(_public(text)) != text:
        raise ConfigError("Expected a node key in OpenSSH's form without a comment.")


def superlink_form(text: str) -> bytes:
    """The same key as Flower's SuperLink keeps it: PEM, SubjectPublicKeyInfo.

    Raises
    ------
    ConfigError
        If it is no P-384 key in OpenSSH's form.
    """
    return _public(text).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def verify_node(text: str, statement: bytes, signature: bytes) -> None:
    """Return only if the holder of the node key `text` signed `statement` by `NodeKey.sign`.

    Raises
    ------
    ConfigError
        If it is no P-384 key in OpenSSH's form.
    InvalidSignatureError
        If not.
    """
    try:
        _public(text).verify(signature, _PURPOSE + statement, ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise InvalidSignatureError("Expected a signature of the node key over the request.") from None


class NodeKey:
    """The secret half of a node key.

    Guarantees
    ----------
    The secret is not in `repr`. `pair` gives it to Flower's connection in this process, and nothing else does.
    """

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"NodeKey({self.public_text})"

    @classmethod
    def load(cls, path: Path, passphrase: Passphrase | None = None) -> NodeKey:
        """Read a PEM file (PKCS8, encrypted or not).

        Raises
        ------
        ConfigError
            If there is no such file, others may use it, it is encrypted and there is no passphrase, or the curve is
            another.
        DataError
            If it does not hold such a key, or not under this passphrase.
        """
        key = read_private_key(path, ec.EllipticCurvePrivateKey, "EC P-384", passphrase)
        if not isinstance(key.curve, _CURVE):
            raise ConfigError(
                f"Expected a key on the curve P-384 in the file {path.name}, got one on {key.curve.name}."
            )
        return cls(key)

    @classmethod
    def load_or_create(cls, path: Path, passphrase: Passphrase | None = None) -> NodeKey:
        """Read the key in `path`, or make one there (mode 0600, encrypted if there is a passphrase).

        Raises
        ------
        ConfigError, DataError
            As `load`: a file that is there is never replaced.
        """
        if not path.exists():
            fresh = ec.generate_private_key(_CURVE())
            write_once(path, private_pem(fresh, passphrase or Passphrase.of_environment()))
        return cls.load(path, passphrase)

    @property
    def public_text(self) -> str:
        """``ecdsa-sha2-nistp384 ...``, without a comment."""
        return _ssh(self._key.public_key())

    @property
    def pair(self) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
        """What Flower's Fleet connection takes as its authentication keys."""
        return self._key, self._key.public_key()

    def sign(self, statement: bytes) -> bytes:
        """Prove to hold the key; never the same bytes twice (ECDSA), never a signature that Flower would take."""
        return self._key.sign(_PURPOSE + statement, ec.ECDSA(SHA384()))


def _public(text: str) -> ec.EllipticCurvePublicKey:
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVE):
        raise ConfigError("Expected a node key: EC P-384 in OpenSSH's form.")
    return key


def _ssh(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
