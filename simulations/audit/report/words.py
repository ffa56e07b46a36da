"""Numbers and sentences that appear in more than one place of a report, written the same way in each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal

from simulations.audit.findings import ENOUGH_POWER, Verdict
from simulations.report.figures import NOTHING, epsilon_text

NOTICED = f"{ENOUGH_POWER:.0%}".replace("%", " %")

MEANINGS = {
    Verdict.PASS: "The audit tried to refute the claim and could not. Had there been half of the noise, it would have"
    f" noticed with a probability of at least {NOTICED}. PASS is not a proof: an audit can find mistakes, it cannot"
    " show that there are none.",
    Verdict.FAIL: "The audit refuted the claim, or found something that must not be. Do not rely on the claim, and do"
    " not release what came of this run.",
    Verdict.INCONCLUSIVE: "Nothing refuted the claim, but the audit might not have noticed if the claim were wrong. Do"
    " not read this as PASS.",
}
"""What each verdict means."""
NOTHING_CLAIMED = {
    Verdict.PASS: "Nothing was promised, so nothing could be refuted. This verdict says nothing about privacy.",
    Verdict.FAIL: "Nothing was promised, and the attacks found what a promise would have had to prevent.",
    Verdict.INCONCLUSIVE: "Nothing was promised, and the attacks may have missed what there is to find.",
}
"""What each verdict means in mode none."""
NO_PROOF = (
    "No audit proves differential privacy. The promise rests on the mathematics of the plan and on code that does what"
    " the plan says. An audit attacks that code and what it released. It can refute the promise; where it does not, it"
    " says how likely it would have been to notice."
)
EXPIRY = "Valid until the next release over the same data: what is released later adds to epsilon and delta."


def bound_text(epsilon: float | None) -> str:
    """A lower bound with up to three decimals, rounded down, so that it stays one."""
    return _floored(epsilon)


def power_text(power: float | None) -> str:
    """A probability with up to three decimals, rounded down: power is never overstated."""
    return _floored(power)


def claim_text(epsilon: float | None) -> str:
    """A claimed epsilon, rounded up; ``none`` where nothing is claimed."""
    return "none" if epsilon is None or not math.isfinite(epsilon) else epsilon_text(epsilon)


def value_text(value: float | None) -> str:
    """Any other number, in up to six significant digits."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.6g}".replace("e-0", "e-")


def digest_of_digests(digests: Mapping[str, str]) -> str:
    """SHA-256 of the lines ``<digest>  <file>``, in order of the files: what ``sha256sum`` prints, hashed once more."""
    lines = "".join(f"{digests[file]}  {file}\n" for file in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    ended = text if text.endswith((".", "!", "?")) else f"{text}."
    return ended[:1].upper() + ended[1:]


def _floored(value: float | None) -> str:
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    rounded = Decimal(repr(value)).quantize(Decimal("0.001"), rounding=ROUND_FLOOR)
    return f"{rounded:f}".rstrip("0").rstrip(".") or "0"
