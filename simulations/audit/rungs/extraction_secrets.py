"""Canary texts in reviews, each followed by a rare item, and how far a release gives them away.

Source: Carlini, Liu, Erlingsson, Kos, Song, "The Secret Sharer", USENIX Security 2019: exposure is ``log2`` of the
number of possible texts less ``log2`` of the rank of the true one among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from client.data.formats.columns import INTERACTION_COLUMNS
from client.learner import Learner
from client.ranking.scorer import ModelScorer
from shared.adapter import Release
from shared.errors import ConfigError
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch
from shared.model.prior import uninformed
from shared.model.text import TextStage
from shared.model.weights import find_base
from shared.schema import EVENT_KINDS, Catalogue
from simulations.audit.canaries import BEGINNING, DAY
from simulations.audit.retraining import LEAST_ASKED

REPEATS = (1, 4, 16)
"""How often a canary user wrote its text; hidden as one user, whichever it is."""
ALTERNATIVES = 128
"""Texts that could be the true one; at least 100, so that an exposure says something."""
SYLLABLES = ("mo", "ra", "li", "tes", "ku", "ven", "do", "pha", "zi", "bru", "ner", "gol", "sha", "wi", "jap", "fet")
CODE_WORDS, CODE_SYLLABLES = 4, 3
REVIEW = EVENT_KINDS.index("review")
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Secrets:
    """Canary users with a text each.

    Attributes
    ----------
    names : tuple of str
        User ids.
    repeats : (m,) int64
    inside : (m,) bool
        Who takes part: fair coins.
    carrier : int
        Row of the item that all texts are reviews of: nothing but the text tells what comes next.
    items : (m,) int64
        Rows of the rare items that are bought after it.
    texts : tuple of str
        The true text of each.
    decoys : tuple of str
        Texts that nobody wrote: with the true one, the alternatives of every canary. Each canary's own was drawn like
        them, so that to a model that never saw it its rank is uniform.
    """

    names: tuple[str, ...]
    repeats: NDArray[np.int64]
    inside: NDArray[np.bool_]
    carrier: int
    items: NDArray[np.int64]
    texts: tuple[str, ...]
    decoys: tuple[str, ...]

    @classmethod
    def draw(cls, each: int, masses: NDArray[np.int64], *, seed: int, repeats: Sequence[int] = REPEATS) -> Secrets:
        """Draw `each` canary users for every number of repetitions.

        Parameters
        ----------
        masses : (I,) int64
            How often each item is met: the rarest are what follows a text.

        Raises
        ------
        ConfigError
            If there are fewer than `LEAST_ASKED` canaries, or next to no items.
        """
        m = each * len(repeats)
        if m < LEAST_ASKED or min(repeats) < 1 or len(masses) < 4:
            raise ConfigError(
                f"audit: Expected at least {LEAST_ASKED} canaries and 4 items, got {m} and {len(masses)}."
            )
        rng = np.random.default_rng([seed, 71])
        order = np.argsort(masses, kind="stable")
        rare = order[: max(1, min(m, len(order) // 2))]
        items = rare[rng.permutation(m) % len(rare)]
        carrier = int(rng.choice(order[len(rare) :]))
        words = _texts(m + ALTERNATIVES - 1, rng)
        return cls(
            tuple(f"secret-canary-{k:05d}" for k in range(m)),
            np.repeat(np.array(repeats, dtype=np.int64), each),
            rng.random(m) < 0.5,
            carrier,
            items.astype(np.int64),
            words[:m],
            words[m:],
        )

    def __len__(self) -> int:
        return len(self.names)

    def events(self, catalogue: Catalogue) -> pl.DataFrame:
        """Of each user as many reviews of one item with the text as it repeats it, then the rare item."""
        rows: list[tuple[str, str, int, str, None, str]] = []
        for k, name in enumerate(self.names):
            carrier, item = catalogue.item_ids[self.carrier], catalogue.item_ids[int(self.items[k])]
            times = [BEGINNING + age * DAY for age in range(int(self.repeats[k]) + 1)]
            rows += [(name, carrier, time, "review", None, self.texts[k]) for time in times[:-1]]
            rows.append((name, item, times[-1], "purchase", None, ""))
        kinds = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
        return pl.DataFrame(rows, schema=dict(zip(INTERACTION_COLUMNS, kinds, strict=True)), orient="row")


def _texts(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Different texts of one form."""
    made: dict[str, None] = {}
    while len(made) < count:
        words = ("".join(rng.choice(SYLLABLES, CODE_SYLLABLES)) for _ in range(CODE_WORDS))
        made["password " + " ".join(words)] = None
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Exposed:
    """What a release tells of each canary's text.

    Attributes
    ----------
    ranks : (m,) float64
        Of the true text among `ALTERNATIVES`, from 1; equal scores share their middle rank.
    margins : (m,) float64
        The true text's score over the decoys', in their standard deviations.
    """

    ranks: Values
    margins: Values

    @property
    def exposures(self) -> Values:
        """In bits; to a model that never saw the text 1.44 on average, whatever the model."""
        return np.asarray(np.log2(ALTERNATIVES) - np.log2(self.ranks), dtype=np.float64)


