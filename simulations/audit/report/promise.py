"""The sections about the promise: what it is, how large, against whom, what it leaves out, what left the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from simulations.audit.report.blocks import Block, Claim, Notice, Paragraph, Section, Terms, present, table
from simulations.audit.report.curves import Curve, curve_chart
from simulations.audit.report.outside import OUTSIDE
from simulations.audit.report.source import Subject
from simulations.audit.report.words import MEANINGS, NOTHING_CLAIMED, claim_text, value_text
from simulations.report import guarantee
from simulations.report.figures import NOTHING, delta_text, duration_text, epsilon_text

NO_GUARANTEE = "There is no privacy guarantee"
TOLERANCE = 1e-6
"""Of a recomputed epsilon against the claimed one, relative: the accountant is deterministic."""
SAID_ELSEWHERE = ("What epsilon means", "What it does not cover")
TRUST = {
    "distributed": "distributed: every partner adds a share of the noise; epsilon is that of their sum",
    "local": "local: every partner adds the whole noise; nobody else has to be trusted",
    "none": "none: no noise; whoever sees a message or a model sees what is in it",
}


def claim(subject: Subject) -> Claim:
    """The box at the top."""
    if subject.epsilon is None:
        return Claim(
            subject.verdict,
            NOTHING_CLAIMED[subject.verdict],
            NO_GUARANTEE,
            "The run was made in mode none, without differential privacy. Nothing bounds what its models reveal about"
            " the people in the data. It is for simulation only: do not release anything of it.",
            severe=True,
        )
    prior = "" if subject.plan.prior_noise_multiplier is None else " the prior's sum,"
    return Claim(
        subject.verdict,
        MEANINGS[subject.verdict],
        f"epsilon = {epsilon_text(subject.epsilon)} at delta = {delta_text(subject.plan.delta)}",
        f"One {subject.plan.unit}, with everything that all partners hold of that {subject.plan.unit}, added or removed"
        f" ({subject.plan.adjacency}): differential privacy of everything that the run released,"
        f"{prior} the sum of every training round,"
        " every global adapter in between and the final one, all together.",
        severe=False,
    )


def epsilon(subject: Subject, curve: Curve) -> Section:
    """Epsilon with its delta curve, and the same plan read in other ways."""
    if subject.epsilon is None:
        return Section("epsilon", "Epsilon and delta", (Paragraph(f"{NO_GUARANTEE}: there is no epsilon to state."),))
    guess = math.ceil(guarantee.guessing_bound(subject.epsilon, subject.plan.delta) * 1e4) / 100
    population = subject.plan.population
    below = "less" if subject.plan.delta < 1 / population else "not less"
    rows = [[delta_text(delta), epsilon_text(one)] for delta, one in curve]
    return Section(
        "epsilon",
        "Epsilon and delta",
        present(
            _recomputed(subject, curve),
            Terms(
                (
                    ("epsilon", f"{claim_text(subject.epsilon)}. {_guess(guess)}"),
                    (
                        "delta",
                        f"{delta_text(subject.plan.delta)}: an allowance, up to which probability epsilon need not"
                        f" hold. It is {below} than one in the declared population of {population:,}.",
                    ),
                )
            ),
            curve_chart(curve),
            table("Epsilon of the whole run at other deltas, computed for this report.", ["delta", "epsilon"], rows),
            _readings(subject),
        ),
    )


def trust(subject: Subject) -> Section:
    """Who has to be trusted, and with what."""
    if not subject.private:
        return Section("trust", "Trust model", (Paragraph(TRUST["none"].capitalize() + "."),))
    plan = subject.plan
    # Epsilon has a section of its own; the last statement is about the tables of the run's report.
    said = [one for one in guarantee.statements(subject.run) if one.name not in SAID_ELSEWHERE]
    sampling = (
        f"Each step takes every user with the probability q = {value_text(plan.sampling_rate)}, by a keyed hash under a"
        " key that is fresh each step. The partner's own agent does this; nobody outside can see whether it did. Rung 0"
        " tests the code that is installed where the audit ran. If it were known who took part in each step, the row"
        " “no amplification” would be the promise."
    )
    answers = (
        f"{quorum(subject)} Up to {plan.colluders} of the partners may help the coordinator by telling their own share"
        " of the noise."
    )
    entries = [("Model", TRUST[plan.mode] + ".")]
    entries += [("Survivors and colluders", answers)] if plan.mode == "distributed" else []
    entries += [(one.name, one.text) for one in said]
    entries += [("Sampling, and who enforces it", sampling)]
    return Section("trust", "Trust model", (Terms(tuple(entries)),))


def limits(subject: Subject) -> tuple[Notice, ...]:
    """What limits the guarantee of this run; in mode none the claim's box says it all."""
    found = guarantee.notices(subject.run) if subject.private else []
    return tuple(Notice(one.name, one.text, "severe" if one.severe else "warning") for one in found)


def outside() -> Section:
    """What the guarantee does not cover."""
    entries = tuple((name.rstrip("."), _capital(text.lstrip(",: "))) for name, text in OUTSIDE)
    told = Paragraph("Whatever the verdict says, it says nothing about these.")
    return Section("outside", "What is outside the guarantee", (told, Terms(entries)))


