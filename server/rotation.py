"""The coordinator changes its own key, with an overlap in which partners know both.

`begin` makes the next key and a bundle that both keys sign; the old key goes on signing plans. `finish` makes the next
key the only one. A partner that did not join the bundle of `begin` refuses the one of `finish`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from server.admission import SERVER_KEY_FILE
from server.enrolment import BUNDLE, NEXT_KEY_FILE, enroll, key_passphrase, locked
from server.receipts import RECEIPTS_FILE
from shared.errors import ConfigError, DataError
from shared.federation_bundle import Bundle, read_bundle
from shared.files import write_json
from shared.hazmat.key_files import Passphrase
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import LedgerHead, Receipt, sign_receipt


def begin(home: Path, passphrase: Passphrase | None = None) -> Bundle:
    """Make the next key, once, and the bundle that both keys sign.

    Raises
    ------
    ConfigError, DataError
        If a key file cannot be used.
    """
    with locked(home):
        SigningKey.load_or_create(home / NEXT_KEY_FILE, key_passphrase(passphrase))
    return enroll(home, [], passphrase)


def finish(home: Path, passphrase: Passphrase | None = None) -> Bundle:
    """Make the next key the only one. To be called while the server is stopped, once every partner has joined.

    The receipts that partners are shown each round are signed anew: they would refuse those of the old key.

    Raises
    ------
    ConfigError
        If no change was begun, or no bundle says so.
    DataError
        If the receipts are none.
    """
    with locked(home):
        told = key_passphrase(passphrase)
        if not (home / NEXT_KEY_FILE).exists():
            raise ConfigError(f"{home}: Expected a change that `veilrec server rotate` began, got none.")
        fresh = SigningKey.load(home / NEXT_KEY_FILE, told)
        if fresh.public not in read_bundle(home / BUNDLE).federation.server.keys:
            raise ConfigError(f"{home}: Expected a bundle that both keys signed: call `veilrec server rotate` again.")
        _sign_receipts(home / RECEIPTS_FILE, fresh)
        (home / NEXT_KEY_FILE).replace(home / SERVER_KEY_FILE)
    return enroll(home, [], passphrase)


def _sign_receipts(file: Path, key: SigningKey) -> None:
    if not file.exists():
        return
    try:
        old = {name: Receipt(**told) for name, told in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise DataError(f"{file}: Expected receipts of ledgers, one a partner.") from None
    fresh = {name: sign_receipt(key, name, LedgerHead(each.count, each.hash)) for name, each in old.items()}
    write_json(file, {name: asdict(receipt) for name, receipt in fresh.items()})
