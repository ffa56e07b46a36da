"""What the coordinator tells of itself: from its folder, from the SuperLink's database, from what it counted."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from coordinator_setting import CONFIG, RUN_ID, home_once, superlink, write_run

from server.home_facts import HomeFacts, planned_epsilon, planned_rounds
from server.monitor import ERRORS_KEPT, STALE_S, CoordinatorMonitor
from shared.config import RunConfig
from shared.files import write_json

PLANTED = "hates her neighbour"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    return home_once(tmp_path_factory)


@pytest.fixture
def home(made: tuple[Path, dict[str, int]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "home"))


def metrics(monitor: CoordinatorMonitor) -> dict[str, float]:
    """By name and labels."""
    lines = [line for line in monitor.exposition().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# --- the folder -----------------------------------------------------------------------------------


def test_a_folder_with_nothing_in_it_says_so_plainly(tmp_path: Path) -> None:
    monitor = CoordinatorMonitor(tmp_path / "none")
    told = monitor.status()
    assert told["coordinator"]["state"] == "never started" and told["partners"] == []
    assert told["run"]["state"] == "not begun" and told["run"]["rounds_done"] == 0 and told["run"]["epsilon"] == 0.0
    assert {note["what"] for note in told["notes"]} == {"not there yet"}
    files = {note["file"] for note in told["notes"]}
    assert {"partners.json", "receipts.json", "tls.crt", "run/rounds.jsonl", "superlink/state.db"} <= files
    assert metrics(monitor)["veilrec_server_up"] == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "partners.json",
        "receipts.json",
        "releases.json",
        "tls.crt",
        "run/rounds.jsonl",
        "run/config.json",
        "run/checkpoints/state.safetensors",
        "superlink/state.db",
    ],
)
@pytest.mark.parametrize("bad", [b"", b"{", b"[3]", b"\xff\xfe", b'{"partners": [{}]}\n3\n'], ids=repr)
def test_a_file_that_is_broken_is_a_note_and_no_crash(home: Path, name: str, bad: bytes) -> None:
    for journal in home.glob("superlink/state.db-*"):
        journal.unlink()  # SQLite would take the pages from there
    (home / name).write_bytes(bad)
    monitor = CoordinatorMonitor(home)
    told = monitor.status()
    fine = {("releases.json", b"[3]"), ("run/rounds.jsonl", b""), ("run/config.json", b"")}
    if (name, bad) not in fine:
        assert {"file": name, "what": "cannot be read"} in told["notes"]
    assert monitor.exposition() and json.dumps(told, allow_nan=False)


def test_the_run_is_told_from_its_folder(home: Path) -> None:
    told = CoordinatorMonitor(home).status()
    run = told["run"]
    assert (run["run_id"], run["rounds_done"], run["rounds_planned"]) == (RUN_ID, 6, 10)
    assert (run["epsilon"], run["epsilon_planned"], run["quorum"], run["state"]) == (3.0, 8.0, 3, "under way")
    assert [line["round"] for line in run["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert told["releases"] == 1 and told["notes"] == [{"file": "run/status.json", "what": "not there yet"}]
    assert 364 < told["certificates"]["tls"]["days_left"] < 366 < told["certificates"]["ca"]["days_left"]
    write_run(home / "run", 10)
    (home / "run" / "adapter").mkdir()
    (home / "run" / "adapter" / "manifest.sig").write_text("{}")
    assert CoordinatorMonitor(home).status()["run"]["state"] == "released"


def test_what_a_round_s_line_should_not_hold_is_left_out(home: Path) -> None:
    lines = [{"round": 1, "stage": PLANTED, "seconds": float("nan"), "user": PLANTED}, {"round": PLANTED}]
    (home / "run" / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = CoordinatorMonitor(home).status()
    assert told["run"]["rounds"] == [{"round": 1}] and PLANTED not in json.dumps(told, allow_nan=False)


def planned(**privacy: object) -> float | None:
    return planned_epsilon(RunConfig.model_validate({"privacy": {"population": 5000, **privacy}}))


def test_the_plan_s_epsilon_is_its_target_and_without_privacy_there_is_none() -> None:
    assert planned(epsilon=3.0) == 3.0 and planned(mode="none") is None
    assert planned_rounds(CONFIG) == 10


@pytest.mark.slow
def test_the_plan_s_epsilon_is_the_accountant_s_where_noise_is_fixed() -> None:
    fixed = planned(noise_multiplier=30.0)
    assert fixed is not None and 0 < fixed != 8.0


# --- the SuperLink's nodes ------------------------------------------------------------------------


def test_partners_are_told_with_what_the_superlink_knows_of_their_nodes(
    home: Path, made: tuple[Path, dict[str, int]]
) -> None:
    nodes, before = made[1], time.time()
    state = superlink(home)
    assert state.activate_node(nodes["anna"], 30.0) and state.activate_node(nodes["ben"], 30.0)
    assert state.deactivate_node(nodes["ben"])
    monitor = CoordinatorMonitor(home)
    anna, ben, carl, dora = monitor.status()["partners"]
    assert anna["online"] and before - 1 <= anna["seen"] <= time.time()
    assert not ben["online"] and ben["seen"] is not None
    assert not carl["online"] and carl["seen"] is None
    assert (dora["name"], dora["status"]) == ("dora", "revoked")
    assert [row["receipt"] for row in (anna, ben, carl)] == [12, 9, None]
    shown = metrics(monitor)
    assert (shown["veilrec_server_partners_enrolled"], shown["veilrec_server_partners_connected"]) == (3, 1)
    assert shown['veilrec_server_partner_connected{partner="anna"}'] == 1
    assert 'veilrec_server_partner_connected{partner="dora"}' not in shown


def test_a_node_whose_heartbeats_ended_is_not_connected(
    home: Path, made: tuple[Path, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink itself marks it only when somebody asks for it."""
    superlink(home).activate_node(made[1]["anna"], 30.0)
    later = time.time() + 61
    monkeypatch.setattr("server.home_facts.time.time", lambda: later)
    (anna, *_) = CoordinatorMonitor(home).status()["partners"]
    assert not anna["online"] and later - anna["seen"] == pytest.approx(61, abs=2)


