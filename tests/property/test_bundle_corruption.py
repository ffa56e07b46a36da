"""A thousand corrupted bundles: each is found by both verifiers, each time with one line.

Two kinds of forger. One has the archive alone: bytes, members, names. The other has the bundler's key and signs again,
sometimes with the help of the coordinator or of a partner: what it cannot do is speak for all who signed. The seeds are
fixed. Forged are things that contradict something else in the bundle; what an auditor measured stands on the
auditor's word, and the counts that nothing can check are not in a bundle at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from evidence_setting import BUNDLER, Made, made
from forged_archives import BARE_KINDS, archive
from forged_evidence import AUDIT_FORGERIES, SIGNED_KINDS, again, edited
from forged_together import COLLUDING_KINDS

from shared.errors import IntegrityError, LedgerError
from simulations.audit.bundle import independent
from simulations.audit.bundle.verify import verify_bytes

WHOLE, PARTS = 1000, 8
KINDS = BARE_KINDS | SIGNED_KINDS | COLLUDING_KINDS


@pytest.fixture(scope="module", autouse=True)
def run() -> Made:
    return made()


def refused(data: bytes) -> tuple[str, str]:
    """What the two say; a bundle that one of them takes fails the test."""
    told = []
    for check in (
        lambda: verify_bytes(data, BUNDLER.public, "evidence.tar"),
        lambda: independent.check(data, BUNDLER.public.text),
    ):
        with pytest.raises(Exception) as error:
            check()
        told.append(error.value)
    assert isinstance(told[0], IntegrityError | LedgerError), repr(told[0])
    assert "\n" not in str(told[0])
    return str(told[0]), str(told[1])


def test_what_is_not_corrupted_passes_both() -> None:
    """Otherwise verifiers that take nothing would pass below."""
    for data in (archive(), again(made().members)):
        assert verify_bytes(data, BUNDLER.public, "evidence.tar").rounds == 3
        assert independent.check(data, BUNDLER.public.text).startswith("consistent")


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_found_by_both_verifiers(kind: str) -> None:
    random_ = random.Random(f"evidence {kind}")
    corrupted = KINDS[kind](random_)
    assert corrupted != archive()
    refused(corrupted)


@pytest.mark.parametrize("change", AUDIT_FORGERIES)
def test_an_audit_that_does_not_follow_from_its_numbers_is_found_by_both(change: Callable[[Any], Any]) -> None:
    assert "audit.json" in refused(edited("audit.json", change))[0]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.soak) for part in range(1, PARTS))])
def test_a_thousand_corruptions_are_found_by_both(part: int) -> None:
    kinds = list(KINDS)
    for number in range(part, WHOLE, PARTS):
        corrupted = KINDS[kinds[number % len(kinds)]](random.Random(f"thousand {number}"))
        assert corrupted != archive()
        refused(corrupted)
