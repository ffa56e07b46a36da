"""The operator's page: what it says, to whom it answers, and that it needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest
from coordinator_setting import RUN_ID, home_once, record, write_run
from starlette.testclient import TestClient

from server.monitor import CoordinatorMonitor
from server.operator_page.app import ASSETS, operator_app
from server.operator_page.chart import POINTS, norm_chart, seconds_chart

MARKUP = '<img src=x onerror="alert(1)">'
OWN = "http://127.0.0.1:9440"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    made, nodes = home_once(tmp_path_factory)
    home = Path(shutil.copytree(made, tmp_path / "home"))
    with closing(sqlite3.connect(home / "superlink" / "state.db")) as database, database:
        # As the SuperLink notes a heartbeat; opening its own state takes longer than all else here.
        until, node = time.time() + 60, nodes["anna"] - 2**64 if nodes["anna"] >= 2**63 else nodes["anna"]
        database.execute("UPDATE node SET status = 'online', online_until = ? WHERE node_id = ?", (until, node))
    return home


def asks(home: Path) -> TestClient:
    return TestClient(operator_app(CoordinatorMonitor(home)), base_url=OWN)


class Outline(HTMLParser):
    """The parts of a page, as an assistive technology would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# --- what it says ---------------------------------------------------------------------------------


def test_the_page_says_it_all_without_javascript(home: Path) -> None:
    monitor = CoordinatorMonitor(home)
    monitor.seen("/v1/fleet/pull", 200, 1200, 3_400_000, "anna")
    monitor.failed("CohortTooSmallError")
    monitor.restarted("superlink")
    monitor.beat()
    page = TestClient(operator_app(monitor), base_url=OWN).get("/")
    told = " ".join(Outline(page.text).text)
    for words in (RUN_ID, "6 of 10", "3 of 8 planned", "anna", "connected", "revoked", "12 lines", "3.4 MB", "fleet"):
        assert words in told
    for words in ("CohortTooSmallError", "superlink", "running", "365 days left", "All are there."):
        assert words in told
    assert page.headers["content-type"].startswith("text/html")


def test_a_page_before_the_first_round_says_what_is_missing(tmp_path: Path) -> None:
    page = asks(tmp_path / "none").get("/")
    told = " ".join(Outline(page.text).text)
    assert page.status_code == 200 and "never started" in told
    for words in ("No partner is enrolled yet.", "No round is over yet.", "not there yet", "partners.json"):
        assert words in told


def test_the_status_and_metrics_are_those_of_the_monitor(home: Path) -> None:
    api = asks(home)
    told = api.get("/status.json")
    assert told.headers["content-type"] == "application/json" and told.json()["run"]["rounds_done"] == 6
    assert f'veilrec_server_rounds_done{{run="{RUN_ID}"}} 6.0' in api.get("/metrics").text
    assert api.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    assert api.get("/healthz").json() == {"status": "ok"}


def test_what_a_file_says_is_text_and_never_markup(home: Path) -> None:
    """Only the coordinator writes these files, but a name in them came from outside."""
    registry = json.loads((home / "partners.json").read_text())
    registry["partners"][0]["name"] = registry["partners"][0]["status"] = MARKUP
    (home / "partners.json").write_text(json.dumps(registry))
    page = asks(home).get("/").text
    assert MARKUP not in page and "&lt;img src=x" in page


# --- to whom it answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:9440", "", "10.0.0.7"]
)
def test_a_name_that_resolves_to_this_machine_gets_nothing(home: Path, name: str) -> None:
    for path in ("/", "/status.json", "/metrics", "/healthz", "/assets/page.js"):
        answer = asks(home).get(path, headers={"Host": name})
        assert answer.status_code == 400 and "anna" not in answer.text


@pytest.mark.parametrize("name", ["localhost:9440", "127.0.0.1:9440", "[::1]:9440", "localhost"])
def test_this_machine_s_own_names_are_answered(home: Path, name: str) -> None:
    assert asks(home).get("/status.json", headers={"Host": name}).status_code == 200


