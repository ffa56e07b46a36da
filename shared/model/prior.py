"""The collaborative prior: closed forms of one noisy sum. No torch: the relay on a partner's premises imports this.

Second moments of the users' histories are summed privately (`client.statistics`): ``G = sum_u y y^T`` with y the
user's items, weighted by recency and scaled to norm 1; and, where there is no noise,
``B = sum_u sum_p phi_p e_p^T / sqrt(m)`` with phi_p the decayed items before the p-th of m targets. From them, with no
further privacy cost:

- popularity: the diagonal of G;
- EASE (Steck, WWW 2019): ``P = (G + l I)^-1``, ``E = I - P / diag(P)``;
- next-item ridge (as linear session models, e.g. SLIST, WWW 2021): ``N = (G + l' I)^-1 B``.

Both are item-to-item weights, so their sum, each scaled to root mean square 1, is one matrix. Under noise all of the
sensitivity is G's: halved, it ranks worse than what B adds (docs/adr/0013-cooccurrences-alone-under-noise.md).
A user is the sum of the rows of the user's items, weighted by ``decay^age``: weighting EASE by recency too, when
ranking, is worth as much as everything else here (docs/adr/0002-collaborative-prior.md).

Two kinds of federation cannot afford the square of the catalogue (docs/adr/0008-prior-by-public-size.md):

- many items: ``G`` is summed as its product with a public matrix of random signs, ``G S``, from which Nystroem's
  method has its large eigenvectors; EASE needs no others, and next-item ridge, from ``B^T S``, fewer;
- few users for the noise: the items' popularity ``sum_u y`` alone, of which a user's norm goes a long way.

What the noise has taken from the sum, or what too few users ever told, the texts may tell
(docs/adr/0021-texts-where-the-sum-is-noise.md, docs/adr/0023-texts-without-noise.md): the weights are smoothed along
the texts of both items, and beside them stands the likeness of an item's text to the texts of the user's items
(content-based filtering).

Which it is, the ridges, and the weights of popularity and texts follow from public quantities: items, declared users,
noise.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.config import PriorConfig
from shared.errors import AdapterMismatchError
from shared.privacy.lattice import LARGEST_VECTOR
from shared.privacy.plan import PrivacyPlan

DEFAULTS = PriorConfig()
COOCCURRENCE_WEIGHT = math.sqrt(0.5)
"""Weight of G beside B in the joint sum, whose squared weights add up to 1: a user's part has norm <= 1."""
SKETCH_WEIGHT = math.sqrt(0.9)
"""The same of ``G S`` beside ``sum_u y``."""
SKETCH_RANK = 256
"""Columns of S."""
NEXT_RANK = 64
"""Directions of G along which next items are read off ``B^T S``; more tell nothing more (docs/adr/0008)."""
LEAST_USERS = 5.0
"""Declared users for each unit of noise in the matrix, below which popularity alone ranks better."""
EVIDENCE = 1.0
"""Standard deviations of the noise above which an item's mass counts as evidence of it (docs/adr/0010)."""
POPULARITY_SHARES, POPULARITY_NEED = (0.06, 1.33), 15.0
"""Weight of popularity beside item-to-item weights, as a part of its weight alone: bounds, and, between them, how much
for each unit of doubt: of the noise's edge for each declared user."""
RIDGE_EDGES, RIDGE_NEED = (1.5, 8.0), 500.0
"""The same of EASE's ridge, in units of the noise's edge."""
LIKENESS_WEIGHTS, LIKENESS_NEED = (0.0, 7.0), 400.0
"""The same of the likeness by text, a cosine, in logits; the most beside popularity alone."""
SPARSE_LIKENESS = 4.0
"""Its weight where there are so many items for a user that the sum tells little of each, noise or not: the square root
of their number, up to this (docs/adr/0023)."""
SMOOTH_SHARES, SMOOTH_NEED = (0.3, 0.5), 150.0
"""Of the weights smoothed along texts, by doubt, as a part of the weights' root mean square."""


