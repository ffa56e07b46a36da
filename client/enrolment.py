"""A partner's way into a federation: its keys and its request, and the bundles that it joins.

Keys are made here and stay here. A bundle is believed for what its signatures show; who is in the federation is
believed only when a person has compared the fingerprint: the coordinator alone could else fill the roster with keys
of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field

from client.data.ingest import ITEMS_FILE
from client.data.pseudonyms import PseudonymKey
from client.node_settings import AUTHORITY_FILE, NODE_FILE, NODE_FOLDER, NODE_KEY_FILE, SOCKET, NodeSettings
from client.policy import Policy
from client.premises import AGENT_LOCK, IDENTITY_FILE, PARTNER_FILE, Premises, write_partner
from shared.catalogue import read_catalogue
from shared.enrolment import Document, EnrolmentRequest, parse, read_bytes, same_fingerprint
from shared.errors import ConfigError, DataError, IntegrityError, ReplayError
from shared.federation_bundle import Bundle, Federation, read_bundle
from shared.files import write_bytes
from shared.hazmat.key_files import is_encrypted, wanted_passphrase
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.signing import Pin, SigningKey

ENROLMENT_FILE, PSEUDONYM_FILE, DATA = "enrolment.json", "pseudonym.key", "data"


class Joined(Document):
    """The newest bundle that was joined."""

    serial: Annotated[int, Field(ge=1)]
    fingerprint: Annotated[str, Field(max_length=64)]


class Enrolment(Document):
    """``enrolment.json``: how far a partner's enrolment came; nothing in it is secret.

    Attributes
    ----------
    request : EnrolmentRequest
        The last that was made.
    changing : bool
        Whether it begins a change of keys that was not finished.
    joined : Joined or None
    """

    request: EnrolmentRequest
    changing: bool = False
    joined: Joined | None = None

    @classmethod
    def open(cls, folder: Path) -> Enrolment:
        """Read ``enrolment.json``.

        Raises
        ------
        ConfigError
            If there is none.
        DataError
            If it is not what `save` wrote.
        """
        file = folder / ENROLMENT_FILE
        if not file.exists():
            raise ConfigError(f"{folder}: no {ENROLMENT_FILE}. Expected a folder that `veilrec partner init` made.")
        return parse(cls, read_bytes(file), str(file))

    def save(self, folder: Path) -> Path:
        """Replace ``enrolment.json``, and write the request for the coordinator; its path."""
        write_bytes(folder / ENROLMENT_FILE, self.to_bytes())
        file = folder / f"{self.request.name}.request.json"
        write_bytes(file, self.request.to_bytes())
        return file


@dataclass(frozen=True, slots=True)
class Requested:
    """A request that is ready to be handed over.

    Attributes
    ----------
    file : Path
    fingerprint : str
        For the coordinator to compare by voice.
    passphrase_file_made : bool
    """

    file: Path
    fingerprint: str
    passphrase_file_made: bool = False


def init_partner(folder: Path, name: str, passphrase_file: Path | None = None) -> Requested:
    """Make a partner's keys, all encrypted, and its request. What is there already is kept.

    Raises
    ------
    ConfigError
        If there is no passphrase, the folder is another partner's, or has keys that are not encrypted.
    """
    known = Enrolment.open(folder) if (folder / ENROLMENT_FILE).exists() else None
    if (folder / PARTNER_FILE).exists() or (known is not None and known.request.name != name):
        raise ConfigError(f"{folder}: Expected a new folder, got a partner's.")
    passphrase, made = wanted_passphrase(passphrase_file)
    for part in (folder, folder / DATA, folder / NODE_FOLDER):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = SigningKey.load_or_create(folder / IDENTITY_FILE, passphrase)
    PseudonymKey.load_or_create(folder / PSEUDONYM_FILE, passphrase)
    node = NodeKey.load_or_create(folder / NODE_FOLDER / NODE_KEY_FILE, passphrase)
    for file in (IDENTITY_FILE, PSEUDONYM_FILE, f"{NODE_FOLDER}/{NODE_KEY_FILE}"):
        if not is_encrypted(folder / file):
            raise ConfigError(f"{folder / file}: Expected an encrypted key, got one that is not.")
    enrolment = Enrolment(request=EnrolmentRequest.make(name, 1, [identity], [node]))
    return Requested(enrolment.save(folder), enrolment.request.fingerprint, made)


@dataclass(frozen=True, slots=True)
class Review:
    """What joining a bundle would change, for a person to look at.

    Attributes
    ----------
    bundle : Bundle
    added, removed, replaced : tuple of str
        Names of partners that come, that go, and whose keys are new without a signature of the ones known here.
    first : bool
        Whether this partner has joined none yet.
    """

    bundle: Bundle
    added: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    first: bool

    @property
    def needs_voice(self) -> bool:
        """Whether the fingerprint has to be compared: no signature shows who belongs to the federation."""
        return self.first or bool(self.added or self.removed or self.replaced)


def join(
    folder: Path,
    bundle_folder: Path,
    *,
    fingerprint: str | None = None,
    floor: Mapping[str, Any] | None = None,
    confirm: Callable[[Review], bool] | None = None,
) -> tuple[Review, Premises]:
    """Pin what a bundle says, write the node's settings, and take the catalogue over.

    Parameters
    ----------
    folder, bundle_folder : Path
    fingerprint : str, optional
        What the coordinator read out.
    floor : mapping, optional
        Values of ``[policy]`` that the partner sets itself; all others stay as they are.
    confirm : callable, optional
        Asks a person, where no fingerprint was given.

    Guarantees
    ----------
    Nothing is written unless the bundle is whole, signed by the pinned coordinator, no older than the last, names
    this partner's own keys, and, where `Review.needs_voice`, the fingerprint was compared. No value of ``[policy]``
    but the coordinator's key comes from a bundle.

    Raises
    ------
    InvalidSignatureError, VersionMismatchError, DataError
        See `shared.federation_bundle.read_bundle`.
    ReplayError
        If a newer bundle was joined before.
    IntegrityError
        If the fingerprint is another, or the bundle has other keys for this partner.
    ConfigError
        If the fingerprint was not compared, or the floor is not set.
    """
    enrolment = Enrolment.open(folder)
    before = Premises.open(folder) if (folder / PARTNER_FILE).exists() else None
    bundle = read_bundle(bundle_folder, None if before is None else before.policy.server_key)
    review = _review(bundle, None if before is None else before.peers)
    _check_serial(enrolment, bundle)
    _check_own(enrolment, bundle.federation, before)
    _check_fingerprint(review, fingerprint, confirm)
    items = bundle.items()
    if read_catalogue(bundle.folder / ITEMS_FILE).digest != bundle.federation.catalogue:
        raise DataError(f"{bundle.folder / ITEMS_FILE}: Expected the catalogue that the bundle names, got another.")
    settings = _settings(folder, enrolment.request.name, bundle.federation, floor or {})
    with FileLock(folder / AGENT_LOCK, timeout=60):
        premises = write_partner(folder, settings)
        write_bytes(premises.data / ITEMS_FILE, items)
        _write_node(folder / NODE_FOLDER, bundle.federation)
        joined = Joined(serial=bundle.federation.serial, fingerprint=bundle.fingerprint)
        enrolment.model_copy(update={"joined": joined}).save(folder)
    return review, premises


def shortfalls(federation: Federation, policy: Policy, partners: int) -> list[str]:
    """What the federation's configuration asks for beyond the floor: the agent would refuse its rounds."""
    privacy, fed = federation.config.privacy, federation.config.federation
    told = [
        (
            privacy.epsilon <= policy.max_epsilon,
            f"epsilon={privacy.epsilon:g} above max_epsilon={policy.max_epsilon:g}",
        ),
        (privacy.delta <= policy.max_delta, f"delta={privacy.delta:g} above max_delta={policy.max_delta:g}"),
        (privacy.mode in policy.modes, f"mode={privacy.mode} not in modes"),
        (fed.survivors >= policy.min_cohort, f"quorum={fed.survivors} below min_cohort={policy.min_cohort}"),
        (privacy.colluders >= policy.min_colluders, f"colluders={privacy.colluders} below {policy.min_colluders}"),
        (fed.buckets <= policy.max_buckets, f"buckets={fed.buckets} above max_buckets={policy.max_buckets}"),
        (fed.partners <= partners, f"partners={fed.partners} of whom {partners} are enrolled"),
    ]
    return [words for holds, words in told if not holds]