def exposed(release: Release, learner: Learner, secrets: Secrets) -> Exposed:
    """Score every alternative by how much likelier the release finds the rare item after it than the untrained model.

    Parameters
    ----------
    release : Release
    learner : Learner
        For the catalogue and the device; its data are not read.
    secrets : Secrets
    """
    config, bench = release.config, learner.workbench(release.config.model, release.config.seed or 0)
    untrained = untrained_like(release, len(learner.catalogue))
    scorers = [
        ModelScorer(model.to(learner.device), prior, config.prior, bench.catalogue)
        for model, prior in ((release.model, release.prior), (untrained, uninformed(len(learner.catalogue))))
    ]
    own, decoys = _vectors(bench.text, secrets.texts), _vectors(bench.text, secrets.decoys)
    most, ranks, margins = config.model.max_events, np.zeros(len(secrets)), np.zeros(len(secrets))
    for k in range(len(secrets)):
        texts = torch.cat([own[k : k + 1], decoys])  # (ALTERNATIVES, H)
        batch = _after(texts, secrets.carrier, min(int(secrets.repeats[k]), most), bench.catalogue)
        told = [_log_chance(scorer.batch(batch), batch, int(secrets.items[k])) for scorer in scorers]
        ranks[k], margins[k] = placed(told[0] - told[1])
    return Exposed(ranks, margins)


def placed(scores: Values) -> tuple[float, float]:
    """Rank from 1 of the first of the scores, equal ones in the middle, and how far it lies above the others."""
    true, others = scores[0], scores[1:]
    rank = 1.0 + float((others > true).sum()) + 0.5 * float((others == true).sum())
    return rank, float((true - others.mean()) / max(float(others.std()), 1e-12))


def untrained_like(release: Release, n_items: int) -> BehaviourStage:
    """The model that the release's training began with."""
    config = release.config
    return BehaviourStage(find_base(config.model.base), config.model, n_items=n_items, seed=config.seed or 0)


def _vectors(stage: TextStage, texts: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(stage.encode(list(texts), items=False)[:, 0].astype(np.float32))


def _after(texts: torch.Tensor, carrier: int, repeats: int, catalogue: CatalogueVectors) -> EventBatch:
    """One row a text: `repeats` reviews of the carrier with it."""
    shape = (len(texts), repeats)
    whole = torch.full(shape, carrier)
    batch = EventBatch(
        whole,
        torch.full(shape, REVIEW),
        torch.zeros(shape, dtype=torch.long),
        torch.full((len(texts),), repeats),
        texts.unsqueeze(1).expand(-1, repeats, -1).contiguous(),
        torch.full(shape, -1),
    )
    return batch.to(catalogue.items.device)


def _log_chance(scores: torch.Tensor, batch: EventBatch, item: int) -> Values:
    """Log probability of an item next, among what is new to each row, (B,)."""
    logs = without_seen(scores, batch).log_softmax(dim=1)[:, item]
    return np.asarray(logs.double().cpu().numpy(), dtype=np.float64)


def without_seen(scores: torch.Tensor, batch: EventBatch) -> torch.Tensor:
    """Scores, (B, I), in which no item of a row's own events can come next."""
    row, place = torch.nonzero(batch.items >= 0, as_tuple=True)
    ruled = scores.clone()
    ruled[row, batch.items[row, place]] = -torch.inf
    return ruled
