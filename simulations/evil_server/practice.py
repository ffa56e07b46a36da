"""A small real federation to attack: real agents, real keys and ledgers, invented people.

Its folders say ``simulated = false``: the data do not know that they are invented, so that the rules of real data
hold. The policy is that of the partner who asks, as far as a practice of seconds allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from client.agent import PartnerAgent, agent_for
from client.app import partner_folder
from client.data.ingest import RawData, write
from client.policy import Policy, RealPolicy
from client.premises import AGENT_LOCK, IDENTITY_FILE, Premises, write_partner
from server.admission import Admission
from shared.config import (
    DEFAULT_BASE,
    FederationConfig,
    ModelConfig,
    PriorConfig,
    PrivacyConfig,
    RunConfig,
    TrainingConfig,
)
from shared.errors import ConfigError
from shared.hazmat.signing import SigningKey
from simulations.marketplace import MarketplaceConfig, generate

ITEMS, USERS_A_PARTNER, SHOP_ITEMS = 24, 15, 136
"""Of the catalogue; of each partner; of the shop of which the catalogue is the best-selling part."""
LARGEST_EPSILON, LARGEST_DELTA, LARGEST_COHORT, ROUNDS = 8.0, 1e-4, 20, 2
"""Of the practice: more would take longer and show nothing else."""
_SESSION = "round.json"


@dataclass(frozen=True)
class Practice:
    """A federation on disk that can be set back.

    Attributes
    ----------
    base : Path
        All that an attack could reach; the federation lies in `root` below it.
    names : tuple of str
        The partners, sorted; `colluders` of them, the last ones, are the attacker's.
    policy : Policy
        Of every partner.
    config : RunConfig
        Of a run that every partner accepts.
    admission : Admission
        The coordinator's key, which the attacker has, and the pinned identities.
    pristine : mapping of Path to bytes
        Every file as it was before the first attack.
    """

    base: Path
    names: tuple[str, ...]
    colluders: int
    policy: Policy
    config: RunConfig
    admission: Admission
    pristine: Mapping[Path, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, base: Path, policy: Policy) -> Practice:
        """Write a federation below `base` in which every partner has (nearly) this policy.

        Raises
        ------
        ConfigError
            If the policy asks for a larger cohort than a practice can have.
        """
        limits = practice_limits(policy)
        config = _config(limits)
        names = tuple(partner_folder(base, k).name for k in range(config.federation.partners))
        admission = _found(base / "federation", names, limits)
        own = Premises.open(partner_folder(base / "federation", 0)).policy
        practice = cls(base, names, config.privacy.colluders, own, config, admission)
        for name in names:  # what a partner makes on first use is there before the first attack
            practice.agent(name).learner.histories(config.model)
        return replace(practice, pristine={path: path.read_bytes() for path in practice._files()})

    @property
    def root(self) -> Path:
        """The folder of the partners' folders."""
        return self.base / "federation"

    def folder(self, name: str) -> Path:
        """A partner's folder."""
        return partner_folder(self.root, self.names.index(name))

    def agent(self, name: str) -> PartnerAgent:
        """A partner's agent: the one that answers what comes through the client app."""
        return agent_for(self.folder(name))

    def restore(self) -> None:
        """Set every file back, and restart every partner."""
        agent_for.cache_clear()
        for path in self._files():
            if path not in self.pristine:
                path.unlink()
        for path, data in self.pristine.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)

    def set_back(self, name: str, file: str) -> None:
        """Set one file of a partner back, and restart every partner: a backup was played in."""
        path = self.folder(name) / file
        path.write_bytes(self.pristine[path])
        agent_for.cache_clear()

    def digests(self) -> Mapping[Path, str]:
        """SHA-256 of every file; of the state of a session only that it is there: a refusal erases its secrets."""
        return {path: "there" if self._is_session(path) else _digest(path) for path in self._files()}

    def _files(self) -> list[Path]:
        """All files but the cache of text vectors, which any reading may fill, and the agent's lock, which is empty."""
        found = [path for path in sorted(self.base.rglob("*")) if path.is_file()]
        return [path for path in found if not path.name.startswith("cache") and path.name != AGENT_LOCK]

    def _is_session(self, path: Path) -> bool:
        parts = path.relative_to(self.base).parts
        return len(parts) == 5 and parts[2] == "runs" and parts[4] == _SESSION


