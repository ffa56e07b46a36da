"""A release over the partner's own catalogue, which may have items that the federation's has not, and lack others.

A release's rows are those of the federation's catalogue. A shop adds, renames and drops products every day: what was
learned of an item follows its id, and a new item is what its text says. It has no weights, so that it is scored as its
neighbours by text are (`shared.model.prior.completed`); no learned vector; and the popularity of the least popular.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.adapter import Release
from shared.errors import AdapterMismatchError
from shared.model.behaviour import BehaviourStage
from shared.model.prior import CollaborativePrior
from shared.schema import Catalogue


def aligned(release: Release, theirs: Catalogue, ours: Catalogue) -> Release:
    """The release with one row for every item of `ours`.

    Parameters
    ----------
    theirs : Catalogue
        The federation's, that the release was trained with.
    ours : Catalogue
        The partner's.

    Raises
    ------
    AdapterMismatchError
        If the release was trained with another catalogue than `theirs`, or `ours` has no item of it.
    """
    if release.manifest["catalogue_sha256"] != theirs.digest:
        raise AdapterMismatchError("Expected the catalogue that the adapter was trained with: digests differ.")
    if ours.item_ids == theirs.item_ids:
        return release
    rows = np.array([theirs.rows.get(item_id, -1) for item_id in ours.item_ids], dtype=np.int64)
    if not (rows >= 0).any():
        raise AdapterMismatchError("Expected a catalogue with items of the federation's, got none.")
    return replace(release, prior=_prior(release.prior, rows), model=_model(release.model, rows))


def _prior(prior: CollaborativePrior, rows: NDArray[np.int64]) -> CollaborativePrior:
    popularity = np.where(rows >= 0, prior.popularity[rows], prior.popularity.min())
    if prior.item_to_item is None:
        return replace(prior, popularity=popularity)
    unseen = _gathered(prior.unseen, rows, 0) if prior.unseen is not None else np.zeros(len(rows), np.float32)
    unseen[rows < 0] = 1.0
    left, widen = _gathered(prior.item_to_item, rows, 0), prior.widen
    if widen is None:
        return replace(prior, popularity=popularity, item_to_item=_gathered(left, rows, 1), unseen=unseen)
    return replace(prior, popularity=popularity, item_to_item=left, widen=_gathered(widen, rows, 1), unseen=unseen)


def _model(model: BehaviourStage, rows: NDArray[np.int64]) -> BehaviourStage:
    if model.residuals is None:
        return model
    ours = copy.deepcopy(model)
    theirs = model.residuals.factors.weight.detach()  # (I, r)
    place = torch.from_numpy(rows)
    factors = theirs[place.clamp(min=0)] * (place >= 0).unsqueeze(-1)
    if ours.residuals is None:
        raise AssertionError("a copy lacks what was copied")
    ours.residuals.replace_items(factors)
    return ours


def _gathered(array: NDArray[np.floating[Any]], rows: NDArray[np.int64], axis: int) -> NDArray[np.float32]:
    """The rows (or columns) of an array, zeros for -1."""
    shape = [1] * array.ndim
    shape[axis] = len(rows)
    taken: NDArray[np.float32] = np.take(array, np.maximum(rows, 0), axis=axis) * (rows >= 0).reshape(shape)
    return taken.astype(np.float32)
