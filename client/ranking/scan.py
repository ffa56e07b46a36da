"""The best of a million items by one vector, on a CPU, in some tens of milliseconds.

Scores that are products with item vectors plus a bias, ``v . e_i + g b_i``, are looked through in 8-bit integers, a
quarter of the memory that float32 would have to come through, and the best of that are scored again exactly::

    int8 scan of all  ->  SHORTLIST by rounded score  ->  float32 score  ->  best

What it may miss is an item whose rounded score falls behind `SHORTLIST` others: measured, none (docs/adr/0014).
No index is trained: a catalogue that changes is quantised again in a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHORTLIST = 1000
LEVELS = 127.0
MOST_SCORES = 2**26
"""That are held at once: a batch is scanned in parts."""
ROWS = 65_536
"""Of the catalogue that are prepared at once."""


class Scan:
    """Coarse and exact scores of a catalogue.

    Parameters
    ----------
    items : (I, H) float32
        Item vectors.
    bias : (I,) float32
        What an item has whoever asks: popularity.
    """

    def __init__(self, items: Tensor, bias: Tensor) -> None:
        self._items, self._bias = items, bias
        self._step = items.abs().amax().clamp(min=1e-12) / LEVELS
        parts = range(0, len(items), ROWS)  # a copy of all of them would be the most memory that is ever needed
        self._coarse = torch.cat([(items[k : k + ROWS] / self._step).round_().to(torch.int8) for k in parts])
        self._spread = _covariance(items, bias)

    def standardised(self, vectors: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        """The same rankings with scores of deviation 1 over the catalogue: ``(B, H)`` and ``(B,)``, scaled."""
        both = torch.cat([vectors, gains.unsqueeze(1)], dim=1)
        deviation = ((both @ self._spread) * both).sum(1).clamp(min=1e-24).sqrt()
        return vectors / deviation.unsqueeze(1), gains / deviation

    def best(self, vectors: Tensor, gains: Tensor, depth: int, barred: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The `depth` best items of each of B requests by ``v . e + g b``.

        Parameters
        ----------
        vectors : (B, H) float32
        gains : (B,) float32
        barred : sequence of Tensor
            What each may not be shown: rows (int64), or a mask of items (bool).

        Returns
        -------
        values, rows : (B, depth)
            ``-inf`` where there is nothing left.
        """
        most = max(1, MOST_SCORES // len(self._items))
        parts = [
            self._some(vectors[k : k + most], gains[k : k + most], depth, barred[k : k + most])
            for k in range(0, len(vectors), most)
        ]
        return torch.cat([values for values, _ in parts]), torch.cat([rows for _, rows in parts])

    def _some(self, vectors: Tensor, gains: Tensor, depth: int, barred: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        scores = self._rounded(vectors) + gains.unsqueeze(1) * self._bias
        for row, gone in enumerate(barred):
            scores[row, gone] = -torch.inf
        coarse, rows = scores.topk(min(max(SHORTLIST, 2 * depth), scores.shape[1]))  # (B, S)
        exact = (self._items[rows] @ vectors.unsqueeze(2)).squeeze(2) + gains.unsqueeze(1) * self._bias[rows]
        exact = exact.masked_fill(coarse == -torch.inf, -torch.inf)
        values, places = exact.topk(depth)
        return values, rows.gather(1, places)

    def _rounded(self, vectors: Tensor) -> Tensor:
        """Scores without bias from 8-bit integers, shape ``(B, I)``; sums are exact in 32 bits."""
        step = vectors.abs().amax(1, keepdim=True).clamp(min=1e-12) / LEVELS
        coarse = (vectors / step).round().to(torch.int8)
        return torch._int_mm(coarse, self._coarse.T).float() * (step * self._step)


def _covariance(items: Tensor, bias: Tensor) -> Tensor:
    """Of item vectors with their bias as one coordinate more, shape ``(H + 1, H + 1)``; summed in float64."""
    moments = torch.zeros(items.shape[1] + 1, items.shape[1] + 1, dtype=torch.float64)
    total = torch.zeros(items.shape[1] + 1, dtype=torch.float64)
    for k in range(0, len(items), ROWS):
        part = torch.cat([items[k : k + ROWS], bias[k : k + ROWS].unsqueeze(1)], dim=1).double()
        moments += part.T @ part
        total += part.sum(0)
    mean = total / len(items)
    return (moments / len(items) - torch.outer(mean, mean)).float()
