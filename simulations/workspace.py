"""A simulated federation on disk: one folder a partner, and what evaluation holds back.

``<root>/items.parquet`` is the public catalogue; ``<root>/partner-000`` and so on hold what a partner
would have on its premises, without the held-out events; ``<root>/held_out.parquet`` is the evaluator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.agent import PARTNER_FILE, PartnerAgent, agent_for
from client.app import partner_folder
from client.data.ingest import RawData, data_home, write
from client.data.pseudonyms import PseudonymKey
from shared.catalogue import build_catalogue, read_catalogue
from shared.config import ModelConfig
from shared.errors import ConfigError, DataError
from shared.files import write_json
from shared.schema import Catalogue, Histories
from simulations.evaluation import hold_out, targets_of

HELD_OUT = "held_out.parquet"


@dataclass(frozen=True)
class Workspace:
    """A prepared federation.

    Attributes
    ----------
    root : Path
    catalogue : Catalogue
    partners : int
    """

    root: Path
    catalogue: Catalogue
    partners: int

    @classmethod
    def open(cls, root: Path) -> Workspace:
        """Read a federation that `prepare` made.

        Raises
        ------
        DataError
            If it is not whole.
        """
        partners = sum(1 for entry in root.glob("partner-*") if (entry / PARTNER_FILE).is_file())
        if not partners or not (root / HELD_OUT).is_file():
            raise DataError(f"{root}: Expected a prepared federation: partners' folders and {HELD_OUT}.")
        return cls(root, read_catalogue(root / "items.parquet"), partners)

    def agent(self, partition: int) -> PartnerAgent:
        """The agent of a partner."""
        return agent_for(partner_folder(self.root, partition))

    def agents(self) -> list[PartnerAgent]:
        """All agents, in order."""
        return [self.agent(k) for k in range(self.partners)]

    def histories(self, model: ModelConfig) -> list[Histories]:
        """What each partner trains on."""
        return [agent.histories(model) for agent in self.agents()]

    def targets(self, partition: int, model: ModelConfig) -> NDArray[np.int32]:
        """Row of each user's held-out item at a partner, -1 for none; in the order of its histories."""
        held_out = pl.read_parquet(self.root / HELD_OUT).filter(pl.col("partner") == partition)
        histories = self.agent(partition).histories(model)
        return targets_of(held_out, histories, self.catalogue, simulated_key())


def simulated_key() -> PseudonymKey:
    """The key of all simulated partners: they are one process, so it hides nothing."""
    return PseudonymKey.derive(0)


def prepare(data: RawData, partitioned: pl.DataFrame, root: Path, *, seed: int) -> Workspace:
    """Hold the last item of every user back and write the partners' folders.

    Parameters
    ----------
    data : RawData
        Cleaned.
    partitioned : polars.DataFrame
        Its interactions with a ``partner`` column (`simulations.partition`).
    root : Path
    seed : int
        Orders events of equal time.

    Raises
    ------
    ConfigError
        If `root` holds partners of an earlier, larger federation, which would take part.
    """
    train, held_out = hold_out(partitioned, tie_seed=seed)
    build_catalogue(data.items)  # refuses a catalogue with doubles before anything is written
    partners = int(str(partitioned.get_column("partner").max())) + 1
    if partner_folder(root, partners).exists():
        raise ConfigError(f"{root}: holds more than {partners} partners already. Expected another folder.")
    root.mkdir(parents=True, exist_ok=True)
    data.items.write_parquet(root / "items.parquet")
    cache = text_cache_path()
    for partition in range(partners):
        folder = partner_folder(root, partition)
        own = train.filter(pl.col("partner") == partition)
        write(RawData(folder.name, own, data.items), folder)
        write_json(
            folder / PARTNER_FILE,
            {"name": folder.name, "simulated": True, "cache": str(cache), "tie_seed": seed},
        )
    held_out.write_parquet(root / f".{HELD_OUT}")
    (root / f".{HELD_OUT}").replace(root / HELD_OUT)
    return Workspace.open(root)


def text_cache_path() -> Path:
    """The text vectors that all simulations on this machine share."""
    return data_home().parent / "cache" / "text-vectors.sqlite"
