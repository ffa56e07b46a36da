"""Receipts of erasures: what was removed, when, and what no erasure can undo; signed by the partner's identity.

A receipt names its subject by a keyed hash alone. The partner, who holds the key, can tell whose it is; a reader
cannot.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError, InvalidSignatureError
from shared.files import write_bytes
from shared.hazmat.signing import SigningKey, VerifyKey

PURPOSE = "erasure receipt"
FORMAT = 1
STAYS = (
    "Models that were released before: an adapter cannot be trained backwards. What it can tell of one user is bounded "
    "by the epsilon and delta under `privacy`, over all plans that this partner ever declared.",
    "Sums that were sent in earlier rounds: they were masked and noised, and other parties hold them.",
    "The sources: files in drop folders and rows in databases are not touched. The user's rows are left out of every "
    "later import.",
    "Backups and old blocks of the disk: files were replaced, and a file system may keep what stood there.",
    "A keyed hash of the user's id, on this partner's premises, without which an import would bring the rows back.",
    "A process that held the data in memory before, until it reads them anew or ends.",
)


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """What an erasure did.

    Attributes
    ----------
    partner : str
    subject : str
        Keyed hash of the user's id (HMAC-SHA256, 128 bits).
    asked, finished : str
        ISO 8601, UTC.
    removed : mapping of str to int
        Counts: interactions (all), events of each kind, reviews, rejected_rows, text_vectors, store_events,
        personal_models, noised_sums.
    checked : mapping of str to bool
        Whether a place was looked at; the ranking store only where ``intake.toml`` names it, and vectors of every model
        only where all of them were erased.
    data_before, data_after : str
        SHA-256 of the interactions file.
    resumed : bool
        Whether a crash came in between: a count may then be lower than what was removed.
    privacy : mapping
        epsilon (None: no bound), delta and number of plans by the ledger; None where there is no ledger.
    stays : tuple of str
    """

    partner: str
    subject: str
    asked: str
    finished: str
    removed: Mapping[str, int]
    checked: Mapping[str, bool]
    data_before: str
    data_after: str
    resumed: bool
    privacy: Mapping[str, float | int | None] | None
    stays: tuple[str, ...] = STAYS


def write_receipt(path: Path, receipt: ErasureReceipt, identity: SigningKey) -> None:
    """Sign a receipt and write it, whole."""
    told = {"format": FORMAT, **asdict(receipt)}
    signature = base64.b64encode(identity.sign(PURPOSE, _statement(told))).decode()
    document = {"receipt": told, "key": identity.public.text, "signature": signature}
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def verify_receipt(path: Path, key: VerifyKey) -> ErasureReceipt:
    """Read a receipt that `key` signed.

    Parameters
    ----------
    path : pathlib.Path
    key : VerifyKey
        The partner's, known from elsewhere: the one in the file proves nothing.

    Raises
    ------
    DataError
        If the file is no receipt.
    InvalidSignatureError
        If it is another key's, or was changed.
    """
    told, signature = _read(path)
    key.verify(PURPOSE, _statement(told), signature)
    try:
        if told["format"] != FORMAT:
            raise ValueError
        fields = {name: value for name, value in told.items() if name != "format"}
        return ErasureReceipt(**{**fields, "stays": tuple(fields["stays"])})
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: Expected a receipt of an erasure (format={FORMAT}).") from None


def spent_of(ledger: Path) -> dict[str, float | int | None] | None:
    """What the ledger says that all declared plans cost together; None where nothing was ever declared."""
    if not ledger.exists():
        return None
    from shared.privacy.ledger_audit import read_ledger  # loads the accountants

    spent = read_ledger(ledger).spent
    return {
        "epsilon": None if math.isinf(spent.epsilon) else spent.epsilon,
        "delta": spent.delta,
        "plans": spent.plans,
    }


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        document = json.loads(path.read_bytes())
        told = document["receipt"]
        if not isinstance(told, dict):
            raise ValueError
        return told, base64.b64decode(document["signature"], validate=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise DataError(f"{path}: Expected a receipt of an erasure.") from None


def _statement(told: Mapping[str, Any]) -> bytes:
    """What is signed: one spelling for one receipt."""
    try:
        return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise InvalidSignatureError("Expected a receipt of finite numbers.") from None
