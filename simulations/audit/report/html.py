"""Blocks as one HTML page that loads nothing, for the screen, light and dark, and for paper."""

from __future__ import annotations

from simulations.audit.findings import Verdict
from simulations.audit.report.blocks import (
    Block,
    Chart,
    Claim,
    Document,
    Heading,
    Notice,
    Paragraph,
    Section,
    Table,
    Terms,
)
from simulations.report.markup import Html, element
from simulations.report.page import html_page
from simulations.report.style import CSS
from simulations.report.tables import table

LONG = 40
"""Rows that are shown at once: longer tables are folded on the screen."""
VERDICTS = frozenset(one.value for one in Verdict)
AUDIT_CSS = """
:root { --on-red: #ffffff; --on-amber: #ffffff; --green: #1d6b3f; --on-green: #ffffff; --green-panel: #e8f5ed; }
@media (prefers-color-scheme: dark) {
  :root { --on-red: #2a060b; --on-amber: #241a02; --green: #7fce9f; --on-green: #06210f; --green-panel: #14301f; }
}
.verdict { display: inline-block; border-radius: .3rem; padding: .05rem .5rem; font-weight: 700; letter-spacing: .02em;
  white-space: nowrap; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.verdict.PASS { background: var(--green); color: var(--on-green); }
.verdict.FAIL { background: var(--red); color: var(--on-red); }
.verdict.INCONCLUSIVE { background: var(--amber); color: var(--on-amber); }
.banner { position: sticky; top: 0; z-index: 1; margin: 0; max-width: none;
  padding: .45rem 1.25rem; font-weight: 700;
  text-align: center; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.banner.FAIL, .banner.none { background: var(--red); color: var(--on-red); }
.banner.PASS { background: var(--green); color: var(--on-green); }
.banner.INCONCLUSIVE { background: var(--amber); color: var(--on-amber); }
.claim { border: 3px solid var(--rule); border-radius: .6rem; padding: 1.1rem 1.4rem; margin: 1.5rem 0;
  break-inside: avoid; }
.claim.PASS { border-color: var(--green); background: var(--green-panel); }
.claim.FAIL, .claim.none { border-color: var(--red); background: var(--red-panel); }
.claim.INCONCLUSIVE { border-color: var(--amber); background: var(--amber-panel); }
.claim.none.PASS, .claim.none.INCONCLUSIVE { border-color: var(--red); background: var(--red-panel); }
.claim .verdict { font-size: 1.5rem; padding: .15rem .8rem; }
.claim .headline { font-size: 1.5rem; font-weight: 650; line-height: 1.3; margin: .8rem 0 .3rem; }
.claim.none .headline { color: var(--red); }
.claim p { max-width: none; }
dd { overflow-wrap: anywhere; min-width: 0; }
h3 { margin-top: 2.2rem; } h3 .verdict { margin-left: .6rem; font-size: .8rem; }
nav ul { columns: 2; padding-left: 1.1rem; } nav li { margin: .1rem 0; } a { color: var(--one); }
td, th { overflow-wrap: anywhere; } thead th { overflow-wrap: normal; white-space: normal; }
td.prose { text-align: left; } th.prose { text-align: left; }
figure { margin: 1rem 0; max-width: 42rem; }
@media print { .banner { position: static; } nav { display: none; }
  .wide { overflow: visible; } table { font-size: 8.5pt; } th, td { padding: .25rem .35rem; } }
"""
LABEL_CSS = """
@page { size: A4; margin: 12mm; }
main { max-width: 46rem; padding-top: 1.2rem; padding-bottom: 1rem; }
h2 { margin-top: 1.2rem; } dl { gap: .3rem 1rem; }
@media print { body { font-size: 9pt; line-height: 1.35; } h1 { font-size: 1.3rem; } .claim { padding: .6rem .9rem; } }
"""


def report_html(document: Document) -> str:
    """The report as text of a page."""
    links = element("ul", *(element("li", element("a", one.title, href=f"#{one.key}")) for one in document.sections))
    return _page(document, CSS + AUDIT_CSS, element("nav", links, aria_label="Contents"))


def label_html(document: Document) -> str:
    """The label as text of a page that prints on one sheet."""
    return _page(document, CSS + AUDIT_CSS + LABEL_CSS, None)


def _page(document: Document, css: str, contents: Html | None) -> str:
    verdict = document.claim.verdict.value
    banner = f"{verdict}: {document.claim.headline}"
    style = f"banner {'none' if document.claim.severe else verdict}"
    return html_page(
        document.title,
        css,
        element("p", banner, class_=style, role="status"),
        element(
            "main",
            element(
                "header",
                element("h1", document.title),
                element("p", document.subtitle, class_="soft"),
                _claim(document.claim),
            ),
            contents,
            *(_section(section) for section in document.sections),
        ),
    )


def _claim(claim: Claim) -> Html:
    verdict = claim.verdict.value
    return element(
        "div",
        element("span", verdict, class_=f"verdict {verdict}"),
        element("p", claim.meaning),
        element("p", claim.headline, class_="headline"),
        element("p", claim.promise),
        class_=f"claim {verdict}{' none' if claim.severe else ''}",
        role="note",
    )


def _section(section: Section) -> Html:
    return element("section", element("h2", section.title), *(_block(one) for one in section.blocks), id=section.key)


def _block(block: Block) -> Html:
    match block:
        case Paragraph(text, soft):
            return element("p", text, class_="soft" if soft else None)
        case Heading(text, verdict):
            badge = None if verdict is None else element("span", verdict.value, class_=f"verdict {verdict.value}")
            return element("h3", text, badge)
        case Notice(title, text, level):
            style = "notice severe" if level == "severe" else "notice"
            return element("div", element("strong", title), element("p", text), class_=style, role="note")
        case Terms(entries):
            parts = [part for name, text in entries for part in (element("dt", name), element("dd", text))]
            return element("dl", *parts)
        case Chart(title, svg, caption):
            return element("figure", element("strong", title), svg, element("figcaption", caption))
        case Table():
            return _table(block)


def _table(block: Table) -> Html:
    head = [_cell("th", name, k in block.prose, "col") for k, name in enumerate(block.head)]
    rows = [
        [_cell("td" if k else "th", cell, k in block.prose, None if k else "row") for k, cell in enumerate(row)]
        for row in block.rows
    ]
    drawn = table(block.caption, head, rows)
    if len(rows) <= LONG:
        return drawn
    return element("details", element("summary", f"{block.caption.rstrip('.')}: {len(rows)} rows"), drawn)


def _cell(name: str, text: str, prose: bool, scope: str | None) -> Html:
    content = element("span", text, class_=f"verdict {text}") if name == "td" and text in VERDICTS else text
    return element(name, content, scope=scope, class_="prose" if prose else None)
