"""``manifest.json`` and ``manifest.sig``: every member's digest, and who bundled them.

The signature says that nothing was changed since the bundle was made. It does not make true what is in it: what
partners signed is checked by their own keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError, IntegrityError, InvalidSignatureError
from shared.hazmat.signing import Pin, SigningKey, VerifyKey, pin
from shared.privacy.ledger_heads import Digest, from_base64, to_base64
from simulations.audit.bundle.archive import pack, unpack

FORMAT = 1
EVIDENCE = "evidence bundle"
"""The purpose of the bundler's signature."""
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Member(_Part):
    sha256: Digest
    size: Annotated[int, Field(ge=0)]


class _Manifest(_Part):
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    signer: str
    coordinator: Annotated[list[str], Field(min_length=1, max_length=2)]
    members: dict[str, _Member]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle whose signature and digests hold.

    Attributes
    ----------
    members : mapping of str to bytes
        All but manifest and signature.
    signer : VerifyKey
        Who bundled.
    coordinator : Pin
        Whose receipts and plans they are, as the signer says; two keys while a coordinator changes its own.
    """

    members: Mapping[str, bytes]
    signer: VerifyKey
    coordinator: Pin


def seal(members: Mapping[str, bytes], coordinator: Pin, key: SigningKey) -> bytes:
    """The archive of these members, signed by `key`."""
    told = {
        "format": FORMAT,
        "signer": key.public.text,
        "coordinator": [each.text for each in coordinator.keys],
        "members": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in members.items()
        },
    }
    manifest = spelled(told)
    signature = to_base64(key.sign(EVIDENCE, manifest)).encode() + b"\n"
    return pack({**members, MANIFEST: manifest, SIGNATURE: signature})


def unseal(data: bytes, trust: VerifyKey, where: str) -> Sealed:
    """Open an archive that `trust` signed.

    Raises
    ------
    InvalidSignatureError
        If another key signed it, or nobody did.
    IntegrityError
        If the archive is not in its one form, or a member is not what the manifest tells.
    """
    members = unpack(data, where)
    manifest, signature = members.pop(MANIFEST, b""), members.pop(SIGNATURE, b"")
    _check_signature(manifest, signature, trust)
    told = _told(manifest)
    if told.signer != trust.text:
        raise InvalidSignatureError(f"{MANIFEST}: Expected signer={trust.text}, got {told.signer}.")
    if told.members.keys() != members.keys():
        differ = sorted(told.members.keys() ^ members.keys())
        raise IntegrityError(f"{MANIFEST}: Expected the archive's members and no others, got {', '.join(differ)}.")
    for name, member in told.members.items():
        if len(members[name]) != member.size or hashlib.sha256(members[name]).hexdigest() != member.sha256:
            raise IntegrityError(f"{name}: Expected the size and SHA-256 that the manifest tells, got others.")
    try:
        coordinator = pin(VerifyKey.from_text(text) for text in told.coordinator)
    except ConfigError as error:
        raise IntegrityError(f"{MANIFEST}: coordinator: {error}") from None
    return Sealed(members, trust, coordinator)


def spelled(told: Any) -> bytes:
    """JSON in one spelling: keys sorted, no spaces, a line feed."""
    return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def parse(data: bytes, name: str) -> Any:
    """Read JSON of a member.

    Raises
    ------
    IntegrityError
        If it is none, or a key is there twice: it would mean one thing to one reader and another to the next.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{name}: Expected JSON with every key once.") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("twice")
    return dict(pairs)


def _check_signature(manifest: bytes, signature: bytes, trust: VerifyKey) -> None:
    try:
        text = signature.decode("ascii")
        if not text.endswith("\n"):
            raise ValueError
        raw = from_base64(text[:-1])
    except (ValueError, InvalidSignatureError):
        raise InvalidSignatureError(f"{SIGNATURE}: Expected a signature in base64 and a line feed.") from None
    try:
        trust.verify(EVIDENCE, manifest, raw)
    except InvalidSignatureError:
        raise InvalidSignatureError(f"{SIGNATURE}: Expected a signature of {MANIFEST} by key={trust.text}.") from None


def _told(manifest: bytes) -> _Manifest:
    told = parse(manifest, MANIFEST)
    try:
        read = _Manifest.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{MANIFEST}: Expected the manifest of evidence, got {place}: {first['msg']}.") from None
    if spelled(told) != manifest:
        raise IntegrityError(f"{MANIFEST}: Expected JSON in its one spelling, got another.")
    return read
