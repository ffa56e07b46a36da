"""What is public of a round's sums, kept and signed, so that others can check later what was summed over whom.

``transcripts/round-0001.json`` lies in the run folder, one file a round. It holds what the coordinator was told in the
open or what it tells everybody: the signed plan, key offers, survivors, consents, the ledger entries that paid, the
digest of the opened total. No share, no masked vector and no secret is in it. The digest may be told: the total is a
release, whose noise the plan bills; only the coordinator has the total itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.exchange import Consent, KeyOffer
from shared.files import write_json
from shared.hazmat.signing import SigningKey
from shared.messages import SignedPlan
from shared.privacy.ledger_heads import LedgerHead, to_base64

FORMAT = 1
TRANSCRIPTS = "transcripts"
"""Their folder in a run folder."""
ROUND_TRANSCRIPT = "round transcript"
"""The purpose of the coordinator's signature over a transcript."""


@dataclass(frozen=True, slots=True)
class SumTranscript:
    """The public part of one sum.

    Attributes
    ----------
    masked : bool
    roster : tuple of KeyOffer
        As all members were told it, those that dropped out later included; empty without masks.
    survivors : tuple of str
        Whose vectors are in the sum, sorted.
    consents : tuple of Consent
        The survivors' signatures under their own set, sorted by name; empty without masks.
    heads : mapping of str to LedgerHead
        By survivor: the ledger entry that paid.
    total_sha256 : str
        `total_digest` of what was opened.
    """

    masked: bool
    roster: tuple[KeyOffer, ...]
    survivors: tuple[str, ...]
    consents: tuple[Consent, ...]
    heads: Mapping[str, LedgerHead]
    total_sha256: str

    @classmethod
    def bare(cls, heads: Mapping[str, LedgerHead], total: NDArray[np.int64]) -> SumTranscript:
        """Of a sum without masks."""
        return cls(False, (), tuple(sorted(heads)), (), dict(heads), total_digest(total))

    def to_json(self) -> dict[str, Any]:
        """JSON values; keys and signatures in base64."""
        return {
            "masked": self.masked,
            "roster": [
                {
                    "name": offer.name,
                    "sealing_key": to_base64(offer.sealing_key),
                    "mask_key": to_base64(offer.mask_key),
                    "signature": to_base64(offer.signature),
                }
                for offer in self.roster
            ],
            "survivors": list(self.survivors),
            "consents": [{"name": one.name, "signature": to_base64(one.signature)} for one in self.consents],
            "heads": {name: {"count": head.count, "hash": head.hash} for name, head in sorted(self.heads.items())},
            "total_sha256": self.total_sha256,
        }


def total_digest(total: NDArray[np.int64]) -> str:
    """SHA-256, hexadecimal, of a total of shape ``(P,)`` as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(total, dtype="<i8").tobytes()).hexdigest()


def transcript_statement(told: Mapping[str, Any]) -> bytes:
    """What the coordinator's signature is over: all of a transcript but the signature, sorted, without spaces."""
    body = {key: value for key, value in told.items() if key != "signature"}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


class TranscriptBook:
    """The transcripts of one run.

    Parameters
    ----------
    folder : Path
        ``transcripts`` in the run folder.
    key : SigningKey
        The coordinator's.
    """

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self._folder, self._key = folder, key

    def file(self, number: int) -> Path:
        """Where the transcript of round `number` lies."""
        return self._folder / f"round-{number:04d}.json"

    def keep(self, number: int, signed: SignedPlan, sums: Iterable[SumTranscript], record: Mapping[str, Any]) -> None:
        """Write the transcript of a whole round, durably; what an attempt before left of it is replaced.

        To be called before the round's checkpoint is saved: every round that a run goes on after has its transcript.

        Parameters
        ----------
        number : int
        signed : SignedPlan
            Of the attempt that came to its end.
        sums : iterable of SumTranscript
            One, or one a bucket.
        record : mapping
            The round's line of ``rounds.jsonl``.
        """
        told: dict[str, Any] = {
            "format": FORMAT,
            "round": number,
            "plan": {"text": signed.text, "signature": to_base64(signed.signature)},
            "sums": _told(list(sums)),
            "record": dict(record),
        }
        told["signature"] = to_base64(self._key.sign(ROUND_TRANSCRIPT, transcript_statement(told)))
        write_json(self.file(number), told)


def _told(sums: Sequence[SumTranscript]) -> list[dict[str, Any]]:
    return [one.to_json() for one in sums]
