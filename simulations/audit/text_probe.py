"""How far each canary user is in a round's opened sum, seen by an insider who knows all real users."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.training import PriorLogits, UserGradients
from client.workbench import Workbench
from shared.config import TrainingConfig
from shared.model.behaviour import EventBatch
from shared.privacy.lattice import sensitivity
from shared.privacy.plan import PrivacyPlan
from simulations.audit.watching import clipped, content_of, contents_of

Values = NDArray[np.float64]


class TextProbe:
    """Projects what is left of each round's sum on the canaries' own gradients.

    Parameters
    ----------
    maker : BatchMaker
        Of the histories of all canary users, in or out.
    users : (n,) int64
        Their rows in it.
    bench : Workbench
        Holds the parameters of the round, as the partners loaded them.
    training : TrainingConfig
    plan : PrivacyPlan
        A canary user is at as many partners as it allows, and so reaches its whole clip norm.
    """

    def __init__(
        self, maker: BatchMaker, users: NDArray[np.int64], bench: Workbench, training: TrainingConfig, plan: PrivacyPlan
    ) -> None:
        self._maker, self._users, self._bench, self._training = maker, users, bench, training
        self._clip_norm = plan.clip_norm
        size = bench.gradients.size
        self._unit = sensitivity(plan.scale("train"), size, plan.partners_per_user) * plan.step("train")
        self._seen: list[Values] = []
        self._reach: list[Values] = []

    def look(self, left: Values, keys: Sequence[bytes], logits: PriorLogits) -> None:
        """Take a round in.

        Parameters
        ----------
        left : (P,) float64
            The opened sum less all real users.
        keys : sequence of bytes
            Of the windows of the round's steps; the first counts.
        logits : callable
            The prior's logits of a batch.
        """
        if not len(self._users):
            return
        own = clipped(self._gradients(keys[0], logits), self._clip_norm)
        along = directions(own)
        self._seen.append(along @ left / self._unit)
        self._reach.append(np.einsum("np,np->n", along, own) / self._unit)

    @property
    def projections(self) -> Values:
        """Of the sum on each canary's direction, (n, T), in units of the plan's sensitivity."""
        return self._stacked(self._seen)

    @property
    def reach(self) -> Values:
        """What each canary adds along its direction if it is in the round, (n, T), in the same units."""
        return self._stacked(self._reach)

    def _stacked(self, rounds: list[Values]) -> Values:
        return np.stack(rounds, axis=1) if rounds else np.zeros((len(self._users), 0))

    def _gradients(self, key: bytes, logits: PriorLogits) -> Values:
        places = self._places(key)
        found = np.zeros((len(self._users), self._bench.gradients.size))
        for batch in self._maker.training(self._users, self._training, key):
            moved = batch.to(self._bench.catalogue.items.device)
            # The class's own: the bench's may be watched.
            flat, _ = UserGradients.of(self._bench.gradients, moved, self._bench.catalogue, logits(moved))
            for row, content in enumerate(contents_of(batch)):
                found[places[content]] = flat[row].double().cpu().numpy()
        return found

    def _places(self, key: bytes) -> dict[bytes, int]:
        histories = self._maker.histories
        windows = [self._maker._training_window(histories[int(user)], self._training, key) for user in self._users]
        return {content_of(window): place for place, window in enumerate(windows)}


def directions(own: Values) -> Values:
    """Unit directions, (n, P), each orthogonal to the gradients `own` (n, P) of all canaries but one.

    What canaries have in common tells nobody apart; left in, the coins of the others would drown the one.
    """
    products = own @ own.T
    ridge = 1e-9 * float(np.trace(products)) / max(1, len(own))
    dual = np.linalg.solve(products + max(ridge, 1e-30) * np.eye(len(own)), own)
    lengths: Values = np.linalg.norm(dual, axis=1, keepdims=True)
    return dual / np.maximum(lengths, 1e-30)


def mean_losses(
    forward: Callable[[EventBatch], NDArray[np.float64]], maker: BatchMaker, training: TrainingConfig
) -> Values:
    """Mean loss of every user of a batch maker, (U,), over the newest window of its history.

    Parameters
    ----------
    forward : callable
        Losses of a batch, (B,).
    """
    key, users = b"\0" * 32, np.arange(len(maker.histories), dtype=np.int64)
    whole = training.model_copy(update={"drop_events": 0.0})
    places: dict[bytes, list[int]] = {}
    for user in users:
        window = maker._training_window(maker.histories[int(user)], whole, key)
        places.setdefault(content_of(window), []).append(int(user))
    losses = np.zeros(len(users))
    for batch in maker.training(users, whole, key):
        for content, loss in zip(contents_of(batch), forward(batch), strict=True):
            losses[places[content]] = loss
    return losses
