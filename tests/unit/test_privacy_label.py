"""The privacy label: one page, all of its facts, and the same ones for machines."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_report_setting import (
    EPSILON,
    PLAN,
    RUN,
    audit,
    canaries,
    inconclusive,
    mechanism,
    passed,
    without_privacy,
    without_privacy_run,
)
from pypdf import PdfReader

from shared.files import write_json
from simulations.audit.report.attacks import RUNGS
from simulations.audit.report.files import pages, render
from simulations.audit.report.html import label_html
from simulations.audit.report.label import label_entries
from simulations.audit.report.outside import OUTSIDE
from simulations.audit.report.pdf import label_pdf
from simulations.audit.report.source import Subject, check_subject
from simulations.report.figures import epsilon_text
from simulations.report.source import Fields, check_run


def subject(told: dict[str, Any], run: dict[str, Any] | None = RUN) -> Subject:
    return check_subject(told, check_run(Fields(run, "run.json")) if run else None)


def pdf_pages(one: Subject) -> list[str]:
    made = label_pdf(pages(one, ()).label)
    return [" ".join(page.extract_text().split()) for page in PdfReader(io.BytesIO(made)).pages]


@pytest.mark.parametrize(
    ("told", "run", "verdict"),
    [
        (passed(), RUN, "PASS"),
        (inconclusive(), None, "INCONCLUSIVE"),
        (without_privacy(), without_privacy_run(), "FAIL"),
    ],
)
def test_label_is_exactly_one_page_with_its_verdict(
    told: dict[str, Any], run: dict[str, Any] | None, verdict: str
) -> None:
    one = subject(told, run)
    (text,) = pdf_pages(one)
    assert text.startswith(f"{verdict}: ")
    assert (f"epsilon = {epsilon_text(EPSILON)} at delta = 1e-5" in text) == one.private
    assert ("There is no privacy guarantee" in text) != one.private
    assert one.digest in text


def test_label_of_all_rungs_and_long_names_still_fits_one_page() -> None:
    rungs = [replace(canaries() if k else mechanism(), name=name) for k, name in enumerate(RUNGS)]
    told = audit(*rungs) | {"run": {"run_id": "r" * 3000, "data": "word " * 900}, "started": "2026 " * 500}
    (text,) = pdf_pages(subject(told))
    assert "7-extraction PASS" in text
    many = audit(mechanism(), *(replace(canaries(), name=f"rung-{k}-of-somebody-else") for k in range(60)), canaries())
    (text,) = pdf_pages(subject(many))
    assert "rung-59" in text
    assert lowest_line(subject(many)) > 20


def lowest_line(one: Subject) -> float:
    """The lowest text of the label's page, in points from its lower edge."""
    lowest: list[float] = []

    def see(text: str, cm: list[float], tm: list[float], _font: object, _size: float) -> None:
        if text.strip():
            lowest.append(tm[4] * cm[1] + tm[5] * cm[3] + cm[5])

    PdfReader(io.BytesIO(label_pdf(pages(one, ()).label))).pages[0].extract_text(visitor_text=see)
    return min(lowest)


def test_label_tells_what_a_reader_has_to_know() -> None:
    told = dict(label_entries(subject(passed())))
    assert "one user" in told["Unit of privacy"] and told["Adjacency"] == "add-or-remove"
    assert told["Privacy loss"] == f"epsilon = {epsilon_text(EPSILON)} at delta = 1e-5, all releases together"
    assert "4 of 5 partners have to answer. 1 may collude" in told["Trust model"]
    assert "Skellam noise, z = 2.6" in told["Mechanism"] and "accountant PLD" in told["Mechanism"]
    assert "8 training sums" in told["Releases"] and "next release over the same data" in told["Expiry"]
    assert all(name.rstrip(".") in told["Outside"] for name, _ in OUTSIDE)
    assert "1-gradient-canaries PASS (power against half of the noise 0.987)" in told["Audit"]
    assert told["Audited on"].startswith("2026-11-22")


def test_label_of_a_run_that_is_not_masked_or_local_says_who_sees_what() -> None:
    unmasked = audit(mechanism(), canaries(), plan=replace(PLAN, masked=False))
    assert "sees each partner's own vector" in dict(label_entries(subject(unmasked, None)))["Trust model"]
    local = audit(mechanism(), canaries(), plan=replace(PLAN, mode="local"))
    assert "adds the whole noise" in dict(label_entries(subject(local, None)))["Trust model"]


def test_label_of_a_simulation_with_seeded_noise_says_that_it_protects_nobody() -> None:
    seeded = RUN | {"privacy": RUN["privacy"] | {"randomness": "seeded"}}
    (text,) = pdf_pages(subject(passed(), seeded))
    assert "Read with care Simulation: the noise can be reproduced" in text
    assert "Read with care" not in dict(label_entries(subject(passed())))


def test_page_and_pdf_of_the_label_have_the_same_lines() -> None:
    one = subject(passed())
    page, (pdf,) = label_html(pages(one, ()).label), pdf_pages(one)
    for name, text in label_entries(one):
        assert name in page
        for word in text.replace("'", "&#x27;").split():
            assert word in page
        assert text.split()[0] in pdf
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_machines_get_the_same_label_with_the_delta_curve_and_the_files_digest(tmp_path: Path) -> None:
    write_json(tmp_path / "audit.json", passed())
    render(passed(), RUN, tmp_path)
    told = json.loads((tmp_path / "label.json").read_text())
    assert told["verdict"] == "PASS" and told["epsilon"] == EPSILON and told["delta"] == 1e-5
    assert told["audit_sha256"] == hashlib.sha256((tmp_path / "audit.json").read_bytes()).hexdigest()
    assert len(told["curve"]) == 7 and all(point["epsilon"] > 0 for point in told["curve"])
    assert told["label"] == dict(label_entries(subject(passed())))
