"""What a simulated federation costs: time and memory by users, items, partners and rounds.

A case is a federation of the marketplace's people, without the texts of their reviews (BERT reads those once, before
the rounds, at a cost of its own), written to disk and trained on one engine; each case in fresh processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import ConfigError
from simulations.benchmarks.apart import apart, watched_children

if TYPE_CHECKING:
    from shared.config import RunConfig

MOST_MASKED = 50
"""Partners of a masked sum, at most; larger simulations leave the masks out."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A federation and its run.

    Attributes
    ----------
    engine : {"inprocess", "ray"}
    clients : int
        Partners.
    users, items : int
        Of all partners together.
    rounds : int
        Training rounds.
    sampling_rate : float
        q: with ``rounds * q = 1`` every user is taken once on average, one epoch-equivalent.
    privacy : {"none", "distributed"}
    prior : {"hybrid", "popularity", "none"}
    ray_address : str
        Of a running cluster; empty starts Ray on this machine.

    Raises
    ------
    ConfigError
        If there are fewer users than partners.
    """

    engine: Literal["inprocess", "ray"] = "inprocess"
    clients: int = 10
    users: int = 2000
    items: int = 300
    rounds: int = 4
    sampling_rate: float = 0.1
    privacy: Literal["none", "distributed"] = "distributed"
    prior: Literal["hybrid", "popularity", "none"] = "hybrid"
    ray_address: str = ""

    def __post_init__(self) -> None:
        if self.users < self.clients:
            raise ConfigError(f"Expected users >= clients={self.clients}, got {self.users}.")

    @property
    def masked(self) -> bool:
        """Whether sums are masked."""
        return 3 <= self.clients <= MOST_MASKED

    def told(self) -> dict[str, Any]:
        """What identifies its row."""
        return {**{k: v for k, v in asdict(self).items() if k != "ray_address"}, "masked": self.masked}


BASE = Case()
GROWTH: dict[str, tuple[Case, ...]] = {
    "users": tuple(replace(BASE, users=n) for n in (500, 2000, 8000)),
    "items": tuple(replace(BASE, items=n) for n in (150, 300, 600, 1200, 2400)),
    "partners": tuple(replace(BASE, clients=n) for n in (3, 10, 30, 50, 100, 300)),
    "rounds": tuple(replace(BASE, rounds=n) for n in (2, 4, 8, 16)),
}
"""One number at a time grows from one base."""
LARGE = (
    Case(clients=100, users=100_000, items=1000, rounds=10, sampling_rate=0.1),
    Case(clients=10_000, users=10_000, items=1000, rounds=1, sampling_rate=1.0, prior="none"),
)
"""One epoch-equivalent each: many users at partners of some size, and partners of one user."""


def benchmark(
    cases: Iterable[Case],
    known: Iterable[Row] = (),
    keep: Callable[[Row], None] = lambda _: None,
    told: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """A row a case, in their order.

    Parameters
    ----------
    cases : iterable of Case
    known : iterable of dict
        Rows of earlier benchmarks: their cases are not run again.
    keep : callable
        Called with every new row.
    told : callable
        Called with a line about what is going on.
    """
    kept, rows = list(known), []
    for case in dict.fromkeys(cases):
        row = next((one for one in kept if is_row_of(case, one)), None)
        if row is None:
            told(", ".join(f"{key}={value}" for key, value in case.told().items()))
            row = measure(case)
            keep(row)
        rows.append(row)
    return rows


def is_row_of(case: Case, row: Row) -> bool:
    """Whether a row is the case's."""
    return all(row.get(key) == value for key, value in case.told().items())


