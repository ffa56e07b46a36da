"""A simulated federation on disk: one folder a partner, and what evaluation holds back.

``<root>/items.parquet`` is the public catalogue; ``<root>/partner-000`` and so on hold what a partner
would have on its premises, without the held-out events; ``<root>/held_out.parquet`` is the evaluator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.agent import agent_for
from client.app import partner_folder
from client.data.formats.columns import INTERACTION_COLUMNS
from client.data.ingest import INTERACTIONS_FILE, ITEMS_FILE, RawData, data_home, write
from client.data.pseudonyms import PseudonymKey
from client.learner import Learner
from client.premises import IDENTITY_FILE, PARTNER_FILE, write_partner
from server.admission import Admission
from shared.catalogue import build_catalogue, read_catalogue
from shared.config import ModelConfig
from shared.errors import ConfigError, DataError
from shared.hazmat.signing import SigningKey
from shared.schema import Catalogue, Histories
from simulations.evaluation import NO_TARGET, hold_out, targets_of

HELD_OUT = "held_out.parquet"
MOST_PINNED = 128
"""Larger federations pin no peers at each other: the pins grow with the square of the partners (6 GB for 10,000), and
only masked sums need them, which are made for 3 to 50."""


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

    def learners(self) -> Iterator[Learner]:
        """What all partners hold, in order; one after the other, as all of them may not fit in memory."""
        return (self.learner(k) for k in range(self.partners))

    def histories(self, model: ModelConfig) -> list[Histories]:
        """What each partner trains on."""
        return [learner.histories(model) for learner in self.learners()]

    def targets(self, partition: int, model: ModelConfig) -> NDArray[np.int32]:
        """Row of each user's held-out item at a partner, -1 for none; in the order of its histories."""
        histories = self.learner(partition).histories(model)
        held_out = self._held_out.get((partition,))
        if held_out is None:
            return np.full(len(histories), NO_TARGET, dtype=np.int32)
        return targets_of(held_out, histories, self.catalogue, simulated_key())

    @cached_property
    def _held_out(self) -> dict[tuple[Any, ...], pl.DataFrame]:
        """Held-out items by partner."""
        return pl.read_parquet(self.root / HELD_OUT).partition_by("partner", as_dict=True)

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


def prepare(
    data: RawData,
    partitioned: pl.DataFrame,
    root: Path,
    *,
    seed: int,
    which: Literal["last", "last_but_one", "nothing"] = "last",
) -> Workspace:
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
    which : {"last", "last_but_one", "nothing"}
        See `simulations.evaluation.hold_out`; an audit, which measures no ranking, holds nothing back.

    Raises
    ------
    ConfigError
        If `root` holds partners of an earlier, larger federation, which would take part.
    """
    train, held_out = _split(partitioned, seed, which)
    build_catalogue(data.items)  # refuses a catalogue with doubles before anything is written
    partners = int(str(partitioned.get_column("partner").max())) + 1
    if partner_folder(root, partners).exists():
        raise ConfigError(f"{root}: holds more than {partners} partners already. Expected another folder.")
    root.mkdir(parents=True, exist_ok=True)
    _write_whole(data.items, root / ITEMS_FILE)
    folders = [partner_folder(root, partition) for partition in range(partners)]
    _write_partners(train, data.items, folders)
    _write_whole(held_out, root / HELD_OUT)
    _enrol(root, {folder: _settings(folder.name, text_cache_path(), seed) for folder in folders})
    return Workspace.open(root)


def _split(partitioned: pl.DataFrame, seed: int, which: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    if which == "nothing":
        return partitioned, partitioned.clear().select("user_id", "item_id", "partner")
    return hold_out(partitioned, tie_seed=seed, which="last" if which == "last" else "last_but_one")


def _write_partners(train: pl.DataFrame, items: pl.DataFrame, folders: Sequence[Path]) -> None:
    """Every partner's own events, and the public catalogue, which takes its space on the disk once."""
    parts = train.partition_by("partner", as_dict=True, maintain_order=True)
    nothing = train.clear()
    first = folders[0]
    for partition, folder in enumerate(folders):
        own = parts.pop((partition,), nothing)
        if folder == first:
            write(RawData(folder.name, own, items), folder)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        _link(first / ITEMS_FILE, folder / ITEMS_FILE)
        _write_whole(own.select(INTERACTION_COLUMNS), folder / INTERACTIONS_FILE)


def _write_whole(frame: pl.DataFrame, file: Path) -> None:
    """Write a file that is whole or not there."""
    hidden = file.with_name(f".{file.name}")
    frame.write_parquet(hidden)
    hidden.replace(file)


def _link(source: Path, target: Path) -> None:
    hidden = target.with_name(f".{target.name}")
    hidden.unlink(missing_ok=True)
    hidden.hardlink_to(source)
    hidden.replace(target)


def _settings(name: str, cache: Path, tie_seed: int) -> dict[str, Any]:
    return {"name": name, "simulated": True, "cache": str(cache), "tie_seed": tie_seed}


def _enrol(root: Path, settings: Mapping[Path, Mapping[str, Any]]) -> None:
    """Give every partner and the coordinator a key, and pin them all at each other, up to `MOST_PINNED`."""
    keys = {folder: SigningKey.load_or_create(folder / IDENTITY_FILE).public for folder in settings}
    identities = {str(settings[folder]["name"]): key for folder, key in keys.items()}
    server = Admission.create(root, identities).key.public
    peers = {name: key.text for name, key in identities.items()} if len(identities) <= MOST_PINNED else {}
    for folder, told in settings.items():
        write_partner(folder, {**told, "policy": {"server_key": server.text}, "peers": peers})


def text_cache_path() -> Path:
    """The text vectors that all simulations on this machine share."""
    return data_home().parent / "cache" / "text-vectors.sqlite"