def _review(bundle: Bundle, pinned: Mapping[str, Pin] | None) -> Review:
    roster, known = bundle.federation.roster, pinned or {}
    # A request is signed by all keys in it: one that is pinned vouches for the one beside it.
    replaced = [name for name in roster if name in known and not set(known[name].keys) & set(roster[name].keys)]
    return Review(
        bundle,
        added=tuple(sorted(set(roster) - set(known))),
        removed=tuple(sorted(set(known) - set(roster))),
        replaced=tuple(replaced),
        first=pinned is None,
    )


def _check_serial(enrolment: Enrolment, bundle: Bundle) -> None:
    last, serial = enrolment.joined, bundle.federation.serial
    if last is None or serial > last.serial:
        return
    if serial < last.serial or bundle.fingerprint != last.fingerprint:
        raise ReplayError(f"{bundle.folder}: Expected a bundle with serial > {last.serial}, got {serial}.")


def _check_own(enrolment: Enrolment, federation: Federation, before: Premises | None) -> None:
    """The others must pin keys that this partner holds, and none that anybody slipped in beside them."""
    name = enrolment.request.name
    entry = next((request for request in federation.partners if request.name == name), None)
    if entry is None:
        raise DataError(f"Expected {name} in the bundle's roster, got none: not enrolled yet, or revoked.")
    own = set(enrolment.request.identities)
    if before is not None and name in before.peers:
        own |= {key.text for key in before.peers[name].keys}
    if not set(entry.identities) <= own:
        raise IntegrityError(f"Expected the keys of {name} in the bundle's roster, got another's.")


