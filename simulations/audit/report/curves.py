"""The curves of the report: epsilon over delta, and what each attack found at few false accusations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from shared.errors import AccountingError
from shared.privacy.accounting import epsilon_spent
from shared.privacy.plan import PrivacyPlan
from simulations.audit.estimators.roc import Roc
from simulations.audit.findings import ScoreSet
from simulations.audit.report.blocks import Chart
from simulations.report.charts import Across, Line, line_chart

Curve = tuple[tuple[float, float], ...]
"""(delta, epsilon), in order of delta."""
DECADES = (-3, -2, -1, 0, 1, 2, 3)
"""Powers of ten around the plan's delta."""
LARGEST_DELTA = 1e-2
LOWEST_RATE = 1e-3
"""The false-positive axis begins here."""
DRAWN = 60


def delta_curve(plan: PrivacyPlan, decades: Sequence[int] = DECADES) -> Curve:
    """Epsilon of the whole plan at several deltas around its own; empty in mode none. Takes seconds.

    A delta at which the plan cannot be accounted (so small that roundings fail more often) is left out.
    """
    found = []
    for decade in decades:
        delta = plan.delta * 10.0**decade
        if plan.mode == "none" or (delta > LARGEST_DELTA and decade):
            continue
        try:
            epsilon = epsilon_spent(replace(plan, delta=delta), plan.rounds)
        except AccountingError:
            continue
        if epsilon is not None:
            found.append((delta, epsilon))
    return tuple(found)


def most_found(curve: Curve, rate: float) -> float:
    """The largest true-positive rate at a false-positive rate that the plan allows: the least over its curve.

    ``TPR <= delta + e^epsilon FPR`` and ``TPR <= 1 - e^-epsilon (1 - delta - FPR)`` for each (delta, epsilon)
    (Kairouz, Oh, Viswanath 2015, theorem 2.1).
    """
    bounds = (
        min(delta + math.exp(min(epsilon, 700.0)) * rate, 1.0 - math.exp(-epsilon) * max(0.0, 1.0 - delta - rate))
        for delta, epsilon in curve
    )
    return min([1.0, *bounds])


def curve_chart(curve: Curve) -> Chart | None:
    """Epsilon over delta."""
    svg = line_chart(
        "delta-curve", "Epsilon by delta", [Line("epsilon", curve)], across=Across("delta", log=True), linear=True
    )
    caption = "The same plan read at other deltas: a smaller delta costs a larger epsilon. One promise, not several."
    return None if svg is None or len(curve) < 2 else Chart("Epsilon by delta", svg, caption)


def roc_chart(name: str, scores: ScoreSet, found: Roc, curve: Curve) -> Chart | None:
    """The curve of one set of scores, false-positive rates on a logarithmic axis from `LOWEST_RATE`."""
    rates = [LOWEST_RATE ** (1 - k / DRAWN) for k in range(DRAWN + 1)]
    lines = [Line("attack", _steps(found)), Line("guessing", tuple((rate, rate) for rate in rates))]
    if curve:
        lines.append(Line("most that the claim allows", tuple((rate, most_found(curve, rate)) for rate in rates)))
    title = f"ROC curve: {scores.name}"
    svg = line_chart(name, title, lines, across=Across("false-positive rate", log=True))
    return None if svg is None else Chart(title, svg, _caption(scores, bool(curve)))


def _steps(found: Roc) -> Curve:
    """Corners of the curve from `LOWEST_RATE` on, as steps: between two thresholds nothing more is found.

    True-positive rates are drawn at `LOWEST_RATE` or above: both axes are logarithmic.
    """
    points: list[tuple[float, float]] = []
    held = 0.0
    pairs = zip(found.false_positive_rates.tolist(), found.true_positive_rates.tolist(), strict=True)
    for false, true in pairs:
        if false > LOWEST_RATE:
            points += [(LOWEST_RATE, held)] if not points else []
            points += [(false, held), (false, true)]
        held = true
    return tuple((false, max(true, LOWEST_RATE)) for false, true in points)


def _caption(scores: ScoreSet, claimed: bool) -> str:
    inside, outside = scores.inside.size, scores.outside.size
    told = f"{inside:,} who took part against {outside:,} who did not. Up is worse for privacy."
    told += f" Both axes are logarithmic; less than {LOWEST_RATE:g} is drawn at {LOWEST_RATE:g}."
    if outside < 1 / LOWEST_RATE:
        told += (
            f" With {outside:,} nothing below {1 / outside:.2g} can be measured: there the curve shows what is found"
            " without any false accusation."
        )
    if claimed:
        told += " The dotted line is what the claim allows to somebody who saw the whole run."
    return told
