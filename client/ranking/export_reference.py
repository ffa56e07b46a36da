"""Rank with an exported Veilrec release: numpy and onnxruntime, and tokenizers to read words.

An export holds this file as ``onnx/rank.py``. It needs nothing else of Veilrec::

    ranker = Ranker("path/to/export")
    ranker.rank([{"item": "B07", "event": "purchase", "rating": 5, "review": "Light and warm."}], k=10)
    ranker.rank_query("a gift for a runner", k=10)

Shapes: B users, T events, I items, H width of the text vectors, R width of the item residuals (may be 0).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Ranked = list[tuple[str, str, float]]
"""Item id, title, score; the best first."""


class Ranker:
    """A release, read and checked against the digests of its ``manifest.json``.

    Parameters
    ----------
    folder : str or Path
        The export: the folder that holds ``manifest.json``.
    threads : int
        Of onnxruntime; 0 leaves it the choice.

    Raises
    ------
    ValueError
        If a file is not the one that was exported.
    """

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        self._folder, self._threads = Path(folder), threads
        self._digests = json.loads((self._folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        self.settings = json.loads(self._read("onnx/settings.json"))
        items = json.loads(self._read("items.json"))
        self.item_ids, self.titles = items["item_ids"], items["titles"]
        self._rows: dict[str, int] = {item: row for row, item in enumerate(self.item_ids)}
        with np.load(io.BytesIO(self._read("onnx/arrays.npz"))) as arrays:
            held = {name: arrays[name].astype(np.float32) for name in arrays.files}
        self.inputs, self.outputs = held["inputs"], held["outputs"]  # (I, H), (I, H + R)
        self._popularity = held["popularity"]  # (I,)
        self._matrix, self._widen = held.get("item_to_item"), held.get("widen")  # (I, I), or (I, r) and (r, I)
        self._behaviour = self._session("onnx/behaviour.onnx")
        self._encoder: Any = None

    def scores(
        self, items: Integers, events: Integers, ratings: Integers, lengths: Integers, texts: Floats | None = None
    ) -> Floats:
        """Scores of all items after the newest event of each user, shape ``(B, I)``.

        Parameters
        ----------
        items : (B, T)
            Rows of the catalogue, the oldest event first, padded behind with -1; -1 also for an event without item.
        events : (B, T)
            Places in ``settings["event_kinds"]``.
        ratings : (B, T)
            Steps 1 to 5, 0 for none.
        lengths : (B,)
            Events of each user, at least 1.
        texts : (B, T, H), optional
            Text vectors of the users' own reviews, zeros where there is none.
        """
        wanted = self.wanted(items, events, ratings, lengths, texts)
        return np.asarray(wanted @ self.outputs.T + self.prior(items), dtype=np.float32)

    def wanted(
        self, items: Integers, events: Integers, ratings: Integers, lengths: Integers, texts: Floats | None = None
    ) -> Floats:
        """What each user wants next, shape ``(B, H + R)``: its product with `outputs` is the score of the texts."""
        vectors = self.inputs[np.maximum(items, 0)] * (items >= 0)[..., None]  # (B, T, H)
        if texts is not None:
            vectors = vectors + texts
        named = {"vectors": vectors.astype(np.float32), "events": events, "ratings": ratings, "lengths": lengths}
        found: Floats = self._behaviour.run(None, named)[0]
        return found

    def prior(self, items: Integers) -> Floats:
        """The prior, shape ``(B, I)``: ``p + w asinh(s z) + c cos(m, e)``.

        z is the standardised sum of the rows of the user's items, m the sum of their item vectors e, each item times
        ``decay ** age``, the newest of age 0.
        """
        told = self.settings["prior"]
        scores = told["popularity_weight"] * np.tile(self._popularity, (len(items), 1))
        if self._matrix is not None:
            sums = _decayed(self._matrix, items, told["decay"])
            if self._widen is not None:
                sums = sums @ self._widen
            centred = sums - sums.mean(axis=1, keepdims=True)
            deviation = np.maximum(np.sqrt(np.mean(centred**2, axis=1, keepdims=True)), 1e-12)
            scores = scores + told["weight"] * np.arcsinh(told["steepness"] * centred / deviation)
        if told["likeness"]:
            vectors = self.outputs[:, : self.settings["width"]]
            liked = _decayed(vectors, items, told["likeness_decay"])
            liked = liked / np.maximum(np.linalg.norm(liked, axis=1, keepdims=True), 1e-12)
            scores = scores + told["likeness"] * liked @ vectors.T
        return np.asarray(scores, dtype=np.float32)

    def encode(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Text vectors and item vectors, each ``(len(texts), H)``; zeros for an empty text.

        An item that the export does not hold is its text vector in `inputs`, and its item vector, followed by R
        zeros, in `outputs`.
        """
        width = self.settings["width"]
        below, above = np.zeros((2, len(texts), width), dtype=np.float32)
        full = [k for k, text in enumerate(texts) if text]
        if full:
            if self._encoder is None:
                from tokenizers import Tokenizer

                self._tokenizer = Tokenizer.from_str(self._read("onnx/tokenizer.json").decode())
                self._encoder = self._session("onnx/text_encoder.onnx")
            tokens = self._tokenizer.encode_batch([texts[k] for k in full])
            ids = np.array([one.ids for one in tokens], dtype=np.int64)
            mask = np.array([one.attention_mask for one in tokens], dtype=np.int64)
            below[full], above[full] = self._encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        return below, above

    def rank(self, history: Sequence[Mapping[str, Any]], k: int = 10) -> Ranked:
        """The `k` best items for a user that are not in the history.

        Parameters
        ----------
        history : sequence of mappings
            The oldest event first. Keys, all optional: ``item`` (an id), ``event`` (one of
            ``settings["event_kinds"]``; default: purchase), ``rating`` (from 0 to ``settings["rating_max"]``),
            ``review`` (the user's own words).

        Raises
        ------
        ValueError
            If there is no event, or one names an item or a kind that the export does not have.
        """
        if not history:
            raise ValueError("Expected at least one event.")
        newest = history[-self.settings["max_events"] :]
        texts = self.encode([event.get("review") or "" for event in newest])[0]
        items, events, ratings = (
            np.array([[read(event) for event in newest]], dtype=np.int64)
            for read in (self._row, self._kind, self._rating)
        )
        scores = self.scores(items, events, ratings, np.array([len(newest)]), texts[None])[0]
        scores[[row for event in history if (row := self._row(event)) >= 0]] = -np.inf
        return self._best(scores, k)

    def rank_query(self, text: str, k: int = 10) -> Ranked:
        """The `k` items that fit a wish in words best: similarity, a little of what its reader wants, popularity."""
        below, above = self.encode([text])
        one = np.ones((1, 1), dtype=np.int64)
        kind = self.settings["event_kinds"].index("query")
        wanted = self.wanted(-one, kind * one, 0 * one, one[0], below[None])[0] @ self.outputs.T
        similar = above[0] @ self.outputs[:, : self.settings["width"]].T
        behaviour, popular = (self.settings[f"query_{name}_weight"] for name in ("behaviour", "popularity"))
        liked = popular * _standardised(self._popularity)
        return self._best(_standardised(similar) + behaviour * _standardised(wanted) + liked, k)

    def _row(self, event: Mapping[str, Any]) -> int:
        item: str | None = event.get("item")
        if item is None:
            return -1
        if item not in self._rows:
            raise ValueError("Expected items of the catalogue: one is not in items.json.")
        return self._rows[item]

    def _kind(self, event: Mapping[str, Any]) -> int:
        kinds: list[str] = self.settings["event_kinds"]
        if event.get("event", "purchase") not in kinds:
            raise ValueError(f"Expected event in {', '.join(kinds)}.")
        return kinds.index(event.get("event", "purchase"))

    def _rating(self, event: Mapping[str, Any]) -> int:
        rating: float | None = event.get("rating")
        if rating is None or math.isnan(rating):
            return 0
        steps: int = self.settings["rating_steps"]
        most: float = self.settings["rating_max"]
        return min(max(math.ceil(rating * (steps / most)), 1), steps)

    def _best(self, scores: Floats, k: int) -> Ranked:
        rows = [int(row) for row in np.argsort(-scores, kind="stable")[:k] if np.isfinite(scores[row])]
        return [(self.item_ids[row], self.titles[row], float(scores[row])) for row in rows]

    def _read(self, name: str) -> bytes:
        data = (self._folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self._digests.get(name):
            raise ValueError(f"{name}: Expected the file that was exported: its SHA-256 is another.")
        return data

    def _session(self, name: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(self._read(name), options, providers=["CPUExecutionProvider"])


def _decayed(matrix: Floats, items: Integers, decay: float) -> Floats:
    """`_decayed_sum` of each user, shape ``(B, columns)``."""
    return np.stack([_decayed_sum(matrix, row[: _length(row)], decay) for row in items])


def _decayed_sum(matrix: Floats, rows: Integers, decay: float) -> Floats:
    """Of a matrix' rows for one user's items, by their ages; of events without item the age counts too."""
    weights = decay ** np.arange(len(rows) - 1, -1, -1) * (rows >= 0)
    return np.asarray(weights.astype(np.float32) @ matrix[np.maximum(rows, 0)], dtype=np.float32)


def _length(row: Integers) -> int:
    """Up to the newest event with an item."""
    known = np.flatnonzero(row >= 0)
    return int(known[-1]) + 1 if len(known) else 0


def _standardised(scores: Floats) -> Floats:
    return np.asarray((scores - scores.mean()) / max(float(scores.std()), 1e-12), dtype=np.float32)


if __name__ == "__main__":
    for item, title, score in Ranker(Path(__file__).parents[1]).rank_query(" ".join(sys.argv[1:])):
        print(f"{score:8.3f}  {item}  {title}")
