"""The collaborative prior: closed forms of one noisy sum. No torch: the relay on a partner's premises imports this.

Two second moments of the users' histories are summed privately (`client.statistics`):
``G = sum_u y y^T`` with y the user's items scaled to norm 1, and ``B = sum_u sum_p phi_p e_p^T / sqrt(m)``
with phi_p the decayed items before the p-th of m targets. From them, with no further privacy cost:

- popularity: the diagonal of G;
- EASE (Steck, WWW 2019): ``P = (G + l I)^-1``, ``E = I - P / diag(P)``;
- next-item ridge (as linear session models, e.g. SLIST, WWW 2021): ``N = (G + l' I)^-1 B``.

Both are item-to-item weights, so their sum, each scaled to root mean square 1, is one matrix. A user is the sum
of the rows of the user's items, weighted by ``decay^age``: weighting EASE by recency too, at ranking time only,
is worth as much as everything else here (docs/adr/0002-collaborative-prior.md).

The ridges follow from public quantities alone: the number of items and the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.config import PriorConfig
from shared.errors import AdapterMismatchError

COOCCURRENCE_WEIGHT = math.sqrt(0.5)
"""Weight of G beside B in the joint sum, whose squared weights add up to 1: a user's part has norm <= 1."""
EASE_RIDGE, NEXT_RIDGE = 2.0, 20.0
"""l and l' without noise, in users."""


def statistics_size(kind: str, n_items: int) -> int:
    """Length of the summed vector: the diagonal; or the symmetric G packed, then B."""
    if kind == "none":
        return 0
    return n_items if kind == "popularity" else n_items * (n_items + 1) // 2 + n_items * n_items


def effective_kind(config: PriorConfig, n_items: int) -> str:
    """``hybrid`` becomes ``popularity`` above ``max_items``: the sum grows with the square of the items."""
    return "popularity" if config.kind == "hybrid" and n_items > config.max_items else config.kind


@dataclass(frozen=True)
class CollaborativePrior:
    """What the prior's sum became. Arrays are float32 over catalogue rows.

    Attributes
    ----------
    popularity : (I,)
        Centred log popularity.
    item_to_item : (I, I) or None
        Row = an item of the history, column = the item that is scored.
    """

    popularity: NDArray[np.float32]
    item_to_item: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays that are there, by name."""
        named = {"popularity": self.popularity, "item_to_item": self.item_to_item}
        return {name: array for name, array in named.items() if array is not None}

    def check(self, n_items: int) -> None:
        """Refuse a prior that is not finite, or not of a catalogue of `n_items`.

        Raises
        ------
        AdapterMismatchError
        """
        shapes = {"popularity": (n_items,), "item_to_item": (n_items, n_items)}
        for name, array in self.arrays().items():
            if array.shape != shapes[name] or not np.isfinite(array).all():
                raise AdapterMismatchError(f"Expected {name} finite, of {n_items} items, got shape={array.shape}.")


def uninformed(n_items: int) -> CollaborativePrior:
    """A prior that knows nothing."""
    return CollaborativePrior(np.zeros(n_items, dtype=np.float32))


def solve(kind: str, total: NDArray[np.float64], n_items: int, noise_stddev: float) -> CollaborativePrior:
    """Turn the summed vector into a prior.

    Parameters
    ----------
    kind : {"hybrid", "popularity", "none"}
    total : (statistics_size(kind, n_items),)
    noise_stddev : float
        Standard deviation of the noise on every entry of `total`; public, 0 without noise.
    """
    if kind == "none":
        return uninformed(n_items)
    if kind == "popularity":
        return CollaborativePrior(_log_popularity(total, noise_stddev))
    packed = n_items * (n_items + 1) // 2
    G = unpack_symmetric(total[:packed], n_items) / COOCCURRENCE_WEIGHT
    B = total[packed:].reshape(n_items, n_items) / math.sqrt(1 - COOCCURRENCE_WEIGHT**2)
    sigma = noise_stddev / COOCCURRENCE_WEIGHT
    # Entries off the diagonal carry sigma / sqrt(2): the spectrum of the noise ends at 2 sigma / sqrt(2) sqrt(I).
    edge = math.sqrt(2.0) * sigma * math.sqrt(n_items)
    inverse = np.linalg.inv(G + (EASE_RIDGE + 2.0 * edge) * np.eye(n_items))
    ease = -inverse / np.diag(inverse)
    np.fill_diagonal(ease, 0.0)
    next_item = np.linalg.solve(G + (NEXT_RIDGE + 4.0 * edge) * np.eye(n_items), B)
    weights = ease / _root_mean_square(ease) + next_item / _root_mean_square(next_item)
    return CollaborativePrior(_log_popularity(np.diag(G), sigma), weights.astype(np.float32))


def _root_mean_square(matrix: NDArray[np.floating[Any]]) -> float:
    return max(float(np.sqrt(np.mean(matrix**2))), 1e-12)


def pack_symmetric(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper triangle with off-diagonal entries times sqrt(2): keeps the Frobenius norm, halves the vector.

    Noise on the packed vector is noise of only 1 / sqrt(2) on each entry off the diagonal.
    """
    rows, columns = np.triu_indices(len(matrix))
    packed: NDArray[np.float64] = matrix[rows, columns] * np.where(rows == columns, 1.0, math.sqrt(2.0))
    return packed


def unpack_symmetric(packed: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Inverse of `pack_symmetric`, shape ``(n, n)``."""
    rows, columns = np.triu_indices(n)
    matrix = np.empty((n, n))
    matrix[rows, columns] = packed * np.where(rows == columns, 1.0, math.sqrt(0.5))
    matrix[columns, rows] = matrix[rows, columns]
    return matrix


def _log_popularity(mass: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """Centred log of the noisy mass; what cannot be told from noise counts as the floor."""
    floor = max(float(np.mean(np.abs(mass))) * 0.05, sigma, 1e-3)
    logs = np.log(np.maximum(mass, 0.0) + floor)
    centred: NDArray[np.float32] = (logs - logs.mean()).astype(np.float32)
    return centred
