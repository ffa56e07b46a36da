"""What is signed about a ledger as a whole: its head, by the server, and by the key that takes it over."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from shared.errors import ConfigError, InvalidSignatureError, LedgerError
from shared.hazmat.signing import Pin, SigningKey, VerifyKey

HEAD_PURPOSE = "ledger-head"
SUCCESSION_PURPOSE = "ledger-succession"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
EXACT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The end of the chain: how many entries it has, and the hash of the last."""

    count: int
    hash: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """A head of a partner's ledger, countersigned by the server.

    Attributes
    ----------
    partner : str
    count, hash : int, str
        The head (`LedgerHead`).
    server : str
        Text of the public key that signed.
    signature : str
        Base64.
    """

    kind: ClassVar[str] = "receipt"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    partner: Name
    count: Annotated[int, Field(ge=1)]
    hash: Digest
    server: Name
    signature: Name

    def verify(self, server: Pin) -> None:
        """Check that `server` signed this head.

        Guarantees
        ----------
        A receipt that passes was made by the holder of that key for this partner, count and hash.

        Raises
        ------
        InvalidSignatureError
        """
        if self.server not in [key.text for key in server.keys]:
            raise InvalidSignatureError("Expected a receipt by the pinned server key, got one by another key.")
        statement = encode([self.partner, self.count, self.hash])
        server.verify(HEAD_PURPOSE, statement, from_base64(self.signature))


def sign_receipt(server_key: SigningKey, partner: str, head: LedgerHead) -> Receipt:
    """Countersign a partner's head: what the server does each round.

    Guarantees
    ----------
    The partner can prove that it told this head; the server that keeps the receipt can prove that a ledger
    without this entry was rolled back. Nothing is said about what the entries hold.
    """
    signature = server_key.sign(HEAD_PURPOSE, encode([partner, head.count, head.hash]))
    return Receipt(partner, head.count, head.hash, server_key.public.text, to_base64(signature))


@dataclass(frozen=True, slots=True)
class Succession:
    """The partner changes its identity: from the next line on, `identity` signs.

    Attributes
    ----------
    identity : str
        Text of the next public key.
    consent : str
        Base64 of the next key's own signature under the head before this line (`sign_succession`): it takes all that
        stands there for its own. Nobody can hand a ledger to a key that did not ask for it.
    """

    kind: ClassVar[str] = "succession"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    identity: Name
    consent: Name

    def verify(self, head: LedgerHead) -> VerifyKey:
        """The next key, if it consented to this head.

        Raises
        ------
        InvalidSignatureError
            If it did not.
        LedgerError
            If it is no key.
        """
        try:
            key = VerifyKey.from_text(self.identity)
        except ConfigError:
            raise LedgerError("Expected identity=the text of a public key, got another.") from None
        key.verify(SUCCESSION_PURPOSE, encode([head.count, head.hash]), from_base64(self.consent))
        return key


def sign_succession(key: SigningKey, head: LedgerHead) -> Succession:
    """The next key's consent to take a ledger over at this head.

    Guarantees
    ----------
    It counts for this head alone: ledgers have different ids, so that no two have one head.
    """
    return Succession(key.public.text, to_base64(key.sign(SUCCESSION_PURPOSE, encode([head.count, head.hash]))))


def encode(value: Any) -> bytes:
    """JSON in the ledger's one spelling."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def to_base64(data: bytes) -> str:
    """A signature as it stands in a ledger."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes:
    """Strict: of the texts that decode to the same bytes only one is accepted.

    Raises
    ------
    InvalidSignatureError
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        data = b""
    if to_base64(data) != text:
        raise InvalidSignatureError("Expected a signature in base64.")
    return data
