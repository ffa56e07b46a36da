"""A partner's request to be enrolled, and the fingerprints that people compare by voice.

A request names a partner and its public keys: the identity (Ed25519) and the key of its Flower node (P-384); two of
each while a key is being changed. Every key that it names has signed it, so that nobody enrols a key it does not hold,
and nobody can put a new key beside an old one but who holds the old one. It holds nothing secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError, DataError, InvalidSignatureError, VeilrecError
from shared.hazmat.node_keys import NodeKey, check_node_key, verify_node
from shared.hazmat.signing import Pin, SigningKey, VerifyKey, pin

REQUEST = "enrolment-request"
"""The purpose of an identity's signature under a request."""
FORMAT: Literal[1] = 1
MOST_BYTES = 4 * 2**20
_GROUPS, _DIGITS = 8, 5

PartnerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
KeyText = Annotated[str, Field(min_length=44, max_length=44)]
NodeText = Annotated[str, Field(min_length=20, max_length=400)]
Signature = Annotated[str, Field(max_length=300)]
Version = Annotated[str, Field(pattern=r"^\d{1,6}\.\d{1,6}\.\d{1,6}$")]


class Document(BaseModel):
    """A JSON document with one exact spelling: what is signed is the bytes that a person can open and read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_bytes(self) -> bytes:
        """The one spelling."""
        return spelled(self.model_dump(mode="json"))


D = TypeVar("D", bound=Document)


class EnrolmentRequest(Document):
    """What a partner hands to the coordinator.

    Attributes
    ----------
    format : int
    version : str
        Of the partner's installation.
    name : str
    serial : int
        The partner's own count of its requests: an older one is never taken again.
    identities : tuple of str
        One public key, or two while the identity is changed, the old one first.
    nodes : tuple of str
        The same of the Flower node's key, in OpenSSH's form.
    signatures : tuple of str
        One in base64 by every key above, in that order, over all the rest.
    """

    format: Literal[1] = FORMAT
    version: Version
    name: PartnerName
    serial: Annotated[int, Field(ge=1)]
    identities: Annotated[tuple[KeyText, ...], Field(min_length=1, max_length=2)]
    nodes: Annotated[tuple[NodeText, ...], Field(min_length=1, max_length=2)]
    signatures: Annotated[tuple[Signature, ...], Field(min_length=2, max_length=4)]

    @classmethod
    def make(
        cls, name: str, serial: int, identities: Sequence[SigningKey], nodes: Sequence[NodeKey]
    ) -> EnrolmentRequest:
        """A request, signed by every key in it.

        Raises
        ------
        ConfigError
            If the name cannot be a partner's, or a key is there twice.
        """
        told: dict[str, Any] = {"version": installed_version(), "name": name, "serial": serial}
        told |= {"identities": [key.public.text for key in identities], "nodes": [key.public_text for key in nodes]}
        statement = _statement({"format": FORMAT, **told})
        signed = [*(key.sign(REQUEST, statement) for key in identities), *(node.sign(statement) for node in nodes)]
        told["signatures"] = [base64.b64encode(signature).decode() for signature in signed]
        return parse(cls, spelled({"format": FORMAT, **told}), "request").checked("request")

    @classmethod
    def read(cls, file: Path) -> EnrolmentRequest:
        """Read a request and check all signatures in it.

        Raises
        ------
        DataError
            If the file is not a request in its one spelling.
        InvalidSignatureError
            If a key in it has not signed it.
        """
        return parse(cls, read_bytes(file), file.name).checked(file.name)

    def checked(self, where: str) -> Self:
        """The request itself, once every key that it names is found to have signed it.

        Guarantees
        ----------
        Whoever wrote it holds the secret halves of all its keys.

        Raises
        ------
        DataError
            If a key is no key or is there twice.
        InvalidSignatureError
        """
        if len(set(self.identities)) < len(self.identities) or len(set(self.nodes)) < len(self.nodes):
            raise DataError(f"{where}: Expected two different keys where a key is changed.")
        if len(self.signatures) != len(self.identities) + len(self.nodes):
            raise InvalidSignatureError(f"{where}: Expected one signature by every key in the request.")
        signatures = [_unbase64(text, where) for text in self.signatures]
        try:
            for key, signature in zip(self.keys, signatures, strict=False):
                key.verify(REQUEST, self.statement, signature)
            for node, signature in zip(self.nodes, signatures[len(self.identities) :], strict=True):
                check_node_key(node)
                verify_node(node, self.statement, signature)
        except InvalidSignatureError:
            raise InvalidSignatureError(
                f"{where}: Expected the signature of every key in the request, got another."
            ) from None
        except ConfigError as error:
            raise DataError(f"{where}: {error}") from None
        return self

    @property
    def keys(self) -> tuple[VerifyKey, ...]:
        """The identities.

        Raises
        ------
        ConfigError
            If one is no key.
        """
        return tuple(VerifyKey.from_text(text) for text in self.identities)

    @property
    def pin(self) -> Pin:
        """The identities as others pin them."""
        return pin(self.keys)

    @property
    def statement(self) -> bytes:
        """What is signed: everything but the signatures."""
        return _statement(self.model_dump(mode="json", exclude={"signatures"}))

    @property
    def fingerprint(self) -> str:
        """Of the statement: a request that is signed again has the same."""
        return fingerprint("request", self.statement)


def fingerprint(kind: str, data: bytes) -> str:
    """Forty decimal digits in eight groups, to be read out over a telephone.

    SHA-256 of the kind and the data, modulo 10^40: 132 bits, so that a second document with the same digits takes
    about 2^132 tries, and two documents of one's own making with the same digits about 2^66.
    """
    digest = hashlib.sha256(b"veilrec/v1/fingerprint/" + kind.encode() + b"\0" + data).digest()
    digits = str(int.from_bytes(digest) % 10 ** (_GROUPS * _DIGITS)).zfill(_GROUPS * _DIGITS)
    return " ".join(digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS))


def same_fingerprint(told: str, expected: str) -> bool:
    """Whether a person gave the digits of `expected`, with whatever is between the groups."""
    return re.sub(r"[\s,.-]", "", told) == expected.replace(" ", "")


def installed_version() -> str:
    """Of this installation: three numbers."""
    return ".".join(re.findall(r"\d+", version("veilrec"))[:3])


def spelled(value: Any) -> bytes:
    """A JSON value in the one spelling of these documents: indented by one, ASCII, with a line feed at the end."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_bytes(file: Path) -> bytes:
    """A document's bytes.

    Raises
    ------
    DataError
        If it cannot be read or is larger than any document of this kind.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file}: Expected a readable file, got {type(error).__name__}.") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{file}: Expected at most {MOST_BYTES} bytes, got more.")
    return data


def parse(kind: type[D], data: bytes, where: str) -> D:
    """A document from its bytes.

    Raises
    ------
    DataError
        Names the first key that is wrong, or says that the spelling is another.
    """
    try:
        told = kind.model_validate_json(data)
        exact = told.to_bytes() == data
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise DataError(f"{where}: Expected another {place}: {first['msg']}.") from None
    except VeilrecError as error:
        raise DataError(f"{where}: {error}") from None
    if not exact:
        raise DataError(f"{where}: Expected the one spelling of such a document, got other bytes.")
    return told


def _statement(told: dict[str, Any]) -> bytes:
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def _unbase64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if base64.b64encode(data).decode() != text or not data:
        raise InvalidSignatureError(f"{where}: Expected signatures in base64.")
    return data