def practice_limits(policy: Policy) -> dict[str, Any]:
    """A partner's limits for a practice: those of real data at least, and room for one small run.

    Parameters
    ----------
    policy : Policy
        Also one of simulated data, whose limits may be infinite.
    """
    fields = RealPolicy.model_fields
    modes = [mode for mode in policy.modes if mode != "none"]
    return {
        "max_epsilon": min(policy.max_epsilon, LARGEST_EPSILON),
        "max_delta": min(policy.max_delta, LARGEST_DELTA),
        "min_cohort": max(policy.min_cohort, 3),
        "min_colluders": policy.min_colluders,
        "min_partners_per_user": policy.min_partners_per_user,
        "modes": modes or ["distributed", "local"],
        "max_rounds": max(ROUNDS, min(policy.max_rounds, fields["max_rounds"].default)),
        "bases": sorted({*(policy.bases or ()), DEFAULT_BASE}),
        "max_lora_rank": max(1, min(policy.max_lora_rank, fields["max_lora_rank"].default)),
        "max_adapted_layers": max(1, min(policy.max_adapted_layers, fields["max_adapted_layers"].default)),
        "max_item_rank": min(policy.max_item_rank, fields["max_item_rank"].default),
    }


def _config(limits: Mapping[str, Any]) -> RunConfig:
    """A run that fits the limits once, but not twice: one partner may drop out, and `colluders` are the attacker's."""
    colluders = max(1, limits["min_colluders"])
    survivors = max(limits["min_cohort"], colluders + 2)
    if survivors > LARGEST_COHORT:
        raise ConfigError(f"Expected policy.min_cohort and min_colluders for a practice of {LARGEST_COHORT} partners.")
    return RunConfig(
        seed=None,
        simulation=False,
        model=ModelConfig(adapted_layers=1, lora_rank=1, lora_alpha=2, head_rank=1, max_events=8, max_history=20),
        prior=PriorConfig(kind="popularity", epsilon_share=0.5),
        training=TrainingConfig(rounds=ROUNDS, sampling_rate=0.5),
        privacy=PrivacyConfig(
            mode="distributed" if "distributed" in limits["modes"] else "local",
            epsilon=0.6 * limits["max_epsilon"],
            delta=0.4 * limits["max_delta"],
            population=1000,
            colluders=colluders,
            partners_per_user=limits["min_partners_per_user"],
        ),
        federation=FederationConfig(partners=survivors + 1, quorum=survivors),
    )


def _found(root: Path, names: tuple[str, ...], limits: Mapping[str, Any]) -> Admission:
    """Data, keys and settings of all partners, and the coordinator's."""
    shop = MarketplaceConfig(users=USERS_A_PARTNER * len(names), items=SHOP_ITEMS, partners=1, seed=3)
    interactions, items = generate(shop)
    best = interactions.get_column("item_id").value_counts().sort("count", "item_id", descending=True).head(ITEMS)
    kept = best.get_column("item_id").implode()
    partner = pl.col("user_id").rank("dense").cast(pl.Int64) % len(names)
    events = interactions.filter(pl.col("item_id").is_in(kept)).with_columns(partner=partner)
    identities = {}
    for k, name in enumerate(names):
        own = events.filter(pl.col("partner") == k).drop("partner")
        write(RawData(name, own, items.filter(pl.col("item_id").is_in(kept))), partner_folder(root, k))
        identities[name] = SigningKey.load_or_create(partner_folder(root, k) / IDENTITY_FILE).public
    admission = Admission.create(root, identities)
    for k, name in enumerate(names):
        settings = {
            "name": name,
            "simulated": False,
            "cache": str(root.parent / "cache.sqlite"),
            "policy": {**limits, "server_key": admission.key.public.text},
            "peers": {peer: key.text for peer, key in identities.items()},
        }
        write_partner(partner_folder(root, k), settings)
    return admission


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
