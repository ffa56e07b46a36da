"""The privacy label: the same facts as the report, on one page."""

from __future__ import annotations

from simulations.audit.report import promise
from simulations.audit.report.blocks import Document, Section, Terms
from simulations.audit.report.outside import OUTSIDE
from simulations.audit.report.source import Subject
from simulations.audit.report.words import EXPIRY, bound_text, power_text, value_text
from simulations.report import guarantee
from simulations.report.figures import delta_text, epsilon_text

LONGEST = 120
"""Characters of a name that the audit brings along."""


def label_entries(subject: Subject) -> tuple[tuple[str, str], ...]:
    """Name and text of every line of the label, in order."""
    plan, fields = subject.plan, subject.fields
    loss: tuple[tuple[str, str], ...]
    if subject.epsilon is None:
        loss = (("Privacy loss", promise.NO_GUARANTEE),)
        noise = (("Mechanism", "none"),)
    else:
        loss = (
            ("Unit of privacy", f"one {plan.unit}: all that all partners hold of that {plan.unit}"),
            ("Adjacency", plan.adjacency),
            (
                "Privacy loss",
                f"epsilon = {epsilon_text(subject.epsilon)} at delta = {delta_text(plan.delta)}, all releases together",
            ),
        )
        noise = (
            (
                "Mechanism",
                f"{plan.mechanism.capitalize()} noise, z = {value_text(plan.noise_multiplier)}, on sums of sampled"
                f" users (q = {value_text(plan.sampling_rate)}), {plan.rounds} rounds; accountant"
                f" {plan.accountant.upper()}",
            ),
        )
    return (
        *loss,
        ("Trust model", _trust(subject)),
        *noise,
        *_care(subject),
        ("Releases", f"{plan.steps} training sums{_prior(subject)}, every adapter in between and the final one"),
        ("Time window", promise.time_window(subject)),
        ("Outside", "; ".join(name.rstrip(".") for name, _ in OUTSIDE)),
        ("Audit", _audit(subject)),
        ("Audited on", _short(str(fields.values.get("started") or "not told"))),
        ("Data", _short(_data(subject))),
        ("SHA-256 of audit.json", subject.digest),
        ("Expiry", EXPIRY),
    )


def label(subject: Subject) -> Document:
    """The label as a document of one section."""
    name = _short(_data(subject))
    return Document(
        title=f"{subject.verdict}: privacy label",
        subtitle=f"Veilrec, {name}",
        claim=promise.claim(subject),
        sections=(Section("facts", "Privacy facts", (Terms(label_entries(subject)),)),),
        footer="privacy label",
    )


def _trust(subject: Subject) -> str:
    plan = subject.plan
    if plan.mode != "distributed":
        return promise.TRUST[plan.mode]
    seen = "the coordinator sees masked sums alone" if plan.masked else "the coordinator sees each partner's own vector"
    return (
        f"distributed: every partner adds a share of the noise; {seen}. {promise.quorum(subject)} {plan.colluders} may"
        " collude with the coordinator"
    )


def _care(subject: Subject) -> tuple[tuple[str, str], ...]:
    told = "; ".join(one.name if one.name != "Warning" else _short(one.text) for one in guarantee.notices(subject.run))
    return (("Read with care", told),) if subject.private and told else ()


def _prior(subject: Subject) -> str:
    return "" if subject.plan.prior_noise_multiplier is None else ", one sum of the prior"


def _audit(subject: Subject) -> str:
    bounds = [one.epsilon_lower_bound for one in subject.rungs if one.epsilon_lower_bound is not None]
    told = [f"{subject.verdict}"]
    told += [f"highest lower bound of epsilon {bound_text(max(bounds))}"] if bounds else []
    told += [
        f"{_short(one.name)} {one.verdict}"
        + (f" (power against half of the noise {power_text(one.power)})" if one.power is not None else "")
        for one in subject.rungs
    ]
    return "; ".join(told)


def _data(subject: Subject) -> str:
    run = subject.fields.section("run").values
    parts = [str(run[key]) for key in ("data", "run_id") if isinstance(run.get(key), str | int)]
    counts = [f"{run[key]} {key}" for key in ("users", "partners") if isinstance(run.get(key), int)]
    return ", ".join([*parts, *counts]) or "a federated run"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