def left() -> Section:
    """Every field that may leave a partner, from the list that the code itself obeys."""
    from shared.wire_answers import ALLOWED

    rows = [[kind, name, field.kind, field.why] for kind, parts in ALLOWED.items() for name, field in parts.items()]
    told = Paragraph(
        "A partner's answers hold these fields. What is not on the list cannot be packed. Paid means: it depends on the"
        " data, carries noise, and was charged to the ledger before it left."
    )
    caption = "Allow-list of the Veilrec that wrote this report."
    return Section(
        "left",
        "What left the machine",
        present(told, table(caption, ["Message", "Field", "Kind", "Why it may leave"], rows, prose=(0, 1, 2, 3))),
    )


def mechanism(subject: Subject) -> Section:
    """Sampling, noise, accountant, and every field of the plan."""
    plan = subject.plan
    told = (
        "Each user's contribution is clipped once to the clip norm C over all partners. Integer noise (Skellam) of z"
        " times that reach is added before anything leaves. Sums are divided by public constants, never by counts."
        if subject.private
        else "No noise was added."
    )
    rows = [[key, _plan_value(value)] for key, value in asdict(plan).items()]
    return Section(
        "mechanism",
        "Mechanism, sampling and accountant",
        present(
            Paragraph(told),
            Paragraph(f"Accountant: {plan.accountant.upper()} of {_accountant(subject)}.") if subject.private else None,
            table(f"The plan, as it was audited. Digest {plan.digest()}.", ["Field", "Value"], rows, prose=(1,)),
        ),
    )


def releases(subject: Subject) -> Section:
    """What was released and when."""
    plan, rounds = subject.plan, subject.run.rounds
    prior = "no sum of a prior" if plan.prior_noise_multiplier is None else "one sum of the prior"
    entries = [
        (
            "Released",
            f"{prior.capitalize()}, {plan.steps} noised sums of {plan.rounds} training rounds, every global adapter"
            " in between and the final one." + (" Epsilon covers all of them together." if subject.private else ""),
        )
    ]
    if rounds:
        seen = sum(one.stage == "prior" for one in rounds)
        entries.append(("Recorded", f"rounds.jsonl has {seen} of the prior and {len(rounds) - seen} of training."))
    entries.append(("Time window", time_window(subject)))
    ledger = subject.run.privacy.section("ledger")
    plans, total, delta = ledger.number("plans"), ledger.amount("epsilon"), ledger.amount("delta")
    if plans is not None:
        entries.append(
            (
                "All runs over the same data",
                f"The ledgers hold {plans:g} plan{'' if plans == 1 else 's'}: epsilon ="
                f" {claim_text(total)}, delta = {NOTHING if delta is None else delta_text(delta)} in all.",
            )
        )
    return Section("releases", "Time window and releases", (Terms(tuple(entries)),))


def quorum(subject: Subject) -> str:
    """Who has to answer before a sum is opened."""
    plan = subject.plan
    if plan.buckets > 1:
        return (
            f"A round is split into {plan.buckets} sums over {plan.partners} partners, each with all of the noise;"
            f" {plan.survivors} members of each have to answer."
        )
    return f"{plan.survivors} of {plan.partners} partners have to answer."


def time_window(subject: Subject) -> str:
    """From the ledgers; that nobody told, where there are none."""
    if subject.window is not None:
        return f"{subject.window.first} to {subject.window.last}, by the partners' ledgers."
    seconds = subject.run.fields.section("timing").number("total_s")
    return "Not recorded beside this audit." + (f" The run took {duration_text(seconds)}." if seconds else "")


def _guess(guess: float) -> str:
    return (
        "Somebody who sees all that was released, knows everything else and has to tell whether one given user's data"
        f" were used, starting from even odds, is right at most {guess:g} % of the time."
    )


def _recomputed(subject: Subject, curve: Curve) -> Notice | None:
    found = dict(curve).get(subject.plan.delta)
    if found is None or subject.epsilon is None or found <= subject.epsilon * (1 + TOLERANCE):
        return None
    return Notice(
        "The claim is smaller than what the plan spends",
        f"Computed anew for this report, the plan spends epsilon = {epsilon_text(found)} at delta ="
        f" {delta_text(subject.plan.delta)}; claimed is {epsilon_text(subject.epsilon)}.",
        "severe",
    )


def _readings(subject: Subject) -> Block | None:
    rows = [
        [
            *(row.text(key) or NOTHING for key in ("name", "unit", "adjacency")),
            epsilon_text(row.required_amount("epsilon")),
            row.text("note") or NOTHING,
        ]
        for row in subject.run.fields.sections("epsilons")
    ]
    head = ["Reading", "Unit", "Adjacency", "epsilon", "What it says"]
    return table("The same plan read in other ways (run.json). Only the first row is the promise.", head, rows, (4,))


def _accountant(subject: Subject) -> str:
    versions: Mapping[str, object] = subject.fields.section("versions").values
    used = next((f"dp-accounting {versions[key]}" for key in ("dp-accounting", "dp_accounting") if key in versions), "")
    try:
        here = f"dp-accounting {version('dp-accounting')}"
    except PackageNotFoundError:
        here = "dp-accounting"
    return used or f"{here} (where this report was written; the audit does not say)"


def _plan_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value_text(value) if isinstance(value, float) else (NOTHING if value is None else str(value))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
