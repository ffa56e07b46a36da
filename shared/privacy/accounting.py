"""Epsilon of a plan: PLD as the headline, RDP twice as the check. The only `dp_accounting` import.

The noise is integer Skellam on a lattice. The PLD is that of the Gaussian with the same variance; what the
difference costs, and the chance that rounding moves a sum too far, are billed (`_quote`).

Sources: Google's dp_accounting; PLD (Koskela et al., AISTATS 2020; Doroshenko et al., PoPETs 2022,
pessimistic estimates); RDP of the sampled Gaussian (Mironov et al., 2019) and of sampled Skellam noise
(`shared.privacy.skellam`). The central-limit approximation (GDP) is never used: it reports less than is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from shared.config import RunConfig
from shared.errors import AccountingError
from shared.privacy.lattice import LARGEST_VECTOR, ROUNDING_FAILURE
from shared.privacy.plan import PrivacyPlan
from shared.privacy.skellam import gaussian_closeness, matched_variance, sampled_rdp, skellam_rdp

RDP_TOLERANCE = 1.001
"""PLD may exceed RDP by this factor before the accountants are said to disagree."""
LARGEST_NOISE = 1e4
PLD_INTERVAL = 1e-4
"""Of the headline."""
COARSE_INTERVAL = 1e-3
"""While noise is sought: also pessimistic, a little more noise than needed, ten times as fast."""
RDP_ORDERS = (*range(2, 64), *range(64, 257, 16), 384, 512, 1024)
"""Whole orders have a closed form; fractional ones do not always converge under sampling."""
FULL_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *RDP_ORDERS[9:])
"""Without sampling every order has a closed form."""
LARGEST_CLOSENESS = 0.05
"""eta of a stage, at most: the log of the factor by which its Skellam noise may differ from the Gaussian."""
COARSE_NOISE = (
    f"Expected noise within a factor of exp({LARGEST_CLOSENESS}) of a Gaussian over a whole stage, got coarser noise: "
    "too few lattice steps for noise_multiplier, population and rounds."
)
CLOSENESS_SHARE, ROUNDING_SHARE = 0.001, 0.009
"""Parts of delta that the failure of closeness takes, and that the failure of rounding may take at most."""


class _Event(NamedTuple):
    """Equal releases in one world."""

    rate: float  # q
    noise: float  # standard deviation over the most that one user moves the sum
    times: int
    scale: float  # lattice steps that one user moves the sum by: no less, with rounding more
    sums: int  # partners' sums that the user may be in, over all releases

    @property
    def variance(self) -> float:
        return (self.noise * self.scale) ** 2


_World = tuple[_Event, ...]
_Gaussians = tuple[tuple[float, float, int], ...]  # rate, noise, count


@dataclass(frozen=True, slots=True)
class EpsilonRow:
    """One labelled epsilon of a plan.

    Attributes
    ----------
    name : str
    epsilon, delta : float
    adjacency, unit : str
        What is changed (``add-or-remove``, ``replace-one``), and of what (``user``, ``event``).
    note : str
        What the row says and what it does not.
    """

    name: str
    epsilon: float
    delta: float
    adjacency: str
    unit: str
    note: str


def epsilon_spent(plan: PrivacyPlan, rounds: int) -> float | None:
    """Epsilon after the prior's sum and the first `rounds` training rounds; None in mode ``none``.

    Guarantees
    ----------
    An upper bound for one user at ``plan.delta`` under add-or-remove of all that the partners hold of
    them, against everyone who sees all released sums and iterates (and, where sums are not masked, no
    partner's own sum). A user at up to k_max partners is covered, whether the partners sample the user
    together or independently (`_worlds`). Skellam noise and rounding are billed (`_quote`).

    Raises
    ------
    AccountingError
        If PLD exceeds one of the RDP bounds, so that one of them must be wrong; if the noise is too
        coarse to be compared with a Gaussian; if roundings fail too often for this delta.
    """
    if plan.mode == "none":
        return None
    return max(_spent(world, plan.delta) for world in _worlds(plan, rounds))


def epsilon_rows(plan: PrivacyPlan) -> tuple[EpsilonRow, ...]:
    """The headline of a plan, and beside it what other readers ask for, each by its own name.

    Guarantees
    ----------
    Every row is an upper bound for the unit and the adjacency that it names; none of the others may be quoted as
    the headline. Empty in mode ``none``.

    Raises
    ------
    AccountingError
        As `epsilon_spent`.
    """
    headline = epsilon_spent(plan, plan.rounds)
    if headline is None:
        return ()
    worlds, delta = _worlds(plan, plan.rounds), plan.delta
    replaced = max(_replaced(world, delta) for world in worlds)
    gaussian = max(_quote(world, delta, _rdp) for world in worlds)
    skellam = max(_skellam(world, delta) for world in worlds)
    unsampled = max(_skellam(tuple(event._replace(rate=1.0) for event in world), delta) for world in worlds)
    rows = [
        EpsilonRow("headline", headline, delta, plan.adjacency, "user", "PLD; the number to quote"),
        EpsilonRow("replace-one", replaced, delta, "replace-one", "user", "PLD; one user exchanged for any other"),
        EpsilonRow(
            "one event",
            replaced,
            delta,
            "replace-one",
            "event",
            "an event added, removed or changed moves its user's clipped contribution by at most 2C, so the row "
            "above bounds it; it says nothing about a user's other events",
        ),
        EpsilonRow("RDP, Gaussian", gaussian, delta, plan.adjacency, "user", "cross-check of the headline"),
        EpsilonRow("RDP, Skellam", skellam, delta, plan.adjacency, "user", "cross-check that needs no Gaussian"),
        EpsilonRow(
            "no amplification",
            unsampled,
            delta,
            plan.adjacency,
            "user",
            "RDP of Skellam noise if it were known who takes part in each step (q = 1)",
        ),
    ]
    if plan.prior_noise_multiplier is not None:
        prior = epsilon_spent(plan, 0) or 0.0
        rows.append(EpsilonRow("prior alone", prior, delta, plan.adjacency, "user", "PLD; part of the headline"))
    return tuple(rows)


@lru_cache(maxsize=64)
def build_plan(config: RunConfig) -> PrivacyPlan:
    """The plan of a run: noise calibrated to the target epsilon, or as the configuration fixes it.

    With buckets every bucket's sum is a release with all of that noise. The two worlds of `_worlds` bound that too.
    Together: a user moves the vector of bucket sums by at most C in L2, and its noise is that of the plan in every
    coordinate. Independently: the noise of a bucket with j of the user's k partners splits into j parts of variance
    ``z^2 C^2 / j``, no less than the ``z^2 C^2 / k`` that is billed for each partner's sum.

    The prior's sum alone may spend ``prior.epsilon_share`` of epsilon; the training rounds get the
    least noise with which the whole composition stays within it.

    Raises
    ------
    AccountingError
        If no noise below `LARGEST_NOISE` reaches the target, or a fixed noise cannot be accounted.
    """
    private, training = config.privacy, config.training
    base = PrivacyPlan(
        mode=private.mode,
        delta=private.delta,
        sampling_rate=training.sampling_rate,
        population=private.population,
        clip_norm=private.clip_norm,
        noise_multiplier=private.noise_multiplier or 1.0,
        prior_noise_multiplier=None if config.prior.kind == "none" else 1.0,
        rounds=training.rounds,
        local_steps=training.local_steps,
        partners=config.federation.partners,
        survivors=config.federation.survivors,
        colluders=private.colluders,
        masked=config.federation.masked,
        partners_per_user=private.partners_per_user,
        max_events=config.model.max_history,
        canaries=config.audit.canaries,
        buckets=config.federation.buckets,
    )
    if private.mode == "none":
        return replace(base, noise_multiplier=0.0, prior_noise_multiplier=None if config.prior.kind == "none" else 0.0)
    if config.prior.kind != "none":
        share = config.prior.epsilon_share if training.rounds else 1.0
        alone = replace(base, rounds=0)
        prior_noise = _calibrate(
            lambda z: replace(alone, prior_noise_multiplier=z), share * private.epsilon, "prior.epsilon_share"
        )
        base = replace(base, prior_noise_multiplier=prior_noise)
    if private.noise_multiplier is None and training.rounds:
        noise = _calibrate(lambda z: replace(base, noise_multiplier=z), private.epsilon, "privacy.epsilon")
        base = replace(base, noise_multiplier=noise)
    elif not math.isfinite(_coarse(base)):
        raise AccountingError(COARSE_NOISE)
    return base


def _calibrate(make: Callable[[float], PrivacyPlan], target: float, name: str) -> float:
    """Least noise (to 0.1 %) at which ``make(noise)`` spends at most `target`, by bisection on a log scale."""

    def spends(noise: float) -> float:
        return _coarse(make(noise))

    low, high = 0.2, 1.0
    while spends(high) > target:
        low, high = high, high * 2
        if high > LARGEST_NOISE:
            raise AccountingError(f"Expected {name} >= what noise_multiplier={LARGEST_NOISE:g} spends, got {target:g}.")
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spends(middle) > target else (low, middle)
    return high


def _coarse(plan: PrivacyPlan) -> float:
    """Epsilon of the whole plan, quickly and a little too large; infinite if the noise cannot be accounted."""
    bound = partial(_pld, interval=COARSE_INTERVAL)
    # A prior alone leaves room: with the rounds epsilon is larger, the failure that may be paid for smaller.
    largest = LARGEST_CLOSENESS if plan.rounds else LARGEST_CLOSENESS / 2
    return max(_quote(world, plan.delta, bound, largest=largest) for world in _worlds(plan, plan.rounds))


def _worlds(plan: PrivacyPlan, rounds: int) -> tuple[_World, ...]:
    """The releases as one user sees them who is at one or at k_max partners.

    Every partner clips to C / k. If all k sample the user together, the user moves the sum by at most C
    with probability q: the plan as it stands. If they sample independently, the noise of the sum splits
    into k independent parts of variance ``z^2 C^2 / k`` (Skellam splits as the Gaussian does), one for each
    partner's sum, and adding the parts up is post-processing: k releases with noise ``z sqrt(k)`` each. The
    larger epsilon is reported.
    """
    return tuple({_events(plan, rounds, k) for k in (1, plan.partners_per_user)})


def _events(plan: PrivacyPlan, rounds: int, k: int) -> _World:
    events: list[_Event] = []
    partners = plan.partners_per_user
    if plan.prior_noise_multiplier is not None:
        events.append(_Event(1.0, plan.prior_noise_multiplier, 1, plan.scale("prior"), partners))
    steps = rounds * plan.local_steps
    if steps:
        noise, scale = plan.noise_multiplier * math.sqrt(k), plan.scale("train") / k
        events.append(_Event(plan.sampling_rate, noise, k * steps, scale, partners * steps))
    return tuple(events)


def _gaussians(world: _World) -> _Gaussians:
    """The Gaussian releases that the Skellam ones are compared with."""
    return tuple((e.rate, e.noise * math.sqrt(matched_variance(e.variance) / e.variance), e.times) for e in world)


def _quote(
    world: _World,
    delta: float,
    bound: Callable[[_Gaussians, float], float],
    *,
    copies: int = 1,
    largest: float = LARGEST_CLOSENESS,
) -> float:
    """Epsilon of the real mechanism from a bound for the Gaussian one; infinite if the noise is too coarse.

    The real mechanism with bound eps at delta' is (eps + 2 eta, e^eta delta' + (1 + e^(eps + eta)) f + r), where
    eta and f are `gaussian_closeness` and r the chance that some rounding of the user's sums moves further
    than the plan says. (Stop at such a rounding: whether it happens depends on the dither, not on the user's
    being there; so r is paid once and not e^eps times. `copies` users are exchanged: r for each.)
    f is chosen by an epsilon that is certainly above eps, and all is taken off delta before.
    """
    if not world:
        return 0.0
    rounding = _rounding_failure(world, delta, copies)
    if min(event.variance for event in world) < 1:
        return math.inf
    gaussians = _gaussians(world)
    most = LARGEST_CLOSENESS * len(world)
    above = bound(gaussians, (1 - CLOSENESS_SHARE - ROUNDING_SHARE) * math.exp(-most) * delta)
    failure = CLOSENESS_SHARE * delta * math.exp(-above - most) / 2  # (1 + e^x) f <= 2 e^x f
    etas = [gaussian_closeness(e.variance, e.sums * LARGEST_VECTOR, failure / len(world)) for e in world]
    eta = sum(etas)
    if not max(etas) <= largest:
        return math.inf
    return bound(gaussians, ((1 - CLOSENESS_SHARE) * delta - rounding) * math.exp(-eta)) + 2 * eta


def _rounding_failure(world: _World, delta: float, copies: int = 1) -> float:
    sums = copies * sum(event.sums for event in world)
    if not sums * ROUNDING_FAILURE <= ROUNDING_SHARE * delta:
        least = sums * ROUNDING_FAILURE / ROUNDING_SHARE
        raise AccountingError(f"Expected delta >= {least:.2g} for {sums} rounded sums, got {delta:g}.")
    return sums * ROUNDING_FAILURE


def _finite(epsilon: float) -> float:
    if not math.isfinite(epsilon):
        raise AccountingError(COARSE_NOISE)
    return epsilon


def _spent(world: _World, delta: float) -> float:
    return _finite(_quote(world, delta, partial(_checked, world)))


def _replaced(world: _World, delta: float) -> float:
    return _finite(_quote(world, delta, partial(_pld, replaced=True), copies=2))


def _skellam(world: _World, delta: float) -> float:
    return _skellam_rdp(world, delta - _rounding_failure(world, delta)) if world else 0.0


def _checked(world: _World, gaussians: _Gaussians, delta: float) -> float:
    pld = _pld(gaussians, delta)
    for name, rdp in (("Gaussian", _rdp(gaussians, delta)), ("Skellam", _skellam_rdp(world, delta))):
        if not math.isfinite(pld) or not pld <= rdp * RDP_TOLERANCE + PLD_INTERVAL:
            raise AccountingError(
                f"Expected PLD <= RDP ({name}), got epsilon={pld:g} against {rdp:g} at delta={delta:g}."
            )
    return pld


@lru_cache(maxsize=4096)
def _pld(gaussians: _Gaussians, delta: float, interval: float = PLD_INTERVAL, replaced: bool = False) -> float:
    return float(_composed(gaussians, interval, replaced).get_epsilon_for_delta(delta))


@lru_cache(maxsize=4)  # each holds some megabytes, and is asked for a few deltas in a row
def _composed(gaussians: _Gaussians, interval: float, replaced: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = pld.identity(interval)
    for q, z, count in _merged(gaussians):
        one = _single(q, z, interval, replaced)
        whole = whole.compose(one.self_compose(count) if count > 1 else one)
    return whole


@lru_cache(maxsize=8)  # the same in every round: most of the time goes here
def _single(q: float, z: float, interval: float, replaced: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld
    from dp_accounting.privacy_accountant import NeighboringRelation

    return pld.from_gaussian_mechanism(
        z,
        sampling_prob=q,
        value_discretization_interval=interval,
        use_connect_dots=True,
        neighboring_relation=NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def _merged(gaussians: _Gaussians) -> _Gaussians:
    """Full-participation Gaussians compose exactly into one: ``z = sqrt(1 / sum(count / z^2))``."""
    full = sum(count / z**2 for q, z, count in gaussians if q == 1.0)
    rest = tuple(each for each in gaussians if each[0] != 1.0)
    return ((1.0, full**-0.5, 1), *rest) if full else rest


@lru_cache(maxsize=4096)
def _rdp(gaussians: _Gaussians, delta: float) -> float:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(FULL_ORDERS if all(q == 1.0 for q, _, _ in gaussians) else RDP_ORDERS)
    for q, z, count in gaussians:
        gaussian = dp.GaussianDpEvent(z)
        event = gaussian if q == 1.0 else dp.PoissonSampledDpEvent(q, gaussian)
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _skellam_rdp(world: _World, delta: float) -> float:
    """Rounding moves sensitivity and noise up together: the bound is largest at the bare scale, all coordinates."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    total = np.zeros(len(RDP_ORDERS))
    for event in world:
        l1 = min(event.scale**2, math.sqrt(LARGEST_VECTOR) * event.scale)  # integers: |x|_1 <= |x|_2^2
        curve = np.array(
            [0.0, 0.0, *(skellam_rdp(j, l1, event.scale, event.variance) for j in range(2, RDP_ORDERS[-1] + 1))]
        )
        total += event.times * np.array([sampled_rdp(order, event.rate, curve) for order in RDP_ORDERS])
    return float(compute_epsilon(RDP_ORDERS, total, delta)[0])
