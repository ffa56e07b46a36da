"""Rung 4: user inference. Somebody holds later events and reviews of a user: do they tell that earlier ones were used?

Source: Kandpal et al., "User Inference Attacks on Large Language Models", EMNLP 2024: the mean ratio of likelihoods of
the trained and the pretrained model, over a user's fresh texts.
"""

from __future__ import annotations

import time

import numpy as np

from shared.adapter import load_release
from simulations.audit.black_box import gains
from simulations.audit.findings import RungResult, ScoreSet
from simulations.audit.rerun import FRESH_SHARE, Rerun, rows_of
from simulations.audit.verdicts import of_release

NAME, TITLE = "4-user-inference", "User inference from fresh events and reviews"
TRAINED, FRESH = 0, 1
"""Folders of the workspace apart: what candidates were trained with, and what came later."""


def user_inference_rung(made: Rerun, *, seed: int) -> RungResult:
    """What the release of an audited re-run tells about real users, from events that nobody trained on."""
    began = time.monotonic()
    scores = (_scores(made, FRESH, "fresh events"), _scores(made, TRAINED, "trained events"))
    facts = {"users": len(made.subjects.users), "fresh share of their events": FRESH_SHARE}
    return of_release(NAME, TITLE, made.plan, scores, seed=seed, began=began, facts=facts)


def _scores(made: Rerun, folder: int, name: str) -> ScoreSet:
    histories, gained = gains(load_release(made.adapter), made.apart.learner(folder))
    own, inside = gained[rows_of(histories, made.subjects.users.names)], made.subjects.users.inside
    return ScoreSet(name, np.asarray(own[inside]), np.asarray(own[~inside]))
