"""All bugs that are planted, and the controls that must not count as caught.

Run as a program, it writes which rung of the audit catches which bug: ``simulations/audit/mechanism/planted.json``.
"""

from __future__ import annotations

import json

from bugs_of_the_bill import BILLS
from bugs_of_the_mechanism import MECHANISM
from bugs_of_the_protocol import LEAKS, MASKS, REFUSALS
from planting import ROOT, Mutation

NOISE = "pitfalls/test_noise_pitfalls.py::"

MUTATIONS = (*MECHANISM, *BILLS, *REFUSALS, *MASKS, *LEAKS)

CONTROLS = (
    Mutation(
        "control: a comment",
        "client/privatize.py",
        "# written so that NaN is refused too",
        "# so that NaN is refused too",
        (NOISE + "test_rounding_is_billed_as_part_of_what_a_user_moves",),
        check="clipping.bounds",
    ),
    Mutation(
        "control: a name that does not exist",
        "shared/privacy/lattice.py",
        "own = scale / partners_per_user",
        "own = scales / partners_per_user",
        (NOISE + "test_rounding_is_billed_as_part_of_what_a_user_moves",),
    ),
    Mutation(
        "control: a syntax error",
        "shared/privacy/lattice.py",
        "own = scale / partners_per_user",
        "own = = scale",
        (NOISE + "test_rounding_is_billed_as_part_of_what_a_user_moves",),
    ),
    Mutation(
        "control: a text that is gone",
        "shared/privacy/lattice.py",
        "this text is nowhere",
        "nor is this",
        (NOISE + "test_rounding_is_billed_as_part_of_what_a_user_moves",),
    ),
    Mutation(
        "control: a test that does not exist",
        "shared/privacy/lattice.py",
        "LARGEST_SCALE = 2**16",
        "LARGEST_SCALE = 2**15",
        (NOISE + "test_that_does_not_exist",),
    ),
    Mutation(
        "control: tests that do not load the file",
        "server/strategy.py",
        "divisor = plan.normaliser * plan.local_steps",
        "divisor = 1.0",
        ("unit/test_metrics.py",),
    ),
)
"""What the suite itself must not count as caught."""

PLANTED = ROOT / "simulations" / "audit" / "mechanism" / "planted.json"


def table() -> str:
    """What the audit's report tells: JSON, a line a bug."""
    rows = [{"bug": each.name, "rung": each.rung, "check": each.check} for each in MUTATIONS]
    return "[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n"


if __name__ == "__main__":
    PLANTED.write_text(table(), encoding="utf-8")
