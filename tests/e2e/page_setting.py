"""A small shop with two signed releases, the service that ranks for it, and a visit to its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from typer.testing import CliRunner

from client.data.ingest import RawData, write
from shared.adapter import load_release, save_release
from shared.hazmat.signing import SigningKey
from shared.release_signature import signature_text
from simulations.cli import app
from simulations.marketplace import MarketplaceConfig, generate

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, Response

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from simulations.cli import main; main()"]
SETTINGS = ("model.adapted_layers=1", "model.lora_rank=2", "model.head_rank=2", "model.max_events=8")


@dataclass
class Visit:
    """A page, all that it asked for and all that it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    refusals: set[tuple[int, str]] = field(default_factory=set)

    def watch(self) -> None:
        """Note what happens from now on."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._complained)
        self.page.on("response", self._answered)

    def _complained(self, message: ConsoleMessage) -> None:
        if not message.text.startswith("Failed to load resource"):  # Chromium's own line on an answer from 400 on
            self.complaints.append(message.text)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.refusals.add((response.status, urlsplit(response.url).path))

    def show(self, user: str = "", wish: str = "") -> None:
        """Fill in the form, send it, and wait for the list."""
        self.page.get_by_label("User", exact=True).fill(user)
        self.page.get_by_label("Wish in words").fill(wish)
        self.page.get_by_role("button", name="Show list").click()
        self.page.locator("#status", has_text="items").wait_for()
        self.page.locator("#results[aria-busy=false]").wait_for()

    def told(self, text: str) -> str:
        """Wait until the line above the list says this; returns the line."""
        line = self.page.locator("#status", has_text=re.compile(text))
        line.wait_for()
        return line.inner_text()

    def held(self, text: str) -> None:
        """Wait until the history says this: it comes beside the list, before or after it."""
        self.page.locator("#events", has_text=text).wait_for()

    @property
    def titles(self) -> list[str]:
        return self.page.locator("#lists li[data-item] h3").all_inner_texts()

    def entry(self, place: int) -> Locator:
        return self.page.locator("#lists li[data-item]").nth(place - 1)


@dataclass(frozen=True)
class Shop:
    """Data on disk, two releases that were made from them, and the key that signed those."""

    data: Path
    releases: Path
    key: str
    users: tuple[str, ...]
    events: RawData


def make_shop(root: Path) -> Shop:
    """A small shop in a folder; its run takes no round, so that it is quickly made."""
    interactions, items = generate(MarketplaceConfig(users=30, items=136, partners=2, seed=4))
    users = tuple(interactions.group_by("user_id").len().sort("len", "user_id").get_column("user_id")[-4:])
    data = RawData("shop", interactions.drop("partner"), items)
    write(data, root / "data")
    settings = [word for pair in SETTINGS for word in ("--set", pair)]
    run = ("--partners", "2", "--privacy", "none", "--rounds", "0", "--no-local-only", "--out", str(root / "run"))
    done = CliRunner().invoke(app, ["simulate", "--data", str(root / "data"), *run, *settings, "--json"])
    assert done.exit_code == 0, done.stderr
    key = _shelve(root / "run" / "adapter", root / "releases")
    return Shop(root / "data", root / "releases", key, users, data)


def _shelve(adapter: Path, shelf: Path) -> str:
    """Two signed releases: the run's own, and one for which popularity counts ten times as much."""
    key, release = SigningKey.generate(), load_release(adapter)
    priors = release.prior, replace(release.prior, popularity=10 * release.prior.popularity)
    for version, prior in enumerate(priors, start=1):
        (shelf / str(version)).mkdir(parents=True)
        save_release(
            shelf / str(version),
            release.model,
            prior,
            release.config,
            catalogue_digest=release.manifest["catalogue_sha256"],
            privacy={"mode": "distributed", "epsilon": 7.5, "delta": 1e-5},
            version=version,
            sign=lambda manifest: signature_text(key, manifest),
        )
    return key.public.text


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[str]:
    """The command in a process of its own, until it is told to end; its address.

    It logs to a file, which never fills up as a pipe does.
    """
    command = [*COMMAND, "serve", "--port", "0", "--device", "cpu", *arguments]
    with log.open("w") as to:
        process = subprocess.Popen(command, stderr=to, cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + 120
        while (port := _port(log)) is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _port(log: Path) -> int | None:
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    return next((told["port"] for told in map(json.loads, lines) if told["event"] == "listening"), None)
