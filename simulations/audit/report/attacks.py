"""The sections about what was tried: every rung, its figures and curves, and which rungs were not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shared.errors import VeilrecError
from simulations.audit.estimators.roc import LOW_RATES, Found, roc
from simulations.audit.findings import ENOUGH_POWER, Estimate, RungResult, Verdict
from simulations.audit.report.blocks import Block, Chart, Heading, Notice, Paragraph, Section, Table, present, table
from simulations.audit.report.curves import Curve, roc_chart
from simulations.audit.report.promise import limits
from simulations.audit.report.source import Subject
from simulations.audit.report.words import NO_PROOF, bound_text, claim_text, power_text, sentence, value_text
from simulations.report.figures import NOTHING, duration_text
from simulations.report.tables import leaves

RUNGS = {
    "0-mechanism": "Runs the installed code on inputs that are known, and measures what the plan fixes: sampling,"
    " clipping, noise, ledger, messages. Mistakes that no attack would notice are caught here.",
    "1-gradient-canaries": "Puts vectors of the full clip norm into the real trainer, each by the toss of a coin. An"
    " insider who knows all other contributions then guesses from what was released which of them took part.",
    "2-canary-users": "The same with made-up users whose reviews are real text, through the whole path from reviews to"
    " releases.",
    "3-cosines": "Measures in rounds of the live federation how far the released update points along known directions"
    " that were put in.",
    "4-user-inference": "Guesses from fresh reviews of a person whether the model was trained on that person's other"
    " data.",
    "5-membership": "Guesses whether given data were trained on, by comparing the model with reference models.",
    "6-inversion": "Tries to read reviews back from the update of one partner, as it is and as it leaves: masked.",
    "7-extraction": "Tries to draw planted text, and attributes of people, out of the final adapter.",
}
"""What each rung tries."""
MOST_TEXT = 2000
"""Characters of one fact; the rest is in ``audit.json``."""
VERDICT_WORDS = (
    f"PASS: could not refute the claim, and would have noticed half of the noise with a probability of at least"
    f" {ENOUGH_POWER:g}. FAIL: refuted it. INCONCLUSIVE: could not refute it, and might not have noticed."
)


def overview(subject: Subject) -> Section:
    """All rungs in one table, and what the verdicts mean."""
    rows = [
        [
            rung.name,
            rung.verdict.value,
            bound_text(rung.epsilon_lower_bound),
            claim_text(subject.epsilon),
            power_text(rung.power),
            duration_text(rung.seconds),
        ]
        for rung in subject.rungs
    ]
    head = ["Rung", "Verdict", "Lower bound of epsilon", "Claimed", "Power", "Time"]
    caption = (
        "A lower bound above the claim refutes it. Power: the probability that the rung notices if the noise is half of"
        " what the plan says. Bounds and powers are rounded down, the claim is rounded up."
    )
    missing = [name for name in RUNGS if name not in {rung.name for rung in subject.rungs}]
    return Section(
        "result",
        "What the audit found",
        present(
            *limits(subject),
            Paragraph(VERDICT_WORDS),
            Paragraph(NO_PROOF),
            table(caption, head, rows, prose=(0, 1)),
            Notice("Rungs that were not run", ", ".join(missing) + ".", "warning") if missing else None,
        ),
    )


def attacks(subject: Subject, curve: Curve) -> Section:
    """Rung by rung."""
    blocks = [block for k, rung in enumerate(subject.rungs) for block in _rung(rung, k, curve)]
    return Section("rungs", "The rungs", tuple(blocks) or (Paragraph("No rung was run."),))


def _rung(rung: RungResult, number: int, curve: Curve) -> Iterator[Block]:
    yield Heading(f"{rung.name}: {rung.title}", rung.verdict)
    if rung.verdict is not Verdict.PASS:
        yield Notice(rung.verdict.value, sentence(rung.why), "severe" if rung.verdict is Verdict.FAIL else "warning")
    yield Paragraph(f"What it tries: {RUNGS.get(rung.name, 'see the title')}", soft=True)
    if rung.verdict is Verdict.PASS:
        yield Paragraph(sentence(rung.why))
    yield from present(_estimates(rung), *_measurements(rung), *_curves(rung, number, curve), *_facts(rung))


def _estimates(rung: RungResult) -> Table | None:
    rows = [
        [
            one.estimator,
            one.about,
            "parametric estimate" if one.parametric else "bound",
            bound_text(one.lower_bound),
            value_text(one.point),
            claim_text(one.claimed),
            f"{100 * one.confidence:.6g} %",
            power_text(one.power),
            "yes" if one.refutes else "no",
        ]
        for one in rung.estimates
    ]
    return table(
        _estimate_caption(rung.estimates),
        ["Estimator", "Scores", "Kind", "Lower bound", "Estimate", "Claimed", "Confidence", "Power", "Refutes"],
        rows,
        prose=(0, 1, 2),
    )


def _estimate_caption(estimates: tuple[Estimate, ...]) -> str:
    told = "Estimates of epsilon at the claim's delta."
    if any(one.parametric for one in estimates):
        told += " A parametric estimate assumes how the scores are distributed: evidence, and not a proof."
    return told


def _measurements(rung: RungResult) -> Iterator[Table | None]:
    head = ["What was measured", "Value", "Expected", "Holds", "Catches"]
    rows = [
        [one.name, value_text(one.value), one.expected, "yes" if one.holds else "NO", one.catches or NOTHING]
        for one in rung.measurements
    ]
    wrong = [row for row, one in zip(rows, rung.measurements, strict=True) if not one.holds]
    yield table("What did not hold.", head, wrong, prose=(0, 2, 3, 4))
    yield table("All measurements." if wrong else "Measurements.", head, rows, prose=(0, 2, 3, 4))


def _curves(rung: RungResult, number: int, curve: Curve) -> Iterator[Block | None]:
    rows: list[list[str]] = []
    charts: list[Chart | None] = []
    unreadable: list[str] = []
    for k, scores in enumerate(rung.scores):
        try:
            found = roc(scores)
        except VeilrecError as error:
            unreadable.append(f"{scores.name}: {error}")
            continue
        charts.append(roc_chart(f"roc-{number}-{k}", scores, found, curve))
        auc = f"{found.auc:.4f} ± {found.standard_error:.4f}"
        rows.append([scores.name, auc, *(_found(one) for one in found.found)])
    rates = [f"TPR at FPR {one:g}" for one in LOW_RATES]
    caption = (
        "How well the scores tell who took part. AUC: 0.5 is guessing, 1 is certainty, with its standard error. TPR at"
        " FPR: the share of participants that is found when at most that share of the others is accused, with its 95 %"
        " interval (Clopper-Pearson)."
    )
    yield table(caption, ["Scores", "AUC", *rates], rows)
    yield from charts
    if unreadable:
        yield Notice("Scores without a curve", " ".join(unreadable), "warning")


def _found(found: Found) -> str:
    return f"{found.true_positive_rate:.4f} ({found.low:.4f} to {found.high:.4f})"


def _facts(rung: RungResult) -> Iterator[Table | None]:
    lists = {name: rows for name, rows in rung.facts.items() if _alike(rows)}
    single = {name: value for name, value in rung.facts.items() if name not in lists}
    yield table(
        "Other figures.", ["Figure", "Value"], [[name, _shortened(text)] for name, text in leaves(single)], (1,)
    )
    for name, rows in lists.items():
        head = list(rows[0])
        cells = [[_shortened(dict(leaves(row)).get(key, NOTHING)) for key in head] for row in rows]
        prose = [k for k, key in enumerate(head) if not isinstance(rows[0][key], int | float)]
        yield table(f"Other figures: {name}.", [str(key) for key in head], cells, prose)


def _alike(rows: object) -> bool:
    """A list of objects with the same keys: a table."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) and row for row in rows):
        return False
    return all(row.keys() == rows[0].keys() for row in rows)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … ({len(text):,} characters in audit.json)"
