"""Next-item ridge: one linear map from what a user met, weighted by recency, to what comes next.

``W = (A + ridge I)^-1 B`` with ``A = sum phi phi^T`` and ``B = sum phi e^T`` over all first meetings of an item:
phi holds the events before it, weighted by ``decay^age`` and scaled to norm 1, e the item that is met. Both sums
weigh a user's m meetings by 1/m each, so that a user counts as one. Closed form; A and B are exact sums, so
federated equals central.

Source: M. Choi et al., "Session-aware linear item-item models for session-based recommendation", WWW 2021
(SLIST, its next-item half SLIT, eq. 9), with one target a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_array, diags_array

from client.statistics import WINDOW, next_item_rows
from shared.errors import ConfigError
from shared.schema import Histories
from simulations.baselines.linear import Linear


def next_item_ridge(
    histories: Sequence[Histories],
    items: int,
    *,
    ridge: float = 5.0,
    decay: float = 0.9,
    window: int = WINDOW,
    targets: int = 1000,
) -> Linear:
    """Fit on the histories of all partners.

    Parameters
    ----------
    histories : sequence of Histories
    items : int
    ridge : float
        In users.
    decay : float
        Weight of an event by its age in events, in (0, 1].
    window : int
        Events before a target that are read.
    targets : int
        The newest first meetings of a user that count.

    Raises
    ------
    ConfigError
        If a parameter is out of range, or the ridge so small that nothing can be solved in float32.
    """
    if not ridge > 0 or not 0 < decay <= 1 or window < 1 or targets < 1:
        raise ConfigError(
            f"Expected ridge > 0, 0 < decay <= 1, window >= 1 and targets >= 1, got ridge={ridge}, decay={decay}, "
            f"window={window}, targets={targets}."
        )
    A, B = moments(histories, items, decay=decay, window=window, targets=targets)
    return Linear(solve_ridge(A, B, ridge), decay)


def solve_ridge(A: NDArray[np.float32], B: NDArray[np.float32], ridge: float) -> NDArray[np.float32]:
    """``(A + ridge I)^-1 B`` of a symmetric A; overwrites both.

    Raises
    ------
    ConfigError
        If the matrix is not positive definite.
    """
    A[np.diag_indices(len(A))] += ridge
    try:
        factor = cho_factor(A, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise ConfigError(f"Expected a larger ridge, got ridge={ridge:g}: the moments cannot be inverted.") from None
    weights: NDArray[np.float32] = cho_solve(factor, B, overwrite_b=True, check_finite=False)
    return np.ascontiguousarray(weights)


def moments(
    histories: Sequence[Histories], items: int, *, decay: float, window: int, targets: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A and B, each (I, I)."""
    A, B = np.zeros((items, items), dtype=np.float32), np.zeros((items, items), dtype=np.float32)
    for part in histories:
        for phi, met, m in next_item_rows(part, items, decay=decay, most=targets, window=window):
            weighted = diags_array(1.0 / m) @ phi
            A += (phi.T @ weighted).astype(np.float32).toarray()
            following = csr_array((1.0 / m, (np.arange(len(met)), met)), shape=phi.shape)
            B += (phi.T @ following).astype(np.float32).toarray()
    return A, B
