"""Releases for tests: one real one, made once, and as many signed versions of its files as a test needs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.ranking.release_memory import memory_of
from client.ranking.releases import ReleaseShelf
from shared.config import ModelConfig, RunConfig
from shared.hazmat.signing import SigningKey
from shared.model.prior import CollaborativePrior
from shared.model.weights import find_base
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE
from shared.release_manifest import FILES, manifest_bytes
from shared.release_signature import Trust, signature_text

if TYPE_CHECKING:
    from shared.adapter import Release
    from shared.model.behaviour import BehaviourStage

ITEMS, CATALOGUE = 5, "c" * 64
CONFIG = RunConfig(
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, item_rank=3, max_events=8), seed=3
)
PRIOR = CollaborativePrior(np.linspace(-1, 1, ITEMS, dtype=np.float32), item_to_item=np.eye(ITEMS, dtype=np.float32))
PRIVACY = {"mode": "distributed", "epsilon": 7.5, "delta": 1e-5}
KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
Contents = dict[str, bytes]


@cache
def model() -> BehaviourStage:
    """An untrained model; tests must not change it."""
    from shared.model.behaviour import BehaviourStage

    return BehaviourStage(find_base(CONFIG.model.base), CONFIG.model, n_items=ITEMS, seed=3)


def save(folder: Path, **options: Any) -> None:
    """`save_release` of `model`."""
    from shared.adapter import save_release

    save_release(folder, model(), PRIOR, CONFIG, catalogue_digest=CATALOGUE, privacy=PRIVACY, **options)


@cache
def saved() -> Mapping[str, bytes]:
    """The files of version 1, as the coordinator writes and signs them."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), version=1, sign=lambda manifest: signature_text(KEY, manifest))
        return {entry.name: entry.read_bytes() for entry in Path(folder).iterdir()}


def signed(files: Mapping[str, bytes], key: SigningKey = KEY, /, **told: Any) -> Contents:
    """Manifest and signature that fit `files`; `told` replaces what the manifest says."""
    manifest = json.loads(files[MANIFEST_FILE])
    manifest |= {
        "files": {name: sha256(files[name]).hexdigest() for name in FILES},
        "sizes": {name: len(files[name]) for name in FILES},
        **told,
    }
    data = manifest_bytes(manifest)
    return {**files, MANIFEST_FILE: data, SIGNATURE_FILE: signature_text(key, data)}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files of a release; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def shelve(folder: Path, version: int, key: SigningKey = KEY, **told: Any) -> Path:
    """Write a signed release of this version; returns `folder`."""
    return write(folder, signed(saved(), key, version=version, **told))


class Partner:
    """A partner's premises: a folder of releases, a state file elsewhere, and what is served."""

    def __init__(self, root: Path) -> None:
        self.folder, self.state = root / "releases", memory_of(root / "state")
        self.served: list[int] = []
        self.shelf = self.restarted()

    def restarted(self, trust: Trust = KEY.public) -> ReleaseShelf:
        self.shelf = ReleaseShelf(self.folder, trust, self.state)
        return self.shelf

    def shelve(self, version: int, name: str = "", **told: Any) -> Path:
        return shelve(self.folder / (name or f"release-{version}"), version, **told)

    def serve(self, release: Release) -> None:
        self.served.append(release.manifest["version"])

    def poll(self) -> list[int]:
        """All that was ever handed over, after another look."""
        self.shelf.poll(self.serve)
        return self.served

    def latest(self) -> int | None:
        found = self.shelf.latest()
        return None if found is None else found.known.version

    def standings(self) -> dict[str, str]:
        return {entry.name: entry.standing.value for entry in self.shelf.entries()}
