"""What an archive says of itself: every file of it with size, mode and SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from shared.errors import IntegrityError

FORMAT = 1
MANIFEST = "manifest.json"
STAGING = ".restore-"
Kind = Literal["server", "partner"]

_PART = re.compile(r"(?!\.\.?\Z)[^/\\\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of an archive."""

    name: str
    size: int
    mode: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds.

    Attributes
    ----------
    kind : {"server", "partner"}
    name : str
        Whose: the partner's name; empty for a coordinator.
    version : str
        Of Veilrec.
    created : str
        ISO 8601, UTC.
    files : tuple of Kept
    """

    kind: Kind
    name: str
    version: str
    created: str
    files: tuple[Kept, ...]


def check_name(name: str, archive: Path) -> None:
    """Refuse a name that leads out of one folder, or that a terminal would act on.

    Raises
    ------
    IntegrityError
        Names the archive, not the name.
    """
    parts = name.split("/")
    plain = str(PurePosixPath(name)) == name and all(_PART.fullmatch(part) for part in parts)
    if not plain or name == MANIFEST or parts[0].startswith(STAGING):
        raise IntegrityError(f"{archive}: Expected names of files within one folder, got another.")


def encode(manifest: Manifest) -> bytes:
    """The one spelling of a manifest, with the SHA-256 of what it says."""
    told = {"format": FORMAT, **asdict(manifest)}
    return json.dumps({**told, "sha256": _digest(told)}, indent=1).encode() + b"\n"


def decode(data: bytes) -> Manifest:
    """Read what `encode` wrote.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it is in any byte another.
    """
    told: dict[str, Any] = json.loads(data)
    digest = told.pop("sha256")
    if told.pop("format") != FORMAT:
        raise ValueError
    files = tuple(Kept(**kept) for kept in told.pop("files"))
    manifest = Manifest(**told, files=files)
    if digest != _digest({"format": FORMAT, **asdict(manifest)}) or encode(manifest) != data:
        raise ValueError
    return manifest


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
