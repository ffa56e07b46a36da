"""The measurement of the scrubber can tell a good one from one that does nothing, and its figures are what they say."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from client.intake.scrubbing import RuleScrubber
from shared.errors import ConfigError, DataError
from simulations.benchmarks.pii import leaves, measure_false_positives, measure_recall, wilson
from simulations.benchmarks.pii_command import pii
from simulations.benchmarks.pii_planted import CARRIERS, PLANTED

FLOORS = {
    "e-mail": 0.97,
    "e-mail, obfuscated": 0.85,
    "phone with country code": 0.97,
    "phone without": 0.72,
    "IBAN": 0.97,
    "payment card": 0.97,
    "IP address": 0.9,
    "URL with a user": 0.75,
    "postal address": 0.83,
    "national id": 0.86,
    "name of a person": 0.0,
}


class Idle(RuleScrubber):
    """Finds nothing."""

    def scrub(self, text: str) -> tuple[str, Counter[str]]:
        return text, Counter()


@pytest.mark.parametrize(
    ("found", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (45, 50, 0.7864, 0.9565)]
)
def test_the_interval_is_wilsons(found: int, of: int, low: float, high: float) -> None:
    """Against published values (Newcombe 1998 gives the formula; computed by hand)."""
    assert wilson(found, of) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)


def test_recall_does_not_fall_below_what_the_page_says() -> None:
    rows = {row["kind"]: row for row in measure_recall(150, seed=3)}
    assert rows.keys() == PLANTED.keys() == FLOORS.keys()
    assert {kind: row["recall"] for kind, row in rows.items() if row["recall"] < FLOORS[kind]} == {}
    assert all(row["ci95"][0] <= row["recall"] <= row["ci95"][1] for row in rows.values())


def test_a_scrubber_that_does_nothing_finds_nothing() -> None:
    assert all(row["recall"] == 0 for row in measure_recall(150, scrubber=Idle()))


def test_a_value_that_stays_in_part_is_not_found() -> None:
    carrier = "Ask {} for me in 2019."
    assert leaves("anna.smith@example.com", "Ask anna.[EMAIL] for me in 2019.", carrier)
    assert leaves("4111 1111 1111 1111", "Ask [CARD] 1111 for me in 2019.", carrier)
    assert not leaves("anna.smith@example.com", "Ask [EMAIL] for me in 2019.", carrier)


def test_what_is_planted_depends_on_the_seed_alone() -> None:
    assert measure_recall(20, seed=1) == measure_recall(20, seed=1) != measure_recall(20, seed=2)
    assert all(draw(random.Random(5)) == draw(random.Random(5)) for _, draw in PLANTED.values())


def test_the_sentences_around_a_value_stay() -> None:
    scrubber = RuleScrubber()
    told = [carrier.format("this") for carrier in CARRIERS]
    assert [scrubber.scrub(text)[0] for text in told] == told


def test_next_to_nothing_is_taken_from_real_reviews(real_data: Path) -> None:
    for name in ("amazon_gift_cards", "rotten_tomatoes_critics"):
        rows = measure_false_positives(real_data / name, most=3000)
        assert sum(row["flagged"] for row in rows) <= 3


def test_data_without_reviews_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reviews"):
        measure_false_positives(tmp_path)
    pl.DataFrame({"review": ["", None]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="reviews"):
        measure_false_positives(tmp_path)


def test_the_command_tells_recall_or_what_it_takes_from_reviews(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(pii)
    document = json.loads(CliRunner().invoke(app, ["--each", "5", "--json"]).output)
    assert document["benchmark"] == "pii" and len(document["results"]) == len(PLANTED)
    pl.DataFrame({"review": ["fine", "mail a@example.com"]}).write_parquet(tmp_path / "interactions.parquet")
    document = json.loads(CliRunner().invoke(app, ["--data", str(tmp_path), "--json"]).output)
    assert {row["kind"]: row["flagged"] for row in document["results"]}["EMAIL"] == 1
    assert "recall" in CliRunner().invoke(app, ["--each", "5"]).output
    assert isinstance(CliRunner().invoke(app, ["--scrub", "magic"]).exception, ConfigError)
