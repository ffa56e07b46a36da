"""Files of ``personal/`` on a partner's premises: what it adds of its own to one release, and never sends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.adapter import Release
from shared.errors import AdapterMismatchError, IntegrityError, PolicyViolationError
from shared.files import write_bytes

PERSONAL_FOLDER = "personal"
Arrays = Mapping[str, NDArray[np.float32]]


class Personal:
    """What is a partner's own: bound to the release that it was made for, and refusing to be pickled.

    A pickle is a way out of the premises: Ray, for one, sends what it is given as one.
    """

    __slots__ = ()
    release: str
    """Fingerprint."""

    def check(self, release: Release) -> None:
        """Refuse another release.

        Raises
        ------
        AdapterMismatchError
        """
        if release.fingerprint != self.release:
            raise AdapterMismatchError(f"Expected the release with fingerprint={self.release}, got another.")

    def __reduce__(self) -> NoReturn:
        """Refuse.

        Raises
        ------
        PolicyViolationError
            Always.
        """
        raise PolicyViolationError(
            "Expected what a partner adds of its own to stay on its premises: it is not pickled."
        )


def keep(premises: Path, name: str, arrays: Arrays, told: Mapping[str, str]) -> None:
    """Write a file of ``personal/``, readable by its owner alone."""
    write_bytes(premises / PERSONAL_FOLDER / name, save(dict(arrays), dict(told)))


def kept(premises: Path, name: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]] | None:
    """What `keep` wrote; None where there is nothing.

    Raises
    ------
    IntegrityError
        If it cannot be read.
    """
    file = premises / PERSONAL_FOLDER / name
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="np") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError):
        raise damaged(premises, name) from None


def damaged(premises: Path, name: str) -> IntegrityError:
    """The error of a file that does not hold what was kept."""
    file = premises / PERSONAL_FOLDER / name
    return IntegrityError(f"{file}: Expected a partner's own {file.stem}.")
