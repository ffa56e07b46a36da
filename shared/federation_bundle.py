"""The federation's bundle: what the coordinator gives every partner, the same for all.

``federation.json`` says who is in the federation and how it is reached, ``federation.sig`` is the coordinator's word
on these exact bytes, ``items.parquet`` is the public catalogue. A roster entry is the partner's own signed request:
the coordinator can leave a partner out, it cannot put another key beside the one that others have pinned.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from shared.config import RunConfig
from shared.enrolment import (
    FORMAT,
    Document,
    EnrolmentRequest,
    KeyText,
    Version,
    fingerprint,
    installed_version,
    parse,
    read_bytes,
    spelled,
)
from shared.errors import ConfigError, DataError, InvalidSignatureError, VersionMismatchError
from shared.files import write_bytes
from shared.hazmat.certificates import check_authority
from shared.hazmat.signing import Pin, SigningKey, VerifyKey, distinct, pin

BUNDLE = "federation-bundle"
"""The purpose of the coordinator's signature under a bundle."""
FEDERATION_FILE, SIGNATURE_FILE, ITEMS_FILE = "federation.json", "federation.sig", "items.parquet"
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9.-]{1,253})):(\d{1,5})")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises
    ------
    ConfigError
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise ConfigError("Expected an address as HOST:PORT.")
    return found[1] or found[2], int(found[3])


def _address(text: str) -> str:
    try:
        split_address(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


Address = Annotated[str, AfterValidator(_address)]


class Federation(Document):
    """``federation.json``.

    Attributes
    ----------
    format : int
    least_version : str
        Of a partner's installation.
    serial : int
        Counts the coordinator's bundles: a partner takes no older one.
    server_keys : tuple of str
        The coordinator's public key, or two while it is changed, the old one first.
    authority : str
        The certificate (PEM) of the authority that signs the server's.
    address : str
        ``HOST:PORT`` of the gate.
    partners : tuple of EnrolmentRequest
        The roster, sorted by name.
    bundles : tuple of str
        SHA-256 of the Flower apps that may be run.
    catalogue, items_sha256 : str
        Digest of the catalogue's content, SHA-256 of its file.
    config : RunConfig
        The whole configuration of the run; it is public.
    """

    format: Literal[1] = FORMAT
    least_version: Version
    serial: Annotated[int, Field(ge=1)]
    server_keys: Annotated[tuple[KeyText, ...], Field(min_length=1, max_length=2)]
    authority: Annotated[str, Field(max_length=10_000)]
    address: Address
    partners: Annotated[tuple[EnrolmentRequest, ...], Field(max_length=1000)]
    bundles: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=8)]
    catalogue: Digest
    items_sha256: Digest
    config: RunConfig

    @property
    def server(self) -> Pin:
        """The coordinator's key, or both."""
        return pin(VerifyKey.from_text(text) for text in self.server_keys)

    @property
    def roster(self) -> dict[str, Pin]:
        """Name to identity, or to both identities of a partner that changes its own."""
        return {request.name: request.pin for request in self.partners}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose signatures and requests were checked.

    Attributes
    ----------
    folder : Path
    federation : Federation
    fingerprint : str
        To be compared by voice, the same at every partner.
    """

    folder: Path
    federation: Federation
    fingerprint: str

    def items(self) -> bytes:
        """The catalogue's file.

        Raises
        ------
        DataError
            If it cannot be read, or is not the one that the coordinator signed.
        """
        file = self.folder / ITEMS_FILE
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: Expected a readable file, got {type(error).__name__}.") from None
        if hashlib.sha256(data).hexdigest() != self.federation.items_sha256:
            raise DataError(f"{file}: Expected the catalogue that the bundle names, got other bytes.")
        return data


def write_bundle(folder: Path, federation: Federation, keys: Sequence[SigningKey], items: bytes) -> Bundle:
    """Sign and write a bundle; the signature comes last, so that a torn bundle is refused.

    Raises
    ------
    ConfigError, DataError
        If the federation's own rules do not hold, or the keys are not those that it names.
    """
    if tuple(key.public.text for key in keys) != federation.server_keys:
        raise ConfigError("Expected the keys that the bundle names to sign it.")
    data = federation.to_bytes()
    _check(parse(Federation, data, FEDERATION_FILE), FEDERATION_FILE)
    signatures = [[key.public.text, base64.b64encode(key.sign(BUNDLE, data)).decode()] for key in keys]
    write_bytes(folder / ITEMS_FILE, items)
    write_bytes(folder / FEDERATION_FILE, data)
    write_bytes(folder / SIGNATURE_FILE, spelled(signatures))
    for name in (ITEMS_FILE, FEDERATION_FILE, SIGNATURE_FILE):  # public: for whoever hands it on
        (folder / name).chmod(0o644)
    return read_bundle(folder)


def read_bundle(folder: Path, pinned: Pin | None = None) -> Bundle:
    """Read a bundle and check all that can be checked without asking a person.

    Parameters
    ----------
    folder : Path
    pinned : Pin, optional
        The coordinator's key, or keys, as this partner knows it; None the first time: then a person must compare
        `Bundle.fingerprint`.

    Guarantees
    ----------
    Every key of the coordinator that the bundle names has signed these exact bytes, one of them is pinned, every
    partner in it holds the keys that stand beside its name, and no two parties have one key.

    Raises
    ------
    InvalidSignatureError
        If a signature is missing or another's.
    VersionMismatchError
        If this installation is older than the federation allows.
    DataError
        If a file is not what was expected.
    """
    file = folder / FEDERATION_FILE
    data = read_bytes(file)
    _check_version(data, file)
    federation = parse(Federation, data, str(file))
    _check(federation, str(file))
    _check_signatures(data, federation, folder / SIGNATURE_FILE)
    if pinned is not None and not set(pinned.keys) & set(federation.server.keys):
        raise InvalidSignatureError(f"{file}: Expected the signature of the pinned key={pinned.text}, got another's.")
    return Bundle(folder, federation, fingerprint("bundle", data))


def _check_version(data: bytes, file: Path) -> None:
    """Before the rest is read: a newer coordinator's bundle may have fields that are not known here."""
    try:
        least = json.loads(data)["least_version"]
        needed = tuple(int(part) for part in least.split("."))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # `parse` says what is wrong
    own = installed_version()
    if tuple(int(part) for part in own.split(".")) < needed:
        text = ".".join(map(str, needed))
        raise VersionMismatchError(f"{file}: Expected veilrec version >= {text}, got {own}: upgrade this installation.")


