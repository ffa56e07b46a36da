"""What partners refuse: the attacks of the evil-server kit, and a model that no round can start from.

The kit attacks a practice federation of real agents under the rules of real data (`simulations.evil_server`): a
request counts as refused only with the expected error, and if it changed no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from client.learner import LARGEST_PARAMETER
from client.policy import Policy
from shared.errors import AdapterMismatchError
from simulations.audit.findings import Measurement
from simulations.audit.mechanism.checks import Check, Finding, Setting, check, equal, refused
from simulations.audit.mechanism.rehearsal import Rehearsal, config_of
from simulations.evil_server import cohort, keys, messages, models, plans, replays, roster, spending, unmasking
from simulations.evil_server.attack import Attack
from simulations.evil_server.practice import Practice
from simulations.evil_server.runner import run

CHECKS: list[Check] = []


@check(CHECKS, "parameters of any size accepted")
def parameters(setting: Setting) -> Iterator[Finding]:
    """Large parameters blow up float32's rounding, and with it what one user can move."""
    size, config = 50, config_of(1)
    learner = Rehearsal.of(setting.folder(), 1, size=size).learner(0)
    honest = np.zeros(size, dtype=np.float32)
    learner.check_parameters(config, honest + np.float32(LARGEST_PARAMETER / 2))
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("just too large", -1.01 * LARGEST_PARAMETER)):
        other = honest.copy()
        other[7] = value
        yield refused(
            f"parameters with {name}",
            AdapterMismatchError,
            partial(learner.check_parameters, config, other),
            "parameters of any size accepted",
        )
    for shaped in (honest[1:], honest[:, None]):
        yield refused(
            f"parameters of shape {shaped.shape}",
            AdapterMismatchError,
            partial(learner.check_parameters, config, shaped),
            "parameters of another shape accepted",
        )


def _attacked(setting: Setting, attacks: Sequence[Attack]) -> Iterator[Finding]:
    """One number for all attacks, and the name of each that came through."""
    results = run(Practice.build(setting.folder(), Policy()), attacks)
    done = sum(result.refused for result in results)
    name = f"{attacks[0].script.__module__.rpartition('.')[2]}: attacks refused without trace"
    yield equal(name, done, len(attacks), "a partner that does what it should refuse")
    for result in results:
        if not result.refused:
            told = f"attack '{result.name}' (expected {result.expected})"
            yield Finding(Measurement(told, 0.0, "1", False, result.description))


BOOKS = {
    "cohorts": ("a sum over few", cohort.ATTACKS),
    "rosters": ("the difference of two sums", roster.ATTACKS),
    "substituted_keys": ("keys that the pinned identity did not sign", keys.ATTACKS),
    "unmaskings": ("secrets opened that must stay closed", unmasking.ATTACKS),
    "replayed": ("a message that is taken twice, or out of its turn", replays.ATTACKS),
    "other_models": ("a model that is not that of the plan", models.ATTACKS),
    "weak_plans": ("a plan that nobody signed, or below the partner's floor", plans.ATTACKS),
    "malformed": ("a message that a partner cannot read", messages.ATTACKS),
    "overspending": ("a budget that is spent twice", spending.ATTACKS),
}
"""The attacks of the kit by the name of their check, with what goes wrong where one comes through."""
CHECKS += [
    Check(f"refusals.{name}", catches, partial(_attacked, attacks=attacks))
    for name, (catches, attacks) in BOOKS.items()
]
