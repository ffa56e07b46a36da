"""``veilrec bench secure-sum`` measures a whole round and says on what."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from shared.errors import (
    ConfigError,
)
from shared.exchange import (
    Consent,
    Consents,
    Outbox,
)
from simulations.benchmarks.commands import bench_app
from simulations.benchmarks.secure_sum import benchmark, payload_bytes

# The command


def test_the_benchmark_prints_its_rows_as_json() -> None:
    shown = CliRunner().invoke(
        bench_app, ["secure-sum", "--partners", "3,5", "--parameters", "50", "--repeat", "1", "--json"]
    )
    document = json.loads(shown.stdout)
    assert document["benchmark"] == "secure-sum"
    assert set(document["machine"]) == {"cpus", "platform", "python", "numpy"}
    rows = document["results"]
    assert [(row["partners"], row["dropped"]) for row in rows] == [(3, 0), (3, 1), (5, 0), (5, 1)]
    assert all(row["max_error_steps"] == 0 and row["parameters"] == 50 for row in rows)
    assert all(0 < row["client_s"] < row["total_compute_s"] and row["server_s"] > 0 for row in rows)


def test_the_benchmark_prints_a_table_for_people() -> None:
    shown = CliRunner().invoke(bench_app, ["secure-sum", "--partners", "3", "--parameters", "50", "--repeat", "1"])
    assert shown.exit_code == 0
    assert "total ms" in shown.stdout


@pytest.mark.parametrize("partners", ["two", "2", "51", ""])
def test_the_benchmark_refuses_other_numbers_of_partners(partners: str) -> None:
    shown = CliRunner().invoke(bench_app, ["secure-sum", "--partners", partners])
    assert isinstance(shown.exception, ConfigError)


def test_what_a_partner_sends_stays_small_for_fifty_partners() -> None:
    row = benchmark([50], 1000, 0.2, 1)[1]
    assert row["dropped"] == 10
    assert row["max_error_steps"] == 0
    assert row["bytes_up_per_partner"] <= 4.2 * 1000 + 8192


def test_payload_bytes_counts_what_an_answer_holds() -> None:
    assert payload_bytes(Outbox("ab", {"c": bytes(5)})) == 8
    assert payload_bytes(np.zeros(3, np.uint32)) == 12
    assert payload_bytes(Consents((Consent("a", bytes(64)),))) == 65
