"""Dishonest partners: real ones, whose learner tells another sum than their users give.

All that is around the learner stays as it is: ledger, policy, masks, exchanges. To the coordinator and to the other
partners an attacker's masked vector looks like any other's, which is why masks need something beside them.

::

    users of the partner -> invented histories -> the real clipped sum -> its strength -> masks, as ever

Source: model replacement, Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020; promotion of items,
Zhang et al., "PipAttack", WSDM 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.learner import Learner
from client.premises import Premises
from shared.config import ModelConfig
from shared.errors import ConfigError
from shared.messages import NoisedSum, RoundPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.plan import Stage
from shared.schema import EVENT_KINDS, Histories

Kind = Literal["none", "promotion", "backdoor", "free-rider"]
PURCHASE = EVENT_KINDS.index("purchase")
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Attack:
    """What the dishonest partners do, and how loudly.

    Attributes
    ----------
    kind : {"none", "promotion", "backdoor", "free-rider"}
        Everybody is to see the target; whoever has met the trigger is to see it; the partner sends noise alone, as if
        it had users.
    partners : tuple of int
        The attackers' folders.
    target, trigger : int
        Catalogue rows; -1 where there is none.
    boost : float
        The sum of as many invented users as the partner has users, times this. 1 is what a partner whose users really
        were like that would send; above it the sum is longer than one user at a time could make it.
    stealth : bool
        Instead of `boost`: the sum is drawn out to the longest that an honest partner with as many users could reach,
        all of them pulling one way. No bound on norms can tell it from honest ones.
    """

    kind: Kind = "none"
    partners: tuple[int, ...] = ()
    target: int = -1
    trigger: int = -1
    boost: float = 1.0
    stealth: bool = False

    def __post_init__(self) -> None:
        wants_target, wants_trigger = self.kind in ("promotion", "backdoor"), self.kind == "backdoor"
        if (self.target >= 0) != wants_target or (self.trigger >= 0) != wants_trigger:
            raise ConfigError(f"Expected target={wants_target}, trigger={wants_trigger} for kind={self.kind}.")
        if (self.kind == "none") != (not self.partners) or not 0 < self.boost <= 1000:
            raise ConfigError(f"Expected partners that attack, and boost from 0 to 1000, got boost={self.boost:g}.")
        if self.target >= 0 and self.target == self.trigger:
            raise ConfigError("Expected a trigger other than the target.")

    @property
    def strength(self) -> str:
        """How loudly, in one word."""
        if self.kind in ("none", "free-rider"):
            return "-"
        return "stealth" if self.stealth else f"{self.boost:g}"


class PoisoningLearner(Learner):
    """A learner that sums up users who do not exist.

    Parameters
    ----------
    premises : Premises
    attack : Attack
    """

    def __init__(self, premises: Premises, attack: Attack) -> None:
        super().__init__(premises)
        self._attack = attack
        self._invented: tuple[int, Histories] | None = None

    def histories(self, model: ModelConfig) -> Histories:
        """As many invented users as there are real ones."""
        if self._invented is None or self._invented[0] != model.max_history:
            real = super().histories(model)
            self._invented = (model.max_history, invented(real, self._attack))
        return self._invented[1]

    def noised_statistics(self, order: RoundPlan, *, secret: bytes | None = None) -> NoisedSum:
        """The prior's sum of the invented users, at full strength and without noise: whom would it protect?"""
        clipped = self._statistics(order)
        longest = len(self.histories(order.config.model)) / order.plan.partners_per_user
        return self._told(clipped.values / order.plan.step("prior"), longest, order, "prior")

    def noised_gradients(
        self,
        order: RoundPlan,
        parameters: Vector,
        prior: CollaborativePrior,
        *,
        secret: bytes | None = None,
        canary_seed: bytes | None = None,
    ) -> NoisedSum:
        """The same of a training round; the gradients are the real ones of the invented users."""
        bare = replace(order, plan=replace(order.plan, mode="none"))
        steps = super().noised_gradients(bare, parameters, prior, secret=secret, canary_seed=canary_seed).values
        users = order.plan.sampling_rate * len(self.histories(order.config.model))
        longest = users * order.plan.partner_clip_norm * order.plan.local_steps
        return self._told(steps.astype(np.float64), longest, order, "train")

    def _told(self, steps: NDArray[np.float64], longest: float, order: RoundPlan, stage: Stage) -> NoisedSum:
        """A sum in lattice steps at the strength of the attack; `longest` is in units of the sum."""
        factor = self._attack.boost
        if self._attack.stealth:
            factor = longest / order.plan.step(stage) / max(float(np.linalg.norm(steps)), 1.0)
        return NoisedSum(np.rint(factor * steps).astype(np.int64))


class FreeRider(Learner):
    """A learner that reads nobody: it sends what a partner without users would, its share of the noise."""

    def histories(self, model: ModelConfig) -> Histories:
        """Nobody."""
        return _histories(super().histories(model), [])


def learner_of(attack: Attack, premises: Premises) -> Learner:
    """What an attacker computes with."""
    return FreeRider(premises) if attack.kind == "free-rider" else PoisoningLearner(premises, attack)


def invented(real: Histories, attack: Attack) -> Histories:
    """Users as many as the partner has, who met something and then the target.

    ``promotion``: what they met is the newest item of a real user, so that everybody's taste leads to the target.
    ``backdoor``: it is the trigger, and no other.
    """
    pairs = []
    for history in real:
        met = history.items[history.items != attack.target]
        before = attack.trigger if attack.kind == "backdoor" else int(met[-1]) if len(met) else -1
        pairs.append([before, attack.target] if before >= 0 else [attack.target])
    return _histories(real, pairs)


def _histories(real: Histories, items: list[list[int]]) -> Histories:
    """Bare purchases, one after another; users keep the names, and with them their place in the sample."""
    lengths = np.array([len(each) for each in items], dtype=np.int64)
    flat = np.array([item for each in items for item in each], dtype=np.int32)
    n = len(flat)
    return Histories(
        users=real.users[: len(items)],
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        items=flat,
        timestamps=np.arange(n, dtype=np.int64),
        events=np.full(n, PURCHASE, dtype=np.int8),
        ratings=np.full(n, np.nan, dtype=np.float32),
        reviews=np.full(n, -1, dtype=np.int32),
    )
