"""The versions of a coordinator's releases, and its signature over each.

``releases.json`` lies beside ``server.key``: partners refuse what is older than what they had from this key, so that
the two are kept, and restored from a backup, together.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from filelock import FileLock

from server.admission import Admission
from shared.errors import IntegrityError
from shared.files import write_json
from shared.release_signature import signature_text

RELEASES_FILE = "releases.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


class ReleaseBook:
    """What a coordinator has released, in order: a release's version is its place, from 1.

    Parameters
    ----------
    home : Path
        The coordinator's own folder, the same for all runs.
    admission : Admission
        Holds the key that signs.
    """

    def __init__(self, home: Path, admission: Admission) -> None:
        self._file, self._key = home / RELEASES_FILE, admission.key

    def version_of(self, digest: str) -> int:
        """The version of a release by its digest: the next one, or the one that the same release was given before.

        A run that was killed while it released, and is resumed, so makes the same release again to the byte.

        Raises
        ------
        IntegrityError
            If the file does not hold what was released.
        """
        with FileLock(f"{self._file}.lock"):  # two runs that end at once would get one version
            released = self._read()
            if digest not in released:
                released.append(digest)
                write_json(self._file, released)
            return released.index(digest) + 1

    def sign(self, manifest: bytes) -> bytes:
        """What ``manifest.sig`` holds for these bytes."""
        return signature_text(self._key, manifest)

    def _read(self) -> list[str]:
        try:
            told: Any = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else []
            if not isinstance(told, list) or len(set(told)) < len(told):
                raise ValueError
            if not all(DIGEST.fullmatch(digest) for digest in told):
                raise ValueError
        except (OSError, ValueError, TypeError, RecursionError):
            raise IntegrityError(f"{self._file}: Expected the digests of all releases, in order.") from None
        return told
