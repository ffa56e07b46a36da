"""What the stated epsilon covers and what it does not, in plain words.

Everything here is read from the plan that the run wrote down. Where ``run.json`` is silent, the text
takes the worse case: a sum is masked only if the run says so, noise is secret only if the run says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from simulations.report.figures import compact_text, delta_text, epsilon_text
from simulations.report.source import Run

ADJACENCIES = {
    "add-or-remove": "The released models are compared with those of a run in which one user's data were"
    " left out altogether (add-or-remove).",
    "zero-out": "The released models are compared with those of a run in which one user's data were"
    " replaced by nothing (zero-out).",
}


SIMULATED = ("inprocess", "ray")
"""Engines that run all partners under one operator."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the section: a short name and its text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A statement that a reader must not miss; `severe` ones are red."""

    name: str
    text: str
    severe: bool = False


def headline(run: Run) -> str:
    """The guarantee in one line."""
    if run.mode == "none":
        return "no privacy"
    return f"user-level epsilon = {epsilon_text(run.epsilon)} at delta = {delta_text(run.delta)}"


def notices(run: Run) -> list[Notice]:
    """What limits the guarantee, worst first; empty where nothing does."""
    if run.mode == "none":
        return [
            Notice(
                "No privacy",
                "This run trained without differential privacy. There is no bound on what its models reveal"
                " about the people in the data. It is for simulation only: do not release the adapter, and do"
                " not compare it with private runs as if it could be deployed.",
                severe=True,
            )
        ]
    found = []
    if run.mode == "distributed" and not run.privacy.flag("masked"):
        found.append(Notice("The sum was not masked", _unmasked(run)))
    if run.privacy.text("randomness") != "system":
        found.append(Notice("Simulation: the noise can be reproduced", _seeded(run)))
    return found + [Notice("Warning", text) for text in run.privacy.texts("warnings")]


def statements(run: Run) -> list[Statement]:
    """The reach of the guarantee, term by term; empty in mode none, which guarantees nothing."""
    return [] if run.mode == "none" else list(_statements(run))


def guessing_bound(epsilon: float, delta: float) -> float:
    """Highest share of right answers to "was this user's data used?" when both cases are equally likely.

    ``(e^epsilon + delta) / (e^epsilon + 1)``: from TPR <= e^epsilon FPR + delta and its mirror image
    (Kairouz, Oh, Viswanath 2015, theorem 2.1, at equal error rates).
    """
    # In terms of e^-epsilon, which cannot overflow.
    return min(1.0, (1.0 + delta * math.exp(-epsilon)) / (1.0 + math.exp(-epsilon)))


def _statements(run: Run) -> Iterator[Statement]:
    privacy = run.privacy
    guess = math.ceil(guessing_bound(run.epsilon, run.delta) * 1e4) / 100
    yield Statement(
        "What epsilon means",
        "Somebody who sees all released models, knows everything else and has to tell whether one given"
        f" user's data were used, starting from even odds, is right at most {guess:g} % of the time. Smaller"
        " epsilon is better; at epsilon 0 this would be 50 %.",
    )
    yield Statement("Who is protected", _unit(run))
    adjacency = privacy.text("adjacency")
    if adjacency is not None:
        yield Statement("Compared with what", ADJACENCIES.get(adjacency, f"Adjacency: {adjacency}."))
    accountant = privacy.text("accountant")
    if accountant is not None:
        yield Statement(
            "How it was computed",
            f"By the {accountant.upper()} accountant, from one plan composed over all rounds of the run."
            f"{_mechanism(run)}",
        )
    yield Statement("Who adds the noise", _noise(run))
    yield Statement("Against whom it holds", _observers(run))
    prior = privacy.amount("prior_epsilon")
    if prior is not None:
        yield Statement(
            "The collaborative prior",
            f"Its message alone would cost epsilon = {epsilon_text(prior)}. It is part of the total, which is"
            f" composed over all messages and is not the sum of their epsilons.",
        )
    ledger = run.privacy.section("ledger")
    plans = ledger.number("plans")
    if plans is not None and plans > 1:
        total = ledger.amount("epsilon")
        yield Statement(
            "With earlier runs on the same data",
            f"The partners' ledgers hold {compact_text(plans)} plans. Epsilons of plans that were not fixed together"
            f" add up: {'no bound' if total is None else f'epsilon = {epsilon_text(total)}'} in all.",
        )
    if run.fields.text("engine") in SIMULATED:
        yield Statement(
            "Where it ran",
            "This was a simulation: one operator held the data of all partners and could read all of it. The"
            " guarantee is about what leaves the partners, not about that operator.",
        )
    yield Statement(
        "What it does not cover",
        "The metrics on this page were computed on held-out interactions without noise, and the baselines"
        " are references: epsilon says nothing about them. A simulation may show them; a real federation must"
        " not send them without accounting for them. Item ids, titles and descriptions are public to all"
        " partners.",
    )