# --- what is counted ------------------------------------------------------------------------------


def test_traffic_is_counted_by_partner_and_by_route(home: Path) -> None:
    monitor = CoordinatorMonitor(home)
    monitor.beat()
    monitor.seen("/v1/fleet/pull-messages", 200, 100, 5000, "anna")
    monitor.seen("/v1/fleet/push-messages", 200, 7000, 10, "anna")
    monitor.seen("/v1/control/start-run", 403, 50, 20)
    monitor.seen(f"/v1/fleetwood/{PLANTED}", 403, 0, 20, PLANTED)
    told, shown = monitor.status(), metrics(monitor)
    assert told["traffic"]["requests"] == {"fleet 2xx": 2, "other 4xx": 2}
    assert (told["partners"][0]["bytes_in"], told["partners"][0]["bytes_out"]) == (7100, 5010)
    assert (told["traffic"]["bytes_in"], told["traffic"]["bytes_out"]) == (7150, 5050)
    assert shown['veilrec_server_gate_bytes_total{direction="in",partner="anna"}'] == 7100
    assert shown['veilrec_server_gate_bytes_total{direction="in",partner="other"}'] == 50
    assert shown['veilrec_server_gate_requests_total{route="other",status="4xx"}'] == 2
    assert PLANTED not in monitor.exposition().decode() + json.dumps(told)


def test_errors_are_names_and_the_newest_stay(home: Path) -> None:
    monitor = CoordinatorMonitor(home)
    monitor.beat()
    for k in range(ERRORS_KEPT + 5):
        monitor.failed("CohortTooSmallError" if k % 2 else f"{PLANTED} {k}")
    monitor.restarted("superlink")
    monitor.restarted("superlink")
    monitor.restarted(PLANTED)
    told, shown = monitor.status(), metrics(monitor)
    assert len(told["errors"]) == ERRORS_KEPT and {one["family"] for one in told["errors"]} == {
        "CohortTooSmallError",
        "other",
    }
    assert told["errors"][0]["time"] >= told["errors"][-1]["time"]
    assert told["restarts"] == {"superlink": 2, "other": 1}
    assert shown['veilrec_server_failed_attempts_total{family="CohortTooSmallError"}'] == 12
    assert shown['veilrec_server_process_restarts_total{process="superlink"}'] == 2
    assert PLANTED not in monitor.exposition().decode() + json.dumps(told)


