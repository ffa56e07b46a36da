"""A partner's premises: where its things lie, whether its data are simulated, what it allows, whom it knows.

All of it is told by ``partner.toml`` in the partner's own folder, and by nothing that a message brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from client.policy import PinnedKey, Policy, RealPolicy
from shared.errors import ConfigError
from shared.files import write_bytes
from shared.hazmat.signing import Pin, SigningKey, distinct
from shared.settings_file import parse_toml, read_toml, settings_of

PARTNER_FILE = "partner.toml"
IDENTITY_FILE, LEDGER_FILE = "identity.key", "ledger.jsonl"
RUNS = "runs"
"""The folder of what is kept of runs."""
AGENT_LOCK = "agent.lock"
"""Held over every answer of the agent, and by whoever changes the partner's files."""

PartnerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
PathText = Annotated[str, Field(min_length=1)]


class _Settings(BaseModel):
    """``partner.toml`` of simulated data."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    name: PartnerName
    simulated: bool = False
    data: PathText = "."
    cache: PathText = "text-cache.sqlite"
    tie_seed: Annotated[int, Field(ge=0)] = 0
    policy: Policy = Policy()
    peers: dict[PartnerName, PinnedKey] = {}

    @model_validator(mode="after")
    def _pins_are_of_different_parties(self) -> Self:
        # Whoever holds two keys counts as two partners, and what the third one adds stands alone.
        if not distinct([*self.peers.values(), *([self.policy.server_key] if self.policy.server_key else [])]):
            raise ValueError("peers and policy.server_key: Expected another key for every partner and the coordinator")
        if self.peers and self.name not in self.peers:
            raise ValueError(f"peers: Expected the partner's own name {self.name} among them")
        return self


class _RealSettings(_Settings):
    """``partner.toml`` of real data: a floor and pinned keys have to be there."""

    policy: RealPolicy
    peers: Annotated[dict[PartnerName, PinnedKey], Field(min_length=1)]


@dataclass(frozen=True)
class Premises:
    """Where a partner keeps its things, and what it decided by itself.

    Attributes
    ----------
    folder : Path
        The partner's state: ``partner.toml``, keys, ledger, and what it keeps of runs.
    data : Path
        Holds ``interactions.parquet`` and ``items.parquet``.
    name : str
        As pinned at the other partners.
    simulated : bool
        True only if the folder's own ``partner.toml`` says so.
    cache : Path
        The file of text vectors.
    tie_seed : int
        Orders events of equal time (`client.data.histories.in_time_order`).
    policy : Policy
        The floor; a `RealPolicy` where data are real.
    peers : mapping of str to Pin
        The pinned identities of all partners, itself included, two where a partner changes its own; empty only in
        simulations.
    """

    folder: Path
    data: Path
    name: str
    simulated: bool
    cache: Path
    tie_seed: int
    policy: Policy
    peers: Mapping[str, Pin] = field(hash=False)

    @classmethod
    def open(cls, folder: Path) -> Premises:
        """Read ``partner.toml``.

        Raises
        ------
        ConfigError
            If there is no such folder or file, or a key in it is not what was expected.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder. Expected a partner's.")
        file = folder / PARTNER_FILE
        absent = (
            f"{folder}: no {PARTNER_FILE}, so that nothing says what this partner allows. Expected one with name, "
            "[policy] (max_epsilon, max_delta, min_cohort, server_key) and [peers]."
        )
        told = _settings(read_toml(file, absent), file)
        return cls(
            folder=folder,
            data=folder / told.data,
            name=told.name,
            simulated=told.simulated,
            cache=folder / told.cache,
            tie_seed=told.tie_seed,
            policy=told.policy,
            peers=told.peers,
        )

    @cached_property
    def identity(self) -> SigningKey:
        """The key that signs for this partner; made on first use, unless peers have pinned one already.

        Raises
        ------
        ConfigError
            If it cannot be read, others may read it, or it is not the one that ``[peers]`` pins.
        DataError
            If the file holds no Ed25519 key.
        """
        file = self.folder / IDENTITY_FILE
        # A lost key must not be replaced in silence: the others would refuse the new one.
        key = SigningKey.load(file) if self.peers else SigningKey.load_or_create(file)
        if self.peers and key.public not in self.peers[self.name].keys:
            raise ConfigError(
                f"{file}: Expected the key that {PARTNER_FILE} pins as peers.{self.name}={self.peers[self.name].text}, "
                f"got {key.public.text}."
            )
        return key

    @property
    def ledger_file(self) -> Path:
        """What was spent on these data, over all runs."""
        return self.folder / LEDGER_FILE


def write_partner(folder: Path, settings: Mapping[str, Any]) -> Premises:
    """Write ``partner.toml``, whole, and read it back.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    settings : mapping
        The tree of the file; keys as text.

    Raises
    ------
    ConfigError
        If the settings are not those of a partner; a file that was there before is then left as it was.
    """
    file = folder / PARTNER_FILE
    try:
        text = tomli_w.dumps(settings)
    except TypeError as error:
        raise ConfigError(f"{file}: Expected settings that TOML can hold: {error}.") from None
    _settings(parse_toml(text, file), file)
    write_bytes(file, text.encode())
    return Premises.open(folder)


def _settings(told: Mapping[str, Any], file: Path) -> _Settings:
    return settings_of(_Settings if told.get("simulated") is True else _RealSettings, told, file)
