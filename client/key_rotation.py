"""A partner changes its keys, with an overlap in which the others know both.

`begin` makes the next keys and a request that old and new keys sign. Once every partner has joined the bundle in which
both stand, `finish` switches; its request lets the coordinator drop the old ones. The ledger names its next key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from filelock import FileLock

from client.enrolment import Enrolment, Requested
from client.node_settings import NODE_FOLDER, NODE_KEY_FILE
from client.premises import AGENT_LOCK, IDENTITY_FILE, PARTNER_FILE, Premises, write_partner
from shared.enrolment import EnrolmentRequest
from shared.errors import ConfigError
from shared.hazmat.key_files import Passphrase
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_audit import read_ledger

NEXT_IDENTITY, NEXT_NODE = "identity.next.key", "node.next.key"


def begin(folder: Path, passphrase: Passphrase | None = None) -> Requested:
    """Make the next identity and node key, once, and the request that all four keys sign.

    Raises
    ------
    ConfigError
        If the partner has joined no federation, or there is no passphrase.
    """
    enrolment, told = Enrolment.open(folder), _passphrase(passphrase)
    if enrolment.joined is None:
        raise ConfigError(f"{folder}: Expected a partner that has joined a federation.")
    node = folder / NODE_FOLDER
    identities = [SigningKey.load(folder / IDENTITY_FILE, told)]
    identities.append(SigningKey.load_or_create(folder / NEXT_IDENTITY, told))
    nodes = [NodeKey.load(node / NODE_KEY_FILE, told), NodeKey.load_or_create(node / NEXT_NODE, told)]
    serial = enrolment.request.serial + (0 if enrolment.changing else 1)
    return _request(folder, enrolment, serial, identities, nodes, changing=True)


def finish(folder: Path, passphrase: Passphrase | None = None) -> Requested:
    """Switch to the next keys; the old ones are gone from the disk. A call that was cut short is made again.

    Guarantees
    ----------
    Whenever it is cut short, the ledger can be verified, and the next call goes on. Nothing is switched before this
    partner itself has joined a bundle in which both keys stand.

    Raises
    ------
    ConfigError
        If no change was begun, or the bundle with both keys was not joined.
    """
    enrolment, told = Enrolment.open(folder), _passphrase(passphrase)
    premises, node = Premises.open(folder), folder / NODE_FOLDER
    pinned = [key.text for key in premises.peers[premises.name].keys]
    if not enrolment.changing:
        raise ConfigError(f"{folder}: Expected a change that `veilrec partner rotate` began, got none.")
    if not set(enrolment.request.identities) <= set(pinned):
        raise ConfigError(f"{folder}: Expected to have joined a bundle with both keys: enrol the request first.")
    with FileLock(folder / AGENT_LOCK, timeout=60):
        if (folder / NEXT_IDENTITY).exists():
            fresh = SigningKey.load(folder / NEXT_IDENTITY, told)
            _hand_over(premises.ledger_file, SigningKey.load(folder / IDENTITY_FILE, told), fresh)
            (folder / NEXT_IDENTITY).replace(folder / IDENTITY_FILE)
        if (node / NEXT_NODE).exists():
            (node / NEXT_NODE).replace(node / NODE_KEY_FILE)
        identities, nodes = [SigningKey.load(folder / IDENTITY_FILE, told)], [NodeKey.load(node / NODE_KEY_FILE, told)]
        done = _request(folder, enrolment, enrolment.request.serial + 1, identities, nodes, changing=False)
        # The same settings, written anew: a running agent takes its folder up again when they change.
        write_partner(folder, tomllib.loads((folder / PARTNER_FILE).read_text("utf-8")))
    return done


def _request(
    folder: Path,
    enrolment: Enrolment,
    serial: int,
    identities: list[SigningKey],
    nodes: list[NodeKey],
    *,
    changing: bool,
) -> Requested:
    request = EnrolmentRequest.make(enrolment.request.name, serial, identities, nodes)
    made = enrolment.model_copy(update={"request": request, "changing": changing})
    return Requested(made.save(folder), request.fingerprint)


def _hand_over(ledger: Path, old: SigningKey, fresh: SigningKey) -> None:
    """Once: a call that was cut short after it finds the ledger with its next key."""
    if ledger.exists() and read_ledger(ledger).identity != fresh.public.text:
        Ledger(ledger, old).hand_over(fresh)


def _passphrase(passphrase: Passphrase | None) -> Passphrase:
    told = passphrase or Passphrase.of_environment()
    if told is None:
        raise ConfigError("Expected the passphrase of the partner's keys: new ones are always encrypted.")
    return told
