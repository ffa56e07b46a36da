"""``veilrec bench simulation``: what a federation costs, and that large ones pile nothing up."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from bench_setting import raising, working
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from typer.testing import CliRunner

from client.agent import agent_for
from client.app import partner_folder
from client.premises import Premises
from shared.config import ModelConfig
from shared.errors import ConfigError, DataError, IntegrityError
from simulations import ray, workspace
from simulations.benchmarks import scale_page, simulation, speed_commands
from simulations.benchmarks.apart import apart, watched_children
from simulations.benchmarks.commands import bench_app
from simulations.benchmarks.simulation import BASE, GROWTH, LARGE, Case
from simulations.federation import InProcessGrid
from simulations.workspace import HELD_OUT, Workspace

TINY = Case(clients=4, users=12, items=136, rounds=1, sampling_rate=0.5, prior="popularity")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four partners of three people each, on disk."""
    simulation.prepare_case(TINY, tmp_path / "partners")
    agent_for.cache_clear()
    return tmp_path / "partners"


# --- a federation on disk -------------------------------------------------------------------------


def test_people_are_dealt_out_in_turn_and_no_review_is_kept(root: Path) -> None:
    events = [pl.read_parquet(partner_folder(root, k) / "interactions.parquet") for k in range(4)]
    numbers = [{int(user[-7:]) for user in frame["user_id"]} for frame in events]
    assert numbers == [{k, k + 4, k + 8} for k in range(4)]
    assert all(set(frame["review"]) == {""} for frame in events)


def test_the_catalogue_takes_its_space_once_and_is_never_changed_in_place(root: Path) -> None:
    copies = [partner_folder(root, k) / "items.parquet" for k in range(4)]
    assert len({copy.stat().st_ino for copy in copies}) == 1
    simulation.prepare_case(replace(TINY, items=140, clients=5, users=15), root)
    with copies[1].open("rb") as opened:
        before = opened.read()
        simulation.prepare_case(replace(TINY, items=150, clients=5, users=15), root)
        opened.seek(0)
        assert opened.read() == before != copies[1].read_bytes()
    assert {len(pl.read_parquet(partner_folder(root, k) / "items.parquet")) for k in range(5)} == {150}
    assert not list(root.rglob(".*"))  # nothing half-done is left


def test_a_partner_without_events_of_its_own_is_written_too(root: Path) -> None:
    opened = Workspace.open(root)
    (users,) = pl.read_parquet(root / HELD_OUT).filter(pl.col("partner") == 3).select(pl.len()).row(0)
    assert (opened.targets(3, ModelConfig()) >= 0).sum() == users
    held_out = pl.read_parquet(root / HELD_OUT).filter(pl.col("partner") != 3)
    held_out.write_parquet(root / HELD_OUT)
    again = Workspace.open(root)
    np.testing.assert_array_equal(again.targets(3, ModelConfig()), [-1, -1, -1])


def test_large_federations_pin_nobody_and_still_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MOST_PINNED", 3)
    monkeypatch.setattr(simulation, "MOST_MASKED", 3)
    simulation.prepare_case(TINY, tmp_path / "partners")
    agent_for.cache_clear()
    assert not any(Premises.open(partner_folder(tmp_path / "partners", k)).peers for k in range(4))
    assert not TINY.masked
    figures = simulation.run_case(TINY, tmp_path / "partners", tmp_path / "run")
    assert figures["ms_per_client_round"] > 0


# --- nothing piles up -----------------------------------------------------------------------------


def test_the_grid_asks_for_a_message_when_its_answer_is_asked_for(tmp_path: Path) -> None:
    app, made = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"n": ConfigRecord({"n": 1})}), reply_to=message)

    grid = InProcessGrid(app, range(3), tmp_path)

    def messages() -> Iterator[Message]:
        for node in grid.get_node_ids():
            made.append(node)
            yield grid.create_message(RecordDict(), "train", node, "1")

    replies = iter(grid.send_and_receive(messages()))
    assert made == []
    first = next(replies)
    assert (made, first.metadata.src_node_id) == ([1], 1)
    assert len(list(replies)) == 2


def test_partners_are_opened_one_after_the_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(workspace, "agent_for", lambda folder: opened.append(folder) or agent_for(folder))
    learners = Workspace.open(root).learners()
    assert opened == []
    next(iter(learners))
    assert len(opened) == 1


# --- work in a process of its own -----------------------------------------------------------------


def test_work_apart_is_done_by_another_process_whose_memory_is_measured() -> None:
    (pid, little), (_, much) = apart(working, 1), apart(working, 200)
    assert pid != os.getpid()
    assert much - little == pytest.approx(199, abs=40)


def test_errors_of_work_apart_are_raised_here() -> None:
    with pytest.raises(ConfigError, match="Expected x=1"):
        apart(raising)
    with pytest.raises(IntegrityError, match="it ended"):
        apart(os._exit, 3)


def test_memory_of_children_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.benchmarks.apart.SAMPLING_S", 0.01)
    with watched_children() as most:
        apart(working, 100)
        assert most() > 90
    with watched_children() as most:
        assert most() == 0


# --- cases ----------------------------------------------------------------------------------------


