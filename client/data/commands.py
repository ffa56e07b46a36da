"""``veilrec data import`` and ``veilrec data describe``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.data.ingest import RawData

app = typer.Typer(no_args_is_help=True, help="Convert and inspect data sets.")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = "marketplace"
QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
FIRST_REAL_TIME = 10**8  # March 1973: smaller timestamps are ordinals, not times


@app.callback()
def _data() -> None:
    """Convert and inspect data sets."""


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="File or folder, its form told from its content; or a database: sqlite:///PATH, postgresql://USER@HOST/NAME."
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: the set NAME in the home of data sets.")
    ] = None,
    items: Annotated[
        str | None, typer.Option(help="File with the catalogue, where it is apart. Of a database: TABLE or SELECT.")
    ] = None,
    interactions: Annotated[str | None, typer.Option(help="Of a database: TABLE, SCHEMA.TABLE or one SELECT.")] = None,
    mapping: Annotated[
        str | None, typer.Option(help="Columns of a table: user=COLUMN,item=COLUMN,timestamp=COLUMN,...")
    ] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="One column: user=COLUMN. May be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set. Default: that of SOURCE.")] = None,
) -> None:
    """Convert a data set to the parquet form: interactions.parquet and items.parquet."""
    from client.data.ingest import ColumnMapping, read, write

    pairs = ([mapping] if mapping else []) + (map_ or [])
    data = read(
        source,
        mapping=ColumnMapping.parse(pairs) if pairs else None,
        items=items,
        interactions=interactions,
        name=name,
    )
    folder = out or _named_folder(data.name)
    write(data, folder)
    counts = f"{data.interactions.height:,} interactions and {data.items.height:,} items"
    typer.echo(f"{data.name}: wrote {counts} to {folder}", err=True)


@app.command()
def describe(
    path: Annotated[Path, typer.Argument(help="File or folder in any form that import understands.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Count what a data set holds, after cleaning, and say what cleaning did."""
    from client.data.ingest import read

    found = facts(read(path))
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(_lines(found)))


def facts(data: RawData) -> dict[str, Any]:
    """Counts, shares and spans of a data set after cleaning, as JSON values.

    They are for the partner's own eyes: nothing is noised, so they must not leave.

    Parameters
    ----------
    data : RawData
        As read.

    Returns
    -------
    dict
        name, users, items, interactions, events (interactions by kind), share_with_review, share_with_rating,
        density (interactions / (users x items)), time_span (ISO dates; None for ordinals),
        interactions_per_user (quantiles), cleaning (`client.data.cleaning.CleaningReport`).

    Raises
    ------
    EmptyHistoryError
        If cleaning leaves nothing.
    """
    from client.data.cleaning import clean

    cleaned, report = clean(data)
    frame, items = cleaned.interactions, cleaned.items.height
    per_user = frame.get_column("user_id").value_counts().get_column("count")
    times = frame.get_column("timestamp").to_numpy()
    return {
        "name": data.name,
        "users": len(per_user),
        "items": items,
        "interactions": frame.height,
        "events": dict(frame.get_column("event").value_counts().sort("event").iter_rows()),
        "share_with_review": round((frame.get_column("review") != "").sum() / frame.height, 4),
        "share_with_rating": round(frame.get_column("rating").count() / frame.height, 4),
        "density": round(frame.height / (len(per_user) * items), 6),
        "time_span": _span(int(times.min()), int(times.max())),
        "interactions_per_user": {
            label: int(per_user.quantile(share, "nearest") or 0) for label, share in QUANTILES.items()
        },
        "cleaning": asdict(report),
    }


def _span(first: int, last: int) -> list[str] | None:
    if last < FIRST_REAL_TIME:
        return None
    return [datetime.fromtimestamp(time, UTC).date().isoformat() for time in (first, last)]


def _named_folder(name: str) -> Path:
    from client.data.ingest import data_home
    from shared.errors import ConfigError

    if not NAME.fullmatch(name) or name == RESERVED:
        raise ConfigError(f"Expected a name of letters, digits, '.', '_' and '-' other than {RESERVED}; see --name.")
    return data_home() / name


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    """The facts for a person: one a line, what belongs together indented; inner zeros are left out."""
    lines: list[str] = []
    for key, value in found.items():
        label = f"{indent}{str(key).replace('_', ' ')}"
        if isinstance(value, dict):
            lines += [label, *_lines({k: v for k, v in value.items() if v}, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{label:<36} {' to '.join(value)}")
        else:
            lines.append(f"{label:<36} {f'{value:,}' if isinstance(value, int | float) else value or 'ordinal'}")
    return lines
