"""What a log may hold: nothing that was planted in the words and ids of somebody's data."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.service.monitor import Monitor
from shared.errors import ConfigError, PolicyViolationError
from shared.logs import TEXTS, WITHHELD, LibraryLines, Log, place, take_over

TEXT = "hates her neighbour"
PLANTED = ("user-0000005", "anna@example.org", TEXT, "41dc0b9a-77a1-4f2e-9c5e-6d2f0a1b3c4d", "+44 20 7946 0958", "ünï")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> Log:
    return Log(stream, process="agent")


def test_a_line_has_time_level_event_and_fields(log: Log, stream: io.StringIO) -> None:
    told = {"step": "sum", "round": 3, "seconds": 1.5, "bytes_in": 2048, "masked": True, "device": "cuda:0"}
    log.tell("answered", **told)
    (line,) = lines(stream)
    assert line.pop("time") > 1.7e9
    assert line == {"level": "info", "event": "answered", "process": "agent", **told}


@pytest.mark.parametrize("planted", PLANTED)
def test_no_field_lets_a_text_of_somebody_through(log: Log, stream: io.StringIO, planted: str) -> None:
    """Only a partner's name has a form that an id may have too; a path has to be of the schema."""
    for name in [*sorted(set(TEXTS) - {"partner", "process", "route"}), "user_id", "anything", "message"]:
        log.tell("answered", **{name: planted})
    log.tell(planted)
    log.tell("answered", route=f"/v1/{planted} x")
    assert planted not in stream.getvalue() and json.dumps(planted) not in stream.getvalue()
    assert stream.getvalue().count(WITHHELD) == len(lines(stream))


@pytest.mark.parametrize("name", ["user", "user_id", "item_id", "users", "rows", "cohort", "rating", "seed", "phone"])
def test_no_number_is_written_under_a_name_of_somebody(log: Log, stream: io.StringIO, name: str) -> None:
    log.tell("answered", **{name: 7_946_0958})
    log.tell("answered", **{name: 4.5})
    assert [line[name] for line in lines(stream)] == [WITHHELD] * 2


def test_a_rule_that_lets_all_through_would_be_seen(
    log: Log, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: without the forms the text stands in the log."""
    monkeypatch.setattr("shared.logs.presentable", lambda name, value: value)
    log.tell("answered", reason=TEXT)
    assert TEXT in stream.getvalue()


def test_an_error_that_nobody_foresaw_is_its_type_and_place_and_not_its_message(log: Log, stream: io.StringIO) -> None:
    try:
        raise ValueError(f"invalid literal: {TEXT}")
    except ValueError as error:
        log.trouble(error, round=2)
        assert place(error).startswith("test_an_error_that_nobody_foresaw_is_its_type_and_place")
    (line,) = lines(stream)
    assert line["type"] == "ValueError" and line["where"].rsplit(":", 1)[1].isdigit() and line["level"] == "error"
    assert TEXT not in stream.getvalue()


def test_an_error_of_our_own_says_what_was_expected(log: Log, stream: io.StringIO) -> None:
    """Such a message holds no text of a user by its own rule; an operator needs it."""
    log.trouble(PolicyViolationError("Expected epsilon <= 8.0, got 9.0."))
    (line,) = lines(stream)
    assert (line["type"], line["why"]) == ("PolicyViolationError", "Expected epsilon <= 8.0, got 9.0.")


def test_what_is_no_number_keeps_the_line_json(log: Log, stream: io.StringIO) -> None:
    log.tell("answered", seconds=float("nan"), epsilon=float("inf"))
    assert lines(stream)[0]["seconds"] == lines(stream)[0]["epsilon"] == WITHHELD


def test_what_is_below_the_level_is_left_out(stream: io.StringIO) -> None:
    log = Log(stream, "warning")
    for level in ("debug", "info", "warning", "error", "no-such-level"):
        log.tell("answered", level=level)
    assert [line["level"] for line in lines(stream)] == ["warning", "error", "error"]
    with pytest.raises(ConfigError, match="Expected one of debug, info, warning, error"):
        Log(stream, "loud")


def test_lines_of_many_threads_do_not_mix(log: Log, stream: io.StringIO) -> None:
    threads = [threading.Thread(target=lambda: [log.tell("answered", round=k) for k in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(stream)) == 1600


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    """A pipe that nobody reads, as after the end of a supervisor; a full disk."""
    read, write = os.pipe()
    os.close(read)
    logs = [Log(os.fdopen(write, "w"))]
    if Path("/dev/full").exists():
        logs.append(Log.to_file(Path("/dev/full")))
    for log in logs:
        with log:
            log.tell("answered")
        assert log.lost == 1


def test_a_file_is_appended_to_and_its_owner_s_alone(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "agent.log"
    for number in (1, 2):
        with Log.to_file(file) as log:
            log.tell("answered", round=number)
    assert [json.loads(line)["round"] for line in file.read_text().splitlines()] == [1, 2]
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="Expected a file to log to"):
        Log.to_file(tmp_path)


def test_a_file_may_be_rotated_by_truncation(tmp_path: Path) -> None:
    file = tmp_path / "agent.log"
    with Log.to_file(file) as log:
        log.tell("answered", round=1)
        os.truncate(file, 0)
        log.tell("answered", round=2)
    assert json.loads(file.read_text())["round"] == 2


def test_nothing_is_written_where_no_log_is_wanted() -> None:
    Log(None).tell("answered", round=1)


@pytest.fixture
def libraries() -> Iterator[None]:
    """The process's loggers, put back as they were."""
    root = logging.getLogger()
    kept, level, quoting = root.handlers[:], root.level, logging.getLogger("quoting")
    quoting.addHandler(logging.StreamHandler())
    yield
    root.handlers[:] = kept
    root.setLevel(level)
    quoting.handlers.clear()


def test_libraries_log_who_and_where_and_no_message(
    log: Log, stream: io.StringIO, libraries: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Flower writes the text of a client's exception with its traceback."""
    take_over(log)
    logger = logging.getLogger("quoting")
    try:
        raise ValueError(TEXT)
    except ValueError:
        logger.exception("ClientApp raised: %s", TEXT)
    logger.warning("retry for %s", PLANTED[0])
    logger.info("left out: below the level")
    raised, warned = lines(stream)
    assert raised["event"] == "library" and raised["logger"] == "quoting" and raised["type"] == "ValueError"
    assert raised["level"] == "error" and warned["level"] == "warning" and warned["type"] is None
    assert TEXT not in stream.getvalue() + "".join(capfd.readouterr())


def test_a_critical_line_of_a_library_is_an_error(log: Log, stream: io.StringIO) -> None:
    LibraryLines(log).emit(logging.LogRecord("a.b", logging.CRITICAL, "file", 7, TEXT, None, None))
    (line,) = lines(stream)
    assert line["level"] == "error" and line["logger"] == "a.b" and line["where"] == "unknown:7"


def test_the_ranking_service_logs_by_the_same_rule(stream: io.StringIO) -> None:
    monitor = Monitor(stream)
    monitor.tell("request", route="/v1/rank", status=200, ms=1.25)
    monitor.tell("listening", port=8080, pid=17)
    monitor.tell("request", route=f"/v1/{TEXT}", status=404, ms=0.1)
    told = lines(stream)
    assert told[0]["route"] == "/v1/rank" and told[1]["port"] == 8080 and told[2]["route"] == WITHHELD
