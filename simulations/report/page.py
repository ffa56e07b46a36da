"""Puts the parts together and writes ``report.html``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from simulations.report import sections
from simulations.report.markup import Html, element
from simulations.report.rounds import curves
from simulations.report.source import Run, read_run
from simulations.report.style import CSS

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page may load nothing and run nothing, whatever a name in the data looks like."""


def render(run_dir: Path) -> Path:
    """Write the report of a run folder.

    Parameters
    ----------
    run_dir : Path
        Folder with ``run.json`` and, if rounds were run, ``rounds.jsonl``.

    Returns
    -------
    Path
        ``report.html`` in that folder. The same run gives the same bytes.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names file and field. An older report stays as it was.
    """
    page = document(read_run(run_dir))
    target = run_dir / "report.html"
    handle, temporary = tempfile.mkstemp(dir=run_dir, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.write(page)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def document(run: Run) -> str:
    """The whole page as text."""
    return html_page(
        f"{sections.title(run)}: Veilrec run report",
        CSS,
        element(
            "main",
            sections.header(run),
            sections.reach(run),
            sections.results(run),
            curves(run),
            sections.costs(run),
            sections.partners(run),
            sections.configuration(run),
        ),
    )


def html_page(title: str, css: str, *body: Html | None) -> str:
    """A page that loads nothing: head with title, policy and style sheet, and what is in `body`."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=CONTENT_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        # A style sheet is not character data: escaping would break its quotes.
        element("style", Html(css)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *body), lang='en')}\n"
