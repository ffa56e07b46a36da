"""Buckets: the public split of all partners into sums of their own, another one in every round.

With buckets the coordinator opens b sums instead of one, and can combine them robustly. Every party works the split
out for itself, from the names that it has pinned, so that nobody has to be told, or believed, who belongs together.

Source: the bucketing of Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
ICLR 2022, with a secure sum in each bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from shared.errors import ProtocolError
from shared.exchange import SMALLEST_COHORT

LEAST_BUCKETS = 3
"""A round needs: a median of two is their mean, and one bad bucket moves it as far as it likes."""


def smallest_bucket(partners: int, buckets: int) -> int:
    """Members of the smallest bucket."""
    return partners // buckets


def largest_bucket(partners: int, buckets: int) -> int:
    """Members of the largest bucket: at most one more."""
    return -(-partners // buckets)


def least_sums(buckets: int) -> int:
    """Sums without which a round cannot be: the one, or `LEAST_BUCKETS` of several."""
    return min(buckets, LEAST_BUCKETS)


def why_not(partners: int, buckets: int, masked: bool) -> str:
    """What speaks against so many buckets, in words; empty if nothing does."""
    if buckets == 1:
        return ""
    if buckets < LEAST_BUCKETS:
        return f"buckets must be 1 or at least {LEAST_BUCKETS}: no combination of fewer sums is robust"
    if not masked:
        return "buckets above 1 need masked sums (secure_sum): sums in the open can be combined one by one"
    if smallest_bucket(partners, buckets) < SMALLEST_COHORT:
        return f"buckets={buckets} of {partners} partners leave fewer than {SMALLEST_COHORT} in one of them"
    return ""


def assign(run_id: str, round_: int, names: Iterable[str], buckets: int) -> tuple[tuple[str, ...], ...]:
    """The buckets of a round, each with its members sorted; none if there are fewer names than buckets.

    Parameters
    ----------
    run_id : str
    round_ : int
    names : iterable of str
        All partners that are pinned, whether they take part or not.
    buckets : int

    Guarantees
    ----------
    A function of its arguments as sets and nothing else: who has pinned the same names comes to the same buckets, in
    every attempt at the round. They are disjoint, hold every name, and their sizes differ by at most one. Partners are
    dealt out in the order of SHA-256 over run, round and name: another split in every round. The coordinator chooses
    the run's id and so, by trying, who meets whom. Nothing may rest on colluders being apart
    (`shared.privacy.plan.PrivacyPlan` puts all of them into one bucket).
    """
    dealt = sorted(set(names), key=lambda name: _place(run_id, round_, name))
    return tuple(tuple(sorted(dealt[number::buckets])) for number in range(buckets))


def own_bucket(run_id: str, round_: int, names: Iterable[str], buckets: int, own: str) -> tuple[str, ...]:
    """The members of the bucket that holds `own`, sorted.

    Raises
    ------
    ProtocolError
        If it is not among the names.
    """
    for members in assign(run_id, round_, names, buckets):
        if own in members:
            return members
    raise ProtocolError("Expected the own name among those that are dealt out to buckets.")


def _place(run_id: str, round_: int, name: str) -> bytes:
    return hashlib.sha256(json.dumps(["veilrec/v1/buckets", run_id, round_, name]).encode()).digest()
