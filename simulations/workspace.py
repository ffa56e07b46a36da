"""A simulated federation on disk: one folder a partner, and what evaluation holds back.

``<root>/items.parquet`` is the public catalogue; ``<root>/partner-000`` and so on hold what a partner
would have on its premises, without the held-out events; ``<root>/held_out.parquet`` is the evaluator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.agent import agent_for
from client.app import partner_folder
from client.data.ingest import RawData, data_home, write
from client.data.pseudonyms import PseudonymKey
from client.learner import Learner
from client.premises import IDENTITY_FILE, PARTNER_FILE, write_partner
from server.admission import Admission
from shared.catalogue import build_catalogue, read_catalogue
from shared.config import ModelConfig
from shared.errors import ConfigError, DataError
from shared.hazmat.signing import SigningKey
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

    def learner(self, partition: int) -> Learner:
        """What a partner holds."""
        return agent_for(partner_folder(self.root, partition)).learner

    def learners(self) -> list[Learner]:
        """What all partners hold, in order."""
        return [self.learner(k) for k in range(self.partners)]

    def histories(self, model: ModelConfig) -> list[Histories]:
        """What each partner trains on."""
        return [learner.histories(model) for learner in self.learners()]

    def targets(self, partition: int, model: ModelConfig) -> NDArray[np.int32]:
        """Row of each user's held-out item at a partner, -1 for none; in the order of its histories."""
        held_out = pl.read_parquet(self.root / HELD_OUT).filter(pl.col("partner") == partition)
        histories = self.learner(partition).histories(model)
        return targets_of(held_out, histories, self.catalogue, simulated_key())

    def alone(self, partition: int, root: Path) -> Path:
        """A federation of one partner over the same data, with keys and a ledger of its own; returns `root`."""
        premises = self.learner(partition).premises
        folder = partner_folder(root, partition)
        settings = _settings(premises.name, premises.cache, premises.tie_seed)
        _enrol(root, {folder: {**settings, "data": str(premises.data.resolve())}})
        return root


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
    settings = {}
    for partition in range(partners):
        folder = partner_folder(root, partition)
        own = train.filter(pl.col("partner") == partition)
        write(RawData(folder.name, own, data.items), folder)
        settings[folder] = _settings(folder.name, text_cache_path(), seed)
    held_out.write_parquet(root / f".{HELD_OUT}")
    (root / f".{HELD_OUT}").replace(root / HELD_OUT)
    _enrol(root, settings)
    return Workspace.open(root)


def _settings(name: str, cache: Path, tie_seed: int) -> dict[str, Any]:
    return {"name": name, "simulated": True, "cache": str(cache), "tie_seed": tie_seed}


def _enrol(root: Path, settings: Mapping[Path, Mapping[str, Any]]) -> None:
    """Give every partner and the coordinator a key, and pin them all at each other."""
    keys = {folder: SigningKey.load_or_create(folder / IDENTITY_FILE).public for folder in settings}
    identities = {str(settings[folder]["name"]): key for folder, key in keys.items()}
    server = Admission.create(root, identities).key.public
    peers = {name: key.text for name, key in identities.items()}
    for folder, told in settings.items():
        write_partner(folder, {**told, "policy": {"server_key": server.text}, "peers": peers})


def text_cache_path() -> Path:
    """The text vectors that all simulations on this machine share."""
    return data_home().parent / "cache" / "text-vectors.sqlite"
