"""``veilrec partner check``: is a partner's folder ready for a federation, and what does it allow?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.data.ingest import read
from client.policy import DIGEST, UNLIMITED, Policy
from client.premises import IDENTITY_FILE, PARTNER_FILE, Premises
from shared.catalogue import build_catalogue
from shared.config import DEFAULT_BASE
from shared.errors import ConfigError, VeilrecError
from shared.hazmat.signing import SigningKey
from shared.model.weights import find_base
from shared.privacy.ledger_audit import verify_ledger


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what it is, whether it is in order, and what was found."""

    name: str
    ok: bool
    found: str

    def to_json(self) -> dict[str, Any]:
        """The fields, by name."""
        return asdict(self)


def check_premises(folder: Path) -> list[Check]:
    """Look at a partner's folder; nothing is written.

    What cannot be looked at because ``partner.toml`` cannot be read is left out.
    """
    try:
        premises = Premises.open(folder)
    except ConfigError as error:
        return [Check(PARTNER_FILE, False, str(error))]
    kind = "simulated data" if premises.simulated else "real data"
    return [
        Check(PARTNER_FILE, True, f"partner {premises.name}, {kind}, {len(premises.peers)} pinned partners"),
        _looked("coordinator", lambda: _coordinator(premises)),
        _looked("identity key", lambda: _identity(premises)),
        _looked("data", lambda: _data(premises)),
        _looked("base model", lambda: _base(premises.policy)),
        _looked("ledger", lambda: _ledger(premises)),
    ]


def policy_in_words(policy: Policy) -> list[str]:
    """A partner's floor, one sentence a limit."""
    bases = "any" if policy.bases is None else ", ".join(policy.bases)
    adapter = {
        "LoRA rank": policy.max_lora_rank,
        "adapted layers": policy.max_adapted_layers,
        "rank of item residuals": policy.max_item_rank,
        "rank of the head": policy.max_head_rank,
    }
    at_once = {
        "events read of a user": policy.max_events,
        "events kept of a user": policy.max_history,
        "users in memory": policy.max_microbatch,
    }
    rounds = "any number of" if policy.max_rounds == UNLIMITED else f"at most {policy.max_rounds}"
    epsilon = "no limit" if math.isinf(policy.max_epsilon) else f"at most {policy.max_epsilon:g}"
    persons = "one partner" if policy.min_partners_per_user == 1 else f"{policy.min_partners_per_user} partners"
    helping = f"even if {policy.min_colluders} of them help" if policy.min_colluders else "if none of them helps"
    return [
        f"All runs on these data together may spend epsilon {epsilon} and delta {policy.max_delta:g}, for one user.",
        f"Noise is added in mode {' or '.join(policy.modes)}.",
        f"A sum is opened over {policy.min_cohort} partners or more.",
        f"Its noise has to be enough {helping} the coordinator.",
        f"A person has to be taken as known to {persons}, or more.",
        f"A run has {rounds} training rounds.",
        f"The base model is one of: {bases}.",
        f"The adapter has at most: {_limits(adapter)}.",
        f"Computed at once is at most: {_limits(at_once)}.",
    ]


def _limits(limits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {'no limit' if most == UNLIMITED else most}" for name, most in limits.items())


def fingerprint(folder: Path) -> Mapping[str, str]:
    """SHA-256 of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _looked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except VeilrecError as error:
        return Check(name, False, str(error))


def _coordinator(premises: Premises) -> str:
    key = premises.policy.server_key
    if key is None:
        raise ConfigError(f"Expected policy.server_key in {PARTNER_FILE}: without it nobody may ask.")
    return f"pinned, {key.text}"


def _identity(premises: Premises) -> str:
    file = premises.folder / IDENTITY_FILE
    if not file.exists() and not premises.peers:
        return "none yet: it is made with the first run, as nobody has pinned one"
    key = SigningKey.load(file).public
    if premises.peers and key not in premises.peers[premises.name].keys:
        raise ConfigError(f"{file}: Expected the key that is pinned as peers.{premises.name}, got another.")
    return key.text


def _data(premises: Premises) -> str:
    data = read(premises.data)
    catalogue, users = build_catalogue(data.items), data.interactions.get_column("user_id").n_unique()
    return f"{data.interactions.height} interactions of {users} users, {len(catalogue)} items"


def _base(policy: Policy) -> str:
    """A model that the policy names, on this machine; where it names digests alone, the packaged model."""
    named = [base for base in policy.bases or (DEFAULT_BASE,) if not DIGEST.fullmatch(base)]
    missing = []
    for name in named or [DEFAULT_BASE]:
        try:
            base = find_base(name, local_only=True)
        except ConfigError:
            missing.append(name)
            continue
        if not named and base.sha256 not in (policy.bases or ()):
            raise ConfigError("Expected a base model with one of the allowed digests on this machine.")
        return f"{name}, sha256 {base.sha256}"
    raise ConfigError(f"Expected one of the allowed base models on this machine: {', '.join(missing)}.")


def _ledger(premises: Premises) -> str:
    if not premises.ledger_file.exists():
        return "none yet: nothing was spent"
    file = premises.folder / IDENTITY_FILE
    identity = SigningKey.load(file).public if file.exists() else None
    report = verify_ledger(premises.ledger_file, identity, premises.policy.server_key)
    spent = report.spent
    return f"{report.head.count} entries, verified; epsilon {spent.epsilon:g} and delta {spent.delta:g} spent"
