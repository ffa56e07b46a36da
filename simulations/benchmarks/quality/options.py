"""What the command line says, as a `Study`."""

from __future__ import annotations

from pathlib import Path

from client.data.ingest import data_home
from shared.errors import ConfigError

NO_PRIVACY = "none"


def names_of(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def epsilons_of(text: str) -> tuple[float | None, ...]:
    """Numbers above 0 with commas between, or `NO_PRIVACY`.

    Raises
    ------
    ConfigError
        If an entry is neither.
    """
    try:
        return tuple(None if name == NO_PRIVACY else float(name) for name in names_of(text))
    except ValueError:
        raise ConfigError("Expected --epsilons as numbers or none with commas between, as in none,8,3,1.") from None


def default_cache() -> Path:
    """Where results are kept: beside the imported data sets."""
    return data_home().parent / "cache" / "quality"
