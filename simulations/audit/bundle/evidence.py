"""What a bundle says, member by member, in types. Nothing is believed yet."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.config import RunConfig, parse_config
from shared.errors import ConfigError, IntegrityError, VeilrecError
from shared.hazmat.signing import Pin, VerifyKey, pin
from shared.privacy.ledger import replay
from shared.privacy.ledger_entries import validate
from shared.privacy.ledger_heads import Receipt
from shared.privacy.ledger_state import LedgerState
from shared.privacy.plan import PrivacyPlan
from shared.release_manifest import FILES
from simulations.audit.bundle.seal import Sealed, parse
from simulations.audit.bundle.transcripts import Transcript

PLAN, RUN, ROUNDS, RECEIPTS, IDENTITIES, CODE, AUDIT = (
    "plan.json",
    "run.json",
    "rounds.jsonl",
    "receipts.json",
    "identities.json",
    "code.json",
    "audit.json",
)
RUN_KEYS: Mapping[str, tuple[str, ...]] = {
    "veilrec_version": (),
    "seed": (),
    "engine": (),
    "config": (),
    "data": ("name", "partners"),
    "model": ("base", "base_sha256", "adapted_layers", "lora_rank", "adapter_fingerprint"),
    "privacy": (),
}
"""Of ``run.json``: what can be checked against the rest of a bundle, and names. Metrics and times prove nothing."""
AUDIT_KEYS = (
    "format",
    "veilrec_version",
    "verdict",
    "claimed",
    "plan",
    "run",
    "seed",
    "started",
    "seconds",
    "versions",
    "code_sha256",
    "rungs",
    "mutations",
)
PLAN_KEYS, POLICY_KEYS = ("run_id", "plan", "config"), ("name", "simulated", "policy", "peers")
RELEASE_MANIFEST, RELEASE_SIGNATURE = "adapter/manifest.json", "adapter/manifest.sig"
_NAME = r"[A-Za-z0-9._-]{1,64}"
LEDGER, POLICY = re.compile(rf"ledgers/({_NAME})\.jsonl"), re.compile(rf"policies/({_NAME})\.json")
TRANSCRIPT = re.compile(r"transcripts/round-([0-9]{4,})\.json")
ALWAYS = frozenset({PLAN, RUN, ROUNDS, RECEIPTS, IDENTITIES, CODE, RELEASE_MANIFEST, RELEASE_SIGNATURE})
MAYBE = frozenset({AUDIT, *(f"adapter/{name}" for name in FILES)})


@dataclass(frozen=True, slots=True)
class Evidence:
    """The members of a bundle, read.

    Attributes
    ----------
    run_id : str
    plan : PrivacyPlan
    config : RunConfig
    run : dict
        ``run.json``, without what nothing here can check (`RUN_KEYS`).
    records : list of dict
        ``rounds.jsonl``.
    identities : mapping of str to Pin
        By partner.
    coordinator : Pin
    receipts : mapping of str to Receipt
        The coordinator's own copies.
    ledgers : mapping of str to LedgerState
        Spelling, chain, signatures by the key that each names, and rules were checked as they were read.
    transcripts : tuple of Transcript
        In order of rounds.
    policies : mapping of str to dict
    code : dict
    audit : dict or None
    members : mapping of str to bytes
    """

    run_id: str
    plan: PrivacyPlan
    config: RunConfig
    run: dict[str, Any]
    records: list[dict[str, Any]]
    identities: Mapping[str, Pin]
    coordinator: Pin
    receipts: Mapping[str, Receipt]
    ledgers: Mapping[str, LedgerState]
    transcripts: tuple[Transcript, ...]
    policies: Mapping[str, dict[str, Any]]
    code: dict[str, Any]
    audit: dict[str, Any] | None
    members: Mapping[str, bytes]

    @property
    def prior_rounds(self) -> int:
        """1 if the first round is the prior's."""
        return 0 if self.plan.prior_noise_multiplier is None else 1


def read_evidence(sealed: Sealed) -> Evidence:
    """Read every member.

    Raises
    ------
    IntegrityError
        If a member is missing, is none that evidence has, or does not hold what its name says.
    LedgerError
        If a ledger's lines are not those that its key wrote, or break a rule.
    """
    members = sealed.members
    _check_names(members)
    told = _object(members, PLAN, {"run_id": str, "plan": dict, "config": dict}, PLAN_KEYS)
    return Evidence(
        run_id=told["run_id"],
        plan=_plan(told["plan"]),
        config=_config(told["config"]),
        run=_run(members),
        records=_records(members[ROUNDS]),
        identities=read_pins(members[IDENTITIES], IDENTITIES),
        coordinator=sealed.coordinator,
        receipts={name: _receipt(name, value) for name, value in _object(members, RECEIPTS, {}).items()},
        ledgers={found[1]: _ledger(name, members[name]) for name in members if (found := LEDGER.fullmatch(name))},
        transcripts=tuple(Transcript(name, members[name]) for name in _transcripts(members)),
        policies={
            found[1]: _object(members, name, {}, POLICY_KEYS)
            for name in sorted(members)
            if (found := POLICY.fullmatch(name))
        },
        code=_object(members, CODE, {"versions": dict, "files": dict}),
        audit=_object(members, AUDIT, {}, AUDIT_KEYS) if AUDIT in members else None,
        members=members,
    )


