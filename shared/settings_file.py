"""Files of settings that people write: TOML, read strictly, and one clear error that quotes no value."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.errors import ConfigError

S = TypeVar("S", bound=BaseModel)
_PLACE = re.compile(r"at (?:line \d+, column \d+|end of document)")


def read_toml(file: Path, absent: str) -> dict[str, Any]:
    """The tree of a TOML file.

    Parameters
    ----------
    file : Path
    absent : str
        What to say where there is none.

    Raises
    ------
    ConfigError
        If it is absent, cannot be read, or is no TOML.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(absent) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__}). Expected TOML in UTF-8.") from None
    return parse_toml(text, file)


def parse_toml(text: str, file: Path) -> dict[str, Any]:
    """The tree of a text.

    Raises
    ------
    ConfigError
        If it is no TOML; says where, and not what stands there, which may be a password.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = _PLACE.search(str(error))
        raise ConfigError(f"{file}: Expected TOML: not so {found[0] if found else 'here'}.") from None


def settings_of(kind: type[S], told: Mapping[str, Any], file: Path) -> S:
    """A tree of settings as its type.

    Raises
    ------
    ConfigError
        Names the first wrong key, a misspelt one before those that are missed for it, and what was expected.
    """
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    first = min(found, key=lambda one: one["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {what}." if where else f"{what}."
