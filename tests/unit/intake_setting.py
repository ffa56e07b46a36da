"""A partner with a catalogue of lamps, a drop folder and an ``intake.toml``, for the tests of the intake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import tomli_w

from client.data.formats.columns import ITEM_COLUMNS
from client.data.formats.files import parquet_table
from client.data.ingest import INTERACTIONS_FILE, ITEMS_FILE
from client.intake.commit import IntakeFolder
from client.intake.gathering import read_rejects
from client.intake.importing import ImportReport, import_once
from client.intake.preparing import FORM
from client.premises import Premises, write_partner

NOW = 1_700_000_000.0
DAY = 86_400
ITEMS = 6
Row = tuple[str, str, int, str, float | None, str]


def row(
    user: str, item: int = 0, at: int = 0, kind: str = "purchase", rating: float | None = None, review: str = ""
) -> Row:
    """One event, `at` seconds before now."""
    return user, f"item {item}", int(NOW) - at, kind, rating, review


@dataclass(frozen=True)
class Shop:
    """A partner and where its files are dropped."""

    premises: Premises

    @property
    def folder(self) -> Path:
        """The partner's."""
        return self.premises.folder

    @property
    def place(self) -> IntakeFolder:
        """Of its intake."""
        return IntakeFolder(self.premises)

    @property
    def drops(self) -> Path:
        """Where files appear."""
        return self.folder / "drops"

    def configure(self, **told: Any) -> None:
        """Write ``intake.toml``; by default one source of files, without a scrubber."""
        source = {"kind": "files", "name": "till", "folder": "drops"}
        settings = {"scrub": "off", "sources": [source], **told}
        (self.folder / "intake.toml").write_text(tomli_w.dumps(settings))

    def drop(self, name: str, rows: Sequence[Row]) -> Path:
        """A file that appears whole; its form by its name."""
        frame = pl.DataFrame(list(rows), schema=FORM, orient="row")
        fresh, path = self.drops / f".{name}", self.drops / name
        match path.suffix:
            case ".parquet":
                frame.write_parquet(fresh)
            case ".jsonl":
                frame.write_ndjson(fresh)
            case _:
                frame.write_csv(fresh)
        return fresh.rename(path)

    def take(self, now: float = NOW) -> ImportReport:
        """One import."""
        return import_once(self.premises, now=now, wait_s=0.2)

    def rows(self) -> list[Row]:
        """The data set, in an order of its own."""
        file = self.premises.data / INTERACTIONS_FILE
        return sorted(parquet_table(file).frame.rows(), key=repr) if file.exists() else []

    def rejects(self) -> list[tuple[Any, ...]]:
        """What is set aside, without when."""
        return sorted(read_rejects(self.place).drop("rejected").rows(), key=repr)

    def hold(self, rows: Sequence[Row]) -> None:
        """Give the partner data that no import brought."""
        pl.DataFrame(list(rows), schema=FORM, orient="row").write_parquet(self.premises.data / INTERACTIONS_FILE)


def open_shop(folder: Path, **told: Any) -> Shop:
    """A new partner; `told` goes to `Shop.configure`."""
    data = folder / "data"
    data.mkdir(parents=True)
    (folder / "drops").mkdir()
    items = {name: [f"item {k}" if name == "item_id" else f"Lamp {k}" for k in range(ITEMS)] for name in ITEM_COLUMNS}
    pl.DataFrame(items).write_parquet(data / ITEMS_FILE)
    premises = write_partner(folder, {"name": "shop", "simulated": True, "data": "data"})
    shop = Shop(premises)
    shop.configure(**told)
    return shop