def _check_fingerprint(review: Review, told: str | None, confirm: Callable[[Review], bool] | None) -> None:
    if told is not None:
        if not same_fingerprint(told, review.bundle.fingerprint):
            raise IntegrityError(
                f"Expected the fingerprint that was read out, the bundle's is {review.bundle.fingerprint}."
            )
        return
    if not review.needs_voice:
        return
    if confirm is None:
        raise ConfigError(
            "Expected --fingerprint, as the coordinator reads it out: no signature shows who belongs to the federation."
        )
    if not confirm(review):
        raise IntegrityError("Expected a fingerprint that both sides read alike: nothing was changed.")


def _settings(folder: Path, name: str, federation: Federation, floor: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of ``partner.toml``: what is there, with the pins of the bundle."""
    file = folder / PARTNER_FILE
    told: dict[str, Any] = tomllib.loads(file.read_text("utf-8")) if file.exists() else {"name": name, "data": DATA}
    policy = {**told.get("policy", {}), **floor, "server_key": _spelled(federation.server)}
    missing = [key for key in ("max_epsilon", "max_delta", "min_cohort") if key not in policy]
    if missing and not told.get("simulated", False):
        privacy, fed = federation.config.privacy, federation.config.federation
        options = ", ".join("--" + key.replace("_", "-") for key in missing)
        raise ConfigError(
            f"Expected the partner's own {options}; the federation asks for epsilon={privacy.epsilon:g}, "
            f"delta={privacy.delta:g} and sums of at least {fed.survivors} partners."
        )
    return {**told, "policy": policy, "peers": {name: _spelled(pin) for name, pin in federation.roster.items()}}


def _spelled(pin: Pin) -> str | list[str]:
    texts = [key.text for key in pin.keys]
    return texts[0] if len(texts) == 1 else texts


def _write_node(folder: Path, federation: Federation) -> None:
    socket = SOCKET
    if (folder / NODE_FILE).exists():
        socket = str(tomllib.loads((folder / NODE_FILE).read_text("utf-8")).get("socket", SOCKET))
    write_bytes(folder / AUTHORITY_FILE, federation.authority.encode())
    NodeSettings(address=federation.address, bundles=federation.bundles, socket=socket).write(folder)