def _check(federation: Federation, where: str) -> None:
    names = [request.name for request in federation.partners]
    if names != sorted(set(names)):
        raise DataError(f"{where}: Expected the partners sorted by name, each once.")
    for request in federation.partners:
        request.checked(f"{where}: partner {request.name}")
    try:
        parties = [federation.server, *federation.roster.values()]
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
    nodes = [node for request in federation.partners for node in request.nodes]
    if not distinct(parties) or len(set(nodes)) < len(nodes):
        raise DataError(f"{where}: Expected another key for every partner and the coordinator.")
    check_authority(federation.authority)


def _check_signatures(data: bytes, federation: Federation, file: Path) -> None:
    raw = read_bytes(file)
    try:
        told = json.loads(raw)
        signed = [(str(key), base64.b64decode(signature, validate=True)) for key, signature in told]
        exact = spelled([[key, base64.b64encode(signature).decode()] for key, signature in signed]) == raw
    except (ValueError, TypeError, RecursionError):
        exact, signed = False, []
    if not exact or tuple(key for key, _ in signed) != federation.server_keys:
        raise InvalidSignatureError(f"{file}: Expected one signature by every key of the coordinator.")
    for key, (_, signature) in zip(federation.server.keys, signed, strict=True):
        try:
            key.verify(BUNDLE, data, signature)
        except InvalidSignatureError as error:
            raise InvalidSignatureError(f"{file}: {error}") from None
