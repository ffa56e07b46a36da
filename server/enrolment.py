"""The coordinator's home: made once, and kept in step with whom it enrols and revokes.

``partners.json`` is the truth; ``identities.json``, ``app/`` and ``bundle/`` follow from it and from the settings. A
command that was killed is run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from server.admission import SERVER_KEY_FILE, write_identities
from server.app_bundle import build_app
from server.partners import PARTNERS_FILE, Registry
from server.settings import SERVER_FILE, ServerSettings
from shared.catalogue import read_catalogue
from shared.config import RunConfig, load_config
from shared.enrolment import FORMAT, EnrolmentRequest
from shared.errors import ConfigError, VeilrecError
from shared.federation_bundle import (
    FEDERATION_FILE,
    ITEMS_FILE,
    Bundle,
    Federation,
    read_bundle,
    split_address,
    write_bundle,
)
from shared.files import write_bytes, write_json
from shared.hazmat.certificates import CertificateFacts, create_authority, issue_server_certificate
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, Passphrase, wanted_passphrase
from shared.hazmat.signing import SigningKey

CONFIG_FILE, BUNDLE = "config.json", "bundle"
AUTHORITY_KEY, AUTHORITY, TLS_KEY, TLS_CERTIFICATE = "ca.key", "ca.crt", "tls.key", "tls.crt"
NEXT_KEY_FILE = "server.next.key"
LEAST_VERSION = "0.1.0"
"""The oldest installation of a partner that these exchanges work with."""


@dataclass(frozen=True, slots=True)
class Made:
    """A new home.

    Attributes
    ----------
    public_key : str
        The coordinator's.
    certificate : CertificateFacts
        Of the server.
    app : str
        SHA-256 of the Flower app.
    passphrase_file_made : bool
        Whether the passphrase's file was made: it belongs elsewhere than the backups.
    """

    public_key: str
    certificate: CertificateFacts
    app: str
    passphrase_file_made: bool


def init_home(home: Path, address: str, items: Path, config: RunConfig, passphrase_file: Path | None = None) -> Made:
    """Make a coordinator's home: authority, server certificate, own key, app, catalogue, configuration.

    Raises
    ------
    ConfigError
        If there is one already, there is no passphrase, or the configuration is that of a simulation.
    SchemaError
        If the items are no catalogue.
    """
    if (home / SERVER_FILE).exists():
        raise ConfigError(f"{home}: Expected a new folder, got a coordinator's home.")
    if config.simulation:
        raise ConfigError("simulation: Expected false: partners with real data refuse a simulation's plan.")
    settings = ServerSettings(address=_checked(address))
    read_catalogue(items)
    passphrase, made = wanted_passphrase(passphrase_file)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(home / ITEMS_FILE, items.read_bytes())
    write_json(home / CONFIG_FILE, config.model_dump(mode="json"))
    key = SigningKey.load_or_create(home / SERVER_KEY_FILE, passphrase)
    create_authority(home / AUTHORITY_KEY, home / AUTHORITY, "veilrec federation", passphrase)
    certificate = _issue_certificate(home, settings, passphrase)
    app = build_app(home)
    if not (home / PARTNERS_FILE).exists():
        Registry().save(home)
    write_identities(home, {})
    settings.write(home)  # last: a home is one once this is there
    return Made(key.public.text, certificate, app, made)


def enroll(home: Path, requests: Sequence[Path], passphrase: Passphrase | None = None) -> Bundle:
    """Take requests, all or none, and issue the bundle that follows; without news the one that is there.

    Without requests: issue what an upgrade or a changed configuration makes of the same partners.

    Raises
    ------
    DataError, InvalidSignatureError
        If a request is not one, or not signed by all its keys.
    ConfigError, ReplayError
        See `server.partners.Registry.admit`.
    """
    told = [EnrolmentRequest.read(file) for file in requests]
    with locked(home):
        registry, (server_keys, _) = Registry.open(home), _server_keys(home, passphrase)
        for request in told:
            registry = registry.admit(request, server_keys)
        return _issue(home, registry, passphrase)


def revoke(home: Path, name: str, passphrase: Passphrase | None = None) -> Bundle:
    """Take a partner out of the registry and the roster, for good.

    Raises
    ------
    ConfigError
        If there is no such active partner.
    """
    with locked(home):
        return _issue(home, Registry.open(home).revoke(name), passphrase)


def renew(home: Path, passphrase: Passphrase | None = None) -> CertificateFacts:
    """Make a new server certificate, with a new key; partners need nothing new."""
    with locked(home):
        return _issue_certificate(home, ServerSettings.open(home), key_passphrase(passphrase))


def _issue(home: Path, registry: Registry, passphrase: Passphrase | None) -> Bundle:
    """Save the registry and what follows from it; the serial goes up if the bundle says anything new."""
    names, keys = _server_keys(home, passphrase)
    items = (home / ITEMS_FILE).read_bytes()
    folder = home / BUNDLE

    def federation(serial: int) -> Federation:
        return Federation(
            format=FORMAT,
            least_version=LEAST_VERSION,
            serial=serial,
            server_keys=names,
            authority=(home / AUTHORITY).read_text("ascii"),
            address=ServerSettings.open(home).address,
            partners=tuple(record.request for record in registry.active),
            bundles=(build_app(home),),
            catalogue=read_catalogue(home / ITEMS_FILE).digest,
            items_sha256=hashlib.sha256(items).hexdigest(),
            config=load_config(home / CONFIG_FILE),
        )

    current = federation(max(registry.serial, 1))
    if registry.serial == 0 or not _is_issued(folder, current):
        # Counted before it is written: a serial that was given out is never given to another content.
        registry = Registry(serial=registry.serial + 1, partners=registry.partners)
        current = federation(registry.serial)
    registry.save(home)
    write_identities(home, current.roster)
    return write_bundle(folder, current, keys, items)


def _is_issued(folder: Path, federation: Federation) -> bool:
    try:
        return (folder / FEDERATION_FILE).read_bytes() == federation.to_bytes() and bool(read_bundle(folder).items())
    except (OSError, VeilrecError):
        return False


def _server_keys(home: Path, passphrase: Passphrase | None) -> tuple[tuple[str, ...], list[SigningKey]]:
    """The coordinator's key, and its next one while it is being changed."""
    files = [home / SERVER_KEY_FILE, home / NEXT_KEY_FILE]
    keys = [SigningKey.load(file, passphrase) for file in files if file == files[0] or file.exists()]
    return tuple(key.public.text for key in keys), keys


def _issue_certificate(home: Path, settings: ServerSettings, passphrase: Passphrase) -> CertificateFacts:
    host = split_address(settings.address)[0]
    authority = (home / AUTHORITY_KEY, home / AUTHORITY)
    return issue_server_certificate(authority, home / TLS_KEY, home / TLS_CERTIFICATE, [host], passphrase)


def _checked(address: str) -> str:
    split_address(address)
    return address


def key_passphrase(passphrase: Passphrase | None) -> Passphrase:
    """The passphrase that was given, else the environment's.

    Raises
    ------
    ConfigError
        If there is none: the coordinator's keys are always encrypted.
    """
    told = passphrase or Passphrase.of_environment()
    if told is None:
        raise ConfigError(f"Expected the passphrase of the coordinator's keys: {PASSPHRASE_VARIABLE} names no file.")
    return told


def locked(home: Path) -> FileLock:
    """One command at a time on a home.

    Raises
    ------
    ConfigError
        If it is none.
    """
    if not (home / SERVER_FILE).exists():
        raise ConfigError(f"{home}: no {SERVER_FILE}. Expected a folder that `veilrec server init` made.")
    return FileLock(home / "enrolment.lock", timeout=60)