def statistics_size(kind: str, n_items: int) -> int:
    """Length of the summed vector: popularity, and ``G S``, or the symmetric G packed; if hybrid, B's part after it."""
    if kind == "none":
        return 0
    if kind == "popularity":
        return n_items
    if kind in ("sketch", "hybrid_sketch"):
        return n_items * (1 + SKETCH_RANK * (2 if kind == "hybrid_sketch" else 1))
    packed = n_items * (n_items + 1) // 2
    return packed if kind == "ease" else packed + n_items * n_items


def effective_kind(config: PriorConfig, plan: PrivacyPlan, n_items: int) -> str:
    """What a federation of this public size sums: ``hybrid``, or what it can afford of `solve`'s kinds."""
    if config.kind != "hybrid":
        return config.kind
    large = n_items > config.max_items
    if plan.mode == "none":
        kinds = ("hybrid_sketch", "sketch") if large else ("hybrid",)
        return next((kind for kind in kinds if statistics_size(kind, n_items) <= LARGEST_VECTOR), "popularity")
    kind = "sketch" if large else "ease"
    size = statistics_size(kind, n_items)
    # In units of one user: every partner clips to 1 / k, so that the sum is multiplied by k.
    variance = plan.partners * plan.share_variance("prior", size)
    stddev = plan.step("prior") * plan.partners_per_user * math.sqrt(variance)
    enough = plan.population >= LEAST_USERS * noise_edge(kind, n_items, stddev)
    return kind if enough and size <= LARGEST_VECTOR else "popularity"


def noise_edge(kind: str, n_items: int, noise_stddev: float) -> float:
    """Where the spectrum of the noise in G (or in ``G S``) ends, in users.

    Entries of G off the diagonal carry ``sigma / sqrt(2)``, and a symmetric matrix of them ends at
    ``2 sigma / sqrt(2) sqrt(I)``; an I x r matrix of noise at ``sigma (sqrt(I) + sqrt(r))``.
    """
    if kind == "sketch":
        return noise_stddev / SKETCH_WEIGHT * (math.sqrt(n_items) + math.sqrt(SKETCH_RANK))
    return math.sqrt(2.0) * noise_stddev / _cooccurrence_weight(kind) * math.sqrt(n_items)


def _cooccurrence_weight(kind: str) -> float:
    return 1.0 if kind == "ease" else COOCCURRENCE_WEIGHT


