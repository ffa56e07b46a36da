"""Attacks by models: another one for each partner, or one that is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.errors import AdapterMismatchError, InvalidSignatureError, ReplayError
from shared.messages import model_digest
from shared.model.prior import CollaborativePrior, uninformed
from shared.requests import Model
from simulations.evil_server.adversary import Adversary
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play, roster_of
from simulations.evil_server.practice import ITEMS

ATTACKS: list[Attack] = []
Vector = NDArray[np.float32]
TRAINING = 2
"""The first round that has a model."""


def _train(evil: Adversary, promised: Model, told: Model | None = None) -> None:
    """Ask for a training round from the model that the plan promises, and tell this one."""
    parameters = evil.parameters if promised.parameters is None else promised.parameters
    digest = model_digest(parameters, promised.prior or uninformed(ITEMS))
    play = Play(evil, evil.order(TRAINING, model_digest=digest)).shares()
    evil.aim(evil.victim, play.sum_request(evil.victim, model=told or promised))


@attack(ATTACKS, "different models, one plan", "tell one partner a model that makes it speak", AdapterMismatchError)
def _other_parameters(evil: Adversary) -> None:
    honest, moved = Model(evil.parameters, uninformed(ITEMS)), evil.parameters.copy()
    moved[0] = 1.0
    popular = CollaborativePrior(np.eye(ITEMS, dtype=np.float32)[0])
    for told in (Model(moved, honest.prior), Model(honest.parameters, popular), Model(None, honest.prior), Model()):
        _train(evil, honest, told)


@attack(ATTACKS, "different models, a plan each", "a sum over partners that trained differently", InvalidSignatureError)
def _plan_each(evil: Adversary) -> None:
    odd = evil.honest[1]
    most = tuple(name for name in evil.names if name != odd)
    one, other = (model_digest(evil.parameters + shift, uninformed(ITEMS)) for shift in (np.float32(0), np.float32(1)))
    play = Play(evil, evil.order(TRAINING, model_digest=one), most).keys()
    order = evil.order(TRAINING, model_digest=other, attempt=play.order.attempt)
    theirs = Play(evil, order, (odd, *evil.helpers)).keys()
    mixed = {**theirs.offers, **play.offers}
    evil.aim(evil.victim, play.shares_request(roster_of(mixed.values())))
    mixed = {**play.offers, **theirs.offers}
    evil.aim(odd, theirs.shares_request(roster_of(mixed.values())))


@attack(
    ATTACKS, "parameters that are not finite", "NaN and infinity, to see whose gradient answers", AdapterMismatchError
)
def _not_finite(evil: Adversary) -> None:
    for value in (np.nan, np.inf, -np.inf):
        bad = evil.parameters.copy()
        bad[-1] = value
        _train(evil, Model(bad, uninformed(ITEMS)))


@attack(ATTACKS, "parameters of another shape", "too long, too short, or none", AdapterMismatchError)
def _other_shape(evil: Adversary) -> None:
    shapes: tuple[Callable[[Vector], Vector], ...] = (
        lambda flat: np.append(flat, np.float32(0)),
        lambda flat: flat[:-1],
        lambda flat: flat[:0],
        lambda flat: flat.reshape(1, -1),
        lambda flat: np.zeros(4_000_000, dtype=np.float32),
    )
    for shape in shapes:
        _train(evil, Model(shape(evil.parameters), uninformed(ITEMS)))


@attack(ATTACKS, "a prior that is none", "not finite, or not of this catalogue", AdapterMismatchError)
def _bad_prior(evil: Adversary) -> None:
    square = np.zeros((ITEMS, ITEMS), dtype=np.float32)
    for prior in (
        CollaborativePrior(np.full(ITEMS, np.nan, dtype=np.float32)),
        CollaborativePrior(uninformed(ITEMS).popularity, square + np.float32(np.inf)),
        uninformed(ITEMS + 1),
        CollaborativePrior(uninformed(ITEMS).popularity, square[:-1]),
    ):
        _train(evil, Model(evil.parameters, prior))


@attack(ATTACKS, "a model with the prior's sum", "have the partner keep what it did not check", AdapterMismatchError)
def _model_too_early(evil: Adversary) -> None:
    for model in (Model(evil.parameters), Model(None, uninformed(ITEMS))):
        play = Play(evil).shares()
        evil.aim(evil.victim, play.sum_request(evil.victim, model=model))


@attack(ATTACKS, "training without the prior", "train beside the model that was promised", ReplayError)
def _no_prior(evil: Adversary) -> None:
    _train(evil, Model(evil.parameters))
