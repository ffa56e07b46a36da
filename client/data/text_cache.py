"""Text vectors on disk, addressed by content: a text is read by BERT once, never again.

A row's key is SHA-256 of the recipe (base model, layers, tokens) and the text, so that a cache can be
shared by partners, runs and models, and never goes stale. It holds vectors of the partner's own
reviews: it stays on the premises, in a file that only its owner may read.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import IntegrityError
from shared.model.text import TextStage

CHUNK = 512
WAIT_S = 60.0


class TextCache:
    """A file of text vectors (SQLite, fp16).

    Parameters
    ----------
    path : Path
        Made with mode 0600 if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")

    def vectors(
        self,
        stage: TextStage,
        texts: Sequence[str],
        *,
        width: int,
        items: bool = True,
        keep: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float16]:
        """Vectors of `texts`, as `TextStage.encode` gives them; those that are missing are computed and kept.

        Parameters
        ----------
        keep : bool
            Whether those that were computed are written down.
        progress : callable, optional
            Called with the number of texts that were computed and the number of all that must be.

        Raises
        ------
        IntegrityError
            If the file is no cache, or holds a vector of another size.
        """
        recipe, parts = stage.recipe(items=items), 2 if items else 1
        keys = [_key(recipe, text) for text in texts]
        known = self._read(keys)
        missing = sorted({text for text, key in zip(texts, keys, strict=True) if key not in known})
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            rows = {
                _key(recipe, text): vector.tobytes()
                for text, vector in zip(chunk, stage.encode(chunk, items=items), strict=True)
            }
            if keep:
                self._write(rows)
            known.update(rows)
            if progress:
                progress(start + len(chunk), len(missing))
        size = 2 * parts * width
        if any(len(known[key]) != size for key in keys):
            raise IntegrityError(f"{self._path}: Expected text vectors of bytes={size}.")
        joined = b"".join(known[key] for key in keys)
        return np.frombuffer(joined, dtype=np.float16).reshape(len(texts), parts, width)

    def erase(self, stage: TextStage, texts: Sequence[str], *, items: bool = True) -> int:
        """Forget the vectors of `texts`, overwriting them, and say how many were held. They can be computed anew."""
        recipe = stage.recipe(items=items)
        with self._open() as db:
            db.execute("PRAGMA secure_delete = ON")
            found = [db.execute("DELETE FROM vectors WHERE key = ?", (_key(recipe, text),)).rowcount for text in texts]
        return sum(found)

    def _read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        with self._open() as db:
            for start in range(0, len(keys), CHUNK):
                some = keys[start : start + CHUNK]
                marks = ",".join("?" * len(some))
                found.update(db.execute(f"SELECT key, data FROM vectors WHERE key IN ({marks})", some))
        return found

    def _write(self, rows: dict[bytes, bytes]) -> None:
        with self._open() as db:
            db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows.items())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Other processes may read and write the same file."""
        db = sqlite3.connect(self._path, timeout=WAIT_S)
        try:
            with db:
                yield db
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise IntegrityError(f"{self._path}: another process has kept it for over {WAIT_S:g} s.") from None
            raise IntegrityError(f"{self._path}: not a text cache ({type(error).__name__}). Delete it.") from None
        finally:
            db.close()


def _key(recipe: str, text: str) -> bytes:
    return hashlib.sha256(f"{recipe}\0{text}".encode()).digest()
