"""What a person sees while a run goes on: progress, the final table, TensorBoard."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared.errors import SchemaError
from simulations.progress import RunProgress, results_table
from simulations.tensorboard import EventWriter, write_events

RECORD: dict[str, Any] = {"round": 1, "stage": "train", "cohort": 4, "seconds": 2.0, "epsilon": 0.5}


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain_lines(capsys: pytest.CaptureFixture[str], total: int, *, enabled: bool) -> list[str]:
    with RunProgress(total, enabled=enabled) as progress:
        for number in range(1, total + 1):
            progress.round_done({**RECORD, "round": number})
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("total", "lines"), [(1, 1), (7, 7), (100, 10), (105, 10)])
def test_without_a_terminal_about_ten_plain_lines_go_to_stderr(
    capsys: pytest.CaptureFixture[str], total: int, lines: int, enabled: bool
) -> None:
    told = plain_lines(capsys, total, enabled=enabled)
    assert len(told) == lines
    assert told[-1] == f"round {total}/{total}  epsilon 0.5  2 s/round"


def test_time_left_follows_the_recent_rounds_and_not_the_prior(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(10, enabled=False) as progress:
        progress.round_done({**RECORD, "stage": "prior", "seconds": 500.0})
        progress.round_done({**RECORD, "round": 2, "seconds": 10.0})
        progress.round_done({**RECORD, "round": 3, "seconds": 20.0})
    told = capsys.readouterr().err.splitlines()
    assert "left" not in told[0]
    assert told[1].endswith("1 min 20 s left")
    assert told[2].endswith("1 min 45 s left")


def test_loss_is_shown_only_where_there_is_no_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(2, enabled=False) as progress:
        progress.round_done({"round": 1, "epsilon": None, "loss": 5.25, "ndcg@10": 0.1})
        progress.round_done({"round": 2, "epsilon": 1.0, "loss": 5.25})
    assert capsys.readouterr().err.splitlines() == [
        "round 1/2  no privacy  loss 5.2500  NDCG@10 0.1000",
        "round 2/2  epsilon 1",
    ]


def test_stage_without_a_terminal_is_told_at_its_begin_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(1, enabled=True) as progress, progress.stage("text vectors", total=3) as stage:
        stage.advance(3)
    begin, end = capsys.readouterr().err.splitlines()
    assert begin == "text vectors ..."
    assert end.startswith("text vectors: ")


def test_terminal_shows_a_bar_with_round_epsilon_and_time_left() -> None:
    console = terminal()
    with RunProgress(4, enabled=True, console=console) as progress:
        with progress.stage("text vectors") as stage:
            stage.advance(2)
        progress.round_done(RECORD)
        progress.round_done({**RECORD, "round": 2})
    told = shown(console)
    for part in ("text vectors: ", "rounds", "2/4", "epsilon 0.5", "2 s/round", "4 s left"):
        assert part in told
    assert "round 1/4" not in told


def test_resumed_run_goes_on_where_it_stopped() -> None:
    console = terminal()
    with RunProgress(40, enabled=True, console=console) as progress:
        progress.round_done({**RECORD, "round": 31})
    assert "31/40" in shown(console)
    assert "18 s left" in shown(console)


def test_terminal_display_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal()
    with RunProgress(4, enabled=True, console=console):
        print("result")
    assert capsys.readouterr().out == "result\n"
    assert "result" not in shown(console)


def test_disabled_display_prints_plain_lines_even_on_a_terminal() -> None:
    console = terminal()
    with RunProgress(1, enabled=False, console=console) as progress:
        progress.round_done(RECORD)
    assert shown(console) == "round 1/1  epsilon 0.5  2 s/round\n"


def test_error_in_a_stage_stops_the_display_and_is_not_told_as_done() -> None:
    console = terminal()

    def fail() -> None:
        with (
            RunProgress(4, enabled=True, console=console) as progress,
            progress.stage("text vectors"),
        ):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert "text vectors: " not in shown(console)
    assert shown(console).endswith(("\x1b[?25h", "\n"))


def test_record_without_a_round_is_an_error() -> None:
    with pytest.raises(SchemaError, match="field round of the round record"):
        RunProgress(4, enabled=False).round_done({"epsilon": 1.0})


# --- the final table --------------------------------------------------------------------------

RUN: dict[str, Any] = {
    "data": {"name": "[red]shop[/red]"},
    "privacy": {"mode": "distributed", "epsilon": 3.0, "delta": 1e-6},
    "metrics": {
        "popularity": {"ndcg@10": 0.05, "hr@10": 0.1, "users": 1200},
        "federated": {"ndcg@10": 0.1, "users": 1200},
        "[bold]": {"ndcg@10": 0.02},
        "local_only": {},
    },
}


def printed(run: dict[str, Any]) -> str:
    console = terminal()
    console.print(results_table(run))
    return shown(console)


def test_final_table_has_a_row_a_method_and_the_guarantee() -> None:
    told = printed(RUN)
    row = next(line for line in told.splitlines() if "Federated" in line)
    assert row.replace("│", " ").split() == ["Federated", "0.1000", "–", "2.00", "×"]
    assert told.index("Federated") < told.index("Popularity") < told.index("[bold]")
    assert "Local only" not in told
    assert "user-level epsilon = 3 at delta = 1e-6" in " ".join(told.split())
    assert "Results on [red]shop[/red]" in told


def test_best_value_of_the_final_table_is_bold() -> None:
    table = results_table(RUN)
    cells = list(table.columns[1].cells)
    assert [str(getattr(cell, "style", "")) for cell in cells] == ["bold", "", ""]


def test_final_table_of_a_run_without_privacy_says_so() -> None:
    assert "federated: no privacy" in printed({**RUN, "privacy": {"mode": "none"}})


def test_final_table_of_a_malformed_run_names_the_field() -> None:
    with pytest.raises(SchemaError, match=r"privacy\.mode of run\.json"):
        results_table({"metrics": {}})


# --- TensorBoard ------------------------------------------------------------------------------

ROUNDS: list[dict[str, Any]] = [
    {"round": 1, "stage": "prior", "epsilon": 0.2, "update_norm": 500.0, "bytes_up": 10},
    {"round": 2, "stage": "train", "epsilon": 0.5, "update_norm": 0.5, "noise_norm": 0.25, "loss": 3.0},
    {"round": 3, "stage": "train", "epsilon": 0.75, "update_norm": 0.25, "ndcg@10": 0.125, "seconds": None},
]


def scalars(run_dir: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


EXPECTED: dict[str, Any] = {
    "privacy/epsilon": [(1, pytest.approx(0.2)), (2, 0.5), (3, 0.75)],
    "prior/update_norm": [(1, 500.0)],
    "train/update_norm": [(2, 0.5), (3, 0.25)],
    "train/noise_norm": [(2, 0.25)],
    "traffic/bytes_up": [(1, 10.0)],
    "quality/ndcg_at_10": [(3, 0.125)],
}


def test_event_files_hold_the_rounds_and_nothing_else(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        for record in ROUNDS:
            writer.round(record)
    assert scalars(tmp_path) == EXPECTED


def test_event_files_hold_a_loss_without_privacy(tmp_path: Path) -> None:
    write_events(tmp_path, [{"round": 1, "epsilon": None, "loss": 3.0, "update_norm": float("inf")}])
    assert scalars(tmp_path) == {"train/loss": [(1, 3.0)]}


def test_events_are_on_disk_after_every_round(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.round(ROUNDS[0])
    assert scalars(tmp_path)["privacy/epsilon"] == [(1, pytest.approx(0.2))]
    writer.close()


def test_resumed_run_replaces_what_came_after_its_first_round(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        for record in ROUNDS:
            writer.round({**record, "epsilon": 0.125})
    began = int(time.time())
    while int(time.time()) == began:  # files are read in the order of their names: second, host, process, count
        time.sleep(0.05)
    with EventWriter(tmp_path, first_round=2) as writer:
        for record in ROUNDS[1:]:
            writer.round(record)
    assert scalars(tmp_path)["privacy/epsilon"] == [(1, 0.125), (2, 0.5), (3, 0.75)]


def test_events_can_be_written_anew(tmp_path: Path) -> None:
    write_events(tmp_path, [{"round": 9, "epsilon": 1.0}])
    assert write_events(tmp_path, ROUNDS) == tmp_path / "tensorboard"
    assert scalars(tmp_path) == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_bad_record_leaves_the_older_events(tmp_path: Path) -> None:
    write_events(tmp_path, ROUNDS)
    with pytest.raises(SchemaError, match="field round of the round record"):
        write_events(tmp_path, [{"epsilon": 1.0}])
    assert scalars(tmp_path) == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
