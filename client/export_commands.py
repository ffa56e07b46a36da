"""``veilrec export``: a release for other runtimes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What another runtime reads."""

    onnx = "onnx"
    sentence_transformers = "sentence-transformers"
    all = "all"


def export(
    data: Annotated[str, typer.Option(help="Data whose catalogue the adapter was trained with; only items are read.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    run: Annotated[Path | None, typer.Option(help="Run folder with an adapter.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter's own folder.")] = None,
    trust: Annotated[list[str] | None, typer.Option(help="The coordinator's public key, or a file of keys.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.all,
) -> None:
    """Write a release as ONNX graphs and as a sentence encoder, to rank without Veilrec. Nothing private is in it."""
    from client.data.cleaning import clean
    from client.data.ingest import data_home
    from client.data.text_cache import TextCache
    from client.ranking.export import FORMATS, export_release
    from client.ranking.rank import data_of
    from shared.catalogue import build_catalogue
    from shared.errors import ConfigError
    from shared.release_signature import read_trust

    if (run is None) == (adapter is None):
        raise ConfigError("Expected one of --run and --adapter.")
    folder = adapter if adapter is not None else Path(str(run)) / "adapter"
    catalogue = build_catalogue(clean(data_of(folder.parent, data))[0].items)
    cache = TextCache(data_home().parent / "cache" / "text-vectors.sqlite")
    formats = FORMATS if format_ is Format.all else frozenset({format_.value})
    keys = read_trust(trust) if trust else None
    typer.echo(str(export_release(folder, catalogue, out, cache, formats=formats, trust=keys)))
