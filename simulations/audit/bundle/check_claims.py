"""The numbers that are told of a run, against each other and against the accountant; release and policies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.policy import Facts, Policy, check
from shared.errors import AccountingError, IntegrityError, VeilrecError
from shared.messages import RoundPlan
from shared.privacy.accounting import epsilon_spent
from shared.privacy.ledger_audit import EPSILON_TOLERANCE
from shared.release_manifest import FILES, parse_manifest
from shared.release_signature import check_signature
from simulations.audit.bundle.check_ledgers import confirmed
from simulations.audit.bundle.evidence import (
    IDENTITIES,
    PLAN,
    RELEASE_MANIFEST,
    RELEASE_SIGNATURE,
    ROUNDS,
    RUN,
    Evidence,
)


def check_claims(evidence: Evidence, orders: tuple[RoundPlan, ...]) -> float | None:
    """Check every epsilon that is told, the release, and the policies.

    Returns
    -------
    float or None
        Epsilon of the whole plan, computed anew; None in mode ``none``.

    Raises
    ------
    IntegrityError
        Names the member and what is wrong.
    """
    after = _recomputed(evidence)
    _check_rounds(evidence, after)
    _check_run(evidence, after)
    manifest = _check_release(evidence, orders)
    for name, told in evidence.policies.items():
        _check_policy(evidence, name, told, orders, manifest)
    return after[-1]


def _recomputed(evidence: Evidence) -> list[float | None]:
    """Epsilon after each round."""
    try:
        return [
            epsilon_spent(evidence.plan, max(0, number + 1 - evidence.prior_rounds))
            for number in range(len(evidence.records))
        ]
    except AccountingError as error:
        raise IntegrityError(f"{PLAN}: {error}") from None


def _same(told: object, expected: float | None) -> bool:
    """Whether a told epsilon is the recomputed one, to what accountants of other versions may differ by."""
    if expected is None or not isinstance(told, int | float) or isinstance(told, bool):
        return told is None and expected is None
    return math.isclose(told, expected, rel_tol=EPSILON_TOLERANCE)


def _check_rounds(evidence: Evidence, after: list[float | None]) -> None:
    for number, (record, expected) in enumerate(zip(evidence.records, after, strict=True), start=1):
        if not _same(record.get("epsilon"), expected):
            raise IntegrityError(
                f"{ROUNDS}, line {number}: Expected epsilon={expected} after the round, got {record.get('epsilon')}."
            )


def _check_run(evidence: Evidence, after: list[float | None]) -> None:
    """``run.json``: field by field what plan, configuration, rounds and ledgers say."""
    plan, config, records = evidence.plan, evidence.config, evidence.records
    prior = records[0].get("epsilon") if evidence.prior_rounds else 0.0
    spent = max((state.spent() for state in evidence.ledgers.values()), key=lambda one: (one.epsilon, one.delta))
    expected: dict[str, Any] = {
        **asdict(plan),
        "epsilon": records[-1].get("epsilon"),
        "prior_epsilon": None if plan.mode == "none" else prior,
        "randomness": "system" if config.seed is None else "seeded",
        "ledger": {
            "epsilon": spent.epsilon if math.isfinite(spent.epsilon) else None,
            "delta": spent.delta,
            "plans": spent.plans,
        },
    }
    _equal(f"{RUN}, privacy", evidence.run["privacy"], expected, set(plan.told()) | {"epsilon"})
    if evidence.run.get("seed") != config.seed or evidence.run.get("config") != config.model_dump(mode="json"):
        raise IntegrityError(f"{RUN}: Expected seed and configuration of {PLAN}, got others.")
    model = {key: getattr(config.model, key) for key in ("base", "adapted_layers", "lora_rank")}
    _equal(f"{RUN}, model", evidence.run["model"], model)
    _equal(f"{RUN}, data", evidence.run["data"], {"partners": len(evidence.identities)})


def _equal(where: str, told: Mapping[str, Any], expected: Mapping[str, Any], needed: set[str] | None = None) -> None:
    for key, value in expected.items():
        absent = key not in told and (needed is None or key in needed)
        if absent or (key in told and told[key] != value):
            raise IntegrityError(f"{where}: Expected {key}={value!r}, got {told.get(key)!r}.")


def _check_release(evidence: Evidence, orders: tuple[RoundPlan, ...]) -> dict[str, Any]:
    """The adapter's manifest: the coordinator's, of this run's catalogue and model, at this epsilon."""
    data, where = evidence.members[RELEASE_MANIFEST], Path(RELEASE_MANIFEST)
    trust = frozenset(confirmed(evidence).keys)
    check_signature(data, evidence.members[RELEASE_SIGNATURE], trust, Path(RELEASE_SIGNATURE))
    manifest = parse_manifest(data, where)
    told = evidence.run["privacy"]
    privacy = {"mode": evidence.plan.mode, "epsilon": told.get("epsilon"), "delta": evidence.plan.delta}
    _equal(f"{RELEASE_MANIFEST}, privacy", manifest["privacy"], privacy)
    _equal(RELEASE_MANIFEST, manifest, {"base": evidence.config.model.base})
    if any(order.catalogue_digest != manifest["catalogue_sha256"] for order in orders):
        raise IntegrityError(f"{RELEASE_MANIFEST}: Expected the catalogue of the rounds, got another.")
    model = {"base_sha256": manifest["base_sha256"], "adapter_fingerprint": manifest["fingerprint"]}
    _equal(f"{RUN}, model", evidence.run["model"], model)
    for name in FILES:
        content = evidence.members.get(f"adapter/{name}")
        if content is not None and hashlib.sha256(content).hexdigest() != manifest["files"][name]:
            raise IntegrityError(f"adapter/{name}: Expected the SHA-256 of the release's manifest, got another.")
    return manifest


def _check_policy(
    evidence: Evidence, name: str, told: dict[str, Any], orders: tuple[RoundPlan, ...], manifest: dict[str, Any]
) -> None:
    """A partner's floor: it pins these keys, and every round is within it."""
    where = f"policies/{name}.json"
    try:
        policy = Policy.model_validate(told["policy"])
        simulated, peers = bool(told["simulated"]), told["peers"]
        known = {who: [key.text for key in pinned.keys] for who, pinned in evidence.identities.items()}
        pinned_peers = {who: keys if isinstance(keys, list) else [keys] for who, keys in peers.items()}
        if told["name"] != name or name not in evidence.ledgers:
            raise ValueError("the policy of a partner with a ledger")
        if pinned_peers and pinned_peers != known:
            raise ValueError(f"the peers of {IDENTITIES}")
        if policy.server_key is None or not set(policy.server_key.keys) & set(evidence.coordinator.keys):
            raise ValueError("the coordinator's key")
        for order in orders:
            facts = Facts(simulated, len(peers), evidence.run["privacy"].get("epsilon"), manifest["base_sha256"])
            check(policy, facts, order)
    except VeilrecError as error:
        raise IntegrityError(f"{where}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = error if type(error) is ValueError else "a partner's policy"
        raise IntegrityError(f"{where}: Expected {wanted}, got another.") from None
