"""Which files are private keys that are not encrypted: by what they say of themselves, without opening them."""

from __future__ import annotations

import base64
import re

_PROTECTED = (b"veilrec-scrypt: ", b"veilrec-sealed: ")
"""As `shared.hazmat.key_files` begins its files."""
_OPENSSH = re.compile(rb"-----BEGIN OPENSSH PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+)-----END")


def is_plain_key(name: str, start: bytes) -> bool:
    """Whether a file is a private key, or another secret named as a key, that is not encrypted.

    Parameters
    ----------
    name : str
    start : bytes
        The first of its bytes.
    """
    if start.startswith(_PROTECTED):
        return False
    openssh = _OPENSSH.search(start)
    if openssh is not None:
        return _openssh_cipher(openssh[1]) == b"none"
    if b"PRIVATE KEY-----" in start:
        return b"ENCRYPTED" not in start
    return name.endswith(".key")


def _openssh_cipher(text: bytes) -> bytes:
    """The name of the cipher in an OpenSSH private key (PROTOCOL.key): ``none`` if it has none."""
    magic = b"openssh-key-v1\0"
    try:
        raw = base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        return b"none"
    start = len(magic) + 4
    size = int.from_bytes(raw[len(magic) : start], "big")
    return raw[start : start + size] if raw.startswith(magic) else b"none"