def test_nothing_can_be_changed_by_it(home: Path) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/", "/status.json", "/metrics", "/healthz"):
            assert asks(home).request(method, path).status_code == 405


def test_every_answer_has_the_headers_that_keep_others_out(home: Path) -> None:
    api = asks(home)
    refused = api.get("/", headers={"Host": "evil.example"})
    for answer in (refused, *(api.get(path) for path in ("/", "/status.json", "/metrics", "/assets/page.js", "/none"))):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


def test_no_file_beside_the_page_s_own_can_be_had(home: Path) -> None:
    api = asks(home)
    for path in ("/assets/../app.py", "/assets/%2e%2e/app.py", "/assets//etc/passwd", "/server.key", "/assets/"):
        assert api.get(path).status_code in (404, 405)


# --- how it is made -------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(home: Path) -> None:
    outline = Outline(asks(home).get("/").text)
    named = [value for _, attributes in outline.tags for key, value in attributes.items() if key in ("src", "href")]
    assert named and all(value and re.match(r"/(?!/)|#", value) for value in named)
    for file in ASSETS.iterdir():
        text = file.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text), file.name
    assert not any("style" in attributes or "onclick" in attributes for _, attributes in outline.tags)
    assert not [tag for tag, attributes in outline.tags if tag == "script" and "src" not in attributes]


def test_landmarks_headings_and_table_headers_are_there(home: Path) -> None:
    monitor = CoordinatorMonitor(home)
    monitor.seen("/v1/fleet/pull", 200, 1, 1)
    outline = Outline(TestClient(operator_app(monitor), base_url=OWN).get("/").text)
    assert [len(outline.all(tag)) for tag in ("html", "header", "main", "footer", "h1", "title")][:5] == [1] * 5
    assert outline.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    sections = outline.all("section")
    assert len(sections) == 6 and all(section["aria-labelledby"] in ids for section in sections)
    tables, heads = outline.all("table"), outline.all("th")
    assert len(outline.all("caption")) == len(tables) >= 3
    assert heads and all(head.get("scope") in ("col", "row") for head in heads)
    assert len(outline.all("svg")) == 2 and all(svg["role"] == "img" for svg in outline.all("svg"))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_read_in_light_and_in_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    schemes = re.findall(r":root \{(.*?)\}", (ASSETS / "page.css").read_text(), re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for ground in ("card", "ground"):
            for name in ("text", "soft", "accent", "good", "warn", "bad"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
            assert contrast(colours["edge"], colours[ground]) >= 3.0


# --- charts ---------------------------------------------------------------------------------------


def test_charts_show_what_there_is() -> None:
    rounds = [record(number) for number in range(1, 7)]
    assert norm_chart([]) == seconds_chart([]) == norm_chart(rounds[:2]) == ""
    bars = seconds_chart(rounds)
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"/>', bars)]
    assert len(heights) == 6 and heights == sorted(heights)
    lines = re.findall(r'class="(\w+_norm)" d="M([^"]+)"', norm_chart(rounds))
    assert [name for name, _ in lines] == ["noise_norm", "update_norm"]
    heights = [float(point.split()[1]) for point in lines[1][1].split("L")]
    assert len(heights) == 5 and heights == sorted(heights)  # the norm falls, and y grows downwards


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, float("inf"), float("nan"), -1.0])
def test_a_chart_stays_in_its_frame(value: float) -> None:
    rounds = [{**record(number), "seconds": value, "update_norm": value} for number in range(2, 6)]
    for chart in (norm_chart(rounds), seconds_chart(rounds)):
        told = [float(y) for y in re.findall(r'(?: |y=")(-?[\d.]+)(?=L|")', chart.partition("</title>")[2]) if y]
        assert "nan" not in chart.partition("</title>")[2] and all(-1 <= y <= 560 for y in told)


def test_a_run_of_thousands_of_rounds_is_thinned_out(home: Path) -> None:
    rounds = [record(number) for number in range(1, 5001)]
    assert 0.8 * POINTS <= seconds_chart(rounds).count("<rect") <= POINTS
    write_run(home / "run", 5000)
    page = asks(home).get("/").text
    assert len(page) < 120_000 and "round 5000" not in page
