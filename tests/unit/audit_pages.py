"""An audit's report as tests read it: the page, and the text of the PDF."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from audit_report_setting import (
    RUN,
    passed,
)
from html_page import squeezed
from pypdf import PdfReader

from simulations.audit.report.blocks import Document
from simulations.audit.report.files import pages
from simulations.audit.report.html import report_html
from simulations.audit.report.pdf import report_pdf
from simulations.audit.report.source import check_subject
from simulations.audit.report.words import bound_text, power_text, value_text
from simulations.report.figures import delta_text, epsilon_text
from simulations.report.source import Fields, check_run

CURVE = ((1e-6, 5.4), (1e-5, 4.8270873), (1e-4, 4.2))


def html(told: dict[str, Any], run: dict[str, Any] | None = RUN) -> str:
    return report_html(document(json.dumps(told), json.dumps(run)))


def pdf_text(told: dict[str, Any], run: dict[str, Any] | None = RUN) -> list[str]:
    return list(read_pdf(json.dumps(told), json.dumps(run)))


@lru_cache
def document(told: str, run: str) -> Document:
    read = json.loads(run)
    subject = check_subject(json.loads(told), check_run(Fields(read, "run.json")) if read else None)
    return pages(subject, CURVE if subject.private else ()).report


@lru_cache
def read_pdf(told: str, run: str) -> tuple[str, ...]:
    made = report_pdf(document(told, run))
    return tuple(squeezed(page.extract_text()) for page in PdfReader(io.BytesIO(made)).pages)


def edited(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(passed()) | changes


def written_numbers(told: dict[str, Any]) -> Iterator[str]:
    """All numbers of an audit as the report writes them, without the scores themselves."""
    yield epsilon_text(told["claimed"]["epsilon"])
    yield delta_text(told["claimed"]["delta"])
    yield from (str(told["plan"][key]) for key in ("population", "rounds", "partners", "survivors", "max_events"))
    yield from (value_text(told["plan"][key]) for key in ("sampling_rate", "clip_norm", "noise_multiplier"))
    yield str(told["seed"])
    for rung in told["rungs"]:
        yield bound_text(rung["epsilon_lower_bound"])
        yield power_text(rung["power"])
        yield from (value_text(one["value"]) for one in rung["measurements"])
        for one in rung["estimates"]:
            yield bound_text(one["lower_bound"])
            yield value_text(one["point"])
            yield value_text(100 * one["confidence"])
        yield from (str(rung["facts"][key]) for key in ("canaries", "seed") if key in rung["facts"])
