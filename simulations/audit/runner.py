"""Run an audit: the rungs that were asked for, one after another, and what came of them as one document."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.app import partner_folder
from client.audit_canaries import Reveal
from server.app import describe_run
from server.transcript import TRANSCRIPTS
from shared.catalogue import read_catalogue
from shared.config import RunConfig, load_config
from shared.errors import ConfigError, DataError
from shared.files import write_json
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.plan import PrivacyPlan
from shared.wire import parse_plan
from simulations.audit.bundle.code import installed_code
from simulations.audit.bundle.transcripts import Transcript
from simulations.audit.findings import RungResult, overall
from simulations.audit.rerun import Rerun, Sizes, rerun
from simulations.audit.rungs.mechanism import planted
from simulations.workspace import Workspace

AUDIT_FILE, FORMAT = "audit.json", 1
DEFAULT_RUNGS = (0, 1, 2, 4, 6)
"""Minutes on two cores; 5 and 7 train reference models, 3 needs a run with canaries in its own rounds."""
DEFAULT_SIZES = Sizes()
REVEALS = "audit/reveals"
"""In a run folder: what partners tell of their canaries after a run; their ledgers lie in ``ledgers/``."""
Tell = Callable[[str], None]


@dataclass
class Audit:
    """What the rungs of one audit share.

    Attributes
    ----------
    run : Path
        The folder of a simulated run.
    seed : int
        Of all coins of the audit.
    sizes : Sizes
    references : int
        Reference models of rung 5.
    tell : callable
        Is told of the progress.
    """

    run: Path
    seed: int
    sizes: Sizes
    references: int
    tell: Tell
    config: RunConfig
    plan: PrivacyPlan
    scratch: Path
    _made: Rerun | None = field(default=None, repr=False)

    def rerun(self) -> Rerun:
        """The audited re-run, made once."""
        if self._made is None:
            folder = self.scratch / "rerun"
            self._made = rerun(self.run, folder, seed=self.seed, sizes=self.sizes, tell=self.tell)
        return self._made


def run_audit(
    run: Path,
    *,
    rungs: Sequence[int] = DEFAULT_RUNGS,
    out: Path | None = None,
    seed: int = 1,
    sizes: Sizes = DEFAULT_SIZES,
    references: int = 2,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Audit a run and write ``audit.json`` to `out` (``<run>/audit`` by default); returns what it holds.

    Raises
    ------
    ConfigError
        If a rung is unknown, or the folder holds no run.
    DataError
        If the run's partners are not there: a federation of real partners is audited by rungs 0 and 3 and by its
        evidence (`docs/audits.md`).
    """
    wanted = _known(rungs)
    if not (run / "config.json").is_file():
        raise ConfigError(f"{run}: Expected the folder of a run, with config.json.")
    if wanted - {0, 3} and not (run / "partners").is_dir():
        raise DataError(f"{run}: Expected the simulated partners of the run: these rungs train once more.")
    config = load_config(run / "config.json")
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="veilrec-audit-") as scratch:
        audit = Audit(run, seed, sizes, references, tell, config, build_plan(config), Path(scratch))
        results = [_LADDER[rung](audit) for rung in sorted(wanted)]
    document = _document(audit, results, started, time.monotonic() - began)
    write_json((out or run / "audit") / AUDIT_FILE, document)
    return document


def _known(rungs: Sequence[int]) -> set[int]:
    if not rungs or not set(rungs) <= set(_LADDER):
        raise ConfigError(f"Expected --rungs of {', '.join(map(str, sorted(_LADDER)))}, got {list(rungs)}.")
    return set(rungs)


def _mechanism(audit: Audit) -> RungResult:
    from simulations.audit.rungs.mechanism import mechanism_rung

    audit.tell("rung 0: the mechanism, as installed")
    return mechanism_rung(audit.plan, audit.config, audit.run, audit.seed)


def _gradient_canaries(audit: Audit) -> RungResult:
    from simulations.audit.rungs.gradient_canaries import gradient_canaries_rung

    audit.tell("rung 1: gradient canaries, in an audited re-run")
    began = time.monotonic()
    return gradient_canaries_rung(audit.rerun(), seed=audit.seed, began=began)


def _canary_users(audit: Audit) -> RungResult:
    from simulations.audit.rungs.canary_users import canary_users_rung

    audit.tell("rung 2: canary users")
    return canary_users_rung(audit.rerun(), seed=audit.seed)


