"""Rung 7: what the final release tells of those it was trained on: hidden attributes, and texts that they wrote.

One training with people and canaries whose presence coins decide. Of each person somebody holds the newest events and
guesses the category that the earlier ones are mostly of; of each canary user, everything but the text. Both can be
guessed to some extent from what is public; what counts is how much better it goes for those who took part.

Sources: Carlini et al., "The Secret Sharer", USENIX Security 2019 (exposure); Jayaraman, Evans, "Are Attribute
Inference Attacks Just Imputation?", CCS 2022 (why members are compared with others and with an untrained model).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from client.learner import Learner
from client.ranking.scorer import ModelScorer
from shared.adapter import Release, load_release
from shared.config import load_config
from shared.model.prior import uninformed
from shared.privacy.accounting import build_plan
from shared.schema import Catalogue
from simulations.audit.canaries import at_partners
from simulations.audit.estimators.roc import proportion
from simulations.audit.findings import RungResult, ScoreSet
from simulations.audit.retraining import Train, chosen, drawn, events_of, federation, train, without
from simulations.audit.rungs.extraction_secrets import (
    ALTERNATIVES,
    Exposed,
    Secrets,
    exposed,
    untrained_like,
    without_seen,
)
from simulations.audit.verdicts import of_release
from simulations.workspace import Workspace, simulated_key

NAME, TITLE = "7-extraction", "Attribute inference and extraction of texts"
PUBLIC_EVENTS = 3
"""Newest events of a person that the attacker holds."""
BATCH = 256
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class People:
    """Real users of whom an attribute is guessed.

    Attributes
    ----------
    names : tuple of str
    inside : (m,) bool
        Who takes part.
    public : polars.DataFrame
        Their newest events, all at partner 0 of the attacker's own federation.
    attributes : (m,) int64
        Number of the category that most of the earlier events are of.
    categories : tuple of str
        By number.
    of_item : (I,) int64
        Category of every item.
    """

    names: tuple[str, ...]
    inside: NDArray[np.bool_]
    public: pl.DataFrame
    attributes: NDArray[np.int64]
    categories: tuple[str, ...]
    of_item: NDArray[np.int64]

    @classmethod
    def draw(cls, m: int, events: pl.DataFrame, catalogue: Catalogue, *, seed: int) -> People:
        """Draw at most m people; `events` in time order."""
        rng = np.random.default_rng([seed, 72])
        names = drawn(events, m, rng)
        own = events.filter(pl.col("user_id").is_in(names)).sort("user_id", "timestamp", maintain_order=True)
        newest = pl.int_range(pl.len()).over("user_id") >= pl.len().over("user_id") - PUBLIC_EVENTS
        categories, of_item = categories_of(catalogue)
        hidden: dict[str, Counter[int]] = {name: Counter() for name in names}
        for user, item in own.filter(~newest).select("user_id", "item_id").iter_rows():
            hidden[user][int(of_item[catalogue.rows[item]])] += 1
        attributes = [min(counts, key=lambda c: (-counts[c], c)) for counts in hidden.values()]
        public = own.filter(newest).with_columns(partner=pl.lit(0, dtype=pl.Int32))
        inside = rng.random(len(names)) < 0.5
        return cls(names, inside, public, np.array(attributes, dtype=np.int64), categories, of_item)


def categories_of(catalogue: Catalogue) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The widest categories of a catalogue, sorted, and the number of each item's, (I,)."""
    of_item = [text.split(">")[0].strip() for text in catalogue.categories]
    known = tuple(sorted(set(of_item)))
    number = {name: k for k, name in enumerate(known)}
    return known, np.array([number[name] for name in of_item], dtype=np.int64)


def extraction_rung(
    run: Path,
    folder: Path,
    seed: int,
    *,
    candidates: int = 400,
    canaries: int = 64,
    training: Train = train,
    tell: Callable[[str], None] = lambda _: None,
) -> RungResult:
    """Train once with people and canaries in and out, and ask the release.

    Parameters
    ----------
    run : Path
        The folder of a simulated run, with its ``partners``.
    folder : Path
        Empty; the federation and the release are written there.
    seed : int
        Of people, canaries, coins and the training.
    candidates : int
        People, in and out together.
    canaries : int
        Canary users for each number of repetitions.
    training : callable
    tell : callable

    Raises
    ------
    DataError, ConfigError
        If there are too few users, items or canaries.
    """
    began = time.monotonic()
    config = load_config(run / "config.json").model_copy(update={"seed": seed})
    plan, before = build_plan(config), Workspace.open(run / "partners")
    events = events_of(before)
    people = People.draw(candidates, events, before.catalogue, seed=seed)
    secrets = Secrets.draw(canaries, _masses(events, before.catalogue), seed=seed)
    tell("extraction: training with people and canaries")
    each = plan.partners_per_user
    world = _world(before, events, people, secrets, each, folder / "partners", seed)
    release = load_release(training(world, config, folder / "run"))
    apart = federation(before, people.public, folder / "apart", seed).learner(0)
    learned, plain = _log_chances(release, apart, people), _log_chances(_untrained(release), apart, people)
    found = exposed(release, world.learner(0), secrets)
    scores = [_attribute_scores(people, learned, plain), _secret_scores(secrets, found)]
    facts = {"attributes": _attribute_facts(people, learned, plain), "texts": _secret_facts(secrets, found)}
    return of_release(NAME, TITLE, plan, scores, seed=seed, began=began, facts=facts)


