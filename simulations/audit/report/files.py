"""Puts the parts together and writes the files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.files import write_bytes, write_json
from simulations.audit.report import attacks, evidence, promise
from simulations.audit.report.blocks import Document, Section
from simulations.audit.report.curves import Curve, delta_curve
from simulations.audit.report.html import label_html, report_html
from simulations.audit.report.label import label, label_entries
from simulations.audit.report.pdf import label_pdf, report_pdf
from simulations.audit.report.source import Subject, check_subject
from simulations.report.source import Fields, check_run

NAMES = ("audit.html", "audit.pdf", "label.html", "label.pdf", "label.json")


@dataclass(frozen=True, slots=True)
class Pages:
    """Report and label of one audit, before they are HTML or PDF.

    Attributes
    ----------
    report, label : Document
    machine : mapping
        The label for machines: its lines, the verdict and the delta curve.
    """

    report: Document
    label: Document
    machine: Mapping[str, Any]


def render(audit: Mapping[str, Any], run: Mapping[str, Any], out: Path) -> tuple[Path, ...]:
    """Write report and label of an audit as HTML and PDF.

    Parameters
    ----------
    audit : mapping
        ``audit.json``.
    run : mapping
        ``run.json``; empty where there is none.
    out : Path
        Folder to write to.

    Returns
    -------
    tuple of Path
        `NAMES` in that folder. The same input gives the same bytes.

    Raises
    ------
    DataError
        Something is missing or malformed; older files stay as they were.
    """
    return render_subject(check_subject(audit, check_run(Fields(run, "run.json")) if run else None), out)


def render_subject(subject: Subject, out: Path) -> tuple[Path, ...]:
    """The same for an audit that was read from a folder."""
    made = pages(subject, delta_curve(subject.plan))
    texts = {
        "audit.html": report_html(made.report).encode("utf-8", "xmlcharrefreplace"),
        "audit.pdf": report_pdf(made.report),
        "label.html": label_html(made.label).encode("utf-8", "xmlcharrefreplace"),
        "label.pdf": label_pdf(made.label),
    }
    for name, data in texts.items():
        write_bytes(out / name, data)
    write_json(out / "label.json", made.machine)
    return tuple(out / name for name in NAMES)


def pages(subject: Subject, curve: Curve) -> Pages:
    """Report and label; the curve is computed once, for all of them."""
    return Pages(_report(subject, curve), label(subject), _machine(subject, curve))


def _report(subject: Subject, curve: Curve) -> Document:
    run = subject.fields.section("run")
    name = str(run.values.get("run_id") or run.values.get("data") or "a federated run")
    data = subject.run.fields.section("data").text("name")
    sections: list[Section | None] = [
        attacks.overview(subject),
        promise.epsilon(subject, curve),
        promise.trust(subject),
        promise.outside(),
        promise.left(),
        promise.mechanism(subject),
        promise.releases(subject),
        attacks.attacks(subject, curve),
        evidence.poisoning(subject),
        evidence.mutations(subject),
        evidence.provenance(subject),
        evidence.recheck(),
        evidence.nist(),
    ]
    return Document(
        title=f"{subject.verdict}: privacy audit of {name}",
        subtitle=f"Veilrec privacy audit{f', data {data}' if data else ''}",
        claim=promise.claim(subject),
        sections=tuple(one for one in sections if one is not None),
        footer=f"Veilrec privacy audit of {name}",
    )


def _machine(subject: Subject, curve: Curve) -> dict[str, Any]:
    return {
        "format": 1,
        "verdict": subject.verdict.value,
        "epsilon": subject.epsilon,
        "delta": subject.plan.delta if subject.private else None,
        "label": dict(label_entries(subject)),
        "curve": [{"delta": delta, "epsilon": epsilon} for delta, epsilon in curve],
        "audit_sha256": subject.digest,
    }