def _check_names(members: Mapping[str, bytes]) -> None:
    if missing := sorted(ALWAYS - members.keys()):
        raise IntegrityError(f"evidence: Expected {missing[0]}, got a bundle without it.")
    for name in members:
        if name not in ALWAYS | MAYBE and not any(form.fullmatch(name) for form in (LEDGER, POLICY, TRANSCRIPT)):
            raise IntegrityError(f"evidence: Expected members that evidence has, got {name!r}.")


def _run(members: Mapping[str, bytes]) -> dict[str, Any]:
    told = _object(members, RUN, {"privacy": dict, "data": dict, "model": dict}, RUN_KEYS)
    for name, fields in RUN_KEYS.items():
        if fields and told[name].keys() - set(fields):
            raise IntegrityError(f"{RUN}: Expected of {name} {', '.join(fields)} alone, got more.")
    return told


def _object(
    members: Mapping[str, bytes], name: str, needed: Mapping[str, type], allowed: Collection[str] | None = None
) -> dict[str, Any]:
    told = parse(members[name], name)
    if not isinstance(told, dict):
        raise IntegrityError(f"{name}: Expected a JSON object.")
    for key, kind in needed.items():
        if not isinstance(told.get(key), kind):
            raise IntegrityError(f"{name}: Expected {key}, got none.")
    if allowed is not None and (more := told.keys() - set(allowed)):
        raise IntegrityError(f"{name}: Expected what evidence tells, got {min(more)!r}.")
    return told


def _plan(told: dict[str, Any]) -> PrivacyPlan:
    try:
        plan = PrivacyPlan(**told)
        same = plan.told() == told
    except (TypeError, VeilrecError):
        same = False
    if not same:
        raise IntegrityError(f"{PLAN}: Expected the fields of a PrivacyPlan.")
    return plan


def _config(told: dict[str, Any]) -> RunConfig:
    try:
        config = parse_config(json.dumps(told), PLAN)
    except ConfigError as error:
        raise IntegrityError(str(error)) from None
    if config.model_dump(mode="json") != told:
        raise IntegrityError(f"{PLAN}: Expected every key of a configuration.")
    return config


def _records(data: bytes) -> list[dict[str, Any]]:
    rows = [parse(line, f"{ROUNDS}, line {n}") for n, line in enumerate(data.splitlines(), start=1)]
    if not data.endswith(b"\n") or not all(isinstance(row, dict) for row in rows):
        raise IntegrityError(f"{ROUNDS}: Expected one JSON object a line.")
    return rows


def read_pins(data: bytes, where: str) -> dict[str, Pin]:
    """Names and public keys, as ``identities.json`` holds them.

    Raises
    ------
    IntegrityError
        If it does not.
    """
    told = parse(data, where)
    if not isinstance(told, dict):
        raise IntegrityError(f"{where}: Expected a JSON object of names and keys.")
    return {name: _pin(name, value) for name, value in told.items()}


def _pin(name: str, value: Any) -> Pin:
    texts = value if isinstance(value, list) else [value]
    try:
        return pin(VerifyKey.from_text(text) for text in texts)
    except (VeilrecError, AttributeError):
        raise IntegrityError(f"{IDENTITIES}: {name}: Expected a public key, or two.") from None


def _receipt(name: str, value: Any) -> Receipt:
    try:
        receipt = Receipt(**value)
        validate(receipt)
    except (TypeError, VeilrecError):
        raise IntegrityError(f"{RECEIPTS}: {name}: Expected a receipt.") from None
    return receipt


def _ledger(name: str, data: bytes) -> LedgerState:
    state = LedgerState()
    read = sum(len(line) for line in replay(data, 0, state, Path(name)))
    if state.genesis is None or read != len(data):
        raise IntegrityError(f"{name}: Expected whole lines of a ledger, got a torn one.")
    return state


def _transcripts(members: Mapping[str, bytes]) -> list[str]:
    found = sorted((int(match[1]), name) for name in members if (match := TRANSCRIPT.fullmatch(name)))
    expected = [(n, f"transcripts/round-{n:04d}.json") for n in range(1, len(found) + 1)]
    if found != expected:
        raise IntegrityError("transcripts: Expected one of every round from 1, got others.")
    return [name for _, name in found]
