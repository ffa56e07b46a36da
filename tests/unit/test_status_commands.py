"""What an operator reads on a terminal, on both sides, and the exit code that a watchdog reads."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import uvicorn
from coordinator_setting import RUN_ID, home_once
from partner_setting import NAME, SECRET, Federation
from typer.testing import CliRunner

from client.agent_monitor import AgentMonitor
from client.agent_service import agent_app
from client.listening import OPERATOR_SOCKET
from client.premises import Premises
from client.status_command import status as partner_status
from server.monitor import CoordinatorMonitor
from server.status_command import status as server_status
from shared.errors import ConfigError
from shared.status_words import duration, family_of, left, moment, number, size, spent_of

RUNNER = CliRunner()
app = typer.Typer()
app.command("server")(server_status)
app.command("partner")(partner_status)


# --- the coordinator ------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home_once(tmp_path_factory)[0], tmp_path / "home"))


def test_a_coordinator_s_status_is_a_table_and_an_exit_code(home: Path) -> None:
    monitor = CoordinatorMonitor(home)
    monitor.failed("CohortTooSmallError")
    monitor.restarted("superlink")
    monitor.beat()
    done = RUNNER.invoke(app, ["server", str(home)])
    assert done.exit_code == 0
    for words in (RUN_ID, "6 of 10", "3 of 8 planned", "anna", "12 lines", "CohortTooSmallError", "superlink 1"):
        assert words in done.stdout
    monitor.beat("stopped")
    stopped = RUNNER.invoke(app, ["server", str(home)])
    assert stopped.exit_code == 1 and "stopped" in stopped.stdout


def test_a_coordinator_s_status_as_json_is_one_document(home: Path) -> None:
    done = RUNNER.invoke(app, ["server", str(home), "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and told["coordinator"]["state"] == "never started"
    assert told["run"]["rounds_done"] == 6 and len(told["partners"]) == 4


def test_a_coordinator_before_its_first_round_has_a_status(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["server", str(tmp_path)])
    assert done.exit_code == 1
    for words in ("never started", "none, not begun", "0 of not known", "partners.json", "not there yet"):
        assert words in done.stdout
    assert isinstance(RUNNER.invoke(app, ["server", str(tmp_path / "none")]).exception, ConfigError)


# --- the partner ----------------------------------------------------------------------------------


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation.of(tmp_path)
    made.play().finish()
    return made


@pytest.fixture
def agent(federation: Federation) -> Iterator[AgentMonitor]:
    """An agent's socket for operators, as `client.agent_service` serves it; nobody asks it for a round here."""
    monitor = AgentMonitor(Premises.open(federation.folder), device="cpu")
    address = federation.folder / OPERATOR_SOCKET
    app_ = agent_app(None, monitor, address)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app_, log_config=None, access_log=False, lifespan="off", ws="none"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield monitor
        server.should_exit = True
        thread.join(30)


def test_a_running_agent_is_asked(federation: Federation, agent: AgentMonitor) -> None:
    agent.answered("sum", 1.0, 10, 10)
    agent.refused("BudgetExhaustedError")
    done = RUNNER.invoke(app, ["partner", str(federation.folder)])
    assert done.exit_code == 0, done.exception
    for words in (NAME, "running, since", "left of 12", "1 of run run, opened", "BudgetExhaustedError", "cpu"):
        assert words in done.stdout
    told = json.loads(RUNNER.invoke(app, ["partner", str(federation.folder), "--json"]).stdout)
    assert told["last_error"]["family"] == "BudgetExhaustedError" and told["state"] == "running"


def test_of_an_agent_that_is_down_the_folder_is_told(federation: Federation) -> None:
    done = RUNNER.invoke(app, ["partner", str(federation.folder)])
    assert done.exit_code == 1
    for words in ("down: nobody answers", "left of 12", "1 of run run, opened", "last answer  never"):
        assert words in done.stdout
    told = json.loads(RUNNER.invoke(app, ["partner", str(federation.folder), "--json"]).stdout)
    assert told["state"] == "down" and told["since"] is None
    federation.ledger_file.write_bytes(b"no ledger\n")
    assert "cannot be believed" in RUNNER.invoke(app, ["partner", str(federation.folder)]).stdout
    federation.ledger_file.unlink()
    assert "right before the first start" in RUNNER.invoke(app, ["partner", str(federation.folder)]).stdout


def test_a_socket_that_a_killed_agent_left_is_an_agent_that_is_down(federation: Federation) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(federation.folder / OPERATOR_SOCKET))
    assert RUNNER.invoke(app, ["partner", str(federation.folder)]).exit_code == 1


def test_neither_table_nor_json_holds_a_user_or_a_text(federation: Federation, agent: AgentMonitor) -> None:
    for words in (["--json"], []):
        told = RUNNER.invoke(app, ["partner", str(federation.folder), *words]).stdout
        assert NAME in told and SECRET not in told and "user " not in told and "Lamp" not in told


# --- words ----------------------------------------------------------------------------------------


def test_figures_are_told_in_words_that_a_person_reads() -> None:
    assert [duration(value) for value in (None, 0.0, 1.44, 90, 7200, 200_000)] == [
        "not known",
        "0 s",
        "1.4 s",
        "1.5 min",
        "2 h",
        "2.3 d",
    ]
    assert [size(value) for value in (None, 0, 999, 1500, 3_400_000, 7 * 10**9)] == [
        "not known",
        "0 B",
        "999 B",
        "1.5 kB",
        "3.4 MB",
        "7 GB",
    ]
    assert moment(None) == "never" and moment(0) == "1970-01-01 00:00:00 UTC"
    assert spent_of(1.25, 8.0) == "1.25 of 8" and number(None) == number(float("inf")) == "no bound"
    assert left(8.0, 1.25) == 6.75 and left(None, 1.0) is left(float("inf"), 1.0) is None and left(1.0, 2.0) == 0.0
    assert left(8.0, None) == 0.0  # a plan without noise has spent it all
    assert family_of("UnmaskError") == "UnmaskError" and family_of("user 17") == "other"
