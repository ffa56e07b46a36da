"""The catalogue's vectors on disk: memory-mapped, so that a service starts at once with a million items.

::

    index.json             what it is of: recipe of the vectors, digest of the catalogue, number of items
    vectors-<name>.npy   (I, 2, H) float16: text vector and item vector, in the order of the catalogue
    keys-<name>.npy      (I, 16) bytes: a digest of each item's passage

An item whose passage is known is not read again, whatever its row is now: adding, changing and removing items costs
what is new. The frozen BERT makes the vectors, so that they outlive a release; an index of another catalogue, or made
by another recipe, is refused. Public texts alone: nothing of a user is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from shared.errors import IntegrityError, StaleIndexError
from shared.files import write_json
from shared.model.behaviour import CatalogueVectors
from shared.schema import Catalogue

FORMAT = 1
KEY_BYTES = 16
CHUNK = 1024
"""Passages that are read by BERT before the next are taken."""
Vectors = NDArray[np.float16]
Encode = Callable[[Sequence[str]], Vectors]
"""Passages to vectors, shape (n, 2, H)."""
Progress = Callable[[int, int], None]
"""Called with the number of passages that were read and of all that must be."""


@dataclass(frozen=True, slots=True)
class CatalogueIndex:
    """An index that fits its catalogue.

    Parameters
    ----------
    vectors : array of float16, shape (I, 2, H)
        Memory-mapped, read-only: text vectors, item vectors.
    """

    vectors: Vectors

    @classmethod
    def open(cls, folder: Path, catalogue: Catalogue, recipe: str) -> CatalogueIndex:
        """Open what `build` left.

        Raises
        ------
        StaleIndexError
            If there is none, or it is of another catalogue or recipe.
        IntegrityError
            If its files are not what was written.
        """
        told = _told(folder)
        if told is None or told["recipe"] != recipe or told["catalogue_sha256"] != catalogue.digest:
            raise StaleIndexError(f"{folder}: Expected an index of this catalogue and base model. Build it anew.")
        return cls(_arrays(folder, told)[0])

    @classmethod
    def build(
        cls, folder: Path, catalogue: Catalogue, recipe: str, encode: Encode, progress: Progress | None = None
    ) -> CatalogueIndex:
        """Bring the index in `folder` up to the catalogue, reading what it does not know; open it.

        What was there stays whole until the new index is. An index that cannot be read is made anew.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / ".lock"):
            return cls._built(folder, catalogue, recipe, encode, progress)

    @classmethod
    def _built(
        cls, folder: Path, catalogue: Catalogue, recipe: str, encode: Encode, progress: Progress | None
    ) -> CatalogueIndex:
        try:
            return cls.open(folder, catalogue, recipe)
        except (StaleIndexError, IntegrityError):
            pass
        passages = catalogue.passages()
        keys = [hashlib.blake2b(passage.encode(), digest_size=KEY_BYTES).digest() for passage in passages]
        known, place = _known(folder, recipe)
        missing = [row for row, key in enumerate(keys) if key not in place]
        made = _encoded([passages[row] for row in missing], encode, progress)
        width = made.shape[2] if len(made) else known.shape[2]
        fresh = folder / f".{_name('vectors', catalogue, recipe)}"
        vectors = np.lib.format.open_memmap(fresh, mode="w+", dtype=np.float16, shape=(len(keys), 2, width))
        kept = [row for row, key in enumerate(keys) if key in place]
        for start in range(0, len(kept), CHUNK):
            some = kept[start : start + CHUNK]
            vectors[some] = known[[place[keys[row]] for row in some]]
        if missing:
            vectors[missing] = made
        vectors.flush()
        _keep(folder, catalogue, recipe, fresh, np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES))
        return cls.open(folder, catalogue, recipe)

    def on(self, device: torch.device) -> CatalogueVectors:
        """The vectors on the device that ranks: item vectors in float32; text vectors as they are, since only those of
        a history are read."""
        texts, items = (torch.from_numpy(np.ascontiguousarray(self.vectors[:, k])) for k in range(2))
        return CatalogueVectors(texts.to(device), items.to(device, torch.float32))


def _encoded(passages: Sequence[str], encode: Encode, progress: Progress | None) -> Vectors:
    parts = []
    for start in range(0, len(passages), CHUNK):
        parts.append(encode(passages[start : start + CHUNK]))
        if progress:
            progress(start + len(parts[-1]), len(passages))
    return np.concatenate(parts) if parts else np.zeros((0, 2, 0), dtype=np.float16)


def _known(folder: Path, recipe: str) -> tuple[Vectors, dict[bytes, int]]:
    """What an earlier index of the same recipe holds, and the row of every passage in it."""
    nothing = np.zeros((0, 2, 0), dtype=np.float16)
    try:
        told = _told(folder)
        if told is None or told["recipe"] != recipe:
            return nothing, {}
        vectors, keys = _arrays(folder, told)
    except IntegrityError:
        return nothing, {}
    return vectors, {key.tobytes(): row for row, key in enumerate(keys)}


def _keep(folder: Path, catalogue: Catalogue, recipe: str, vectors: Path, keys: NDArray[np.uint8]) -> None:
    """Put the files in their places, ``index.json`` last, and take away those that it no longer names."""
    fresh = folder / f".{_name('keys', catalogue, recipe)}"
    with fresh.open("wb") as file:
        np.save(file, keys)
        file.flush()
        os.fsync(file.fileno())
    names = {"vectors": _name("vectors", catalogue, recipe), "keys": _name("keys", catalogue, recipe)}
    vectors.replace(folder / names["vectors"])
    fresh.replace(folder / names["keys"])
    told = {"format": FORMAT, "recipe": recipe, "catalogue_sha256": catalogue.digest, "items": len(keys), **names}
    write_json(folder / "index.json", told)
    for file_path in [*folder.glob("vectors-*.npy"), *folder.glob("keys-*.npy")]:
        if file_path.name not in names.values():
            file_path.unlink(missing_ok=True)


def _name(part: str, catalogue: Catalogue, recipe: str) -> str:
    """Of a file that no other catalogue or recipe has: ``index.json`` never tells of vectors that came after it."""
    digest = hashlib.sha256("\0".join((recipe, catalogue.digest)).encode()).hexdigest()
    return f"{part}-{digest[:16]}.npy"


def _told(folder: Path) -> dict[str, Any] | None:
    """``index.json``, None where there is none."""
    file = folder / "index.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        texts = all(isinstance(told[name], str) for name in ("recipe", "catalogue_sha256", "vectors", "keys"))
        if told["format"] != FORMAT or not isinstance(told["items"], int) or not texts:
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise IntegrityError(f"{file}: Expected the description of an index (format={FORMAT}). Delete it.") from None
    checked: dict[str, Any] = told
    return checked


def _arrays(folder: Path, told: dict[str, Any]) -> tuple[Vectors, NDArray[np.uint8]]:
    try:
        vectors = np.load(folder / Path(told["vectors"]).name, mmap_mode="r", allow_pickle=False)
        keys = np.load(folder / Path(told["keys"]).name, allow_pickle=False)
    except (OSError, ValueError):
        raise IntegrityError(f"{folder}: Expected the files of an index. Delete it.") from None
    fits = vectors.ndim == 3 and vectors.shape[:2] == (told["items"], 2) and vectors.dtype == np.float16
    if not fits or keys.shape != (told["items"], KEY_BYTES) or keys.dtype != np.uint8:
        raise IntegrityError(f"{folder}: Expected an index of items={told['items']}, got shape={vectors.shape}.")
    return vectors, keys
