"""Blocks as a PDF: embedded fonts, text that can be selected, vector charts, the verdict on every page.

reportlab reads tags in the text of paragraphs: all text goes through `pdf_text.markup`, which escapes it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulations.audit.findings import Verdict
from simulations.audit.report.blocks import (
    Block,
    Chart,
    Claim,
    Document,
    Heading,
    Notice,
    Paragraph,
    Table,
    Terms,
)
from simulations.audit.report.pdf_chart import chart_drawing
from simulations.audit.report.pdf_text import BOLD, COLOURS, REGULAR, markup, plain, register_fonts

if TYPE_CHECKING:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Flowable

MARGIN = 45.0
WIDTH, HEIGHT = 595.27, 841.89  # A4
INNER = WIDTH - 2 * MARGIN
ROOM = INNER - 14
"""Of a table: the frame has a padding of its own."""
CHART = 0.74 * INNER
TOGETHER = 90.0
"""A heading begins a new page where less than this is left."""
BADGES = {Verdict.PASS: "#1d6b3f", Verdict.FAIL: COLOURS["red"], Verdict.INCONCLUSIVE: COLOURS["amber"]}
PANELS = {Verdict.PASS: "#e8f5ed", Verdict.FAIL: COLOURS["red-panel"], Verdict.INCONCLUSIVE: COLOURS["amber-panel"]}
VERDICTS = {one.value: one for one in Verdict}


def report_pdf(document: Document) -> bytes:
    """The report; the same document gives the same bytes."""
    return _build(document, list(_story(document)))


def label_pdf(document: Document) -> bytes:
    """The label: exactly one page, set smaller where that is needed."""
    from reportlab.platypus import KeepInFrame

    height = HEIGHT - 2 * MARGIN - 14  # a frame has a padding of its own
    return _build(document, [KeepInFrame(ROOM, height, list(_story(document)), mode="shrink")])


def _build(document: Document, story: list[Flowable]) -> bytes:
    from reportlab.platypus import SimpleDocTemplate, Spacer

    held = io.BytesIO()
    template = SimpleDocTemplate(
        held,
        pagesize=(WIDTH, HEIGHT),
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=MARGIN,
        bottomMargin=MARGIN,
        title=plain(document.title),
        author="Veilrec",
        subject=plain(document.subtitle),
        lang="en",
        invariant=1,
    )
    footer = _footer(document)
    while isinstance(story[-1], Spacer):  # it would take a page of its own
        story.pop()
    template.build(story, onFirstPage=footer, onLaterPages=footer)
    return held.getvalue()


def _footer(document: Document) -> Callable[[Any, Any], None]:
    verdict = document.claim.verdict
    colour = COLOURS["red"] if document.claim.severe else BADGES[verdict]

    def draw(canvas: Any, template: Any) -> None:
        canvas.saveState()
        canvas.setFillColor(colour)
        canvas.rect(0, HEIGHT - 20, WIDTH, 20, stroke=0, fill=1)
        canvas.setFillColor("#ffffff")
        canvas.setFont(BOLD, 9)
        canvas.drawCentredString(WIDTH / 2, HEIGHT - 14, plain(f"{verdict.value}: {document.claim.headline}"))
        canvas.setFillColor(COLOURS["soft"])
        canvas.setFont(REGULAR, 7.5)
        canvas.drawString(MARGIN, 24, plain(document.footer)[:100])
        canvas.drawRightString(WIDTH - MARGIN, 24, f"page {template.page}")
        canvas.restoreState()

    return draw


@dataclass(frozen=True, slots=True)
class _Styles:
    body: ParagraphStyle
    soft: ParagraphStyle
    title: ParagraphStyle
    section: ParagraphStyle
    heading: ParagraphStyle
    cell: ParagraphStyle
    number: ParagraphStyle
    head: ParagraphStyle
    number_head: ParagraphStyle


def _styles() -> _Styles:
    from reportlab.lib.enums import TA_RIGHT
    from reportlab.lib.styles import ParagraphStyle

    register_fonts()
    ink, soft = COLOURS["ink"], COLOURS["soft"]
    body = ParagraphStyle("body", fontName=REGULAR, fontSize=9, leading=13, textColor=ink, spaceAfter=5)
    look = {"fontName": BOLD, "textColor": soft}
    cell = ParagraphStyle("cell", body, fontSize=7.5, leading=10, spaceAfter=0)
    return _Styles(
        body=body,
        soft=ParagraphStyle("soft", body, fontSize=8, leading=11.5, textColor=soft),
        title=ParagraphStyle("title", body, fontName=BOLD, fontSize=18, leading=23),
        section=ParagraphStyle("section", body, fontName=BOLD, fontSize=13, leading=17, spaceBefore=14, spaceAfter=6),
        heading=ParagraphStyle("heading", body, fontName=BOLD, fontSize=10.5, leading=15, spaceBefore=9, spaceAfter=4),
        cell=cell,
        number=ParagraphStyle("number", cell, alignment=TA_RIGHT),
        head=ParagraphStyle("head", cell, **look),
        number_head=ParagraphStyle("number_head", cell, alignment=TA_RIGHT, **look),
    )


def _story(document: Document) -> Iterator[Flowable]:
    from reportlab.platypus import CondPageBreak
    from reportlab.platypus import Paragraph as Text

    styles = _styles()
    yield Text(markup(document.title), styles.title)
    yield Text(markup(document.subtitle), styles.soft)
    yield from _claim(document.claim, styles)
    for section in document.sections:
        yield CondPageBreak(TOGETHER)
        yield Text(markup(section.title), styles.section)
        for block in section.blocks:
            yield from _block(block, styles)


def _claim(claim: Claim, styles: _Styles) -> Iterator[Flowable]:
    verdict = claim.verdict
    colour, panel = BADGES[verdict], PANELS[verdict]
    if claim.severe:
        colour, panel = COLOURS["red"], COLOURS["red-panel"]
    parts: list[tuple[str, str, float, str]] = [
        (verdict.value, BOLD, 20, BADGES[verdict]),
        (claim.meaning, REGULAR, 9, COLOURS["ink"]),
        (claim.headline, BOLD, 14, colour if claim.severe else COLOURS["ink"]),
        (claim.promise, REGULAR, 9, COLOURS["ink"]),
    ]
    yield from _boxed(parts, colour, panel, 2.0, styles)


def _boxed(
    parts: list[tuple[str, str, float, str]], colour: str, panel: str, line: float, styles: _Styles
) -> Iterator[Flowable]:
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph as Text
    from reportlab.platypus import Spacer
    from reportlab.platypus import Table as Grid

    rows = [
        [
            Text(
                markup(text),
                ParagraphStyle(
                    "box", styles.body, fontName=font, fontSize=size, leading=1.35 * size, textColor=ink, spaceAfter=0
                ),
            )
        ]
        for text, font, size, ink in parts
    ]
    look = [
        ("BACKGROUND", (0, 0), (-1, -1), HexColor(panel)),
        ("BOX", (0, 0), (-1, -1), line, HexColor(colour)),
        ("LEFTPADDING", (0, 0), (-1, -1), 10),
        ("RIGHTPADDING", (0, 0), (-1, -1), 10),
        ("TOPPADDING", (0, 0), (-1, 0), 7),
        ("BOTTOMPADDING", (0, -1), (-1, -1), 9),
    ]
    yield Spacer(1, 4)
    yield Grid(rows, colWidths=[ROOM], style=look, splitInRow=1)
    yield Spacer(1, 7)


def _block(block: Block, styles: _Styles) -> Iterator[Flowable]:
    from reportlab.platypus import CondPageBreak
    from reportlab.platypus import Paragraph as Text

    match block:
        case Paragraph(text, soft):
            yield Text(markup(text), styles.soft if soft else styles.body)
        case Heading(text, verdict):
            badge = "" if verdict is None else f'  <font color="{BADGES[verdict]}">[{verdict.value}]</font>'
            yield CondPageBreak(TOGETHER)
            yield Text(markup(text) + badge, styles.heading)
        case Notice(title, text, level):
            name = "red" if level == "severe" else "amber"
            parts = [(title, BOLD, 9.5, COLOURS[name]), (text, REGULAR, 8.5, COLOURS["ink"])]
            yield from _boxed(parts, COLOURS[name], COLOURS[f"{name}-panel"], 1.0, styles)
        case Terms(entries):
            yield from _grid(
                [[_bold(name, styles), Text(markup(text), styles.cell)] for name, text in entries],
                [0.24 * ROOM, 0.76 * ROOM],
                None,
            )
        case Chart():
            yield from _chart(block, styles)
        case Table():
            yield from _table(block, styles)


def _bold(text: str, styles: _Styles) -> Flowable:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph as Text

    return Text(markup(text), ParagraphStyle("bold", styles.cell, fontName=BOLD))


def _chart(block: Chart, styles: _Styles) -> Iterator[Flowable]:
    from reportlab.platypus import KeepTogether, Spacer
    from reportlab.platypus import Paragraph as Text

    parts = [_bold(block.title, styles), chart_drawing(block.svg, CHART), Text(markup(block.caption), styles.soft)]
    yield KeepTogether([*parts, Spacer(1, 6)])


def _table(block: Table, styles: _Styles) -> Iterator[Flowable]:
    from reportlab.platypus import CondPageBreak
    from reportlab.platypus import Paragraph as Text

    caption = Text(markup(block.caption), styles.soft)
    yield CondPageBreak(TOGETHER / 2)
    yield caption
    head: list[Any] = [
        Text(markup(name), styles.head if _left(block, k) else styles.number_head) for k, name in enumerate(block.head)
    ]
    rows = [[_cell(cell, _left(block, k), styles) for k, cell in enumerate(row)] for row in block.rows]
    yield from _grid([head, *rows], _widths(block), COLOURS["soft"])


def _left(block: Table, column: int) -> bool:
    return column == 0 or column in block.prose


def _cell(text: str, left: bool, styles: _Styles) -> Flowable:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph as Text

    style = styles.cell if left else styles.number
    if text in VERDICTS:
        style = ParagraphStyle("verdict", style, fontName=BOLD, textColor=BADGES[VERDICTS[text]])
    return Text(markup(text), style)


def _widths(block: Table) -> list[float]:
    """Widths of the columns: no word broken where that can be, the rest of the room by the longest text in each."""
    from reportlab.pdfbase.pdfmetrics import stringWidth

    def measured(text: str) -> float:
        return float(stringWidth(plain(text), BOLD, 7.5)) + 8

    columns = list(zip(block.head, *block.rows, strict=True))
    least = [
        min(110.0, max(measured(word) for cell in column for word in (cell.split() or [""]))) for column in columns
    ]
    whole = [min(300.0, max(map(measured, column))) for column in columns]
    scale = min(1.0, ROOM / sum(least))
    spare = max(0.0, ROOM - sum(least))
    extra = [max(full - one, 1.0) for full, one in zip(whole, least, strict=True)]
    return [one * scale + spare * more / sum(extra) for one, more in zip(least, extra, strict=True)]


def _grid(rows: list[list[Any]], widths: list[float], ruled: str | None) -> Iterator[Flowable]:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Spacer
    from reportlab.platypus import Table as Grid

    look: list[Any] = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, HexColor(COLOURS["rule"])),
        ("LEFTPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 4),
        ("TOPPADDING", (0, 0), (-1, -1), 2.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
    ]
    look += [("LINEBELOW", (0, 0), (-1, 0), 0.8, HexColor(ruled))] if ruled else []
    yield Grid(rows, colWidths=widths, style=look, repeatRows=1 if ruled else 0, splitInRow=1)
    yield Spacer(1, 8)
