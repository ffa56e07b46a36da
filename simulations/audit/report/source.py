"""What the report reads: ``audit.json``, and what lies beside it in the run's folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shared.errors import DataError, PolicyViolationError, SchemaError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import RungResult, Verdict, overall
from simulations.report.source import Fields, Run, check_run, read_run

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Window:
    """When the partners' ledgers were first and last written, as they say it (ISO 8601)."""

    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Subject:
    """An audit and the run that it is about, checked.

    Attributes
    ----------
    fields : Fields
        All of ``audit.json``.
    verdict : Verdict
        As the rungs have it.
    rungs : tuple of RungResult
    plan : PrivacyPlan
    epsilon : float or None
        As claimed; None in mode none.
    run : Run
        ``run.json`` with the plan that was audited; the plan alone where there is no ``run.json``.
    disagreements : tuple of str
        Privacy fields in which ``run.json`` says something else than the plan that was audited.
    window : Window or None
    digest : str
        SHA-256 of ``audit.json``.
    """

    fields: Fields
    verdict: Verdict
    rungs: tuple[RungResult, ...]
    plan: PrivacyPlan
    epsilon: float | None
    run: Run
    disagreements: tuple[str, ...]
    window: Window | None
    digest: str

    @property
    def private(self) -> bool:
        """The run promises something."""
        return self.epsilon is not None


def read_subject(place: Path) -> tuple[Subject, Path]:
    """Read an audit and the run beside it.

    Parameters
    ----------
    place : Path
        ``audit.json``, its folder, or the run's folder.

    Returns
    -------
    Subject
    Path
        The folder of ``audit.json``.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names file and field.
    """
    names = [place, place / "audit.json", place / "audit" / "audit.json"]
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        raise DataError(f"{place}: Expected an audit.json, or a folder with one.")
    data = file.read_bytes()
    try:
        audit = json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{file}: Expected JSON.") from None
    folder = file.parent
    run_dir = next((one for one in (folder.parent, folder) if (one / "run.json").is_file()), None)
    run = read_run(run_dir) if run_dir else None
    window = ledger_window(run_dir / "ledgers") if run_dir else None
    return check_subject(audit, run, window, hashlib.sha256(data).hexdigest(), str(file)), folder


def check_subject(
    audit: object, run: Run | None, window: Window | None = None, digest: str | None = None, source: str = "audit.json"
) -> Subject:
    """Check an audit.

    Raises
    ------
    SchemaError
        A field is missing or mistyped, or the verdict does not follow from those of the rungs.
    """
    if not isinstance(audit, Mapping) or audit.get("format") != FORMAT:
        raise SchemaError(f"{source}: Expected an audit of format {FORMAT}.")
    told = Fields(audit, source)
    rungs = tuple(_rung(one) for one in told.sections("rungs"))
    verdict = Verdict(told.choice("verdict", [one.value for one in Verdict]))
    follows = overall({one.name: one.verdict for one in rungs})
    if verdict is not follows:
        raise SchemaError(f"{source}: Expected the verdict that follows from the rungs, {follows}, got {verdict}.")
    plan = _plan(told.section("plan"))
    epsilon = _claimed(told, plan)
    merged, disagreements = _merged(run, told, plan, epsilon)
    return Subject(
        fields=told,
        verdict=verdict,
        rungs=rungs,
        plan=plan,
        epsilon=epsilon,
        run=merged,
        disagreements=disagreements,
        window=window,
        digest=digest or hashlib.sha256(_written(audit)).hexdigest(),
    )


def ledger_window(folder: Path) -> Window | None:
    """First and last time in the ledgers of a folder; None where they tell none. Signatures are not checked here."""
    times: list[str] = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                time = json.loads(line).get("time")
            except (ValueError, AttributeError, RecursionError):
                raise DataError(f"{file}: Expected a JSON object a line.") from None
            times += [time] if isinstance(time, str) else []
    return Window(min(times), max(times)) if times else None


def _rung(told: Fields) -> RungResult:
    try:
        rung = RungResult.from_json(told.values)
        names = [rung.name, rung.title, rung.why, *(one.name for one in rung.measurements)]
        numbers = [rung.seconds, rung.epsilon_lower_bound, rung.power, *(one.value for one in rung.measurements)]
        for one in rung.estimates:
            names += [one.estimator, one.about]
            numbers += [one.lower_bound, one.point, one.confidence, one.claimed, one.power]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise SchemaError(f"{told.source}: Expected a rung's result in {told.path}.") from None
    if not all(isinstance(name, str) for name in names) or not isinstance(rung.facts, Mapping):
        raise SchemaError(f"{told.source}: Expected names and facts in {told.path}.")
    if not all(one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in numbers):
        raise SchemaError(f"{told.source}: Expected numbers in {told.path}.")
    return rung


def _plan(told: Fields) -> PrivacyPlan:
    known = {field.name for field in fields(PrivacyPlan)}
    try:
        values: dict[str, Any] = {key: value for key, value in told.values.items() if key in known}
        return PrivacyPlan(**values)
    except (TypeError, PolicyViolationError):
        raise SchemaError(f"{told.source}: Expected a privacy plan in field plan.") from None


def _claimed(told: Fields, plan: PrivacyPlan) -> float | None:
    claimed = told.section("claimed")
    if plan.mode == "none":
        return None
    epsilon, delta = claimed.required_amount("epsilon"), claimed.required_amount("delta")
    if not math.isfinite(epsilon) or delta != plan.delta:
        raise SchemaError(f"{told.source}: Expected a finite claimed.epsilon at the plan's delta.")
    return epsilon


def _merged(run: Run | None, told: Fields, plan: PrivacyPlan, epsilon: float | None) -> tuple[Run, tuple[str, ...]]:
    """The run with the audited plan in the place of its own, and where the two differ."""
    own: Mapping[str, object] = run.privacy.values if run else {}
    audited: dict[str, object] = asdict(plan)
    if epsilon is not None:
        audited["epsilon"] = epsilon
    values: dict[str, object] = dict(run.fields.values) if run else {"data": {"name": _data_name(told)}}
    values["privacy"] = {**own, **audited}
    differ = tuple(key for key, value in audited.items() if key in own and own[key] != value)
    return check_run(Fields(values, run.fields.source if run else told.source), run.rounds if run else ()), differ


def _data_name(told: Fields) -> str:
    name = told.section("run").values.get("data")
    return name if isinstance(name, str) else ""


def _written(audit: Mapping[str, Any]) -> bytes:
    """As `shared.files.write_json` writes it."""
    return (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode()
