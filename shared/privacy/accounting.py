"""Epsilon of a plan: PLD as the headline, RDP as the check. The only `dp_accounting` import.

Sources: Google's dp_accounting; PLD (Koskela et al., AISTATS 2020; Doroshenko et al., PoPETs 2022,
pessimistic estimates); RDP of the sampled Gaussian (Mironov et al., 2019). The central-limit
approximation (GDP) is never used: it reports less than is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from shared.config import RunConfig
from shared.errors import AccountingError
from shared.privacy.plan import PrivacyPlan

RDP_TOLERANCE = 1.001
"""PLD may exceed RDP by this factor before the accountants are said to disagree."""
LARGEST_NOISE = 1e4
PLD_INTERVAL = 1e-4
"""Of the headline."""
COARSE_INTERVAL = 1e-3
"""While noise is sought: also pessimistic, a little more noise than needed, ten times as fast."""
RDP_ORDERS = (*range(2, 64), *range(64, 257, 16), 384, 512, 1024)
"""Whole orders have a closed form; fractional ones do not always converge."""


def epsilon_spent(plan: PrivacyPlan, rounds: int) -> float | None:
    """Epsilon after the prior's sum and the first `rounds` training rounds; None in mode ``none``.

    Guarantees
    ----------
    An upper bound for one user at ``plan.delta`` under add-or-remove of all that the partners hold of
    them, against everyone who sees all released sums and iterates. A user at up to k_max partners is
    covered, whether the partners sample the user together or independently (`_worlds`).

    Raises
    ------
    AccountingError
        If PLD exceeds RDP, so that one of them must be wrong.
    """
    if plan.mode == "none":
        return None
    return max(_epsilon(events, plan.delta) for events in _worlds(plan, rounds))


def build_plan(config: RunConfig) -> PrivacyPlan:
    """The plan of a run: noise calibrated to the target epsilon, or as the configuration fixes it.

    The prior's sum alone may spend ``prior.epsilon_share`` of epsilon; the training rounds get the
    least noise with which the whole composition stays within it.

    Raises
    ------
    AccountingError
        If no noise below `LARGEST_NOISE` reaches the target.
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
        survivors=config.federation.survivors,
        colluders=private.colluders,
        partners_per_user=private.partners_per_user,
        max_events=config.model.max_history,
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
    return base


def _calibrate(make: Callable[[float], PrivacyPlan], target: float, name: str) -> float:
    """Least noise (to 0.1 %) at which ``make(noise)`` spends at most `target`, by bisection on a log scale."""

    def spends(noise: float) -> float:
        plan = make(noise)
        return max(_pld(events, plan.delta, COARSE_INTERVAL) for events in _worlds(plan, plan.rounds))

    low, high = 0.2, 1.0
    while spends(high) > target:
        low, high = high, high * 2
        if high > LARGEST_NOISE:
            raise AccountingError(f"Expected {name} >= what noise_multiplier={LARGEST_NOISE:g} spends, got {target:g}.")
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spends(middle) > target else (low, middle)
    return high


_Event = tuple[float, float, int]  # sampling rate, noise multiplier, count


def _worlds(plan: PrivacyPlan, rounds: int) -> tuple[tuple[_Event, ...], ...]:
    """The plan as (q, z, count) of each release, for one user at one or at k_max partners.

    Every partner clips to C / k. If all k sample the user together, the user moves the sum by at most C
    with probability q: the plan as it stands. If they sample independently, the noise of the sum splits
    into k independent parts of variance ``z^2 C^2 / k``, one for each partner's sum, and adding the parts up is
    post-processing: k releases with noise ``z sqrt(k)`` each. The larger epsilon is reported.
    """
    return tuple({_events(plan, rounds, k) for k in (1, plan.partners_per_user)})


def _events(plan: PrivacyPlan, rounds: int, k: int) -> tuple[_Event, ...]:
    events: list[_Event] = []
    if plan.prior_noise_multiplier is not None:
        events.append((1.0, plan.prior_noise_multiplier, 1))
    steps = rounds * plan.local_steps
    if steps:
        events.append((plan.sampling_rate, plan.noise_multiplier * math.sqrt(k), k * steps))
    return tuple(events)


def _epsilon(events: tuple[_Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    pld, rdp = _pld(events, delta), _rdp(events, delta)
    if not math.isfinite(pld) or pld > rdp * RDP_TOLERANCE + PLD_INTERVAL:
        raise AccountingError(f"Expected PLD <= RDP, got epsilon={pld:g} against {rdp:g} at delta={delta:g}.")
    return pld


@lru_cache(maxsize=4096)
def _pld(events: tuple[_Event, ...], delta: float, interval: float = PLD_INTERVAL) -> float:
    if not events:
        return 0.0
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = None
    for q, z, count in _merged(events):
        one = pld.from_gaussian_mechanism(
            z, sampling_prob=q, value_discretization_interval=interval, use_connect_dots=True
        )
        part = one.self_compose(count) if count > 1 else one
        whole = part if whole is None else whole.compose(part)
    if whole is None:
        raise AccountingError("Expected a plan with at least one release.")
    return float(whole.get_epsilon_for_delta(delta))


def _merged(events: tuple[_Event, ...]) -> list[_Event]:
    """Full-participation Gaussians compose exactly into one: ``z = sqrt(1 / sum(count / z^2))``."""
    full = sum(count / z**2 for q, z, count in events if q == 1.0)
    rest = [event for event in events if event[0] != 1.0]
    return ([(1.0, full**-0.5, 1)] if full else []) + rest


@lru_cache(maxsize=4096)
def _rdp(events: tuple[_Event, ...], delta: float) -> float:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(RDP_ORDERS)
    for q, z, count in events:
        gaussian = dp.GaussianDpEvent(z)
        event = gaussian if q == 1.0 else dp.PoissonSampledDpEvent(q, gaussian)
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))
