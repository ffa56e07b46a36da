"""What the coordinator countersigned of the partners' ledgers: the last head of each.

A partner whose ledger no longer has the entry of its last receipt was rolled back, and finds out itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from shared.errors import IntegrityError
from shared.files import write_json
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import LedgerHead, Receipt, sign_receipt

RECEIPTS_FILE = "receipts.json"


class ReceiptBook:
    """Receipts by partner, in one file for all runs.

    Parameters
    ----------
    file : Path

    Raises
    ------
    IntegrityError
        If the file does not hold receipts.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            self._receipts = {name: Receipt(**receipt) for name, receipt in told.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            raise IntegrityError(f"{file}: Expected receipts of ledgers, one a partner.") from None

    def last(self, partner: str) -> Receipt | None:
        """The last receipt of a partner."""
        return self._receipts.get(partner)

    def add(self, heads: Mapping[str, LedgerHead], key: SigningKey) -> None:
        """Countersign heads and keep the receipts, durably. A head behind the last one is not signed."""
        for partner, head in heads.items():
            last = self._receipts.get(partner)
            if last is None or head.count > last.count:
                self._receipts[partner] = sign_receipt(key, partner, head)
        write_json(self._file, {name: asdict(receipt) for name, receipt in self._receipts.items()})