def measure(case: Case) -> Row:
    """Prepare a case in one process, run it in another, and remove it."""
    with tempfile.TemporaryDirectory(prefix="veilrec-") as folder:
        root, out = Path(folder) / "partners", Path(folder) / "run"
        began = time.perf_counter()
        _, prepare_mb = apart(prepare_case, case, root)
        prepare_s = time.perf_counter() - began
        figures, run_mb = apart(run_case, case, root, out)
        children_mb = figures.pop("children_mb")
        return {
            **case.told(),
            **figures,
            "prepare_s": prepare_s,
            "prepare_peak_rss_mb": prepare_mb,
            "peak_rss_mb": run_mb + children_mb,
            "disk_mb": disk_mb(Path(folder)),
        }


def prepare_case(case: Case, root: Path) -> None:
    """Write the partners' folders; person k is at partner ``k mod partners``."""
    import polars as pl

    from client.data.ingest import RawData
    from simulations.marketplace import MarketplaceConfig, catalogue, stream
    from simulations.workspace import prepare

    shop = MarketplaceConfig(users=case.users, items=case.items, partners=1)
    number = pl.col("user_id").str.extract(r"(\d+)$").cast(pl.Int64)
    parts = [
        chunk.with_columns(review=pl.lit(""), partner=(number % case.clients).cast(pl.Int32)) for chunk in stream(shop)
    ]
    interactions = pl.concat(parts)
    del parts
    prepare(RawData("marketplace", interactions, catalogue(shop)), interactions, root, seed=0)


def run_case(case: Case, root: Path, out: Path) -> dict[str, float]:
    """Run the rounds; figures without memory of this process."""
    records: list[dict[str, Any]] = []
    began, cpu_began = time.perf_counter(), time.process_time()
    with watched_children() as children_mb:
        _run(case, root, out, records.append)
    total, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    rounds = [float(record["seconds"]) for record in records if record["stage"] == "train"]
    prior_s = sum(float(record["seconds"]) for record in records if record["stage"] == "prior")
    last = records[-1]
    return {
        "startup_s": total - sum(rounds) - prior_s,  # all that is no round: Flower, BERT, the release
        "prior_s": prior_s,
        "ms_per_client_round": 1e3 * sum(rounds) / len(rounds) / case.clients,
        "users_per_s": case.users * case.sampling_rate * len(rounds) / sum(rounds),
        "epoch_s": sum(rounds) / (len(rounds) * case.sampling_rate),
        "cpu_s": cpu_s,  # of this process, for all of it: what a busy machine does not blur
        "bytes_up_per_client_round": last["bytes_up"],
        "bytes_down_per_client_round": last["bytes_down"],
        "children_mb": children_mb(),
    }


def _run(case: Case, root: Path, out: Path, observer: Callable[[dict[str, Any]], None]) -> None:
    from simulations.workspace import Workspace

    workspace, config = Workspace.open(root), config_of(case)
    if case.engine == "ray":
        from simulations.ray import run_on_ray

        run_on_ray(config, workspace, out, observer, address=case.ray_address)
        return
    from client.app import app
    from server.app import run_federation
    from simulations.federation import InProcessGrid

    grid = InProcessGrid(app, range(workspace.partners), root)
    run_federation(grid, config, workspace.catalogue, out, root, observer)


def config_of(case: Case) -> RunConfig:
    """The preset of the size, with the case's rounds."""
    from simulations.presets import preset

    settings: dict[str, Any] = {
        "privacy": {"mode": case.privacy},
        "prior": {"kind": case.prior},
        "training": {"rounds": case.rounds, "sampling_rate": case.sampling_rate},
        "federation": {"secure_sum": case.masked},
    }
    return preset(
        users=case.users,
        items=case.items,
        partners=case.clients,
        seed=0,
        marketplace=False,
        rating_max=5.0,
        settings=settings,
    )


def disk_mb(folder: Path) -> float:
    """Space that a folder takes, in MB; a file with several links counts once."""
    blocks = {(s.st_dev, s.st_ino): s.st_blocks for s in (path.lstat() for path in folder.rglob("*"))}
    return sum(blocks.values()) * 512 / 2**20
