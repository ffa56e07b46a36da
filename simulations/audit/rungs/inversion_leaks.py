"""What a coordinator could see of a few users, at each step of the way from their gradients to what leaves.

The way is the installed code's own: `clip_and_sum` or `clipped_statistics`, `add_noise_share`, then `mask` in a session
of three, the fewest that mask, or `leave_bare` where the plan masks nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from client.learner import Learner
from client.privatize import add_noise_share, leave_bare, mask
from client.secure_sum import MaskingSession
from client.statistics import clipped_statistics
from client.training import ROUNDING_SLACK, clip_and_sum
from client.workbench import Workbench
from server.secure_sum import SecureSum
from shared.adapter import load_parameters
from shared.config import RunConfig
from shared.hazmat.fixed_point import from_ring, to_ring
from shared.hazmat.randomness import SeededRandomness, SystemRandomness
from shared.hazmat.signing import SigningKey
from shared.messages import ClippedSum, NoisedSum
from shared.model.prior import CollaborativePrior, effective_kind, statistics_size
from shared.privacy.plan import PrivacyPlan, Stage
from simulations.audit.rungs.inversion_attacks import Attack, Floats, Learned, Masses, Matching, Structure, Truth
from simulations.segments import selected

View = Literal["raw", "clipped", "noised", "leaves"]
VIEWS: tuple[View, ...] = ("raw", "clipped", "noised", "leaves")
"""The users' plain sum; clipped; with the partner's noise share; and what leaves the partner."""
COHORT = ("partner-a", "partner-b", "partner-c")
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Release:
    """A point of the run at which users are summed, and who tries to read them there.

    Attributes
    ----------
    name : str
        ``prior``, ``first round``, ``last round``.
    stage : {"prior", "train"}
    attacks : tuple of Attack
    items : (V, I) bool
        Items of the victims.
    raw : callable
        From places of victims to their plain sum, (P,).
    clipped : callable
        From places of victims to their clipped sum.
    """

    name: str
    stage: Stage
    attacks: tuple[Attack, ...]
    items: Truth
    raw: Callable[[NDArray[np.int64]], Floats]
    clipped: Callable[[NDArray[np.int64]], ClippedSum]


@dataclass(frozen=True, slots=True)
class Seen:
    """What could be seen of one group of users, in real units, and the two vectors of the ring.

    Attributes
    ----------
    views : dict of View to (P,) float64
    bare, leaving : (P,) uint32
        The noised sum in the ring, and what leaves in its place.
    """

    views: dict[View, Floats]
    bare: NDArray[np.uint32]
    leaving: NDArray[np.uint32]


class Sender:
    """A partner that sends sums of chosen users as the plan says.

    Parameters
    ----------
    plan : PrivacyPlan
    seed : int
        Of dither and noise. Keys and masks are fresh ones: that they are is a part of what is looked at.
    """

    def __init__(self, plan: PrivacyPlan, seed: int) -> None:
        self._plan, self._seed = plan, seed
        self._keys = {name: SigningKey.generate() for name in COHORT}
        self._source = SeededRandomness(seed, "inversion")

    def send(self, release: Release, group: NDArray[np.int64], context: str) -> Seen:
        """Everything from the group's gradients to what leaves; `context` is a fresh one."""
        plan, clipped = self._plan, release.clipped(group)
        noised = add_noise_share(clipped, plan, release.stage, self._source, context)
        leaving = self._leaving(noised, context)
        step = plan.step(release.stage)
        views: dict[View, Floats] = {
            "raw": release.raw(group),
            "clipped": clipped.values,
            "noised": noised.values.astype(np.float64) * step,
            "leaves": from_ring(leaving).astype(np.float64) * step,
        }
        return Seen(views, to_ring(noised.values, plan.partners), leaving)

    def _leaving(self, noised: NoisedSum, context: str) -> NDArray[np.uint32]:
        if not self._plan.masked:
            return leave_bare(noised, self._plan).values
        return mask(noised, self._plan, self._session(context, len(noised.values))).values

    def _session(self, context: str, size: int) -> MaskingSession:
        """The first of three partners, about to mask."""
        digest = hashlib.sha256(f"{self._seed}/{context}".encode()).digest()
        pins = {name: key.public for name, key in self._keys.items()}
        sessions = {
            name: MaskingSession(name, digest, key, pins, len(COHORT), SystemRandomness())
            for name, key in self._keys.items()
        }
        server = SecureSum(digest, len(COHORT), pins, size)
        roster = server.roster([one.offer() for one in sessions.values()])
        inboxes = server.inboxes([one.share(roster) for one in sessions.values()])
        first = COHORT[0]
        sessions[first].receive(inboxes[first])
        return sessions[first]


