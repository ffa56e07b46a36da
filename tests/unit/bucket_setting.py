"""What tests of buckets share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gathering_setting import Federation
from plans import PLAN

from shared.buckets import assign

NAMES = tuple(f"partner-{k:03d}" for k in range(10))
TEN: dict[str, Any] = {"partners": 10, "quorum": 0, "buckets": 3}
NINE: dict[str, Any] = {"partners": 9, "quorum": 0, "buckets": 3}
TWELVE: dict[str, Any] = {"partners": 12, "quorum": 0, "buckets": 4}
KNOWN = (
    ("partner-002", "partner-004", "partner-007", "partner-009"),
    ("partner-003", "partner-005", "partner-006"),
    ("partner-000", "partner-001", "partner-008"),
)
BUCKETED = replace(PLAN, partners=10, survivors=3, buckets=3)


def members(federation: Federation, number: int, run_id: str = "run") -> tuple[tuple[str, ...], ...]:
    return assign(run_id, number, federation.partners, federation.config.federation.buckets)


def partner(name: str) -> int:
    return int(name.removeprefix("partner-"))


def others(federation: Federation, number: int, lost: tuple[str, ...] = ()) -> tuple[int, ...]:
    """All that are not in the buckets of the partners that are lost; for `Federation.noised`."""
    gone = {name for bucket in members(federation, number) for name in bucket if set(bucket) & set(lost)}
    return tuple(map(partner, gone))
