"""Attempts are counted, told, paused between and given up; how long a coordinator waits is read from JSON."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server import attempts as module
from server.attempts import ATTEMPTS_FILE, Attempts
from server.patience import SIMULATED, Patience
from shared.errors import CohortTooSmallError, ConfigError, ProtocolError

FIVE = Patience(attempts=5, pause_s=2.0, longest_pause_s=10.0)
ERROR = CohortTooSmallError("Expected answers >= 3 in round 4, got 2.")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    told: list[float] = []
    monkeypatch.setattr(module.time, "sleep", told.append)
    return told


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / ATTEMPTS_FILE).read_text().splitlines()]


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_pauses_double_up_to_the_longest_and_the_last_failure_is_raised(tmp_path: Path, pauses: list[float]) -> None:
    made = Attempts(tmp_path / "run" / ATTEMPTS_FILE, FIVE)
    for _ in range(4):
        made.failed(4, ERROR)
    with pytest.raises(CohortTooSmallError) as raised:
        made.failed(4, ERROR)
    assert raised.value is ERROR
    assert pauses == [2.0, 4.0, 8.0, 10.0]
    assert [line["pause_s"] for line in lines(tmp_path / "run")] == [2.0, 4.0, 8.0, 10.0, 0.0]


def test_a_failure_is_told_by_round_family_and_reason(tmp_path: Path, pauses: list[float]) -> None:
    Attempts(tmp_path / ATTEMPTS_FILE, FIVE).failed(7, ERROR)
    (line,) = lines(tmp_path)
    assert set(line) == {"time", "round", "family", "why", "pause_s"}
    assert (line["round"], line["family"], line["why"]) == (7, "CohortTooSmallError", str(ERROR))


def test_a_round_that_was_made_at_last_begins_the_count_anew(tmp_path: Path, pauses: list[float]) -> None:
    made = Attempts(tmp_path / ATTEMPTS_FILE, FIVE)
    for round_ in (4, 4, 4, 4, 5, 5, 5, 5):
        made.failed(round_, ERROR)
    assert pauses == [2.0, 4.0, 8.0, 10.0] * 2


def test_another_process_counts_from_one_and_keeps_the_lines(tmp_path: Path, pauses: list[float]) -> None:
    for _ in range(2):
        Attempts(tmp_path / ATTEMPTS_FILE, FIVE).failed(4, ERROR)
    assert pauses == [2.0, 2.0] and len(lines(tmp_path)) == 2


def test_a_simulation_makes_one_attempt_and_writes_no_file(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(ProtocolError):
        Attempts(tmp_path / ATTEMPTS_FILE, SIMULATED).failed(1, ERROR)
    assert pauses == [] and list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_a_line_and_not_the_run(tmp_path: Path, pauses: list[float]) -> None:
    made = Attempts(tmp_path / ATTEMPTS_FILE, FIVE)
    made.failed(4, ERROR)
    size = (tmp_path / ATTEMPTS_FILE).stat().st_size
    with full_after(size + 20):
        made.failed(4, ERROR)
    made.failed(4, ERROR)
    assert pauses == [2.0, 4.0, 8.0]
    assert [line["pause_s"] for line in lines(tmp_path)] == [2.0, 8.0]


# --- patience -------------------------------------------------------------------------------------


def test_a_simulations_patience_is_one_attempt_without_a_grace() -> None:
    assert Patience.from_text("") == SIMULATED == Patience()
    assert (SIMULATED.attempts, SIMULATED.grace_s) == (1, math.inf)


def test_patience_is_read_from_json() -> None:
    read = Patience.from_text('{"gather_s": 600, "exchange_s": 120.5, "attempts": 5}')
    assert read == Patience(gather_s=600, exchange_s=120.5, attempts=5)


@pytest.mark.parametrize(
    "text",
    [
        '{"gather_s": 0}',
        '{"grace_s": -1}',
        '{"grace_s": NaN}',
        '{"attempts": true}',
        '{"attempts": 2.5}',
        '{"pause_s": "2"}',
        '{"exchange_s": null}',
        '{"patience": 1}',
        "[]",
        "3",
        "{",
        "junk",
    ],
)
def test_patience_that_is_no_number_above_0_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="patience: Expected a JSON object of numbers > 0 among gather_s, exchange_s"):
        Patience.from_text(text)


def test_pauses_never_overflow() -> None:
    assert [FIVE.pause(n) for n in (1, 2, 3, 4, 900)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert FIVE.pause(100_000) == 10.0
