"""Whom the coordinator admits: its own signing key and the pinned identities of all partners.

``server.key`` and ``identities.json`` lie in one folder, in simulations the federation's root. Identities come
to it out of band: a key that a message brings is never trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigError, VeilrecError
from shared.files import write_json
from shared.hazmat.signing import Pin, SigningKey, VerifyKey, distinct, pin

SERVER_KEY_FILE, IDENTITIES_FILE = "server.key", "identities.json"
PARTNER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Admission:
    """What the coordinator knows of itself and of the partners.

    Attributes
    ----------
    key : SigningKey
        Signs round plans; partners have its public part pinned.
    identities : mapping of str to Pin
        By the partners' names; two keys where a partner changes its own.

    Raises
    ------
    ConfigError
        If there are no partners, a name cannot be one, or two parties have one key.
    """

    key: SigningKey = field(repr=False)
    identities: Mapping[str, Pin] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.identities:
            raise ConfigError("identities: Expected at least one partner.")
        for name in self.identities:
            if not PARTNER_NAME.fullmatch(name):
                raise ConfigError(f"identities: Expected names of 1 to 64 of A-Z a-z 0-9 . _ -, got {name!r}.")
        if not distinct([self.key.public, *self.identities.values()]):
            raise ConfigError("identities: Expected another key for every partner and the coordinator.")

    @classmethod
    def open(cls, folder: Path) -> Admission:
        """Read ``server.key`` and ``identities.json``.

        Raises
        ------
        ConfigError
            If one of them is absent or cannot be read, others may read the key, or identities are not as expected.
        DataError
            If ``server.key`` holds no Ed25519 key.
        """
        identities = _read_identities(folder / IDENTITIES_FILE)
        return cls(SigningKey.load(folder / SERVER_KEY_FILE), identities)

    @classmethod
    def create(cls, folder: Path, identities: Mapping[str, Pin]) -> Admission:
        """Write ``identities.json``, and ``server.key`` unless there is one: partners may have it pinned.

        Raises
        ------
        ConfigError
            As `Admission` says; ``identities.json`` is then left as it was.
        """
        admission = cls(SigningKey.load_or_create(folder / SERVER_KEY_FILE), dict(identities))
        write_identities(folder, identities)
        return admission


def write_identities(folder: Path, identities: Mapping[str, Pin]) -> None:
    """Write ``identities.json``: a name and its key, or its two keys."""
    told = {name: [key.text for key in keyed.keys] for name, keyed in sorted(identities.items())}
    write_json(folder / IDENTITIES_FILE, {name: keys[0] if len(keys) == 1 else keys for name, keys in told.items()})


def _read_identities(file: Path) -> dict[str, Pin]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({type(error).__name__}). Expected JSON of names and keys."
        ) from None
    if not isinstance(told, dict):
        raise ConfigError(f"{file}: Expected a JSON object of names and keys.")
    return {name: _read_pin(file, name, value) for name, value in told.items()}


def _read_pin(file: Path, name: str, value: object) -> Pin:
    if not isinstance(value, list):
        return _read_key(file, name, value)
    try:
        return pin(_read_key(file, name, text) for text in value)
    except VeilrecError as error:
        raise ConfigError(f"{file}: {name}: {error}") from None


def _read_key(file: Path, name: str, text: object) -> VerifyKey:
    if not isinstance(text, str):
        raise ConfigError(f"{file}: {name}: Expected a key as text.")
    try:
        return VerifyKey.from_text(text)
    except VeilrecError as error:
        raise ConfigError(f"{file}: {name}: {error}") from None
