"""The command ``veilrec audit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    audit: Annotated[Path, typer.Option(help="An audit.json, its folder, or the folder of the run.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; else the folder of audit.json.")] = None,
) -> None:
    """Write an audit's report and its one-page privacy label, as HTML and PDF."""
    from simulations.audit.report.files import render_subject
    from simulations.audit.report.source import read_subject

    subject, folder = read_subject(audit)
    for path in render_subject(subject, out or folder):
        typer.echo(str(path))
