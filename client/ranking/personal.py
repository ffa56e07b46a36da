"""What a partner adds to a released model for its own users, from its own data: without noise, and never sent.

A release's collaborative prior is made from noisy sums of everybody. The partner solves the same closed forms over the
exact sums of its own users and adds them::

    W = W_global + w rms(W_global) / rms(W_own) W_own        p = (1 - s) p_global + s p_own        c = l c_global

with c what the likeness by text weighs: where noise left little else (docs/adr/0021-texts-where-the-sum-is-noise.md), a
partner's own sums may tell more. The result is of the form that the release's own prior has: whatever ranks with a
release ranks with it. How much of its own a partner takes, w, s and then l, it reads off its last-but-one split: the
item that each user met last is left out of its own sums and then predicted. Nothing taken (w = s = 0) is the global
model.

Whose sums are exact tells of their users: this stays in ``personal/`` on the partner's premises. No message has room
for it (`shared.wire_answers.ALLOWED`), and it refuses to be pickled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.learner import Learner
from client.ranking.left_out import LeftOut
from client.ranking.personal_files import Personal, damaged, keep, kept
from client.statistics import clipped_statistics
from shared.adapter import Release
from shared.config import PriorConfig
from shared.model.prior import CollaborativePrior, product_root_mean_square, root_mean_square, solve
from shared.schema import Histories

PERSONAL_FILE = "prior.safetensors"
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
POPULARITY_SHARES = (0.0, 0.5, 1.0)
LIKENESS_SHARES = (1.0, 0.5)


class Taken(NamedTuple):
    """How much of its own a partner takes: w, s and l."""

    weight: float
    popularity_share: float
    likeness_share: float = 1.0


NOTHING, WITHOUT_NOISE = Taken(0.0, 0.0), Taken(0.2, 1.0)
"""`client.ranking.left_out` says why one cannot choose where there was no noise; 0.2 and 1 were the best on
the tuning split of ml_100k with eight partners by taste."""


@dataclass(frozen=True, slots=True)
class PersonalPrior(Personal):
    """A partner's own part of the collaborative prior.

    Parameters
    ----------
    release : str
        Fingerprint of the release that it was chosen for.
    taken : Taken
    own : CollaborativePrior
        The closed forms of the partner's own exact sums. Private.
    """

    release: str
    taken: Taken
    own: CollaborativePrior

    @property
    def adds(self) -> bool:
        """Whether anything is taken."""
        return self.taken.weight > 0 or self.taken.popularity_share > 0

    def over(self, release: Release) -> Release:
        """The release with this partner's own part in its prior.

        Raises
        ------
        AdapterMismatchError
            If it was chosen for another release.
        """
        self.check(release)
        return replace(release, prior=self.with_part(release.prior, self.own))

    def with_part(self, shared: CollaborativePrior, part: CollaborativePrior) -> CollaborativePrior:
        """A global prior with as much of `part` as is taken: `own`, or the same of fewer of the partner's events."""
        return mixed(shared, part, *self.taken)

    def save(self, premises: Path) -> None:
        """Keep it on the partner's premises."""
        told = {"release": self.release} | {name: repr(value) for name, value in self.taken._asdict().items()}
        keep(premises, PERSONAL_FILE, self.own.arrays(), told)

    @classmethod
    def load(cls, premises: Path) -> PersonalPrior | None:
        """What `save` kept; None where there is nothing.

        Raises
        ------
        IntegrityError
            If the file is not what was written.
        """
        if (found := kept(premises, PERSONAL_FILE)) is None:
            return None
        arrays, told = found
        try:
            own = CollaborativePrior(**arrays)
            return cls(told["release"], Taken(*(float(told[name]) for name in Taken._fields)), own)
        except (KeyError, TypeError, ValueError):
            raise damaged(premises, PERSONAL_FILE) from None


