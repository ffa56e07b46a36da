"""Rung 6: what one update of 1, 4, 16 or 64 users tells the coordinator, bare and under masks.

The same attacks read the users' plain sum, the clipped sum, the sum with one partner's noise share, and what leaves.
Under masks they must do no better than on the updates of other people. That says something only if they do read the
plain sum of one user, so that is checked too, in the same run.

Source: Petrov et al., "DAGER", NeurIPS 2024; Wu et al., "Learning to Invert", UAI 2023 (`inversion_attacks`).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.learner import Learner
from shared.adapter import Release as Adapter
from shared.adapter import flatten_parameters
from shared.config import RunConfig
from shared.errors import ConfigError, DataError
from shared.model.behaviour import BehaviourStage
from shared.model.prior import uninformed
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import Measurement, RungResult, ScoreSet, Verdict, judge
from simulations.audit.rungs.inversion_attacks import Attack, Floats, Truth, areas, found_among_first, grouped, p_value
from simulations.audit.rungs.inversion_leaks import (
    VIEWS,
    Release,
    Seen,
    Sender,
    View,
    prior_release,
    training_release,
)
from simulations.audit.rungs.inversion_masks import tells_bare, uniform

NAME, TITLE = "6-inversion", "Inversion of updates"
FALSE_ALARM = 1e-3
"""Of the whole rung: its tests share it evenly."""
LARGEST_TABLE = 2**27
"""Gradients that are held at once, in numbers: 512 MB."""
LARGEST_PRIOR = 2**18
"""Coordinates of the prior's sum above which it is left out: noise and masks for it would take minutes."""
LEAST_GROUPS = 10
"""Of fewer updates not enough orders are there for a permutation test at the rung's level to reject."""
FIRST = 10
"""Best candidates of which the precision is told."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried.

    Attributes
    ----------
    sizes : tuple of int
        Users of an update.
    groups : int
        Updates of each size.
    shadows, victims : int
        Users whose gradients the attacker knows beforehand; users that updates are made of.
    """

    sizes: tuple[int, ...] = (1, 4, 16, 64)
    groups: int = 16
    shadows: int = 384
    victims: int = 256

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) != 1 or self.groups < LEAST_GROUPS:
            raise ConfigError(f"Expected sizes with 1 and groups >= {LEAST_GROUPS}, got {self}.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attack read from one view of updates of one size.

    Attributes
    ----------
    auc, chance_auc : float
        Of an update's own candidates, and of other updates' by the same scores.
    precision, chance_precision : float
        Of the `FIRST` best scored.
    recall, chance_recall : float
        Of as many best scored as there are true ones.
    p : float
        That scores which know nothing do as well (`p_value`).
    """

    release: str
    users: int
    view: View
    attack: str
    finds: str
    auc: float
    chance_auc: float
    precision: float
    chance_precision: float
    recall: float
    chance_recall: float
    p: float


def inversion_rung(
    learner: Learner,
    config: RunConfig,
    plan: PrivacyPlan,
    seed: int,
    *,
    adapter: Adapter | None = None,
    effort: Effort | None = None,
) -> RungResult:
    """Attack updates of one partner's users, made by the installed code under the run's plan.

    Parameters
    ----------
    learner : Learner
        A partner of the audited run, or of one like it; the larger the better.
    config : RunConfig
    plan : PrivacyPlan
    seed : int
        Of users, groups, dither and noise: all but the masks repeat.
    adapter : shared.adapter.Release, optional
        What the run released: rounds after the first are attacked too, and with the run's prior.
    effort : Effort, optional

    Raises
    ------
    DataError
        If the partner has too few users.
    """
    began, effort = time.monotonic(), effort or Effort()
    releases = _releases(learner, config, plan, seed, adapter, effort)
    sender = Sender(plan, seed)
    alarm = FALSE_ALARM / sum(len(one.attacks) * len(effort.sizes) + 3 for one in releases)
    found = [_attacked(release, effort, sender, plan, alarm, seed) for release in releases]
    outcomes = [one for each in found for one in each.outcomes]
    checks = [one for each in found for one in each.checks]
    controls = [one for each in found for one in each.controls]
    verdict, why = _verdict(plan, checks, controls, outcomes)
    return RungResult(
        NAME,
        TITLE,
        verdict,
        why,
        time.monotonic() - began,
        power=1.0 if all(one.holds for one in controls) else 0.0,
        measurements=(*checks, *controls),
        scores=tuple(one for each in found for one in each.scores),
        facts={
            "seed": seed,
            "masked": plan.masked,
            "false_alarm": FALSE_ALARM,
            "effort": asdict(effort),
            "releases": [one.name for one in releases],
            "outcomes": [asdict(one) for one in outcomes],
            "bare_share": _bare_share(plan, outcomes),
        },
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found at one release: readings, what must hold, what shows that it would be noticed, and curves."""

    outcomes: list[Outcome]
    checks: list[Measurement]
    controls: list[Measurement]
    scores: list[ScoreSet]


def _attacked(release: Release, effort: Effort, sender: Sender, plan: PrivacyPlan, alarm: float, seed: int) -> _Found:
    outcomes: list[Outcome] = []
    scores: list[ScoreSet] = []
    leaving, bare = [], []
    for users in effort.sizes:
        groups, seen = _sent(release, users, effort.groups, sender, seed)
        outcomes += _read(release, users, groups, seen, plan, alarm, seed)
        scores += _curves(release, groups, seen, plan) if users == 1 else []
        leaving += [one.leaving for one in seen]
        bare += [one.bare for one in seen]
    checks, controls = _at_chance(release, outcomes, alarm), _works(release, outcomes, alarm)
    if plan.masked:
        checks += uniform(release.name, leaving, bare, alarm)
        controls.append(tells_bare(release.name, bare, alarm))
    return _Found(outcomes, checks, controls, scores)


def _releases(
    learner: Learner, config: RunConfig, plan: PrivacyPlan, seed: int, adapter: Adapter | None, effort: Effort
) -> list[Release]:
    bench = learner.workbench(config.model, config.seed or 0)
    histories = learner.histories(config.model)
    rng = np.random.default_rng([seed, 60])
    several = np.flatnonzero(histories.lengths >= 3)
    chosen = rng.permutation(several)[: min(effort.shadows + effort.victims, LARGEST_TABLE // bench.gradients.size)]
    cut = len(chosen) * effort.victims // (effort.shadows + effort.victims)
    victims, shadows = chosen[:cut], chosen[cut:]
    if len(victims) <= max(effort.sizes) or not len(shadows):
        raise DataError(
            f"{learner.premises.folder}: Expected more than {max(effort.sizes)} users to attack, got {len(victims)}."
        )
    prior = uninformed(len(learner.catalogue)) if adapter is None else adapter.prior
    fresh = BehaviourStage(bench.text.base, config.model, n_items=len(learner.catalogue), seed=config.seed or 0)
    starts = {"first round": flatten_parameters(fresh)}
    if adapter is not None:
        starts["last round"] = flatten_parameters(adapter.model)
    key = rng.bytes(32)
    first = prior_release(learner, config, plan, victims, LARGEST_PRIOR)
    return [one for one in [first] if one is not None] + [
        training_release(name, learner, config, plan, parameters, prior, shadows, victims, key)
        for name, parameters in starts.items()
    ]


def _sent(
    release: Release, users: int, count: int, sender: Sender, seed: int
) -> tuple[list[NDArray[np.int64]], list[Seen]]:
    """Groups of victims, and what could be seen of each."""
    rng = np.random.default_rng([seed, 61, zlib.crc32(release.name.encode()), users])
    groups = list(grouped(len(release.items), users, count, rng))
    return groups, [
        sender.send(release, group, f"{release.name}/{users}/{number}") for number, group in enumerate(groups)
    ]


def _truth(release: Release, attack: Attack, groups: Sequence[NDArray[np.int64]]) -> Truth:
    """What an attack looks for in each group, (groups, candidates)."""
    if attack.finds == "items":
        return np.array([release.items[group].any(axis=0) for group in groups])
    present = np.zeros((len(groups), len(release.items)), dtype=bool)
    for row, group in enumerate(groups):
        present[row, group] = True
    return present


def _scored(
    release: Release, attack: Attack, view: View, users: int, seen: Sequence[Seen], plan: PrivacyPlan
) -> Floats:
    """Scores of an attack on one view of each group, (groups, candidates)."""
    size = len(seen[0].leaving)
    share = math.sqrt(plan.share_variance(release.stage, size)) * plan.step(release.stage)
    stddev = share if view in ("noised", "leaves") else 0.0
    return np.array([attack.score(one.views[view], users, stddev) for one in seen])


def _read(
    release: Release,
    users: int,
    groups: Sequence[NDArray[np.int64]],
    seen: Sequence[Seen],
    plan: PrivacyPlan,
    alarm: float,
    seed: int,
) -> list[Outcome]:
    """Every attack on every view of these groups."""
    outcomes = []
    for attack in release.attacks:
        truth = _truth(release, attack, groups)
        # Groups that have every item, as large groups of a small catalogue may, tell no attack from another.
        open_ = truth.any(axis=1) & ~truth.all(axis=1)
        if np.count_nonzero(open_) < LEAST_GROUPS:
            continue
        for view in VIEWS:
            scores = _scored(release, attack, view, users, seen, plan)[open_]
            matrix, kept = areas(scores, truth[open_]), len(scores)
            own = float(np.trace(matrix)) / kept
            other = (float(matrix.sum()) - own * kept) / (kept * (kept - 1))
            precision = found_among_first(scores, truth[open_], FIRST)
            recall = found_among_first(scores, truth[open_], None)
            p = p_value(matrix, seed, math.ceil(3 / alarm))
            outcomes.append(
                Outcome(release.name, users, view, attack.name, attack.finds, own, other, *precision, *recall, p)
            )
    return outcomes


def _curves(
    release: Release, groups: Sequence[NDArray[np.int64]], seen: Sequence[Seen], plan: PrivacyPlan
) -> list[ScoreSet]:
    """Scores of one user's items and of all other items, by the attack on structure: raw, and as it leaves."""
    attack = release.attacks[0]
    truth = _truth(release, attack, groups)
    told: tuple[tuple[View, str], ...] = (("raw", "bare gradient"), ("leaves", "what leaves"))
    sets = []
    for view, words in told:
        scores = _scored(release, attack, view, 1, seen, plan)
        spread = scores.std(axis=1, keepdims=True)
        even = (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
        sets.append(ScoreSet(f"items of one user, {release.name}, {words}", even[truth], even[~truth]))
    return sets


def _at_chance(release: Release, outcomes: Sequence[Outcome], alarm: float) -> list[Measurement]:
    """What leaves must tell no attack anything, at any size."""
    found = [one for one in outcomes if one.release == release.name and one.view == "leaves"]
    return [
        Measurement(
            f"{one.finds} of {one.users} read from what leaves by {one.attack}, {release.name}: p against chance",
            one.p,
            f">= {alarm:.1e}",
            one.p >= alarm,
            "sums that leave without masks, or under masks that can be taken off",
        )
        for one in found
    ]


def _works(release: Release, outcomes: Sequence[Outcome], alarm: float) -> list[Measurement]:
    """The attack must read the items of one user from the plain sum: else its silence says nothing."""
    found = [
        one
        for one in outcomes
        if one.release == release.name and one.users == 1 and one.view in ("raw", "clipped") and one.finds == "items"
    ]
    best = max(found, key=lambda one: one.recall)
    return [
        Measurement(
            f"items of one user read from the bare gradient by {best.attack}, {release.name}: recall",
            best.recall,
            f"above chance, which is {best.chance_recall:.3f}",
            best.p < alarm,
            "an attack that would not notice missing masks",
        )
    ]


def _bare_share(plan: PrivacyPlan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a coordinator would read if one partner's noised sum came without its mask: why masks matter."""
    best: dict[str, Any] = {}
    for one in outcomes:
        if one.view == "noised" and one.users == 1:
            kept = best.get(one.finds)
            if kept is None or one.auc - one.chance_auc > kept["auc"] - kept["chance_auc"]:
                best[one.finds] = asdict(one)
    honest = plan.survivors - plan.colluders
    return {
        "noise_of_a_share_over_billed": math.sqrt(1.0 / honest) if plan.mode == "distributed" else 1.0,
        "most_read_of_one_user": best,
    }


def _verdict(
    plan: PrivacyPlan,
    checks: Sequence[Measurement],
    controls: Sequence[Measurement],
    outcomes: Sequence[Outcome],
) -> tuple[Verdict, str]:
    alone = [one for one in outcomes if one.users == 1 and one.view in ("raw", "clipped") and one.finds == "items"]
    most = max((one.recall for one in alone), default=math.nan)
    failed = [one for one in checks if not one.holds]
    if not plan.masked and plan.mode == "local":
        return Verdict.INCONCLUSIVE, (
            "Nothing is masked in local mode: what a noised sum tells is bounded by epsilon, which this rung "
            f"does not measure; {len(failed)} of {len(checks)} readings of what leaves are above chance."
        )
    verdict = judge(bool(failed), 1.0 if all(one.holds for one in controls) else 0.0)
    if verdict is Verdict.FAIL:
        return verdict, f"What leaves tells more than chance, or is not uniform: {failed[0].name}."
    if verdict is Verdict.PASS:
        return verdict, (
            f"The attacks read up to {most:.0%} of one user's items from a bare gradient, and nothing from what leaves."
        )
    return verdict, "The attacks do not read even a bare gradient of one user: that they read nothing else is no news."
