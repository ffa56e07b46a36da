"""How much planted personal data the scrubber finds, and how often it takes something from a real review.

A planted value counts as found when no piece of it that could tell who somebody is stays: no run of four or more of its
letters or digits. Under which name it was replaced is counted apart.
"""

from __future__ import annotations

import math
import random
import re
import time
from pathlib import Path
from typing import Any

import polars as pl

from client.intake.scrubbing import RuleScrubber, Scrubber
from shared.errors import DataError
from simulations.benchmarks.pii_planted import CARRIERS, PLANTED

Z95 = 1.959963984540054
LEAST_LEFT = 4
"""Letters or digits of a value that may not stay in one piece."""


def wilson(found: int, of: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927).

    Parameters
    ----------
    found, of : int
    z : float
        Quantile of the standard normal; 1.96 for 95 %.
    """
    if of == 0:
        return 0.0, 1.0
    share, width = found / of, z * z / of
    middle = (share + width / 2) / (1 + width)
    half = z / (1 + width) * math.sqrt(share * (1 - share) / of + width / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def measure_recall(each: int = 1000, seed: int = 0, scrubber: Scrubber | None = None) -> list[dict[str, Any]]:
    """Plant values of each kind in sentences, scrub them, and see what is left.

    Parameters
    ----------
    each : int
        Of a kind.
    seed : int
        The benchmark's own; nothing secret is drawn.
    scrubber : Scrubber, optional
        The rules by default.

    Returns
    -------
    list of dict
        By kind: planted, found, recall, ci95 (Wilson), right_kind (share of those found under their own name).
    """
    scrubber = scrubber or RuleScrubber()
    rows = []
    for kind, (placeholder, draw) in PLANTED.items():
        source = random.Random(f"{seed}/{kind}")
        found = right = 0
        for _ in range(each):
            value, carrier = draw(source), source.choice(CARRIERS)
            clean, counts = scrubber.scrub(carrier.format(value))
            gone = not leaves(value, clean, carrier)
            found += gone
            right += gone and (placeholder is None or counts[placeholder] > 0)
        low, high = wilson(found, each)
        rows.append(
            {
                "kind": kind,
                "planted": each,
                "found": found,
                "recall": round(found / each, 4),
                "ci95": [round(low, 4), round(high, 4)],
                "right_kind": round(right / found, 4) if found else None,
            }
        )
    return rows


def measure_false_positives(data: Path, most: int = 50_000, scrubber: Scrubber | None = None) -> list[dict[str, Any]]:
    """Share of real reviews in which something is replaced, by kind.

    Public reviews may hold real addresses and links, so that the share is an upper bound of what is replaced wrongly.

    Parameters
    ----------
    data : pathlib.Path
        A folder with ``interactions.parquet`` that has reviews.
    most : int
        Distinct reviews that are read.

    Raises
    ------
    DataError
        If there is no such file, or no review in it.
    """
    scrubber = scrubber or RuleScrubber()
    texts = reviews_of(data)[:most]
    if not texts:
        raise DataError(f"{data}: Expected interactions.parquet with reviews, found none.")
    begun = time.perf_counter()
    flagged: dict[str, int] = {}
    for text in texts:
        for kind in scrubber.scrub(text)[1]:
            flagged[kind] = flagged.get(kind, 0) + 1
    rate = len(texts) / (time.perf_counter() - begun)
    rows = []
    for kind in ("URL", "EMAIL", "IBAN", "CARD", "ID", "IP", "PHONE", "ADDRESS"):
        low, high = wilson(flagged.get(kind, 0), len(texts))
        rows.append(
            {
                "kind": kind,
                "reviews": len(texts),
                "flagged": flagged.get(kind, 0),
                "share": round(flagged.get(kind, 0) / len(texts), 6),
                "ci95": [round(low, 6), round(high, 6)],
                "reviews_per_s": round(rate),
            }
        )
    return rows


def reviews_of(data: Path) -> list[str]:
    """Distinct reviews of a data set, sorted."""
    file = data / "interactions.parquet"
    if not file.is_file() or "review" not in pl.read_parquet_schema(file):
        return []
    texts = pl.read_parquet(file, columns=["review"]).get_column("review").drop_nulls().unique()
    return sorted(text for text in texts.to_list() if text)


def leaves(value: str, clean: str, carrier: str) -> bool:
    """Whether a piece of the value stayed in the text."""
    if value in clean:
        return True
    alone = carrier.replace("{}", " ")
    pieces = [piece for piece in re.findall(r"[^\W_]+", value) if len(piece) >= LEAST_LEFT]
    joined = re.sub(r"[\W_]+", "", value)
    stayed = any(piece in clean and piece not in alone for piece in pieces if piece.lower() not in COMMON)
    runs = re.findall(r"\d(?:[\W_]{0,2}\d){3,}", clean)
    digits = [re.sub(r"\D", "", run) for run in runs]
    return stayed or any(len(run) >= LEAST_LEFT and run in joined and run not in alone for run in digits)


COMMON = frozenset(
    (
        "https",
        "http",
        "mailto",
        "mail",
        "example",
        "shop",
        "users",
        "profile",
        "forum",
        "facebook",
        "instagram",
        "linkedin",
        "order",
        "orders",
        "twitter",
        "lamps",
        "html",
        "tumblr",
        "wishlist",
        "posts",
        "call",
        "mobile",
        "iban",
        "street",
        "road",
        "lane",
        "drive",
        "blvd",
        "court",
        "flat",
        "calle",
        "avenue",
        "postfach",
        "gmail",
        "orange",
        "proton",
        "burgerservicenummer",
        "alten",
        "zero",
        "punkt",
        "8080",
        "eth0",
    )
)
"""Words that tell nobody who somebody is."""
