"""Rung 5: membership inference with reference models. Does the release fit a user better than models without them do?

Half of the candidates train the audited model, by independent fair coins. Reference models are trained in pairs on the
candidates that coins choose and on all the others, so that every candidate is out of half of the references. All that
is used of a model is the likelihood that it gives to a user's events: a black box.

Sources: Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks" (RMIA), ICML 2024, offline form
with one reference out of each pair; Carlini et al., "Membership Inference Attacks From First Principles" (LiRA), IEEE
S&P 2022, with variances common to all users, as there for few references.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from shared.config import RunConfig, load_config
from shared.errors import ConfigError
from shared.privacy.accounting import build_plan
from simulations.audit.estimators.roc import roc
from simulations.audit.findings import RungResult, ScoreSet
from simulations.audit.retraining import Train, chosen, drawn, events_of, federation, of, told_of, train, without
from simulations.audit.verdicts import of_release
from simulations.workspace import Workspace

NAME, TITLE = "5-membership", "Membership inference with reference models"
LIRA_REFERENCES = 16
"""Fewer tell too little of each user's own distribution."""
Values = NDArray[np.float64]
Coins = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shadows:
    """What the models say of the candidates.

    Attributes
    ----------
    inside : (m,) bool
        Whom the audited model was trained on.
    target : (m,) float64
        Mean log likelihood of each candidate's events by it, up to a constant of the candidate.
    references_inside : (R, m) bool
    references : (R, m) float64
        The same of the reference models.
    """

    inside: Coins
    target: Values
    references_inside: Coins
    references: Values


def membership_rung(
    run: Path,
    folder: Path,
    seed: int,
    *,
    references: int = 2,
    candidates: int = 400,
    training: Train = train,
    tell: Callable[[str], None] = lambda _: None,
) -> RungResult:
    """Train the audited model and its references, and tell members from others by their releases.

    Parameters
    ----------
    run : Path
        The folder of a simulated run, with its ``partners``.
    folder : Path
        Empty; federations and releases are written there.
    seed : int
        Of candidates, coins and trainings.
    references : int
        Even, at least 2; from 16 on LiRA attacks too.
    candidates : int
    training : callable
        From a federation, a configuration and an empty folder to a release.
    tell : callable
        Is told of every model.

    Raises
    ------
    ConfigError
        If `references` is impossible.
    DataError
        If there are too few users.
    """
    began = time.monotonic()
    _check(references)
    config = load_config(run / "config.json")
    plan, before = build_plan(config), Workspace.open(run / "partners")
    names, shadows = _trained(before, config, folder, seed, references, candidates, training, tell)
    scores = attacked(shadows)
    return of_release(
        NAME,
        TITLE,
        plan,
        scores,
        seed=seed,
        began=began,
        facts={
            "candidates": len(names),
            "inside": int(shadows.inside.sum()),
            "references": references,
            "auc": {one.name: roc(one).auc for one in scores},
        },
    )


def _check(references: int) -> None:
    if references < 2 or references % 2:
        raise ConfigError(f"audit: Expected an even number of references >= 2, got {references}: they come in pairs.")


def _trained(
    before: Workspace,
    config: RunConfig,
    folder: Path,
    seed: int,
    references: int,
    candidates: int,
    training: Train,
    tell: Callable[[str], None],
) -> tuple[tuple[str, ...], Shadows]:
    rng, events = np.random.default_rng([seed, 51]), events_of(before)
    names = drawn(events, candidates, rng)
    apart = federation(before, of(events, names), folder / "apart", seed)
    coins = drawn_coins(references, len(names), rng)
    told = np.zeros(coins.shape)
    for number, inside in enumerate(coins):
        tell(f"membership inference: model {number + 1} of {len(coins)}")
        here = folder / f"model-{number:02d}"
        world = federation(before, without(events, chosen(names, ~inside)), here / "partners", seed)
        # Another seed for each: who shares the audited model's noise and samples would be no outsider.
        adapter = training(world, config.model_copy(update={"seed": seed + number}), here / "run")
        told[number] = told_of(adapter, apart, names)
    return names, Shadows(coins[0], told[0], coins[1:], told[1:])


def drawn_coins(references: int, m: int, rng: np.random.Generator) -> Coins:
    """Who is in the audited model, row 0, and in each reference model; (1 + R, m). References are complements."""
    target = rng.random(m) < 0.5
    halves = rng.random((references // 2, m)) < 0.5
    return np.concatenate([target[None], *(np.stack([half, ~half]) for half in halves)])


def rmia(shadows: Shadows) -> Values:
    """Log of the ratio of likelihoods ``p(x | audited) / mean over references without x of p(x | reference)``, (m,).

    Notes
    -----
    RMIA's score is the share of people z with ``ratio(x) >= gamma ratio(z)``. It grows with the ratio of x alone, so
    that the ratio has the same ROC curve and the same ranks, and says how far apart people are besides.
    """
    out = np.where(shadows.references_inside, -np.inf, shadows.references)
    mean = logsumexp(out, axis=0) - np.log((~shadows.references_inside).sum(axis=0))
    return np.asarray(shadows.target - mean, dtype=np.float64)


def lira(shadows: Shadows) -> Values:
    """Log ratio of two Gaussians at the audited model's value: with the user and without, (m,).

    Notes
    -----
    A mean over a user's positions is nearly Gaussian as it is; the paper's logit is for single probabilities.
    """
    inside, values = shadows.references_inside, shadows.references
    means = [np.where(part, values, 0.0).sum(axis=0) / part.sum(axis=0) for part in (inside, ~inside)]
    spreads = [
        max(float(np.sqrt(np.square(values - mean)[part].sum() / max(1, part.sum() - len(mean)))), 1e-12)
        for part, mean in zip((inside, ~inside), means, strict=True)
    ]
    logs = [
        -0.5 * np.square((shadows.target - mean) / spread) - np.log(spread)
        for mean, spread in zip(means, spreads, strict=True)
    ]
    return np.asarray(logs[0] - logs[1], dtype=np.float64)


def attacked(shadows: Shadows) -> list[ScoreSet]:
    """Scores by RMIA, and by LiRA where there are enough references."""
    found = {"RMIA": rmia(shadows)}
    if len(shadows.references) >= LIRA_REFERENCES:
        found["LiRA"] = lira(shadows)
    inside = shadows.inside
    return [ScoreSet(name, values[inside], values[~inside]) for name, values in found.items()]