def test_attempts_at_rounds_of_the_run_s_own_process_are_told_too(home: Path) -> None:
    from server.attempts import Attempts
    from server.patience import Patience
    from shared.errors import CohortTooSmallError, UnmaskError

    attempts = Attempts(home / "run" / "attempts.jsonl", Patience(attempts=9, pause_s=0.0))
    for error in (CohortTooSmallError(PLANTED), UnmaskError(PLANTED), UnmaskError(PLANTED)):
        attempts.failed(7, error)
    monitor = CoordinatorMonitor(home)
    monitor.failed("UnmaskError")
    told = monitor.status()
    assert told["failures"] == {"CohortTooSmallError": 1, "UnmaskError": 3}
    assert sorted(one["family"] for one in told["errors"]) == ["CohortTooSmallError", *["UnmaskError"] * 3]
    assert PLANTED not in json.dumps(told)


def test_metrics_of_rounds_have_the_run(home: Path) -> None:
    shown = metrics(CoordinatorMonitor(home))
    assert shown[f'veilrec_server_rounds_done{{run="{RUN_ID}"}}'] == 6
    assert shown[f'veilrec_server_round_seconds_sum{{run="{RUN_ID}"}}'] == 21.0
    assert shown[f'veilrec_server_round_seconds_count{{run="{RUN_ID}"}}'] == 6
    assert shown[f'veilrec_server_epsilon{{run="{RUN_ID}"}}'] == 3.0
    assert shown[f'veilrec_server_epsilon_planned{{run="{RUN_ID}"}}'] == 8.0
    assert shown['veilrec_server_certificate_days_left{certificate="tls"}'] > 364
    assert abs(shown["veilrec_server_last_round_time_seconds"] - time.time()) < 600


# --- between processes ----------------------------------------------------------------------------


def test_another_process_reads_what_the_running_one_counted(home: Path) -> None:
    running, other = CoordinatorMonitor(home), CoordinatorMonitor(home)
    assert other.status()["coordinator"]["state"] == "never started"
    running.restarted("superlink")
    running.beat()
    told = other.status()
    assert told["coordinator"]["state"] == "running" and told["restarts"] == {"superlink": 1}
    running.beat("completed")
    done = other.status()["coordinator"]
    assert (done["state"], done["phase"]) == ("running", "completed")
    running.beat("stopped")
    stopped = other.status()["coordinator"]
    assert stopped["state"] == "stopped" and not stopped["silent"]


def test_a_coordinator_that_was_killed_is_found_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CoordinatorMonitor(home).beat()
    later = time.time() + STALE_S + 1
    monkeypatch.setattr("server.monitor.time.time", lambda: later)
    told = CoordinatorMonitor(home).status()["coordinator"]
    assert told["state"] == "stopped" and told["silent"]


def test_counts_go_on_after_a_restart(home: Path) -> None:
    first = CoordinatorMonitor(home)
    first.failed("UnmaskError")
    first.beat("stopped")
    second = CoordinatorMonitor(home)
    second.failed("UnmaskError")
    second.beat()
    assert CoordinatorMonitor(home).status()["failures"] == {"UnmaskError": 2}


@pytest.mark.parametrize(
    "told",
    [
        [],
        {"time": "now", "state": 3, "tally": {"errors": [3, {"family": PLANTED}, {"family": PLANTED, "time": 1}]}},
        {"tally": {"restarts": {"superlink": -1, "gate": "often"}, "bytes_in": 3, "errors": 3}},
        {"tally": [3]},
    ],
)
def test_a_status_that_somebody_else_wrote_is_taken_for_what_it_is_worth(home: Path, told: object) -> None:
    write_json(home / "run" / "status.json", told)
    monitor = CoordinatorMonitor(home)
    status = monitor.status()
    assert status["restarts"] == {} and {one["family"] for one in status["errors"]} <= {"other"}
    assert PLANTED not in json.dumps(status) and monitor.exposition()


def test_a_full_disk_does_not_end_the_coordinator(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.monitor.write_json", full)
    CoordinatorMonitor(home).beat()


def test_a_look_writes_nothing(home: Path) -> None:
    def files() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in home.rglob("*") if file.is_file()}

    before = files()
    monitor = CoordinatorMonitor(home)
    monitor.status()
    monitor.exposition()
    HomeFacts(home).nodes()
    assert {name: at for name, at in files().items() if not name.endswith(("-shm", "-wal"))} == {
        name: at for name, at in before.items() if not name.endswith(("-shm", "-wal"))
    }