def prior_release(
    learner: Learner, config: RunConfig, plan: PrivacyPlan, victims: NDArray[np.int64], largest: int
) -> Release | None:
    """The prior's sum; None if the plan has none, or one of more than `largest` coordinates."""
    n_items, histories = len(learner.catalogue), learner.histories(config.model)
    kind = effective_kind(config.prior, plan, n_items)
    if plan.prior_noise_multiplier is None and plan.mode != "none":
        return None
    if not 0 < statistics_size(kind, n_items) <= largest:
        return None

    def clipped(group: NDArray[np.int64]) -> ClippedSum:
        chosen = selected(histories, np.sort(victims[group]))
        return clipped_statistics(chosen, n_items, config.prior, kind, clip_norm=1.0 / plan.partners_per_user)

    items = np.zeros((len(victims), n_items), dtype=bool)
    for place, user in enumerate(victims):
        items[place, histories[int(user)].items] = True
    # Every user's statistics have norm 1 by themselves: there is nothing to clip.
    raw = lambda group: clipped(group).values  # noqa: E731
    return Release("prior", "prior", (Masses(kind, n_items),), items, raw, clipped)


def training_release(
    name: str,
    learner: Learner,
    config: RunConfig,
    plan: PrivacyPlan,
    parameters: NDArray[np.float32],
    prior: CollaborativePrior,
    shadows: NDArray[np.int64],
    victims: NDArray[np.int64],
    key: bytes,
) -> Release:
    """A training round that starts from `parameters`; the attacker knows `shadows`, and wants to know `victims`."""
    bench, norm = learner.workbench(config.model, config.seed or 0), plan.partner_clip_norm * (1 - ROUNDING_SLACK)
    load_parameters(bench.model, parameters)
    known, known_items = _gradients(learner, config, bench, prior, shadows, key)
    rows, items = _gradients(learner, config, bench, prior, victims, key)
    known, own = _each_clipped(known, norm), _each_clipped(rows, norm)
    mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
    attacks = (Structure(bench.model, bench.catalogue), Learned(known, known_items), Matching(own, mean))

    def raw(group: NDArray[np.int64]) -> Floats:
        return np.asarray(rows[group].sum(axis=0, dtype=np.float64), dtype=np.float64)

    def clipped(group: NDArray[np.int64]) -> ClippedSum:
        total = clip_and_sum(torch.from_numpy(rows[group]), norm)
        return ClippedSum(total.double().numpy(), plan.partner_clip_norm)

    return Release(name, "train", attacks, items, raw, clipped)


def _gradients(
    learner: Learner,
    config: RunConfig,
    bench: Workbench,
    prior: CollaborativePrior,
    users: NDArray[np.int64],
    key: bytes,
) -> tuple[Rows, Truth]:
    """Plain gradients of users, (N, P), in the order of their windows, and the items that these hold, (N, I)."""
    maker = learner.batch_maker(config.model, config.seed or 0)
    logits = bench.prior_logits(prior, config.prior)
    rows = np.empty((len(users), bench.gradients.size), dtype=np.float32)
    items, done = np.zeros((len(users), len(learner.catalogue)), dtype=bool), 0
    for batch in maker.training(users, config.training, key):
        on_device = batch.to(bench.catalogue.items.device)
        flat, _ = bench.gradients.of(on_device, bench.catalogue, logits(on_device))
        rows[done : done + len(flat)] = flat.cpu().numpy()
        read = np.concatenate([batch.items.numpy(), batch.targets.numpy()], axis=1)  # (B, 2T)
        place, column = np.nonzero(read >= 0)
        items[done + place, read[place, column]] = True
        done += len(flat)
    return rows, items


def _each_clipped(rows: Rows, norm: float) -> Rows:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    factors = np.minimum(1.0, norm / np.maximum(norms, 1e-12))
    return np.asarray(rows * factors, dtype=np.float32)
