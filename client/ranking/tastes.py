"""A user's taste: how probable each item of the catalogue is as the next one that they take.

::

    history -> scores of all items -> softmax(scores / temperature)          p(i | user)
    wish    ----------------------> ... + standardised fit of item and wish   p(i | user, wish)

Scores of two users cannot be compared, nor added; these probabilities can. They are shares of the whole catalogue,
what the user has met included: a taste does not vanish when its best items are owned.

The temperature makes them as sure as they are right. A behaviour stage that was trained on top of the prior needs
none; one that was trained beside it, and only ranks with it, is far too sure. It follows from the release's public
settings, so that nobody's history is needed for it. One that is fitted to held-out items makes sums over groups no
better (`simulations.benchmarks.questions`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.ranking.engine import BATCH, Engine
from client.ranking.scorer import standardised
from shared.config import PriorConfig
from shared.errors import ConfigError, RankingError

Shares = NDArray[np.float32]
TEMPERATURE_ON_TOP, TEMPERATURE_BESIDE = 1.0, 3.0
"""Of a stage that was trained with all of the prior's scores, and with none of them."""
WISH_STRENGTH = 1.0
"""Of the standardised fit to a wish, in units of log probability."""
SCORES_AT_ONCE = 2**25
"""Of users times items: 128 MiB, and a few times that while they are worked on."""


def temperature_of(config: PriorConfig) -> float:
    """The temperature of a release; between the two, by how much of the prior was trained with."""
    return TEMPERATURE_BESIDE + (TEMPERATURE_ON_TOP - TEMPERATURE_BESIDE) * config.training_share


class Tastes:
    """Probabilities of all items under a release. One thread at a time, as the engine's.

    Parameters
    ----------
    engine : Engine
    temperature : float, optional
        By default that of `temperature_of`.
    """

    def __init__(self, engine: Engine, temperature: float | None = None) -> None:
        if temperature is not None and not 0 < temperature < float("inf"):
            raise ConfigError(f"Expected a temperature above 0, got temperature={temperature}.")
        self.engine = engine
        self.temperature = temperature or temperature_of(engine.release.config.prior)
        self._typical = self._centre()

    @property
    def usual(self) -> Shares:
        """Those of a user of whom nothing is known, shape ``(I,)``: what popularity alone says."""
        return self._usual().cpu().numpy()

    @torch.inference_mode()
    def batches(
        self, maker: BatchMaker, users: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]]:
        """Probabilities of many users, a batch at a time.

        Parameters
        ----------
        maker : BatchMaker
            From `Engine.maker`.
        users : array of int64, shape (B,)
            Places in its histories, of at least one event each.

        Yields
        ------
        places : array of int64, shape (b,)
            In `users`.
        shares : float32 tensor, shape (b, I)
            Rows add up to 1.
        met : bool tensor, shape (b, I)
            What is in each history.
        """
        if (maker.histories.lengths[users] < 1).any():
            raise RankingError("Expected histories of events>=1.")
        at_once = max(1, min(BATCH, SCORES_AT_ONCE // len(self.engine.catalogue)))
        for places, batch in maker.latest(users, at_once):
            scores = self.engine.scorer.batch(batch.to(self.engine.device))
            met = torch.zeros_like(scores, dtype=torch.bool)
            for row, user in enumerate(users[places]):
                met[row, torch.from_numpy(maker.histories[int(user)].items).long().to(met.device)] = True
            yield places, torch.softmax(scores / self.temperature, dim=1), met

    @torch.inference_mode()
    def of(self, maker: BatchMaker | None, user: int, wish: str = "") -> Shares:
        """Probabilities for one user, with or without a wish in words, shape ``(I,)``.

        Parameters
        ----------
        maker : BatchMaker or None
            None for somebody of whom nothing is known.
        user : int
            Place in its histories.
        """
        if maker is None or not maker.histories.lengths[user]:
            shares = self._usual()
        else:
            shares = next(self.batches(maker, np.array([user])))[1][0]
        if wish:
            told = self.engine.scorer.query(wish, self.engine.text, popularity=0.0)
            fit = torch.from_numpy(told).to(shares.device)
            shares = torch.softmax(shares.clamp(min=1e-30).log() + WISH_STRENGTH * standardised(fit), dim=0)
        return shares.cpu().numpy()

    @torch.inference_mode()
    def vectors(self, maker: BatchMaker, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """What tells users apart: the mean item vector under each user's probabilities, shape ``(B, H)``, norm 1.

        The mean of somebody of whom nothing is known is taken off; of two users only what is their own is compared.
        """
        told = np.zeros((len(users), self.engine.vectors.items.shape[1]), dtype=np.float32)
        for places, shares, _ in self.batches(maker, users):
            told[places] = self.apart(shares).cpu().numpy()
        return told

    def apart(self, shares: torch.Tensor) -> torch.Tensor:
        """`vectors` from probabilities, shape ``(b, I)`` to ``(b, H)``."""
        return F.normalize(shares @ self.engine.vectors.items - self._typical, dim=1)

    def _usual(self) -> torch.Tensor:
        prior, config = self.engine.release.prior, self.engine.release.config.prior
        logits = torch.from_numpy(prior.popularity.copy()).to(self.engine.device) * config.popularity_weight
        return torch.softmax(logits / self.temperature, dim=0)

    def _centre(self) -> torch.Tensor:
        centre: torch.Tensor = self._usual() @ self.engine.vectors.items
        return centre