def _masses(events: pl.DataFrame, catalogue: Catalogue) -> NDArray[np.int64]:
    rows = [catalogue.rows[item] for item in events.get_column("item_id").to_list()]
    return np.bincount(np.array(rows, dtype=np.int64), minlength=len(catalogue)).astype(np.int64)


def _world(
    before: Workspace, events: pl.DataFrame, people: People, secrets: Secrets, each: int, root: Path, seed: int
) -> Workspace:
    """The run's partners without the people whose coin says no, with the canaries whose coin says yes."""
    here = chosen(secrets.names, secrets.inside)
    made = at_partners(secrets.events(before.catalogue), secrets.names, before.partners, each)
    parts = [without(events, chosen(people.names, ~people.inside)), made.filter(pl.col("user_id").is_in(here))]
    return federation(before, pl.concat(parts, how="diagonal_relaxed"), root, seed)


def _untrained(release: Release) -> Release:
    n_items = len(release.prior.popularity)
    return Release(release.config, untrained_like(release, n_items), uninformed(n_items), release.manifest)


@torch.inference_mode()
def _log_chances(release: Release, apart: Learner, people: People) -> Values:
    """Log probability that the item next after each person's public events is of each category, (m, C)."""
    config = release.config
    bench, maker = (
        apart.workbench(config.model, config.seed or 0),
        apart.batch_maker(config.model, config.seed or 0),
    )
    scorer = ModelScorer(release.model.to(apart.device), release.prior, config.prior, bench.catalogue)
    row = {user: place for place, user in enumerate(maker.histories.users)}
    users = np.array([row[user] for user in simulated_key().pseudonyms(list(people.names))], dtype=np.int64)
    member = np.eye(len(people.categories))[people.of_item]  # (I, C)
    found = np.zeros((len(users), len(people.categories)))
    for places, batch in maker.latest(users, BATCH):
        moved = batch.to(bench.catalogue.items.device)
        chances = without_seen(scorer.batch(moved), moved).softmax(dim=1).double().cpu().numpy()  # (B, I)
        found[places] = np.log(np.maximum(chances @ member, 1e-12))
    return found


def _attribute_scores(people: People, learned: Values, plain: Values) -> ScoreSet:
    """How much likelier training made the true category."""
    rows = np.arange(len(people.names))
    gained = (learned - plain)[rows, people.attributes]
    return ScoreSet("hidden attributes", gained[people.inside], gained[~people.inside])


def _secret_scores(secrets: Secrets, found: Exposed) -> ScoreSet:
    return ScoreSet("canary texts", found.margins[secrets.inside], found.margins[~secrets.inside])


def _attribute_facts(people: People, learned: Values, plain: Values) -> dict[str, Any]:
    """Accuracy for those in and out, with intervals, beside what needs no release."""
    right = learned.argmax(axis=1) == people.attributes
    majority = Counter(people.attributes.tolist()).most_common(1)[0][0]
    inside, outside = right[people.inside], right[~people.inside]
    told = {"inside": inside, "outside": outside}
    spread = math.sqrt(sum(float(each.var()) / max(1, len(each)) for each in told.values()))
    return {
        "public_events": PUBLIC_EVENTS,
        "categories": len(people.categories),
        **{f"accuracy_{name}": float(each.mean()) for name, each in told.items()},
        **{f"interval_{name}": proportion(int(each.sum()), len(each)) for name, each in told.items()},
        "advantage": float(inside.mean() - outside.mean()),
        "advantage_standard_error": spread,
        "accuracy_untrained": float((plain.argmax(axis=1) == people.attributes).mean()),
        "accuracy_majority": float((people.attributes == majority).mean()),
    }


def _secret_facts(secrets: Secrets, found: Exposed) -> dict[str, Any]:
    """Mean exposure by repetition, of those in and out."""
    return {
        "alternatives": ALTERNATIVES,
        "exposure_at_chance": _chance(),
        "by_repeats": [
            {
                "repeats": int(repeats),
                **_exposure("inside", found.exposures[(secrets.repeats == repeats) & secrets.inside]),
                **_exposure("outside", found.exposures[(secrets.repeats == repeats) & ~secrets.inside]),
            }
            for repeats in np.unique(secrets.repeats)
        ],
        "found_first_inside": int((found.ranks[secrets.inside] == 1).sum()),
    }


def _exposure(side: str, values: Sequence[float] | Values) -> dict[str, Any]:
    many = len(values) > 0
    return {side: len(values), f"exposure_{side}": float(np.mean(values)) if many else None}


def _chance() -> float:
    """Mean exposure of a text that is as likely at every rank."""
    return float(np.log2(ALTERNATIVES) - np.log2(np.arange(1, ALTERNATIVES + 1)).mean())
