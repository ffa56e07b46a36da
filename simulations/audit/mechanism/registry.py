"""All checks, by name. A subject's module is loaded when one of its checks is asked for."""

from __future__ import annotations

from importlib import import_module

from shared.errors import ConfigError
from simulations.audit.mechanism.checks import Check

SUBJECTS = (
    "sampling",
    "clipping",
    "gradients",
    "noise",
    "lattice",
    "randomness",
    "accountant",
    "ledger",
    "rounds",
    "secure_sum",
    "buckets",
    "wire",
    "refusals",
    "records",
)
"""In the order in which they are run; each is a module of this package."""


def checks_of(subject: str) -> tuple[Check, ...]:
    """The checks of one subject."""
    return tuple(import_module(f"simulations.audit.mechanism.{subject}").CHECKS)


def all_checks() -> tuple[Check, ...]:
    """All of them."""
    return tuple(one for subject in SUBJECTS for one in checks_of(subject))


def named(name: str) -> Check:
    """A check by its name, ``subject.function``.

    Raises
    ------
    ConfigError
        If there is none.
    """
    subject = name.partition(".")[0]
    for one in checks_of(subject) if subject in SUBJECTS else ():
        if one.name == name:
            return one
    raise ConfigError(f"Expected a check of the mechanism, got {name}.")
