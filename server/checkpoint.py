"""Checkpoints: a run that was killed goes on from its last whole round.

``checkpoints/prior.safetensors`` is written once, ``checkpoints/state.safetensors`` after every round,
each whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from server.optimizer import ServerState
from shared.errors import CheckpointError
from shared.files import write_bytes
from shared.model.prior import CollaborativePrior

ARRAYS = ("parameters", "momentum", "variance", "mean_parameters")
DIGEST = "sha256"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes
    ----------
    run_id : str
        A checkpoint of another configuration or catalogue is refused.
    round : int
        The last whole round.
    state : ServerState
    prior : CollaborativePrior or None
        None until its round is over.
    records : list of dict
        The lines of ``rounds.jsonl``.
    """

    run_id: str
    round: int
    state: ServerState
    prior: CollaborativePrior | None
    records: list[dict[str, Any]]


class CheckpointStore:
    """The checkpoints of one run folder.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state, self._prior = folder / "state.safetensors", folder / "prior.safetensors"

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a whole round; the previous one is replaced."""
        if checkpoint.prior is not None and checkpoint.state.steps == 0:
            _write(self._prior, checkpoint.prior.arrays(), {"run_id": checkpoint.run_id})
        state = checkpoint.state
        meta = {
            "run_id": checkpoint.run_id,
            "round": str(checkpoint.round),
            "steps": str(state.steps),
            "averaged": str(state.averaged),
            "prior": str(checkpoint.prior is not None),
            "records": json.dumps(checkpoint.records),
        }
        _write(self._state, {name: getattr(state, name) for name in ARRAYS}, meta)

    def load(self, run_id: str) -> Checkpoint | None:
        """The last whole round; None if there is none.

        Raises
        ------
        CheckpointError
            If the files cannot be read, or belong to another run.
        """
        if not self._state.exists():
            return None
        arrays, meta = _read(self._state)
        try:
            if meta["run_id"] != run_id:
                raise CheckpointError(f"{self._state}: Expected run_id={run_id}, got {meta['run_id']}.")
            state = ServerState(
                steps=int(meta["steps"]),
                averaged=int(meta["averaged"]),
                **{name: arrays[name] for name in ARRAYS},
            )
            prior = self._load_prior(run_id) if meta["prior"] == "True" else None
            return Checkpoint(run_id, int(meta["round"]), state, prior, json.loads(meta["records"]))
        except (KeyError, ValueError):
            raise CheckpointError(f"{self._state}: Expected a checkpoint.") from None

    def _load_prior(self, run_id: str) -> CollaborativePrior:
        arrays, meta = _read(self._prior)
        if meta.get("run_id") != run_id:
            raise CheckpointError(f"{self._prior}: Expected run_id={run_id}.")
        return CollaborativePrior(**arrays)


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], meta: dict[str, str]) -> None:
    write_bytes(path, save(dict(arrays), {**meta, DIGEST: _digest(arrays, meta)}))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            meta: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}).") from None
    if meta.pop(DIGEST, None) != _digest(arrays, meta):
        raise CheckpointError(f"{path}: Expected a checkpoint that holds what was written.")
    return arrays, meta


def _digest(arrays: Mapping[str, NDArray[Any]], meta: dict[str, str]) -> str:
    """SHA-256 of all that is kept: one changed bit would otherwise train on, unseen."""
    h = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        h.update(f"\n{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return h.hexdigest()
