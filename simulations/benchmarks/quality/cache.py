"""Finished cells on disk: ``cells/KEY.json`` and ``cells/KEY.npz``, where KEY is a digest of all that decides them.

A cell is there when its JSON file is, which is written last, and whole. Whatever is damaged counts as absent and is
measured again. The code itself is no part of the key: a change that alters figures comes with a new version of
Veilrec or a new configuration; the state of the code is noted with every result, so that a table can tell.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

import client
import server
import shared
import simulations
from shared.errors import ConfigError
from shared.files import write_bytes, write_json
from simulations.benchmarks.machine import machine
from simulations.benchmarks.quality.measure import Measured
from simulations.benchmarks.quality.study import Cell

FORMAT = 1
ARRAYS = ("users", "ranks", "targets")


@dataclass(frozen=True, slots=True)
class Result:
    """A finished cell.

    Attributes
    ----------
    cell : Cell
    metrics : mapping of str to float
        See `Measured`.
    settings : mapping
        What was chosen on the tuning split, or the whole configuration of a run.
    seconds : float
        Of tuning, fitting or training, and evaluation; of the whole run where it gave two results.
    code : str
        `code_digest` when it was made.
    users, ranks, targets : arrays, shape (n,)
        See `Measured`.
    """

    cell: Cell
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    seconds: float
    code: str
    users: NDArray[np.uint64]
    ranks: NDArray[np.float64]
    targets: NDArray[np.int32]


class Cache:
    """The folder of a benchmark's results.

    Parameters
    ----------
    folder : Path
        Made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, kind: str, decides: Mapping[str, Any]) -> str:
        """The digest of all that decides a result, with the version of Veilrec."""
        whole = {"format": FORMAT, "version": version("veilrec"), "kind": kind, **decides}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]

    def get(self, key: str) -> Result | None:
        """A result, or None where it is not there whole."""
        try:
            told = json.loads(self._file(key, "json").read_text(encoding="utf-8"))
            packed = self._file(key, "npz").read_bytes()
            if hashlib.sha256(packed).hexdigest() != told["arrays_sha256"]:
                return None
            with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
                users, ranks, targets = (arrays[name] for name in ARRAYS)
            cell = Cell(**told["cell"])
            return Result(cell, told["metrics"], told["settings"], told["seconds"], told["code"], users, ranks, targets)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def put(self, key: str, cell: Cell, found: Measured, settings: Mapping[str, Any], seconds: float) -> None:
        """Keep a result."""
        packed = io.BytesIO()
        np.savez_compressed(packed, users=found.users, ranks=found.ranks, targets=found.targets)
        write_bytes(self._file(key, "npz"), packed.getvalue())
        document = {
            "cell": asdict(cell),
            "metrics": found.metrics,
            "settings": dict(settings),
            "seconds": seconds,
            "code": code_digest(),
            "veilrec_version": version("veilrec"),
            "machine": machine(),
            "arrays_sha256": hashlib.sha256(packed.getvalue()).hexdigest(),
        }
        write_json(self._file(key, "json"), document)

    def note(self, key: str) -> dict[str, Any] | None:
        """A small document kept with `put_note`, or None."""
        try:
            found = json.loads((self._folder / "tuning" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put_note(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep what was chosen on a tuning split."""
        write_json(self._folder / "tuning" / f"{key}.json", dict(value))

    @contextmanager
    def workplace(self, key: str) -> Iterator[Path]:
        """A folder for the work on a cell, the same after a crash; for one process at a time.

        Raises
        ------
        ConfigError
            If another process is at it.
        """
        folder = self._folder / "running" / key
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=0):
                yield folder
        except Timeout:
            raise ConfigError("Expected one process a cell: another one is at work on it in this cache.") from None

    def _file(self, key: str, ending: str) -> Path:
        return self._folder / "cells" / f"{key}.{ending}"


@cache
def code_digest() -> str:
    """SHA-256 over the sources of the four packages, 12 hex digits; the benchmarks and the report's pages apart."""
    digest = hashlib.sha256()
    for package in (client, server, shared, simulations):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            inside = file.relative_to(root)
            if package is simulations and inside.parts[0] in ("benchmarks", "report"):
                continue
            digest.update(f"{package.__name__}/{inside.as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