def mixed(
    shared: CollaborativePrior, own: CollaborativePrior, weight: float, share: float, likeness: float = 1.0
) -> CollaborativePrior:
    """The sums of the module's first lines; one's own weights alone where the federation could afford none."""
    popularity = ((1 - share) * shared.popularity + share * own.popularity).astype(np.float32)
    if not weight or own.item_to_item is None:
        return replace(shared, popularity=popularity)
    if shared.text_weights is not None and likeness != 1.0:
        shared = replace(shared, text_weights=shared.text_weights * np.array([likeness, 1.0], dtype=np.float32))
    if shared.item_to_item is None:
        return replace(own, popularity=popularity, text_weights=shared.text_weights)
    unseen = shared.unseen if own.unseen is None or shared.unseen is None else shared.unseen * own.unseen
    scale = np.float32(weight * _root_mean_square(shared) / _root_mean_square(own))
    if shared.widen is None or own.widen is None:
        return replace(
            shared, popularity=popularity, item_to_item=_whole(shared) + scale * _whole(own), widen=None, unseen=unseen
        )
    left = np.concatenate([shared.item_to_item, scale * own.item_to_item], axis=1)  # (I, r + r')
    widen = np.concatenate([shared.widen, own.widen])
    return replace(shared, popularity=popularity, item_to_item=left, widen=widen, unseen=unseen)


def own_prior(histories: Histories, n_items: int, config: PriorConfig) -> CollaborativePrior:
    """The closed forms of `shared.model.prior` over the exact sums of these users: no noise rules any of them out.

    Texts weigh beside them as beside so few users; of what is `mixed`, as the global prior has it.
    """
    kind = "hybrid" if n_items <= config.max_items else "hybrid_sketch"
    sums = clipped_statistics(histories, n_items, config, kind, clip_norm=1.0)
    return solve(kind, sums.values, n_items, 0.0, config=config, population=max(1, len(histories)))


def personalise(learner: Learner, release: Release) -> PersonalPrior:
    """Fit a partner's own part to its data, and choose how much of it to take.

    Nothing is taken where nobody can be asked, and a fixed part, unseen, of a release without noise.
    """
    histories = learner.histories(release.config.model)
    n_items, config = len(learner.catalogue), release.config.prior
    chosen = WITHOUT_NOISE
    if release.manifest["privacy"]["mode"] != "none":
        left_out = LeftOut.of(learner, release)
        part = own_prior(left_out.histories, n_items, config)
        chosen = _chosen(left_out, release, part, learner.device) if len(left_out) else NOTHING
    return PersonalPrior(release.fingerprint, chosen, own_prior(histories, n_items, config))


def _chosen(left_out: LeftOut, release: Release, own: CollaborativePrior, device: torch.device) -> Taken:
    """The weights with the smallest loss; of two that are as good, the first: nothing comes before something.

    A smaller loss alone is not taken: those left out have to be ranked better too, as for the partner's own adapter.
    """
    text = left_out.text_scores(release.model.to(device))

    def loss(taken: Taken) -> float:
        return left_out.loss(text, mixed(release.prior, own, *taken))

    def ndcg(taken: Taken) -> float:
        return left_out.ndcg(text, mixed(release.prior, own, *taken))

    best = min((Taken(weight, share) for weight in WEIGHTS for share in POPULARITY_SHARES), key=loss)
    best = min((best._replace(likeness_share=share) for share in LIKENESS_SHARES), key=loss)
    return best if ndcg(best) > ndcg(NOTHING) else NOTHING


def _whole(prior: CollaborativePrior) -> NDArray[np.float32]:
    """Item-to-item weights, shape ``(I, I)``."""
    left, right = prior.item_to_item, prior.widen
    if left is None:
        raise AssertionError("a prior without item-to-item weights")
    return left if right is None else left @ right


def _root_mean_square(prior: CollaborativePrior) -> float:
    """Of item-to-item weights."""
    left, right = prior.item_to_item, prior.widen
    if left is None:
        raise AssertionError("a prior without item-to-item weights")
    return root_mean_square(left) if right is None else product_root_mean_square(left, right)
