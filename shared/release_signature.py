"""``manifest.sig``: the coordinator's word on a release, and whose word counts.

The file is JSON: the name of the algorithm, the signer's public key and the signature over the exact bytes of
``manifest.json``. Its key is a name, not a reason to trust: a partner pins the coordinator's key out of band.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path

from shared.errors import ConfigError, InvalidSignatureError
from shared.hazmat.signing import SigningKey, VerifyKey

RELEASE_MANIFEST = "release manifest"
"""The purpose of the coordinator's signature over a release."""
ALGORITHM = "ed25519"
MOST_KEY_FILE_BYTES = 4096

Trust = VerifyKey | frozenset[VerifyKey]
"""Whose releases count: one key, or several while a coordinator changes its own."""


def signature_text(key: SigningKey, manifest: bytes) -> bytes:
    """What ``manifest.sig`` holds for these bytes; the same for the same key and bytes."""
    return _text(key.public, key.sign(RELEASE_MANIFEST, manifest))


def check_signature(manifest: bytes, signature: bytes, trust: Trust, file: Path) -> VerifyKey:
    """Return the signer's key, only if it is one of `trust` and signed exactly these bytes.

    Parameters
    ----------
    manifest, signature : bytes
        ``manifest.json`` and ``manifest.sig`` as they lie on the disk.
    trust : VerifyKey or frozenset of VerifyKey
    file : Path
        Of the signature; named in errors.

    Raises
    ------
    InvalidSignatureError
        If not, or if the file is in any byte another than `signature_text` writes: one signature has one form.
    """
    try:
        told = json.loads(signature)
        key, raw = VerifyKey.from_text(told["key"]), base64.b64decode(told["signature"], validate=True)
        if _text(key, raw) != signature:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error, ConfigError):
        raise InvalidSignatureError(f"{file}: Expected a signature of a release, algorithm={ALGORITHM}.") from None
    trusted = {trust} if isinstance(trust, VerifyKey) else trust
    if key not in trusted:
        raise InvalidSignatureError(f"{file}: Expected the signature of a trusted key, got one of key={key.text}.")
    try:
        key.verify(RELEASE_MANIFEST, manifest, raw)
    except InvalidSignatureError:
        raise InvalidSignatureError(f"{file}: Expected a signature of this manifest by key={key.text}.") from None
    return key


def read_trust(told: Sequence[str]) -> frozenset[VerifyKey]:
    """The keys that an operator names: each the text of a key, or a file with one key a line.

    Raises
    ------
    ConfigError
        If one is neither; what a file holds is not quoted.
    """
    keys = [key for text in told for key in _keys(text.strip())]
    if not keys:
        raise ConfigError("Expected trust=the coordinator's public key, as base64 or a file that holds it.")
    return frozenset(keys)


def _keys(text: str) -> list[VerifyKey]:
    try:
        return [VerifyKey.from_text(text)]
    except ConfigError:
        pass
    try:
        with Path(text).open("rb") as file:
            lines = file.read(MOST_KEY_FILE_BYTES).decode("ascii").split()
        if not lines:
            raise ValueError
        return [VerifyKey.from_text(line) for line in lines]
    except (OSError, ValueError, ConfigError):
        raise ConfigError(
            "Expected trust=a public key (base64 of 32 bytes), or a file that holds one a line, got neither."
        ) from None


def _text(key: VerifyKey, signature: bytes) -> bytes:
    told = {"algorithm": ALGORITHM, "key": key.text, "signature": base64.b64encode(signature).decode()}
    return (json.dumps(told, indent=1) + "\n").encode()
