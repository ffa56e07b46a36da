"""Run the attacks, one after another, each on the federation as it was at the start."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from client.agent import agent_for
from client.policy import Policy
from shared.errors import VeilrecError
from simulations.evil_server import cohort, keys, messages, models, plans, replays, roster, spending, unmasking
from simulations.evil_server.adversary import Adversary
from simulations.evil_server.attack import Attack, Result
from simulations.evil_server.practice import Practice

ATTACKS: tuple[Attack, ...] = tuple(
    attack
    for book in (cohort, roster, keys, unmasking, replays, models, plans, messages, spending)
    for attack in book.ATTACKS
)
"""All of them; names are unique."""

Observer = Callable[[Result], None]


def attack_partner(
    policy: Policy, attacks: Sequence[Attack] = ATTACKS, observer: Observer | None = None
) -> list[Result]:
    """Let every attack loose on a practice federation under a partner's policy, in a folder that is then removed."""
    with tempfile.TemporaryDirectory(prefix="veilrec-practice-") as folder:
        return run(Practice.build(Path(folder), policy), attacks, observer)


def run(practice: Practice, attacks: Sequence[Attack] = ATTACKS, observer: Observer | None = None) -> list[Result]:
    """Run attacks; the practice is as it was afterwards."""
    results = []
    with _quiet():
        for attack in attacks:
            results.append(_run(practice, attack))
            if observer:
                observer(results[-1])
    practice.restore()
    agent_for.cache_clear()
    return results


def _run(practice: Practice, attack: Attack) -> Result:
    practice.restore()
    evil, began, expected = Adversary(practice), time.monotonic(), attack.expected.__name__
    got = []
    try:
        attack.script(evil)
    except VeilrecError as error:  # the way to the attack is barred, so that nothing was shown
        got.append(f"not tried: {error}")
    got += [trial.got for trial in evil.trials]
    traces = sorted({path for trial in evil.trials for path in trial.changed})
    refused = bool(got) and set(got) == {expected} and not traces
    told = ", ".join([*dict.fromkeys(got), *(f"changed {path}" for path in traces)]) or "nothing was tried"
    return Result(attack.name, attack.description, expected, told, refused, round(time.monotonic() - began, 3))


@contextmanager
def _quiet() -> Iterator[None]:
    """Refusals are what is wanted here: a partner's log of them would be noise."""
    log = logging.getLogger("veilrec.client")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled
