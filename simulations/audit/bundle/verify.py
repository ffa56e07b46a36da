"""Check a bundle, offline and by oneself: every signature, every chain, every number that follows from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError, IntegrityError
from shared.hazmat.signing import Pin, VerifyKey
from simulations.audit.bundle.check_audit import check_audit
from simulations.audit.bundle.check_claims import check_claims
from simulations.audit.bundle.check_ledgers import check_ledgers
from simulations.audit.bundle.check_transcripts import check_transcripts
from simulations.audit.bundle.code import source_digests
from simulations.audit.bundle.evidence import Evidence, read_evidence
from simulations.audit.bundle.seal import unseal

MOST_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a bundle that passed says.

    Attributes
    ----------
    run_id, mode : str
    epsilon : float or None
        As claimed, at `delta`; None in mode ``none``.
    recomputed_epsilon : float or None
        By this installation's accountant.
    delta : float
    rounds, sums : int
        Rounds, and sums that were opened in them.
    partners : tuple of str
        With a ledger in the bundle.
    policies : tuple of str
        Partners whose policy is in it.
    signer : str
        Who bundled.
    coordinator : tuple of str
        Whose plans and receipts they are.
    pinned : bool
        Whether the partners' keys were given from elsewhere; else they are those that the bundler tells.
    verdict : str or None
        Of the audit that is in it.
    rungs : mapping of str to str
        Verdicts by rung.
    other_code : tuple of str
        Source files that differ from this installation's: the run was made by other code, which is no error.
    """

    run_id: str
    mode: str
    epsilon: float | None
    recomputed_epsilon: float | None
    delta: float
    rounds: int
    sums: int
    partners: tuple[str, ...]
    policies: tuple[str, ...]
    signer: str
    coordinator: tuple[str, ...]
    pinned: bool
    verdict: str | None
    rungs: Mapping[str, str]
    other_code: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def verify_bundle(path: Path, trust: VerifyKey, identities: Mapping[str, Pin] | None = None) -> BundleReport:
    """Check a bundle.

    Parameters
    ----------
    path : Path
    trust : VerifyKey
        Who is expected to have bundled.
    identities : mapping of str to Pin, optional
        The partners' keys, known from elsewhere. Without them a bundler who also invents partners can tell a
        consistent story of a federation that never was.

    Guarantees
    ----------
    Nothing was changed since it was signed. Beyond that, whoever bundled: every partner in a sum has a ledger that its
    own key signed, with this plan in it, reserved before it was released, opened for the survivors that the transcript
    tells; no head that a receipt or a transcript tells is missing; no told epsilon is below the recomputed one; each
    bound and verdict of the audit follows from the scores and numbers that are told. That the scores are those that
    were measured, nobody can see from a file: rerun the audit with its seed.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    IntegrityError, LedgerError
        One line: the member, and what is wrong.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise IntegrityError(f"{path}: Expected at most {MOST_BYTES} bytes of evidence.")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}). Expected a bundle.") from None
    return verify_bytes(data, trust, str(path), identities)


def verify_bytes(
    data: bytes, trust: VerifyKey, where: str, identities: Mapping[str, Pin] | None = None
) -> BundleReport:
    """The same for the bytes of an archive; `where` names it in errors."""
    sealed = unseal(data, trust, where)
    evidence = read_evidence(sealed)
    if identities is not None:
        _check_pins(evidence, identities)
    check_ledgers(evidence)
    orders = check_transcripts(evidence)
    recomputed = check_claims(evidence, orders)
    verdict = check_audit(evidence)
    told, here = evidence.code["files"], source_digests()
    return BundleReport(
        run_id=evidence.run_id,
        mode=evidence.plan.mode,
        epsilon=evidence.run["privacy"].get("epsilon"),
        recomputed_epsilon=recomputed,
        delta=evidence.plan.delta,
        rounds=len(evidence.transcripts),
        sums=sum(len(transcript.sums) for transcript in evidence.transcripts),
        partners=tuple(sorted(evidence.ledgers)),
        policies=tuple(sorted(evidence.policies)),
        signer=sealed.signer.text,
        coordinator=tuple(key.text for key in sealed.coordinator.keys),
        pinned=identities is not None,
        verdict=None if verdict is None else verdict.value,
        rungs={rung["name"]: rung["verdict"] for rung in (evidence.audit or {}).get("rungs", [])},
        other_code=tuple(sorted(name for name in told.keys() | here.keys() if told.get(name) != here.get(name))),
    )


def _check_pins(evidence: Evidence, identities: Mapping[str, Pin]) -> None:
    for name in evidence.ledgers:
        known = identities.get(name)
        if known is None or not set(known.keys) & set(evidence.identities[name].keys):
            raise IntegrityError(f"identities.json: Expected the pinned key of {name}, got another.")