@dataclass(frozen=True)
class CollaborativePrior:
    """What the prior's sum became. Arrays are float32 over catalogue rows.

    Attributes
    ----------
    popularity : (I,)
        Centred log popularity, smaller beside item-to-item weights.
    item_to_item : (I, I), or (I, r) beside `widen`, or None
        Row = an item of the history, column = the item that is scored.
    widen : (r, I) or None
        The item-to-item weights are ``item_to_item @ widen``.
    unseen : (I,) or None
        1 for items that the sum tells nothing of, else 0: see `shared.model.prior_texts`.
    text_weights : (2,) or None
        Of an item's likeness by text to the items of the history, and of the item-to-item weights smoothed along texts
        (`shared.model.prior_texts.completed`); None is 0 and 0.
    """

    popularity: NDArray[np.float32]
    item_to_item: NDArray[np.float32] | None = None
    widen: NDArray[np.float32] | None = None
    unseen: NDArray[np.float32] | None = None
    text_weights: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays that are there, by name, in C order: safetensors writes memory as it lies."""
        named = {
            "popularity": self.popularity,
            "item_to_item": self.item_to_item,
            "widen": self.widen,
            "unseen": self.unseen,
            "text_weights": self.text_weights,
        }
        return {name: np.ascontiguousarray(array) for name, array in named.items() if array is not None}

    def check(self, n_items: int) -> None:
        """Refuse a prior that is not finite, or not of a catalogue of `n_items`.

        Raises
        ------
        AdapterMismatchError
        """
        if self.widen is not None and self.item_to_item is None:
            raise AdapterMismatchError("Expected a prior with item_to_item beside widen.")
        rank = n_items if self.widen is None else len(self.widen)
        shapes = {
            "popularity": (n_items,),
            "item_to_item": (n_items, rank),
            "widen": (rank, n_items),
            "unseen": (n_items,),
            "text_weights": (2,),
        }
        for name, array in self.arrays().items():
            if array.shape != shapes[name] or not np.isfinite(array).all():
                raise AdapterMismatchError(f"Expected {name} finite, of {n_items} items, got shape={array.shape}.")


def uninformed(n_items: int) -> CollaborativePrior:
    """A prior that knows nothing."""
    return CollaborativePrior(np.zeros(n_items, dtype=np.float32))


def solve(
    kind: str,
    total: NDArray[np.float64],
    n_items: int,
    noise_stddev: float,
    *,
    config: PriorConfig = DEFAULTS,
    population: float = math.inf,
) -> CollaborativePrior:
    """Turn the summed vector into a prior.

    Parameters
    ----------
    kind : {"hybrid", "ease", "hybrid_sketch", "sketch", "popularity", "none"}
        See `effective_kind`.
    total : (statistics_size(kind, n_items),)
    noise_stddev : float
        Standard deviation of the noise on every entry of `total`; public, 0 without noise.
    config : PriorConfig
        Its ridges and the weight of next items.
    population : float
        Users that were declared.
    """
    if kind == "none":
        return uninformed(n_items)
    if kind == "popularity":
        likeness = np.array([LIKENESS_WEIGHTS[1], 0.0], dtype=np.float32)
        return CollaborativePrior(_log_popularity(total, noise_stddev), text_weights=likeness)
    edge = noise_edge(kind, n_items, noise_stddev)
    doubt, sparsity = edge / population, n_items / population
    share = _between(POPULARITY_SHARES, POPULARITY_NEED * doubt)
    ridge = config.ease_ridge + _between(RIDGE_EDGES, RIDGE_NEED * doubt) * edge
    if kind in ("sketch", "hybrid_sketch"):
        sketched = _solve_sketch(total, n_items, noise_stddev, edge, ridge, share, config)
        return replace(sketched, text_weights=_text_weights(doubt, sparsity, whole=False))
    packed = n_items * (n_items + 1) // 2
    weight = _cooccurrence_weight(kind)
    G = unpack_symmetric(total[:packed], n_items) / weight
    inverse = np.linalg.inv(G + ridge * np.eye(n_items))
    ease = -inverse / np.diag(inverse)
    np.fill_diagonal(ease, 0.0)
    weights = ease / root_mean_square(ease)
    if kind == "hybrid" and config.next_weight:
        B = total[packed:].reshape(n_items, n_items) / math.sqrt(1 - weight**2)
        next_item = np.linalg.solve(G + (config.next_ridge + 4.0 * edge) * np.eye(n_items), B)
        weights += config.next_weight * next_item / root_mean_square(next_item)
    mass = np.diag(G)
    stddev = noise_stddev / weight
    popularity = share * _log_popularity(mass, stddev)
    unseen, texts = _unseen(mass, stddev), _text_weights(doubt, sparsity, whole=True)
    return CollaborativePrior(popularity, weights.astype(np.float32), unseen=unseen, text_weights=texts)


def sketch_signs(n_items: int) -> NDArray[np.float64]:
    """S: public random signs over the square root of their number in a row, shape ``(n_items, SKETCH_RANK)``.

    The same bits for everybody, whatever the version of a random number library: they come from SHAKE-256.
    """
    bits = np.frombuffer(hashlib.shake_256(b"veilrec sketch").digest(n_items * SKETCH_RANK // 8), dtype=np.uint8)
    signs = np.unpackbits(bits).reshape(n_items, SKETCH_RANK).astype(np.float64)
    return (2.0 * signs - 1.0) / math.sqrt(SKETCH_RANK)


def _solve_sketch(
    total: NDArray[np.float64],
    n_items: int,
    noise_stddev: float,
    edge: float,
    ridge: float,
    share: float,
    config: PriorConfig,
) -> CollaborativePrior:
    """EASE and, where the sum holds it, next-item ridge, side by side in two factors; or popularity alone."""
    size = statistics_size("sketch", n_items)
    hybrid = len(total) > size
    weight = COOCCURRENCE_WEIGHT if hybrid else 1.0
    mass = total[:n_items] / (weight * math.sqrt(1 - SKETCH_WEIGHT**2))
    sketch = total[n_items:size].reshape(n_items, -1) / (weight * SKETCH_WEIGHT)
    stddev = noise_stddev / math.sqrt(1 - SKETCH_WEIGHT**2)
    V, g = _spectrum(sketch, edge)
    if not len(g):  # nothing of the users' choices stands out of the noise
        return CollaborativePrior(_log_popularity(mass, stddev))
    left, right = _ease_factors(V, g, ridge)
    if hybrid and config.next_weight:
        following = total[size:].reshape(n_items, -1) / math.sqrt(1 - weight**2)  # B^T S
        rows, columns = _next_factors(V, g, following, config.next_ridge)
        scale = config.next_weight * product_root_mean_square(left, right) / product_root_mean_square(rows, columns)
        left, right = np.hstack([left, scale * rows]), np.vstack([right, columns])
    popularity = share * _log_popularity(mass, stddev)
    return CollaborativePrior(popularity, left.astype(np.float32), right.astype(np.float32), _unseen(mass, stddev))


def _spectrum(sketch: NDArray[np.float64], edge: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Large eigenvectors, shape (I, r), and eigenvalues of G from ``Y = G S``, largest first.

    Nystroem (Williams and Seeger, 2000): ``G ~ Y (S^T Y)^+ Y^T``, in the stable form of Tropp et al. (2017).
    """
    core = sketch_signs(len(sketch)).T @ sketch
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    kept = values > max(1e-10 * values[-1], 2.0 * edge)
    V, s, _ = np.linalg.svd(sketch @ (vectors[:, kept] / np.sqrt(values[kept])), full_matrices=False)
    return V, s**2