def test_a_case_is_measured_and_nothing_of_it_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process: what a process of its own adds is tested above."""
    monkeypatch.setattr(simulation, "apart", lambda work, *given: (work(*given), 100.0))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    row = simulation.measure(TINY)
    assert {"engine", "clients", "startup_s", "ms_per_client_round", "peak_rss_mb"} <= row.keys()
    assert (row["engine"], row["clients"], row["masked"]) == ("inprocess", 4, True)
    assert all(row[name] > 0 for name in ("startup_s", "prior_s", "ms_per_client_round", "cpu_s", "disk_mb"))
    assert row["epoch_s"] == pytest.approx(row["ms_per_client_round"] * 4 / 1e3 / TINY.sampling_rate)
    assert row["users_per_s"] == pytest.approx(12 / row["epoch_s"])
    assert row["prepare_peak_rss_mb"] == 100 <= row["peak_rss_mb"] < 200  # this process has children of its own
    assert simulation.is_row_of(TINY, row) and not simulation.is_row_of(BASE, row)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_known_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "measure", lambda case: {**case.told(), "new": True})
    kept: list[dict[str, Any]] = []
    known = {**BASE.told(), "new": False}
    rows = simulation.benchmark([TINY, BASE, TINY], [known], kept.append)
    assert [row["new"] for row in rows] == [True, False]
    assert kept == [rows[0]]


def test_cases_are_what_they_are_called() -> None:
    for what, key in scale_page.FIELDS.items():
        assert len({getattr(case, key) for case in GROWTH[what]}) == len(GROWTH[what])
        assert {replace(case, **{key: getattr(BASE, key)}) for case in GROWTH[what]} == {BASE}
        assert BASE in GROWTH[what]
    assert [(case.clients, case.users) for case in LARGE] == [(100, 100_000), (10_000, 10_000)]
    assert all(case.rounds * case.sampling_rate == 1 and not case.masked for case in LARGE)
    with pytest.raises(ConfigError, match="users >= clients=4, got 3"):
        Case(clients=4, users=3)


def test_a_file_with_several_links_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(os.urandom(1 << 20)))
    alone = simulation.disk_mb(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert simulation.disk_mb(tmp_path) == alone == pytest.approx(1, abs=0.1)


# --- the address of a cluster ---------------------------------------------------------------------


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ray.check_address(f"127.0.0.1:{port}")
        ray.check_address(f"ray://127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", "127.0.0.1:none", "127.0.0.1:99999999"):
        with pytest.raises(ConfigError, match=f"running Ray cluster, got {address}"):
            ray.check_address(address)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_ray_s_own_words_for_an_address_are_left_to_ray(address: str) -> None:
    ray.check_address(address)


# --- the page -------------------------------------------------------------------------------------


def made_up(case: Case) -> dict[str, Any]:
    figures = dict.fromkeys([*scale_page.COLUMNS, "prepare_s", "prepare_peak_rss_mb"], 1234.5)
    return {**case.told(), **figures, "epoch_s": case.users / 100}


def test_the_page_has_a_table_for_each_that_grew_and_one_plot(tmp_path: Path) -> None:
    rows = [made_up(case) for what in ("users", "rounds") for case in GROWTH[what]]
    rows += [made_up(LARGE[0]), made_up(replace(BASE, engine="ray"))]
    scale_page.write_page(rows, tmp_path / "scale.md")
    page = (tmp_path / "scale.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## By users",
        "## By rounds",
        "## One epoch-equivalent, large",
        "## Engines",
    ]
    assert "| 8,000 |" in page and "100,000 users, 100 partners" in page and "| Ray, 2,000 users" in page
    plot = (tmp_path / scale_page.FIGURE).read_bytes()
    assert b"peak memory, MB" in plot
    scale_page.write_page(rows, tmp_path / "scale.md")
    assert (tmp_path / scale_page.FIGURE).read_bytes() == plot


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected rows"):
        scale_page.write_page([], tmp_path / "scale.md")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that were asked for; their rows are made up."""
    asked: list[Case] = []

    def measure(case: Case) -> dict[str, Any]:
        asked.append(case)
        return made_up(case)

    monkeypatch.setattr(simulation, "measure", measure)
    return asked


def test_the_command_measures_what_is_asked_for_and_keeps_it(
    measured: list[Case], tmp_path: Path, invoke: Callable[..., Any]
) -> None:
    keep, page = tmp_path / "rows.jsonl", tmp_path / "scale.md"
    options = ["--clients", "3,9", "--engine", "both", "--ray-address", "h:1", "--keep", str(keep)]
    document = json.loads(invoke(*options, "--json").stdout)
    assert document["benchmark"] == "simulation"
    assert [(row["engine"], row["clients"]) for row in document["results"]] == [
        ("inprocess", 3),
        ("inprocess", 9),
        ("ray", 3),
        ("ray", 9),
    ]
    assert [case.ray_address for case in measured] == ["", "", "h:1", "h:1"]
    shown = invoke(*options, "--grow", "--large", "--write", str(page))
    assert len(measured) == 4 + len({case for grown in GROWTH.values() for case in grown}) - 1 + len(LARGE)
    assert len(keep.read_text().splitlines()) == len(measured)
    assert "10,000" in shown.stdout and "## By partners" in page.read_text()


def test_wrong_options_are_refused(tmp_path: Path, invoke: Callable[..., Any]) -> None:
    for clients in ("", "two", "0", "3,-1"):
        assert isinstance(invoke("--clients", clients).exception, ConfigError)
    (tmp_path / "rows.jsonl").write_text("7\n")
    assert isinstance(invoke("--keep", str(tmp_path / "rows.jsonl")).exception, DataError)


@pytest.fixture
def invoke() -> Callable[..., Any]:
    """``veilrec bench simulation`` with options."""
    assert speed_commands.simulation.__doc__
    return lambda *options: CliRunner().invoke(bench_app, ["simulation", *options])
