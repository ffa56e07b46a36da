"""What the texts of the items tell of a prior's item-to-item weights. No torch.

Post-processing of what was released, with public texts: made at each partner, for nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from shared.model.prior import CollaborativePrior, root_mean_square

NEIGHBOURS, NEIGHBOUR_TEMPERATURE, NEIGHBOUR_SHARE = 10, 0.1, 0.5
"""Of an item that nobody was seen with: how many by text, the softmax over their cosines, and the part of their
weights that it is given."""
TEXT_RIDGE = 1.0
"""Of the regression of weights on texts, in items."""


def completed(prior: CollaborativePrior, vectors: NDArray[np.float32]) -> CollaborativePrior:
    """A prior whose weights have in them what the texts tell.

    1. To the weights is added what a ridge regression on the texts of both items has of them: what items of like texts
       have in common stays, and most of the noise does not.
    2. Items that nobody was seen with get a part of the weights of the items with the nearest texts: a new item can be
       ranked, and read from a history. Only a part, because most items that nobody met stay unmet: at full weight the
       copies of a popular item crowd it out (docs/adr/0010-items-without-evidence.md).

    Parameters
    ----------
    vectors : (I, H)
        Normalised item vectors of the frozen BERT.
    """
    return _with_neighbours(_smoothed(prior, vectors), vectors)


def _smoothed(prior: CollaborativePrior, vectors: NDArray[np.float32]) -> CollaborativePrior:
    """``W + s S W S``, with ``S = X (X^T X + l I)^-1 X^T`` of the centred vectors X.

    Only once: what is returned asks for no more of it. Not of two factors: of large catalogues under noise hardly any
    weights are known, and twice as many columns would make ranking slower.
    """
    weights, told = prior.item_to_item, prior.text_weights
    if weights is None or prior.widen is not None or told is None or not told[1]:
        return prior
    known = (np.ones(len(vectors)) if prior.unseen is None else 1.0 - prior.unseen).astype(np.float32)
    weights = weights * known[:, np.newaxis] * known  # those of the others are noise
    X = vectors - vectors.mean(axis=0)
    regression = np.linalg.solve(X.T @ X + TEXT_RIDGE * np.eye(X.shape[1], dtype=np.float32), X.T)  # (H, I)
    smooth = X @ (regression @ weights @ regression.T) @ X.T
    smooth *= float(told[1]) * root_mean_square(weights) / root_mean_square(smooth)
    # To three digits: the same on any number of threads.
    weights += smooth.astype(np.float16).astype(np.float32)
    return replace(prior, item_to_item=weights, text_weights=told * np.array([1, 0], dtype=np.float32))


def _with_neighbours(prior: CollaborativePrior, vectors: NDArray[np.float32]) -> CollaborativePrior:
    if prior.item_to_item is None or prior.unseen is None:
        return prior
    unseen = prior.unseen > 0
    if not unseen.any() or unseen.all():
        return prior
    # Rounded, and multiplied as a sparse matrix: the same on any number of threads.
    likeness = np.round(vectors[unseen] @ vectors[~unseen].T, 4)
    most = min(NEIGHBOURS, likeness.shape[1])
    nearest = np.argpartition(-likeness, most - 1, axis=1)[:, :most]  # (unseen, neighbours)
    chosen = np.take_along_axis(likeness, nearest, axis=1)
    weights = np.exp((chosen - chosen.max(axis=1, keepdims=True)) / NEIGHBOUR_TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    columns, places = np.flatnonzero(~unseen)[nearest], np.repeat(np.arange(len(nearest)), most)
    mix = sparse.csr_matrix((weights.ravel(), (places, columns.ravel())), shape=(len(nearest), len(vectors)))
    rows = prior.item_to_item.copy()
    rows[unseen] = mix @ rows
    if prior.widen is None:
        rows[:, unseen] = NEIGHBOUR_SHARE * (mix @ rows.T).T
        return replace(prior, item_to_item=rows)
    widen = prior.widen.copy()
    widen[:, unseen] = NEIGHBOUR_SHARE * (mix @ widen.T).T
    return replace(prior, item_to_item=rows, widen=widen)