def _ease_factors(
    V: NDArray[np.float64], g: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """EASE's weights off the diagonal: with ``k = g / (g + l)``, Woodbury's identity has ``l P = I - V diag(k) V^T``.

    The weight of an item for itself is not right: it is never used, since items of the history are not ranked.
    """
    k = g / (g + ridge)
    return V * k, V.T / (1.0 - (V**2) @ k)  # l diag(P)


def _next_factors(
    V: NDArray[np.float64], g: NDArray[np.float64], following: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``V diag(1 / (g + l)) (V^T B)`` over the largest directions; ``V^T B`` by least squares from ``S^T B``."""
    V, g = V[:, :NEXT_RANK], g[:NEXT_RANK]
    along = np.linalg.lstsq(sketch_signs(len(V)).T @ V, following.T, rcond=None)[0]  # (r, I)
    return V / (g + ridge), along.astype(np.float64)


def product_root_mean_square(left: NDArray[np.floating[Any]], right: NDArray[np.floating[Any]]) -> float:
    """Of the entries of ``left @ right``, without making it: ``|L R|_F^2 = sum (L^T L) * (R R^T)``."""
    squares = float(np.sum((left.T @ left) * (right @ right.T), dtype=np.float64))
    return max(math.sqrt(max(squares, 0.0)) / len(left), 1e-12)


def root_mean_square(matrix: NDArray[np.floating[Any]]) -> float:
    """Of a matrix' entries; never quite 0."""
    return max(float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64)))), 1e-12)


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


def _between(bounds: tuple[float, float], value: float) -> float:
    return float(np.clip(value, *bounds))


def _text_weights(doubt: float, sparsity: float, *, whole: bool) -> NDArray[np.float32]:
    """`CollaborativePrior.text_weights`; only a whole matrix is smoothed."""
    share = _between(SMOOTH_SHARES, SMOOTH_NEED * doubt) if whole else 0.0
    likeness = max(LIKENESS_NEED * doubt, min(math.sqrt(sparsity), SPARSE_LIKENESS))
    return np.array([_between(LIKENESS_WEIGHTS, likeness), share], dtype=np.float32)


def _unseen(mass: NDArray[np.float64], noise_stddev: float) -> NDArray[np.float32]:
    """1 for items whose mass is nothing, or noise: their weights are noise too."""
    nothing: NDArray[np.float32] = (mass <= EVIDENCE * noise_stddev).astype(np.float32)
    return nothing


def _log_popularity(mass: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """Centred log of the noisy mass; what cannot be told from noise counts as the floor."""
    floor = max(float(np.mean(np.abs(mass))) * 0.05, sigma, 1e-3)
    logs = np.log(np.maximum(mass, 0.0) + floor)
    centred: NDArray[np.float32] = (logs - logs.mean()).astype(np.float32)
    return centred
