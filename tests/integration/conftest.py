"""A small shop on disk, and simulations over it that take seconds."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from client.agent import agent_for
from client.data.ingest import RawData, write
from simulations.marketplace import MarketplaceConfig, generate
from simulations.simulate import Request, Simulation, run, start
from simulations.workspace import Workspace

PARTNERS, ROUNDS, DAY = 3, 3, 86_400
SETTINGS: dict[str, Any] = {
    "model": {"adapted_layers": 1, "lora_rank": 2, "lora_alpha": 4, "head_rank": 2, "max_events": 8},
    "training": {"rounds": ROUNDS, "sampling_rate": 0.5},
    "privacy": {"mode": "distributed", "epsilon": 8.0, "delta": 1e-5},
}


@dataclass(frozen=True)
class Done:
    """A finished simulation: its folder and its ``run.json``."""

    out: Path
    document: dict[str, Any]


Start = Callable[..., Simulation]
"""(out, seed=0, partners=3, local_only=False, data=the shop, partners_at=None, replayable=True,
**sections of settings)"""
Fresh = Callable[..., Workspace]
"""() to partners who hold the shop, with new ledgers; all copies have the same keys"""


@pytest.fixture(scope="session")
def shop_data() -> RawData:
    """90 people, 136 items, as files come: many events at the same time, and doubles that contradict each other."""
    interactions, items = generate(MarketplaceConfig(users=90, items=136, partners=PARTNERS, seed=4))
    events = interactions.drop("partner").with_columns(timestamp=pl.col("timestamp") // DAY * DAY)
    again = events.filter(pl.col("review") != "").head(20).with_columns(review=pl.lit("On second thoughts, no."))
    renamed = items.head(5).with_columns(title=pl.col("title") + " (new)")
    return RawData("shop", pl.concat([events, again]), pl.concat([renamed, items]))


@pytest.fixture(scope="session")
def shop(shop_data: RawData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop in the parquet form."""
    folder = tmp_path_factory.mktemp("data") / "shop"
    write(shop_data, folder)
    return folder


@pytest.fixture(scope="session")
def begin(shop: Path) -> Start:
    """Prepare a simulation of the shop in a new folder."""

    def prepare(
        out: Path,
        *,
        seed: int = 0,
        partners: int = PARTNERS,
        local_only: bool = False,
        data: Path = shop,
        partners_at: Path | None = None,
        replayable: bool = True,
        **sections: dict[str, Any],
    ) -> Simulation:
        settings = copy.deepcopy(SETTINGS)
        for name, values in sections.items():
            settings.setdefault(name, {}).update(values)
        if not replayable:  # the seed then partitions the data alone
            settings["seed"] = None
        prepared = str(partners_at or "")
        request = Request(str(data), partners, "iid", seed, "inprocess", 0, 0, local_only, settings, prepared)
        return start(request, out)

    return prepare


@pytest.fixture(scope="session")
def whole(begin: Start, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A simulation that nothing disturbed; its files are read by many tests and changed by none."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return Done(out, run(begin(out), show=False))


@pytest.fixture(scope="session")
def prepared(begin: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three partners before their first run."""
    return begin(tmp_path_factory.mktemp("prepared") / "run").workspace.root


@pytest.fixture
def fresh(prepared: Path, tmp_path: Path) -> Fresh:
    """Copies of the three partners, one a call: a partner does not take part in the same run twice."""

    def copied() -> Workspace:
        root = tmp_path / f"partners {len(list(tmp_path.glob('partners *')))}"
        shutil.copytree(prepared, root)
        return Workspace.open(root)

    return copied


@pytest.fixture(autouse=True)
def fresh_processes() -> None:
    """No agent remembers what an earlier run told it, as in a new process."""
    agent_for.cache_clear()
