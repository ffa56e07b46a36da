"""The sections about the evidence: poisoning, planted bugs, versions and digests, how to re-check, NIST's topics."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.audit.report.blocks import Block, Notice, Paragraph, Section, Terms, present, table
from simulations.audit.report.source import Subject
from simulations.audit.report.words import EXPIRY, digest_of_digests, sentence, value_text
from simulations.report.figures import NOTHING, duration_text
from simulations.report.tables import leaves

NIST = (
    ("The privacy parameters epsilon and delta", "The claim; Epsilon and delta"),
    ("The unit of privacy; neighbouring data (bounded or unbounded)", "The claim; Epsilon and delta (other readings)"),
    ("Composition: several releases over the same data", "Time window and releases"),
    ("Algorithms, sensitivity, machine learning", "Mechanism, sampling and accountant; rungs 0 to 3"),
    ("Utility and accuracy", "Not in this report: see the run's own report (report.html)"),
    ("Bias", "Not measured: noise may cost small groups more than large ones"),
    ("Trust and threat models (central, local, and between)", "Trust model; Attacks by a partner"),
    ("Implementation: finite precision, side channels", "Rung 0; What is outside the guarantee"),
    ("Data security and access control", "What is outside the guarantee"),
    ("Data collection exposure", "What left the machine; What is outside the guarantee"),
)
"""Topics of SP 800-226, from the top of its pyramid to the bottom, and where this report speaks of them."""


def poisoning(subject: Subject) -> Section | None:
    """What attacks by partners did, where the audit has such a table."""
    told = subject.fields.section("poisoning")
    columns, rows = told.texts("columns"), told.values.get("rows")
    if not columns:
        return None
    fitting = (
        [row for row in rows if isinstance(row, list) and len(row) == len(columns)] if isinstance(rows, list) else []
    )
    prose = [k for k in range(len(columns)) if any(isinstance(row[k], str) for row in fitting)]
    text = told.text("text")
    return Section(
        "poisoning",
        "Attacks by a partner",
        present(
            Paragraph("Differential privacy does not stop a partner that lies. This is what such partners could do."),
            Paragraph(sentence(text)) if text else None,
            table("Attacks and defences.", columns, [[_cell(cell) for cell in row] for row in fitting], prose),
        ),
    )


def mutations(subject: Subject) -> Section | None:
    """Which planted bug was caught by which rung."""
    rows = [
        [one.text("bug") or NOTHING, one.text("rung") or "NOT CAUGHT", one.text("check") or NOTHING]
        for one in subject.fields.sections("mutations")
    ]
    caption = "Bugs that were planted in copies of the code, and what noticed them."
    found = table(caption, ["Planted bug", "Rung", "Check"], rows, prose=(0, 1, 2))
    told = Paragraph("A test that never fires is no test: each of these bugs was planted on purpose.")
    return Section("mutations", "Planted bugs", (told, found)) if found else None


def provenance(subject: Subject) -> Section:
    """When, with which code, over which run."""
    fields = subject.fields
    versions = [[name, text] for name, text in leaves(fields.section("versions").values)]
    run = [[name, text] for name, text in leaves(fields.section("run").values)]
    seconds = fields.number("seconds")
    entries = [
        ("Audit begun", str(fields.values.get("started") or NOTHING)),
        ("Duration", NOTHING if seconds is None else duration_text(seconds)),
        ("Seed of the audit's own coins", _cell(fields.values.get("seed"))),
        ("Veilrec", fields.text("veilrec_version") or NOTHING),
        ("SHA-256 of audit.json", subject.digest),
        ("Code", _code(subject)),
        ("Validity", EXPIRY),
    ]
    return Section(
        "provenance",
        "Versions and digests",
        present(
            _disagreements(subject.disagreements),
            Terms(tuple(entries)),
            table("The run.", ["Field", "Value"], run, prose=(1,)),
            table("Packages.", ["Package", "Version"], versions, prose=(1,)),
        ),
    )


def recheck() -> Section:
    """How anyone can check this report."""
    entries = (
        (
            "veilrec audit verify BUNDLE",
            "Checks the signed evidence bundle offline: signatures, ledgers, transcripts, digests; computes epsilon"
            " anew; compares every number of audit.json.",
        ),
        (
            "python independent.py BUNDLE --trust KEY",
            "A second verifier of under 300 lines (simulations/audit/bundle/independent.py). It imports nothing of"
            " Veilrec.",
        ),
        ("veilrec audit run", "Repeats the audit on the run's folder. The seed above gives the same coins."),
        (
            "The code's digest",
            "Over lines of digest, two spaces and file name, sorted by name: sha256sum FILES | sha256sum.",
        ),
    )
    return Section("recheck", "How to check this again", (Terms(entries),))


def nist() -> Section:
    """The sections mapped to NIST's guidelines."""
    told = (
        "Topics of NIST SP 800-226, “Guidelines for Evaluating Differential Privacy Guarantees” (March 2025), in our"
        " words, from the top of its pyramid (epsilon) to the bottom (data collection exposure). Each rests on those"
        " below it. NIST has not seen this report."
    )
    found = table("Where this report speaks of what.", ["Topic of SP 800-226", "In this report"], NIST, prose=(0, 1))
    return Section("nist", "NIST SP 800-226", present(Paragraph(told), found))


def _code(subject: Subject) -> str:
    digests = subject.fields.section("code_sha256").values
    if not digests:
        return "The audit does not say which code it ran."
    texts = {file: digest for file, digest in digests.items() if isinstance(digest, str)}
    return f"{len(texts)} files, SHA-256 of their digests {digest_of_digests(texts)}"


def _disagreements(names: Sequence[str]) -> Block | None:
    if not names:
        return None
    return Notice(
        "run.json is not the run that was audited",
        f"It differs from the audited plan in: {', '.join(names)}. This report follows audit.json.",
        "severe",
    )


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value_text(value) if isinstance(value, float) else str(value)
