"""The lines of a partner's ledger: what they hold, how they are chained, and who signed them.

A line is one JSON object in one exact spelling: ``index``, ``kind``, ``time``, ``previous`` (hash of the
line before), ``fields`` (by kind), ``hash``, ``signature``. Two seals with two purposes:

- ``hash`` chains the lines. It is told to the server as the ledger's head, so nothing that depends on data
  may be in it: it covers all but ``time`` (how long a sum took tells how many users were in it) and the
  ``output`` of a release (the digest of a sum before it is masked).
- ``signature`` (Ed25519, the partner's identity key) covers every byte of the line, those two as well. It
  stays on the partner's disk.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import ConfigError, InvalidSignatureError, LedgerError, PolicyViolationError
from shared.hazmat.signing import SigningKey, VerifyKey
from shared.privacy.ledger_heads import EXACT, Digest, Name, Receipt, Succession
from shared.privacy.ledger_heads import encode as _encode
from shared.privacy.ledger_heads import from_base64 as _unbase64
from shared.privacy.ledger_heads import to_base64 as _base64
from shared.privacy.plan import PrivacyPlan, Stage

FORMAT = 1
ENTRY_PURPOSE = "ledger-entry"
UNCHAINED = "output"
KEYS = ("index", "kind", "time", "previous", "fields", "hash", "signature")

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,200}$")]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first line: whose ledger this is.

    Attributes
    ----------
    ledger_id : str
        32 random hexadecimal digits: two ledgers never have one head.
    identity : str
        Text of the public key that signs every line.
    format : int
    """

    kind: ClassVar[str] = "genesis"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    ledger_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    identity: Name
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT


@dataclass(frozen=True, slots=True)
class Declaration:
    """A run's whole plan, counted against the budget from here on.

    Attributes
    ----------
    run_id : str
    plan : dict
        All fields of the `PrivacyPlan`.
    plan_digest : str
    epsilon : float or None
        Of the whole plan at `delta`, by the headline accountant; None in mode ``none``: there is no bound.
    delta : float
    max_epsilon : float or None
        The budget under which the plan was admitted; None: there was no bound.
    max_delta : float
    """

    kind: ClassVar[str] = "plan"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    run_id: RunId
    plan: dict[str, Any]
    plan_digest: Digest
    epsilon: Share | None
    delta: Share
    max_epsilon: Share | None
    max_delta: Share

    def privacy_plan(self) -> PrivacyPlan:
        """The plan as an object.

        Raises
        ------
        PolicyViolationError
            If the fields are not those of a plan.
        """
        try:
            return PrivacyPlan(**self.plan)
        except TypeError:
            raise PolicyViolationError("Expected the fields of a PrivacyPlan of this version.") from None


@dataclass(frozen=True, slots=True)
class Reservation:
    """The noised sums of one round, counted as spent before any noise is drawn.

    Attributes
    ----------
    run_id : str
    round : int
    stage : {"prior", "train"}
    request : str
        Hexadecimal digest of what was asked, the same for every attempt of the round.
    plan_digest : str
    sampling_rate, noise_multiplier : float
    releases : int
        Noised sums in this round: the local steps, or 1 for the prior.
    """

    kind: ClassVar[str] = "reserve"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    run_id: RunId
    round: int
    stage: Stage
    request: Digest
    plan_digest: Digest
    sampling_rate: Share
    noise_multiplier: Share
    releases: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, plan: PrivacyPlan, run_id: str, round_: int, stage: Stage, request: str) -> Reservation:
        """What a round of `stage` takes of `plan`.

        Raises
        ------
        PolicyViolationError
            If the plan has no such stage.
        """
        rate, releases = (1.0, 1) if stage == "prior" else (plan.sampling_rate, plan.local_steps)
        return cls(run_id, round_, stage, request, plan.digest(), rate, plan.multiplier(stage), releases)


@dataclass(frozen=True, slots=True)
class Commitment:
    """The audit canaries of a run, bound before the first sum that has them: an audit cannot choose them afterwards.

    Attributes
    ----------
    run_id : str
    canaries : int
        As planned.
    commitment : str
        SHA-256, hexadecimal, of the seed of their directions (`client.audit_canaries`), which no data touch.
    """

    kind: ClassVar[str] = "audit"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    run_id: RunId
    canaries: Annotated[int, Field(ge=1)]
    commitment: Digest


@dataclass(frozen=True, slots=True)
class Release:
    """The round's noised sum was drawn: `output` is its SHA-256. Data-dependent, so outside the chain."""

    kind: ClassVar[str] = "release"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    run_id: RunId
    round: int
    output: Digest


@dataclass(frozen=True, slots=True)
class Opened:
    """The one set of partners over which the round's sum may be opened, sorted by name."""

    kind: ClassVar[str] = "open"
    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    run_id: RunId
    round: int
    survivors: Names


Body = Genesis | Declaration | Commitment | Reservation | Release | Opened | Receipt | Succession
_READERS: dict[str, TypeAdapter[Body]] = {body.kind: TypeAdapter(body) for body in get_args(Body)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line, sealed."""

    index: int
    time: str
    previous: str
    body: Body
    hash: str
    signature: str
    line: bytes


def validate(body: Body) -> None:
    """Check the types and forms of what is about to be written.

    Guarantees
    ----------
    What passes can be read back, and holds no text but names.

    Raises
    ------
    LedgerError
    """
    _read(body.kind, asdict(body))


def seal(index: int, time: str, previous: str, body: Body, identity: SigningKey) -> Entry:
    """Chain and sign one line.

    Guarantees
    ----------
    What is sealed can be read back by `parse`; equal bodies at one place of one chain have one hash,
    whatever their time and output.

    Raises
    ------
    LedgerError
        If a field has a wrong type or form.
    """
    validate(body)
    fields = asdict(body)
    digest = _chain_hash(index, body.kind, previous, fields)
    told = dict(zip(KEYS, (index, body.kind, time, previous, fields, digest), strict=False))
    signature = _base64(identity.sign(ENTRY_PURPOSE, _encode(told)))
    line = _encode(told | {"signature": signature}) + b"\n"
    return Entry(index, time, previous, body, digest, signature, line)


def parse(line: bytes, index: int, previous: str, identity: VerifyKey | None) -> Entry:
    """Read one line and check spelling, place, hash and signature.

    Parameters
    ----------
    line : bytes
        With its line feed.
    index, previous : int, str
        The place in the chain at which it is read.
    identity : VerifyKey or None
        Whose signature it must have; None for the first line, which names the key itself.

    Guarantees
    ----------
    A line that passes is, byte for byte, what the holder of the key sealed at this place of this chain.

    Raises
    ------
    LedgerError
        Says what is wrong; file and line number are the caller's to add.
    """
    told = _told(line)
    if told["index"] != index or told["previous"] != previous:
        raise LedgerError(f"Expected entry {index} of this chain, got a line that belongs elsewhere.")
    body = _read(told["kind"], told["fields"])
    if told["hash"] != _chain_hash(index, body.kind, previous, told["fields"]):
        raise LedgerError("Expected hash=the SHA-256 of the entry, got another.")
    if identity is None:
        identity = _named_key(body)
    signature = told.pop("signature")
    try:
        identity.verify(ENTRY_PURPOSE, _encode(told), _unbase64(signature))
    except InvalidSignatureError:
        raise LedgerError("Expected signature=the partner's over the line, got another.") from None
    return Entry(index, told["time"], previous, body, told["hash"], signature, line)


def _told(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
        # One spelling: a changed space, escape or repeated key would otherwise go unseen.
        exact = isinstance(told, dict) and tuple(told) == KEYS and _encode(told) + b"\n" == line
        if exact:
            datetime.fromisoformat(told["time"])
    except (ValueError, TypeError, RecursionError):
        exact = False
    if not exact:
        raise LedgerError("Expected one JSON object in the spelling of a ledger, got other bytes.")
    return told  # type: ignore[no-any-return]


def _read(kind: Any, fields: Any) -> Body:
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise LedgerError(f"Expected kind=one of {', '.join(_READERS)}, got another.")
    try:
        return reader.validate_json(_encode(fields))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LedgerError(f"Expected the fields of a {kind} entry, got {place or 'none'}: {first['type']}.") from None
    except ValueError:
        raise LedgerError(f"Expected finite numbers in the fields of a {kind} entry.") from None


def _named_key(body: Body) -> VerifyKey:
    if not isinstance(body, Genesis):
        raise LedgerError("Expected kind=genesis in the first line, got another.")
    try:
        return VerifyKey.from_text(body.identity)
    except ConfigError as error:
        raise LedgerError("Expected identity=the text of a public key in the first line, got another.") from error


def _chain_hash(index: int, kind: str, previous: str, fields: dict[str, Any]) -> str:
    public = {key: value for key, value in fields.items() if key != UNCHAINED}
    return hashlib.sha256(_encode([index, kind, previous, public])).hexdigest()