def _user_inference(audit: Audit) -> RungResult:
    from simulations.audit.rungs.user_inference import user_inference_rung

    audit.tell("rung 4: user inference")
    return user_inference_rung(audit.rerun(), seed=audit.seed)


def _cosines(audit: Audit) -> RungResult:
    from simulations.audit.rungs.cosines import audit as audit_reveals
    from simulations.audit.rungs.cosines import audit_run

    audit.tell("rung 3: canaries in the run's own rounds")
    if not (audit.run / "partners").is_dir():  # a federation of real partners
        reveals = _reveals(audit.run / REVEALS)
        ledgers = {one.partner: audit.run / "ledgers" / f"{one.partner}.jsonl" for one in reveals}
        return audit_reveals(audit.run, reveals, ledgers, seed=audit.seed)
    workspace = Workspace.open(audit.run / "partners")
    folders = [partner_folder(workspace.root, k) for k in range(workspace.partners)]
    return audit_run(audit.run, folders, seed=audit.seed)


def _reveals(folder: Path) -> list[Reveal]:
    """What partners handed out with ``veilrec partner audit-canaries``, a file each."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(Reveal(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            raise DataError(f"{file}: Expected what `veilrec partner audit-canaries` writes.") from None
    if not found:
        raise DataError(f"{folder}: Expected a file of each partner, by `veilrec partner audit-canaries --out`.")
    return found


def _membership(audit: Audit) -> RungResult:
    from simulations.audit.rungs.membership import membership_rung

    audit.tell("rung 5: membership, with reference models")
    folder = audit.scratch / "membership"
    return membership_rung(audit.run, folder, audit.seed, references=audit.references, tell=audit.tell)


def _inversion(audit: Audit) -> RungResult:
    from shared.adapter import load_release
    from simulations.audit.rungs.inversion import inversion_rung

    audit.tell("rung 6: inversion of updates")
    workspace = Workspace.open(audit.run / "partners")
    learner = max(workspace.learners(), key=lambda one: len(one.histories(audit.config.model)))
    return inversion_rung(learner, audit.config, audit.plan, audit.seed, adapter=load_release(audit.run / "adapter"))


def _extraction(audit: Audit) -> RungResult:
    from simulations.audit.rungs.extraction import extraction_rung

    audit.tell("rung 7: attributes and canary texts")
    return extraction_rung(audit.run, audit.scratch / "extraction", audit.seed, tell=audit.tell)


_LADDER: dict[int, Callable[[Audit], RungResult]] = {
    0: _mechanism,
    1: _gradient_canaries,
    2: _canary_users,
    3: _cosines,
    4: _user_inference,
    5: _membership,
    6: _inversion,
    7: _extraction,
}


def _document(audit: Audit, results: Sequence[RungResult], started: str, seconds: float) -> dict[str, Any]:
    plan, code = audit.plan, installed_code()
    return {
        "format": FORMAT,
        "veilrec_version": code["veilrec_version"],
        "verdict": overall({one.name: one.verdict for one in results}).value,
        "claimed": {"epsilon": epsilon_spent(plan, plan.rounds), "delta": plan.delta},
        "plan": asdict(plan),
        "run": _run(audit),
        "seed": audit.seed,
        "started": started,
        "seconds": seconds,
        "versions": code["versions"],
        "code_sha256": code["files"],
        "rungs": [one.to_json() for one in results],
        "mutations": planted(),
    }


def _run_id(audit: Audit) -> str:
    """From the signed plan of the first round; a simulated run tells it by its catalogue as well."""
    first = audit.run / TRANSCRIPTS / "round-0001.json"
    if first.is_file():
        return parse_plan(Transcript(first.name, first.read_bytes()).signed.text).run_id
    return describe_run(audit.config, read_catalogue(audit.run / "partners" / "items.parquet")).run_id


def _run(audit: Audit) -> dict[str, Any]:
    run: dict[str, Any] = {"run_id": _run_id(audit)}
    try:
        told = json.loads((audit.run / "run.json").read_text(encoding="utf-8"))
        data = told["data"]
        return {**run, "data": data["name"], "partners": data["partners"], "users": data["users"]}
    except (OSError, ValueError, KeyError, TypeError):
        return run