def _unit(run: Run) -> str:
    unit = run.privacy.text("unit") or "user"
    if unit != "user":
        return f"The unit of privacy is: {unit}."
    most = run.privacy.number("partners_per_user")
    whole = "The unit is one user: all events and reviews of that user together, not a single event."
    if most is None:
        return f"{whole} A person who is known to several partners is protected less than stated."
    partners = "one partner" if most == 1 else f"{compact_text(most)} partners"
    return f"{whole} It assumes that a person is known to at most {partners}; more partners, less protection."


def _mechanism(run: Run) -> str:
    if run.privacy.text("mechanism") != "skellam":
        return ""
    return (
        " The noise is integer-valued (Skellam) on a public lattice; what it and the rounding cost beyond a"
        " Gaussian is part of the number."
    )


def _noise(run: Run) -> str:
    if run.mode == "local":
        return "Every partner adds the whole noise itself, before anything leaves its premises."
    return (
        "Every partner adds a share of the noise before anything leaves its premises. Only the sum of all"
        " shares is the noise for which epsilon was computed."
    )


def _observers(run: Run) -> str:
    if run.mode == "local":
        return (
            "Against everybody but the partner that holds the data: the server, the other partners and"
            " whoever gets the models, with or without secure aggregation."
        )
    if run.privacy.flag("masked"):
        server = "It holds against the server as well, which sees the masked sum alone."
    else:
        server = "Not against the server, which in this run saw each partner's vector (see the notice above)."
    return (
        f"Against those who see only the sum or what follows from it: the released models. {server} {_colluders(run)}"
    )


def _colluders(run: Run) -> str:
    tolerated = run.privacy.number("colluders")
    known = "A partner knows its own share of the noise and can subtract it from the sum"
    if tolerated is None:
        return f"{known}: against partners, epsilon may be larger than stated."
    if tolerated == 0:
        return f"{known}; this plan keeps no reserve: against a partner epsilon is larger than stated."
    return f"{known}; the plan leaves enough noise when up to {compact_text(tolerated)} of them do so together."


def _unmasked(run: Run) -> str:
    return (
        "The server received each partner's noised vector in the clear. Epsilon ="
        f" {epsilon_text(run.epsilon)} holds for the released models, against those who see only the sum."
        " Somebody who sees a single partner's vector, as the server did here, sees less noise, namely only"
        f" that partner's share{_share(run)}, and so the epsilon against them is larger than stated."
    )


def _share(run: Run) -> str:
    survivors, colluders = run.privacy.number("survivors"), run.privacy.number("colluders")
    # Every share has the variance of the whole divided by the honest shares that the plan counts on.
    honest = (survivors or 0.0) - (colluders or 0.0)
    if not honest > 1:
        return ""
    return f" ({100 / math.sqrt(honest):.0f} % of the standard deviation by this plan)"


def _seeded(run: Run) -> str:
    said = run.privacy.text("randomness") == "seeded"
    cause = (
        "The noise was drawn from the seed of the run" if said else "run.json does not say that the noise was secret"
    )
    return (
        f"{cause}: whoever knows the seed can draw it again and subtract it. So this run protects nobody's"
        " real data. Its epsilon is what a deployment of the same plan with secret noise would have."
    )
