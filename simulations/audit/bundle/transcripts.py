"""Transcripts of the rounds as they lie in a bundle, read strictly. What they must say is in `check_transcripts`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.transcript import FORMAT
from shared.errors import IntegrityError, VeilrecError
from shared.exchange import Consent, KeyOffer
from shared.messages import SignedPlan
from shared.privacy.ledger_heads import Digest, LedgerHead, Name, from_base64
from simulations.audit.bundle.seal import parse


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Offer(_Part):
    name: Name
    sealing_key: str
    mask_key: str
    signature: str

    def read(self) -> KeyOffer:
        return KeyOffer(self.name, *map(from_base64, (self.sealing_key, self.mask_key, self.signature)))


class _Consent(_Part):
    name: Name
    signature: str


class _Head(_Part):
    count: Annotated[int, Field(ge=1)]
    hash: Digest


class _Plan(_Part):
    text: str
    signature: str


class ToldSum(_Part):
    """One sum of a round."""

    masked: bool
    roster: list[_Offer]
    survivors: Annotated[list[Name], Field(min_length=1)]
    consents: list[_Consent]
    heads: dict[Name, _Head]
    total_sha256: Digest

    @property
    def offers(self) -> tuple[KeyOffer, ...]:
        """The roster."""
        return tuple(offer.read() for offer in self.roster)

    @property
    def signed(self) -> tuple[Consent, ...]:
        """The survivors' consents."""
        return tuple(Consent(one.name, from_base64(one.signature)) for one in self.consents)

    def paid(self, name: str) -> LedgerHead:
        """The ledger entry with which a survivor paid."""
        return LedgerHead(self.heads[name].count, self.heads[name].hash)


class _Told(_Part):
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    round: Annotated[int, Field(ge=1)]
    plan: _Plan
    sums: Annotated[list[ToldSum], Field(min_length=1)]
    record: dict[str, Any]
    signature: str


class Transcript:
    """One round's file.

    Attributes
    ----------
    name : str
        Of the member.
    told : dict
        As it is written.
    round : int
    signed : SignedPlan
    sums : list of ToldSum
    record : dict
        The round's line of ``rounds.jsonl``.
    signature : bytes
        The coordinator's, over all the rest.

    Raises
    ------
    IntegrityError
        If the file is no transcript.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.told = name, parse(data, name)
        try:
            read = _Told.model_validate(self.told)
            self.round, self.sums, self.record = read.round, read.sums, read.record
            self.signed = SignedPlan(read.plan.text, from_base64(read.plan.signature))
            self.signature = from_base64(read.signature)
            for one in read.sums:
                one.offers, one.signed  # noqa: B018  what is no base64 is refused here
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise IntegrityError(f"{name}: Expected the transcript of a round, got {place}: {first['msg']}.") from None
        except VeilrecError as error:
            raise IntegrityError(f"{name}: {error}") from None
