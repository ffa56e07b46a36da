"""Where randomness comes from: the system's source, never a seed where data are real, and no secret twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from shared.config import RunConfig
from shared.errors import PolicyViolationError
from shared.hazmat.randomness import RoundRandomness, SystemRandomness, randomness_for, uniforms
from simulations.audit.mechanism.checks import Check, Finding, Setting, check, near, none_of, refused
from simulations.audit.mechanism.rehearsal import Rehearsal, config_of

CHECKS: list[Check] = []
REAL = {"max_epsilon": 8.0, "max_delta": 1e-4, "min_cohort": 3}
READS = 200


@check(CHECKS, "a seed that is accepted for real data")
def seeds(setting: Setting) -> Iterator[Finding]:
    """Refused in the configuration, in the source, and by the partner's own premises whatever a plan says."""
    real = config_of(3, {"simulation": False, "seed": None}).model_dump()
    catches = "seeded noise over real data"
    yield refused("a seed in the configuration of real data", ValueError, lambda: _config(real, seed=1), catches)
    yield refused(
        "a seed for a source of real data",
        PolicyViolationError,
        lambda: randomness_for(seed=1, simulation=False, party="p"),
        catches,
    )
    system = randomness_for(seed=None, simulation=False, party="p")
    yield none_of("sources without a seed that are not the system's", not isinstance(system, SystemRandomness), catches)
    forged = config_of(3, {"simulation": False, "seed": None}).model_copy(update={"seed": 1})
    federation = Rehearsal.of(setting.folder(), 1, 1, 1, size=5, real=REAL)
    yield refused(
        "a seed in a plan that a partner with real data is asked with",
        PolicyViolationError,
        lambda: federation.noised(0, forged),
        catches,
    )


@check(CHECKS, "settings of real data that weaken the noise")
def settings(setting: Setting) -> Iterator[Finding]:
    """Configurations that no run may have."""
    real = config_of(3, {"simulation": False, "seed": None}).model_dump()
    private = config_of(3).model_dump()
    dropout = {**private, "training": {**private["training"], "dropout": 0.1}}
    bare = {**real, "privacy": {**real["privacy"], "mode": "none"}}
    undeclared = {**real, "privacy": {**real["privacy"], "population": 0}}
    open_ = {**real, "federation": {**real["federation"], "secure_sum": False}}
    for name, tree, catches in (
        ("dropout under noise", dropout, "dropout under the noise: a user changes what others drop"),
        ("mode none over real data", bare, "sums without noise"),
        ("a population that is not declared", undeclared, "a normaliser that is measured"),
        ("distributed noise without masks", open_, "every partner's own sum with a share of the noise"),
    ):
        yield refused(name, ValueError, partial(RunConfig.model_validate, tree), catches)


@check(CHECKS, "randomness that is none")
def source(setting: Setting) -> Iterator[Finding]:
    """The system's source repeats nothing and its bytes are fair; streams of one secret differ by their context."""
    system = SystemRandomness()
    reads = {system.read(16, "one context") for _ in range(READS)}
    yield none_of(
        f"of {READS} reads of 16 bytes, repeated", READS - len(reads), "a source that is stuck", false_alarm=1e-30
    )
    values = np.frombuffer(system.read(40_000, "c"), dtype=np.uint8)
    counts = np.bincount(values, minlength=256)
    chi = float(((counts - len(values) / 256) ** 2 / (len(values) / 256)).sum())
    yield near(
        "chi-square of the system's bytes over its 255 degrees", chi / 255, 1.0, (2 / 255) ** 0.5, "bytes not uniform"
    )
    secret = RoundRandomness(system.read(32, "secret"))
    streams = {secret.read(32, f"context {k}") for k in range(READS)}
    yield none_of(
        "contexts of one secret with the stream of another", READS - len(streams), "streams that are not apart"
    )
    draws = uniforms(secret, "coins", tuple(f"user-{k}" for k in range(20_000)))
    yield near("mean of 20,000 coins", draws.mean(), 0.5, (1 / 12 / len(draws)) ** 0.5, "coins that are not fair")


def _config(tree: dict[str, object], **changes: object) -> RunConfig:
    return RunConfig.model_validate({**tree, **changes})
