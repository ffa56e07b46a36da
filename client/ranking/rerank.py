"""Reranking as settings: what a request or a configuration file asks for, and the stages that do it, in a fixed order.

::

    1  Exclude        first, so that no place of a later stage is spent on what goes
    2  LongTailBoost  scores
    3  Freshen        scores
    4  Diversify      places, by scores
    5  Arrange        pins and caps, which therefore hold exactly
    6  Top            the first k

Bounds of settings are in the fields, so that a schema made of them tells them. Without any setting the list is the
model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.ranking.business_rules import Arrange, CapPerGroup, Pin
from client.ranking.rerank_stages import (
    Candidates,
    Diversify,
    Exclude,
    Freshen,
    ItemFacts,
    LongTailBoost,
    Stage,
    Top,
)
from shared.errors import ConfigError
from shared.schema import Catalogue

MOST_PLACES = 1000
DAY = 86_400.0
Strength = Annotated[float, Field(ge=0, le=10, strict=True)]
Place = Annotated[int, Field(ge=1, le=MOST_PLACES, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LongTailSettings(_Settings):
    """`LongTailBoost`."""

    strength: Strength = Field(description="0: as the model has it. 1: popularity counts against as relevance for.")


class FreshenSettings(_Settings):
    """`Freshen`."""

    strength: Strength = Field(description="Bonus of an item that is new today, in deviations of the scores.")
    half_life_days: float = Field(
        default=30.0, strict=True, gt=0, le=36_500, description="After which half of the bonus is left."
    )


class DiversifySettings(_Settings):
    """`Diversify`."""

    trade_off: float = Field(strict=True, ge=0, le=1, description="1: relevance alone. 0: unlikeness alone.")
    depth: Place = Field(default=10, description="Places that are filled so.")


class ExcludeSettings(_Settings):
    """`Exclude`."""

    items: tuple[Name, ...] = Field(default=(), max_length=10_000, description="Ids of items.")
    groups: dict[Name, tuple[Name, ...]] = Field(
        default_factory=dict, max_length=16, description="Names of groups by kind, as in {'category': ['Horror']}."
    )


class PinSettings(_Settings):
    """`client.ranking.business_rules.Pin`."""

    item: Name = Field(description="Id of an item.")
    place: Place = Field(description="From 1.")


class CapSettings(_Settings):
    """`client.ranking.business_rules.CapPerGroup`."""

    kind: Name = Field(description="Of group: brand, category.")
    most: Place = Field(description="Items of one group.")
    first: Place = Field(default=10, description="Places that the cap looks at.")


class RerankSettings(_Settings):
    """All that may be asked for; what is left out does nothing."""

    long_tail: LongTailSettings | None = None
    freshen: FreshenSettings | None = None
    diversify: DiversifySettings | None = None
    exclude: ExcludeSettings = ExcludeSettings()
    pin: tuple[PinSettings, ...] = Field(default=(), max_length=100)
    cap: tuple[CapSettings, ...] = Field(default=(), max_length=16)


def read_settings(tree: Mapping[str, Any]) -> RerankSettings:
    """Settings of a plain tree, as JSON or TOML have it.

    Raises
    ------
    ConfigError
        For an unknown key or a value out of bounds; it names the first.
    """
    try:
        return RerankSettings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "rerank"
        raise ConfigError(f"{where}: {first['msg']}") from None


def pipeline(
    settings: RerankSettings, catalogue: Catalogue, facts: ItemFacts, *, now: float, k: int | None = None
) -> tuple[Stage, ...]:
    """The stages that settings ask for, in the order of the module's first lines.

    Parameters
    ----------
    settings : RerankSettings
    catalogue : Catalogue
        Its rows are those of `facts`.
    facts : ItemFacts
    now : float
        Seconds; what freshness counts from.
    k : int, optional
        Length of the list. Default: all candidates.

    Raises
    ------
    ConfigError
        If an item is not in the catalogue, a kind of group or times that are asked for are not known, pins
        contradict each other or a cap, or a pinned item is excluded.
    """
    exclude, arrange = _exclude(settings, catalogue), _arrange(settings, catalogue)
    stages: list[Stage] = [exclude]
    if settings.long_tail is not None:
        stages.append(LongTailBoost(settings.long_tail.strength))
    if settings.freshen is not None:
        if facts.added is None:
            raise ConfigError("freshen: Expected times at which items were added; none are known.")
        stages.append(Freshen(settings.freshen.half_life_days * DAY, settings.freshen.strength, now))
    if settings.diversify is not None:
        stages.append(Diversify(settings.diversify.trade_off, settings.diversify.depth))
    arrange.check(facts)
    if exclude.gone(arrange.pinned, facts).any():
        raise ConfigError("pin: Expected pinned items that are not excluded.")
    stages.append(arrange)
    return (*stages, Top(k)) if k is not None else tuple(stages)


def rerank(candidates: Candidates, facts: ItemFacts, stages: Sequence[Stage]) -> Candidates:
    """The candidates of one user after all stages, one after the other."""
    for stage in stages:
        candidates = stage(candidates, facts)
    return candidates


def _exclude(settings: RerankSettings, catalogue: Catalogue) -> Exclude:
    asked = settings.exclude
    groups = tuple((kind, name) for kind, names in asked.groups.items() for name in names)
    return Exclude(tuple(_row(item, "exclude.items", catalogue) for item in asked.items), groups)


def _arrange(settings: RerankSettings, catalogue: Catalogue) -> Arrange:
    pins = tuple(Pin(_row(pin.item, "pin", catalogue), pin.place) for pin in settings.pin)
    return Arrange(pins, tuple(CapPerGroup(cap.kind, cap.most, cap.first) for cap in settings.cap))


def _row(item: str, where: str, catalogue: Catalogue) -> int:
    row = catalogue.rows.get(item)
    if row is None:
        raise ConfigError(f"{where}: Expected ids of items of the catalogue.")
    return row
