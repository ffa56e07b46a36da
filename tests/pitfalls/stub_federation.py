"""Whole federations in which all is real but BERT: those that the audit of an installation is run on."""

from __future__ import annotations

from collections.abc import Callable

from simulations.audit.mechanism.rehearsal import (
    RUN,
    Gradient,
    config_of,
    gradient_of,
    nothing,
    order_of,
)
from simulations.audit.mechanism.rehearsal import Rehearsal as StubFederation

__all__ = ["RUN", "Federate", "Gradient", "Holds", "StubFederation", "config_of", "gradient_of", "nothing", "order_of"]

Federate = Callable[..., StubFederation]
"""(users a partner, gradient=a direction of each user's own, size=200, real=None, at=a folder's name)"""
Holds = Callable[..., None]
"""(name of a check, plan=the reference): fails with the measurements that do not hold."""
