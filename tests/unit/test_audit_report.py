"""The audit's report: what it says, that both of its forms say the same, and what it does with bad input."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from audit_pages import CURVE, edited, html, pdf_text, written_numbers
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
from html_page import Page, squeezed
from pypdf import PdfReader
from typer.testing import CliRunner

from shared.errors import DataError, SchemaError
from simulations.audit.findings import ScoreSet, Verdict
from simulations.audit.report.attacks import RUNGS
from simulations.audit.report.command import report
from simulations.audit.report.curves import delta_curve, most_found, roc_chart
from simulations.audit.report.files import NAMES, pages, render
from simulations.audit.report.html import AUDIT_CSS
from simulations.audit.report.outside import OUTSIDE
from simulations.audit.report.pdf import report_pdf
from simulations.audit.report.pdf_text import plain
from simulations.audit.report.source import check_subject
from simulations.audit.report.words import bound_text, digest_of_digests, power_text
from simulations.report.figures import epsilon_text
from simulations.report.style import CSS

DOCS = Path(__file__).parents[2] / "docs" / "privacy.md"


def test_page_is_whole_needs_nothing_and_runs_nothing() -> None:
    text = html(passed())
    page = Page(text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert all(not str(value).startswith("on") for _, attrs in page.tags for value in attrs)
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in page.tags)
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'")
    assert "url(" not in text and "@import" not in text


def test_ids_are_unique_and_every_reference_has_one() -> None:
    told = audit(mechanism(), replace(canaries(), scores=canaries().scores * 3), canaries())
    page = Page(html(told))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [(attrs.get("href") or "#")[1:] for tag, attrs in page.tags if tag == "a"]
    labels = [one for _, attrs in page.tags for one in (attrs.get("aria-labelledby") or "").split()]
    assert len(links) > 8 and len(labels) > 8
    assert set(links) | set(labels) <= set(ids)


@pytest.mark.parametrize("told", [passed(), inconclusive()])
def test_every_number_is_in_both_forms_with_one_rounding(told: dict[str, Any]) -> None:
    page, pdf = Page(html(told)).text, " ".join(pdf_text(told))
    numbers = set(written_numbers(told)) - {"–"}
    assert len(numbers) >= 20
    for number in numbers:
        whole = rf"(?<![\d.,]){re.escape(number)}(?![\d]|[.,]\d)"
        assert re.search(whole, page), f"{number} is not in the page"
        assert re.search(whole, pdf), f"{number} is not in the PDF"


def test_no_bound_or_power_is_rounded_up_and_no_claim_down() -> None:
    assert bound_text(4.99999) == "4.999"
    assert power_text(0.79999) == "0.799"
    assert epsilon_text(4.99901) == "5"
    assert bound_text(float("inf")) == "∞" and bound_text(None) == "–" and bound_text(0.0) == "0"


@pytest.mark.parametrize(
    ("told", "run", "verdict", "colour"),
    [
        (passed(), RUN, "PASS", "PASS"),
        (audit(mechanism(holds=False), canaries()), RUN, "FAIL", "FAIL"),
        (audit(mechanism(), canaries(Verdict.FAIL)), None, "FAIL", "FAIL"),
        (inconclusive(), None, "INCONCLUSIVE", "INCONCLUSIVE"),
        (without_privacy(), without_privacy_run(), "FAIL", "none"),
    ],
)
def test_verdict_is_in_title_banner_box_and_on_every_page(
    told: dict[str, Any], run: dict[str, Any] | None, verdict: str, colour: str
) -> None:
    text = html(told, run)
    page = Page(text)
    assert re.search(rf"<title>{verdict}: ", text)
    banner = next(attrs for _, attrs in page.tags if (attrs.get("class") or "").startswith("banner"))
    assert banner["class"] == f"banner {colour}"
    box = next(attrs for _, attrs in page.tags if (attrs.get("class") or "").startswith("claim "))
    assert verdict in (box["class"] or "").split() and ("none" in (box["class"] or "").split()) == (colour == "none")
    every = pdf_text(told, run)
    assert all(one.startswith(f"{verdict}: ") for one in every)
    others = {"PASS", "FAIL", "INCONCLUSIVE"} - {verdict}
    assert not any(one.startswith(f"{other}:") for one in every for other in others)


def test_mode_none_promises_nothing_anywhere() -> None:
    told = without_privacy()
    for text in (Page(html(told, without_privacy_run())).text, " ".join(pdf_text(told, without_privacy_run()))):
        assert "There is no privacy guarantee" in text
        assert epsilon_text(EPSILON) not in text
        assert "epsilon = " not in text.replace("there is no epsilon", "")
        assert "most that the claim allows" not in text
        assert "Who adds the noise" not in text


def test_pass_is_never_told_without_saying_that_it_is_no_proof() -> None:
    for text in (Page(html(passed())).text, " ".join(pdf_text(passed()))):
        assert "PASS is not a proof" in text
        assert "Do not read this as PASS" not in text
    assert "Do not read this as PASS" in Page(html(inconclusive())).text


def test_parametric_estimates_are_called_so_and_others_are_not() -> None:
    text = Page(html(passed())).text
    assert "Gaussian pair whole run parametric estimate 2.512" in text
    assert "one-run f-DP whole run bound 3.219" in text


def test_rungs_that_were_not_run_are_named() -> None:
    text = Page(html(passed())).text
    missing = ", ".join(name for name in RUNGS if name not in ("0-mechanism", "1-gradient-canaries"))
    assert f"Rungs that were not run {missing}." in text
    whole = audit(*(replace(mechanism(), name=name) for name in RUNGS))
    assert "not run" not in Page(html(whole)).text


def test_roc_curve_goes_down_to_one_false_accusation_in_a_thousand() -> None:
    rung = canaries()
    chart = next(one for one in pages(check_subject(passed(), None), CURVE).report.sections if one.key == "rungs")
    drawn = [block for block in chart.blocks if type(block).__name__ == "Chart"]
    assert len(drawn) == 1
    svg = str(drawn[0].svg)  # type: ignore[union-attr]
    assert ">0.001</text>" in svg and ">0.01</text>" in svg and "false-positive rate" in svg
    text = Page(html(passed())).text
    outside = np.sort(rung.scores[0].outside)
    for rate, allowed in ((0.001, 1), (0.01, 11), (0.1, 110)):
        found = float((rung.scores[0].inside > outside[-1 - allowed]).mean())
        assert f"TPR at FPR {rate:g}" in text
        assert f"{found:.4f} (" in text


def test_few_scores_are_not_read_below_what_they_can_show() -> None:
    few = ScoreSet("few", np.linspace(0, 2, 40), np.linspace(0, 1, 50))
    told = audit(mechanism(), replace(canaries(), scores=(few,)))
    assert "With 50 nothing below 0.02 can be measured" in Page(html(told)).text


def test_scores_that_make_no_curve_are_named_and_do_not_hide_the_rest() -> None:
    wrong = ScoreSet("broken scores", np.array([1.0]), np.array([np.nan]))
    text = Page(html(audit(mechanism(), replace(canaries(), scores=(wrong, *canaries().scores))))).text
    assert "Scores without a curve broken scores" in text
    assert "ROC curve: gradient canaries" in text


def test_no_attack_may_find_more_than_the_plan_allows_and_the_bound_is_that_of_the_definition() -> None:
    curve = ((1e-5, 1.0),)
    assert most_found(curve, 0.01) == pytest.approx(1e-5 + np.e * 0.01)
    assert most_found(curve, 0.9) == pytest.approx(1 - (1 - 1e-5 - 0.9) / np.e)
    assert most_found((*curve, (1e-4, 0.5)), 0.01) < most_found(curve, 0.01)
    assert most_found((), 0.01) == 1.0 and most_found(((1e-5, 1e4),), 0.5) <= 1.0


def test_chart_of_scores_that_are_wholly_apart_is_drawn() -> None:
    from simulations.audit.estimators.roc import roc

    apart = ScoreSet("apart", np.arange(5.0) + 10, np.arange(5.0))
    assert roc_chart("r", apart, roc(apart), ()) is not None


def test_delta_curve_falls_meets_the_claim_and_leaves_out_what_cannot_be_accounted() -> None:
    curve = delta_curve(PLAN, (-8, -1, 0, 1, 4))
    assert [delta for delta, _ in curve] == pytest.approx([1e-6, 1e-5, 1e-4])
    assert [epsilon for _, epsilon in curve] == sorted((epsilon for _, epsilon in curve), reverse=True)
    assert dict(curve)[1e-5] == pytest.approx(EPSILON, rel=1e-4)
    assert delta_curve(replace(PLAN, mode="none", noise_multiplier=0.0)) == ()


def test_claim_below_what_the_plan_spends_is_shouted() -> None:
    told = edited(claimed={"epsilon": 2.0, "delta": 1e-5})
    assert "The claim is smaller than what the plan spends" in Page(html(told)).text
    assert "claimed is 2." in Page(html(told)).text
    assert "The claim is smaller" not in Page(html(passed())).text


def test_run_of_another_plan_is_shouted() -> None:
    other = RUN | {"privacy": RUN["privacy"] | {"noise_multiplier": 1.0, "rounds": 99}}
    text = Page(html(passed(), other)).text
    assert "run.json is not the run that was audited" in text and "noise_multiplier, rounds" in text
    assert "is not the run" not in Page(html(passed())).text


def test_seeded_noise_is_a_warning_at_the_top() -> None:
    seeded = RUN | {"privacy": RUN["privacy"] | {"randomness": "seeded"}}
    text = Page(html(passed(), seeded)).text
    assert text.index("Simulation: the noise can be reproduced") < text.index("Lower bound of epsilon")
    assert "can be reproduced" not in Page(html(passed())).text


def test_outside_is_word_for_word_what_the_documentation_says() -> None:
    section = DOCS.read_text(encoding="utf-8").split("### What is outside it")[1].split("\n## ")[0]
    points = [squeezed(point) for point in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]
    said = [squeezed(f"{name} {text}").replace(" ,", ",").replace(" :", ":") for name, text in OUTSIDE]
    assert said == [point.replace("**", "").replace("`", "") for point in points]
    text = Page(html(passed())).text
    assert all(name.rstrip(".") in text for name, _ in OUTSIDE)


def test_every_field_that_may_leave_is_listed() -> None:
    from shared.wire_answers import ALLOWED

    text = Page(html(passed())).text
    for kind, parts in ALLOWED.items():
        for name, field in parts.items():
            assert f"{kind} {name} {field.kind} {field.why}" in text


def test_poisoning_and_planted_bugs_are_told_where_there_are_any() -> None:
    text = Page(html(passed())).text
    assert "median of 3 buckets 0.0625 1.73" in text and "Promotion by one of ten partners at boost 10." in text
    assert "noise halved 0-mechanism noise of a share" in text
    uncaught = edited(mutations=[{"bug": "clip missing", "rung": None, "check": None}])
    assert "clip missing NOT CAUGHT" in Page(html(uncaught)).text
    without = Page(html(inconclusive())).text
    assert "Attacks by a partner" not in without.replace("Trust model; Attacks by a partner", "")
    assert "Planted bugs" not in without


def test_what_did_not_hold_comes_before_all_that_was_measured() -> None:
    text = Page(html(audit(mechanism(holds=False), canaries()))).text
    assert "What did not hold." in text and "1 ± 0.004 NO noise halved" in text
    assert text.index("What did not hold.") < text.index("All measurements.")
    assert "What did not hold." not in Page(html(passed())).text


def test_facts_that_are_alike_make_a_table_and_a_long_one_is_folded() -> None:
    facts = {
        "checks": [{"name": f"check-{k}", "seconds": k + 0.125} for k in range(41)],
        "ragged": [{"a": 1}, {"b": 2}],
    }
    page = Page(html(audit(replace(mechanism(), facts=facts), canaries())))
    assert "Other figures: checks: 41 rows" in page.text and "check-40 40.125" in page.text
    assert sum(tag == "details" for tag, _ in page.tags) == 1
    assert "ragged" in page.text


def test_code_digest_is_that_of_sha256sum() -> None:
    # printf 'bbb...  client/b.py\naaa...  shared/a.py\n' | sha256sum
    assert digest_of_digests({"shared/a.py": "a" * 64, "client/b.py": "b" * 64}) == (
        "0704d9e7bae8e582d4b6a3d222f7a42bf35d99f490f71302780cc65e10c18b17"
    )
    assert "2 files, SHA-256 of their digests 0704d9e7" in Page(html(passed())).text


def test_names_from_outside_cannot_become_markup() -> None:
    evil = '<script>alert(1)</script><img src="http://x/"> & <b>"\'</b> </para><font color="red">'
    rung = replace(mechanism(), title=evil, why=evil, facts={evil: evil})
    told = audit(rung, canaries()) | {
        "run": {"run_id": evil, "data": evil},
        "versions": {evil: evil},
        "poisoning": {"columns": [evil], "rows": [[evil]], "text": evil},
    }
    page = Page(html(told))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "b", "font", "para"}
    assert evil in " ".join(page.words)
    pdf = " ".join(pdf_text(told)).replace(" ", "")
    assert "<script>alert(1)</script>" in pdf and "</para>" in pdf


def test_pdf_writes_greek_and_foreign_letters_instead_of_boxes() -> None:
    assert plain("ε = 3 ± 1 ≤ δ") == "epsilon = 3 ± 1 ≤ delta"
    assert plain("Dvořák, Łódź") == "Dvorák, Łódz"
    assert plain("商店") == "<U+5546><U+5E97>"
    assert plain("a\u202eb\x00\n") == "a<U+202E>b<U+0000> "
    assert "<U+5546>" in " ".join(pdf_text(passed() | {"run": {"run_id": "商"}}))


def test_texts_of_any_length_fit_the_pdf() -> None:
    long = "word " * 1500
    rung = replace(canaries(), title="t" * 500, why=long, facts={"long": long, "x" * 300: "y" * 3000})
    told = audit(mechanism(), rung) | {"versions": {f"package-{k}": "1" * 80 for k in range(90)}}
    assert len(pdf_text(told)) > 8
    assert "characters in audit.json" in Page(html(told)).text


def test_pdf_embeds_its_fonts_names_its_language_and_fetches_nothing() -> None:
    subject = check_subject(passed(), None)
    reader = PdfReader(io.BytesIO(report_pdf(pages(subject, CURVE).report)))
    fonts = [font.get_object() for page in reader.pages for font in page["/Resources"]["/Font"].values()]
    used = {str(font["/BaseFont"]) for font in fonts if "/FontDescriptor" in font}
    assert any("Vera" in name for name in used)
    assert all("/FontFile2" in font["/FontDescriptor"] for font in fonts if "/FontDescriptor" in font)
    assert reader.trailer["/Root"]["/Lang"] == "en"
    assert not any("/Annots" in page for page in reader.pages)
    assert not any("/XObject" in page["/Resources"] and page["/Resources"]["/XObject"] for page in reader.pages)
    assert reader.metadata is not None and (reader.metadata.title or "").startswith("PASS: ")


@pytest.mark.parametrize("light", [True, False])
def test_text_has_the_contrast_that_accessibility_asks_for(light: bool) -> None:
    parts = (CSS + AUDIT_CSS).split("@media (prefers-color-scheme: dark)")
    dark = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", parts[1].split("* {")[0] + parts[2].split(".verdict")[0]))
    first = dict(reversed(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", CSS + AUDIT_CSS)))
    colours = first if light else first | dark
    pairs = [("ink", "paper"), ("soft", "paper"), ("one", "paper"), ("red", "red-panel"), ("amber", "amber-panel")]
    pairs += [("ink", f"{name}-panel") for name in ("red", "amber", "green")]
    pairs += [(f"on-{name}", name) for name in ("red", "amber", "green")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: str, two: str) -> float:
    """WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_verdict_that_does_not_follow_from_the_rungs_is_refused() -> None:
    for wrong in (
        audit(mechanism(), canaries(Verdict.FAIL)) | {"verdict": "PASS"},
        inconclusive() | {"verdict": "PASS"},
        audit() | {"verdict": "PASS"},
    ):
        with pytest.raises(SchemaError, match="follows from the rungs"):
            check_subject(wrong, None)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {},
        edited(format=2),
        edited(verdict="MAYBE"),
        edited(rungs=[{"name": "0-mechanism"}]),
        edited(rungs=[passed()["rungs"][0] | {"power": "high"}]),
        edited(rungs=[passed()["rungs"][0] | {"facts": 3}]),
        edited(rungs="none"),
        edited(plan={}),
        edited(plan=passed()["plan"] | {"delta": 2.0}),
        edited(claimed={"epsilon": None, "delta": 1e-5}),
        edited(claimed={"epsilon": 1.0, "delta": 1e-3}),
        edited(claimed={"epsilon": float("inf"), "delta": 1e-5}),
    ],
)
def test_malformed_audit_is_one_clear_error(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="Expected"):
        render(wrong, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_command_finds_the_run_beside_the_audit_and_writes_the_same_bytes_again(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "audit" / "audit.json").write_text(json.dumps(passed()))
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "stage": "train", "epsilon": 4.0}\n')
    times = [{"time": "2026-11-22T20:00:13+00:00"}, {"time": "2026-11-22T20:03:00+00:00"}]
    (tmp_path / "ledgers" / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in times))
    app = typer.Typer()
    app.command()(report)
    made = CliRunner().invoke(app, ["--audit", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert sorted(made.output.split()) == sorted(str(tmp_path / "audit" / name) for name in NAMES)
    text = Page((tmp_path / "audit" / "audit.html").read_text()).text
    assert "2026-11-22T20:00:13+00:00 to 2026-11-22T20:03:00+00:00, by the partners' ledgers." in text
    assert "rounds.jsonl has 0 of the prior and 1 of training" in text
    again = CliRunner().invoke(app, ["--audit", str(tmp_path / "audit" / "audit.json"), "--out", str(tmp_path / "b")])
    assert again.exit_code == 0
    for name in NAMES:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "audit" / name).read_bytes()


def test_command_without_an_audit_says_what_it_expects(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    assert isinstance(CliRunner().invoke(app, ["--audit", str(tmp_path)]).exception, DataError)
    (tmp_path / "audit.json").write_text("{")
    assert "Expected JSON" in str(CliRunner().invoke(app, ["--audit", str(tmp_path)]).exception)
