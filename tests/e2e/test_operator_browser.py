"""The operator's page in a real browser, over a real coordinator's folder that changes while it is looked at."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from page_setting import Visit

from server.monitor import CoordinatorMonitor
from server.operator_page.app import operator_app

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # where the setting is that unit tests have too
from coordinator_setting import RUN_ID, make_home, quick_keys, superlink, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TIMEOUT_MS = 15_000


@dataclass(frozen=True)
class Coordinator:
    """A page that is served, what is behind it, and how it is ended."""

    home: Path
    monitor: CoordinatorMonitor
    nodes: dict[str, int]
    address: str
    server: uvicorn.Server


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    quick_keys(monkeypatch)
    home = tmp_path / "home"
    nodes = make_home(home)
    monitor = CoordinatorMonitor(home)
    monitor.beat()
    config = uvicorn.Config(operator_app(monitor), log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Coordinator(home, monitor, nodes, f"http://127.0.0.1:{listening.getsockname()[1]}", server)
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def visit(chromium: Browser, coordinator: Coordinator) -> Iterator[Visit]:
    """A visit to the page; nothing of it may leave the coordinator, or be complained of."""
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    visit = Visit(page)
    visit.watch()
    page.goto(coordinator.address)
    page.get_by_role("region", name="Run and budget").wait_for()
    yield visit
    page.close()
    assert visit.complaints == []
    assert visit.requests and all(url.startswith(f"{coordinator.address}/") for url in visit.requests)


def test_the_page_follows_the_run_by_itself(visit: Visit, coordinator: Coordinator) -> None:
    page = visit.page
    run = page.get_by_role("region", name="Run and budget")
    assert "6 of 10" in run.inner_text() and RUN_ID in run.inner_text()
    page.get_by_role("group", name="The last 20 rounds").focus()
    write_run(coordinator.home / "run", 7)
    superlink(coordinator.home).activate_node(coordinator.nodes["anna"], 30.0)
    coordinator.monitor.failed("CohortTooSmallError")
    coordinator.monitor.seen("/v1/fleet/pull", 200, 12_000, 34_000, "anna")
    run.get_by_text("7 of 10").wait_for()
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="anna"))
    row.get_by_text("connected", exact=True).wait_for()
    assert "12 kB" in row.inner_text() and "34 kB" in row.inner_text()
    page.get_by_role("region", name="Errors and restarts").get_by_text("CohortTooSmallError").wait_for()
    assert page.get_by_role("img", name="Norm of the update from round 2 to 7").is_visible()
    assert page.get_by_role("img", name="Seconds of rounds 1 to 7").is_visible()
    assert page.locator(".scroll").count() == page.get_by_role("table").count()


def test_the_budget_and_the_charts_have_their_colours_and_size(visit: Visit) -> None:
    """A policy that stops the style sheet would leave the page bare."""
    page = visit.page
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(245, 246, 247)"
    for chart in page.locator("svg.chart").all():
        box = chart.bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 60
    assert page.locator("meter").evaluate("meter => meter.value / meter.max") == pytest.approx(3 / 8)
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    page.set_viewport_size({"width": 400, "height": 800})
    narrow = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] and narrow[0] <= narrow[1]  # tables scroll in their own place


def test_a_coordinator_that_ends_is_said_to_be_gone(visit: Visit, coordinator: Coordinator) -> None:
    visit.page.locator("#fresh", has_text="As of").wait_for()
    coordinator.server.should_exit = True
    visit.page.locator("#fresh.bad", has_text="does not answer").wait_for()
    assert "6 of 10" in visit.page.get_by_role("region", name="Run and budget").inner_text()


def test_the_keyboard_reaches_the_status_first(visit: Visit) -> None:
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the status"
    visit.page.keyboard.press("Enter")
    assert visit.page.url.endswith("#work")


def test_without_javascript_the_tables_are_there(chromium: Browser, coordinator: Coordinator) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(coordinator.address)
    assert page.get_by_role("rowheader", name="anna").is_visible()
    assert page.get_by_text("6 of 10").is_visible()
    context.close()
