"""``intake.toml`` of a partner: where rows come from, how often, what is scrubbed and how long it is kept.

::

    every = "1h"
    scrub = "rules"                  # rules, presidio or off
    retention_days = 730

    [[sources]]
    kind = "files"
    name = "till"
    folder = "drops"                 # beside intake.toml, or absolute
    pattern = "*.csv"
    columns = { user = "customer", item = "sku", timestamp = "sold_at", review = "comment" }

    [[sources]]
    kind = "database"
    name = "shop"
    url_env = "SHOP_DATABASE"        # or url_file = "shop.url": never the URL itself, which may hold a password
    table = "events"                 # or one SELECT
    watermark = "updated_at"
    overlap = "10m"

    [ranking]
    state = "/var/lib/veilrec/serve" # of `veilrec serve`, so that an erasure reaches its store
"""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from client.data.formats.columns import ColumnMapping
from shared.errors import ConfigError
from shared.settings_file import read_toml, settings_of

INTAKE_FILE = "intake.toml"
DURATION = re.compile(r"(\d{1,6}) ?([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EXPECTED_DURATION = "Expected a duration such as 30s, 10m, 1h or 7d"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Text = Annotated[str, Field(min_length=1)]


def seconds_of(text: str) -> int:
    """A duration in seconds; ``ValueError`` if it is none."""
    found = DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError(EXPECTED_DURATION)
    return int(found[1]) * SECONDS[found[2]]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Source(_Strict):
    """What all sources have."""

    name: Name
    columns: dict[str, Text] = {}

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        known = [field.name for field in fields(ColumnMapping)]
        if not set(columns) <= set(known):
            raise ValueError(f"Expected keys among {', '.join(known)}")
        return columns

    @property
    def mapping(self) -> ColumnMapping | None:
        """Which column is what; None where known names are recognised."""
        return ColumnMapping(**self.columns) if self.columns else None


class FileSource(_Source):
    """Files that appear whole in a folder: CSV, TSV, parquet or JSON lines, plain or .gz."""

    kind: Literal["files"]
    folder: Text
    pattern: Text = "*"
    after: Literal["keep", "delete"] = "keep"


class DatabaseSource(_Source):
    """A table or query that is read from its watermark on."""

    kind: Literal["database"]
    url_env: Text | None = None
    url_file: Text | None = None
    table: Text
    watermark: Text
    overlap: str | int | float | None = None

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if (self.url_env is None) == (self.url_file is None):
            raise ValueError("Expected one of url_env and url_file")
        if isinstance(self.overlap, str):
            seconds_of(self.overlap)
        elif self.overlap is not None and self.overlap < 0:
            raise ValueError("overlap: Expected no negative number")
        return self

    def url(self, folder: Path) -> str:
        """The URL, from the environment or a file.

        Raises
        ------
        ConfigError
            If it is not there, or others than the owner may read the file.
        """
        if self.url_env is not None:
            found = os.environ.get(self.url_env, "").strip()
            where = f"the environment variable {self.url_env}"
        else:
            file = folder / str(self.url_file)
            where = str(file)
            try:
                if os.name == "posix" and file.stat().st_mode & 0o077:
                    raise ConfigError(f"{where}: Expected mode=0600: others than its owner may read a password.")
                found = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                found = ""
        if not found:
            raise ConfigError(f"{where}: Expected the URL of the database of source {self.name}, there is none.")
        return found


class Ranking(_Strict):
    """The local ranking service of the partner, as far as an erasure must reach it."""

    state: Text
    url_env: Text | None = None
    caches: list[Text] = []


class IntakeSettings(_Strict):
    """``intake.toml``. Without the file there is no source, and nothing is scrubbed but what comes later."""

    every: str = "1h"
    scrub: Literal["rules", "presidio", "off"] = "rules"
    retention_days: Annotated[int, Field(ge=1)] | None = None
    sources: list[Annotated[FileSource | DatabaseSource, Field(discriminator="kind")]] = []
    ranking: Ranking | None = None

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if seconds_of(self.every) < 1:
            raise ValueError("every: Expected at least 1s")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("sources: Expected another name for every source")
        return self

    @classmethod
    def read(cls, folder: Path, *, required: bool = False) -> Self:
        """Read ``intake.toml`` of a partner's folder.

        Raises
        ------
        ConfigError
            If it is not there although `required`, or a key in it is not what was expected.
        """
        file = folder / INTAKE_FILE
        if not required and not file.exists():
            return cls()
        absent = f"{file}: Expected a file that says where rows come from, there is none."
        return settings_of(cls, read_toml(file, absent), file)
