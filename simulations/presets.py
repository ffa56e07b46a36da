"""Settings that suit a federation's public size: users declared, items, partners, mode."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from shared.config import RunConfig, learned_item_rank
from shared.errors import ConfigError

MANY_USERS = 20_000

FEW_USERS, SMALL_EPSILON = 2_000, 5.0
"""Below either of them training under noise learns next to nothing (docs/adr/0025-little-for-training.md)."""


def declared_population(users: int) -> int:
    """N0 of a simulation: the number of users to one significant digit and a half (10, 15, 20, ...)."""
    scale = int(10 ** max(0, int(math.log10(max(users, 1)))))
    return max(1, round(users / (scale / 2)) * scale // 2)


def preset(
    *, users: int, items: int, partners: int, seed: int, marketplace: bool, rating_max: float, settings: dict[str, Any]
) -> RunConfig:
    """A whole configuration: `settings` where the user fixed something, else what suits the size.

    Parameters
    ----------
    marketplace : bool
        The embedded shop: one person may be held by two partners, and interests change fast.
    rating_max : float
        The best rating of the scale: what a shop's page shows, not what its users gave.
    settings : dict
        A tree with the keys of `RunConfig`.

    Raises
    ------
    ConfigError
        If a setting is not one of `RunConfig`, or has a wrong value.
    """
    tree: dict[str, Any] = {
        "seed": seed,
        "simulation": True,
        "federation": {"partners": partners},
        "privacy": {"population": declared_population(users), "partners_per_user": 2 if marketplace else 1},
        "prior": {"decay": 0.5 if marketplace else 0.9, "history_decay": _history_decay(users)},
        "model": {"rating_max": rating_max},
    }
    try:
        promise = {"simulation": True, "federation": tree["federation"], "privacy": settings.get("privacy", {})}
        asked = RunConfig.model_validate(promise).privacy
        recipe = _recipe(asked.mode, asked.epsilon, declared_population(users), items)
        config = RunConfig.model_validate(merged(merged(recipe, tree), settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigError(f"{where}: {first['msg']}") from None
    if config.federation.partners != partners:  # the run would wait for partners that never come
        raise ConfigError(f"federation.partners: Expected {partners}, as the data are partitioned.")
    return config


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """``section.key=value`` pairs as a tree; a value is JSON, or else a string.

    Raises
    ------
    ConfigError
        If a pair has another form.
    """
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        section, dot, key = path.partition(".")
        if not equals or not dot:
            raise ConfigError(f"Expected --set section.key=value, got {pair}.")
        try:
            tree.setdefault(section, {})[key] = json.loads(value)
        except ValueError:
            tree.setdefault(section, {})[key] = value
    return tree


def _history_decay(users: int) -> float:
    """Recency makes less of a user's entries larger: with many users it ranks better, with few it is noisier."""
    return 0.95 if users >= MANY_USERS else 1.0


def _recipe(mode: str, epsilon: float, users: int, items: int) -> dict[str, Any]:
    """Without noise: many small cohorts, and a model that is a second opinion beside the prior
    (docs/adr/0012-beside-the-prior.md). With noise: few large cohorts, fewer trained numbers, on top of the prior;
    where they learn next to nothing, nearly all of epsilon for the prior, and a text score that hardly disturbs it.

    In ``local`` mode every partner bears all of the noise, and a round is worth several steps.
    """
    if mode == "none":
        # A cohort of about 250 users: more of them per step would teach no more.
        return {
            "model": {
                "lora_rank": 8,
                "lora_alpha": 16,
                "temperature": 1.0,
                "item_rank": learned_item_rank(items),
            },
            "prior": {"training_share": 0.0, "weight": 2.4},
            "training": {
                "rounds": 300,
                "sampling_rate": min(1.0, round(250 / users, 6)),
                "learning_rate": 5e-3,
                "drop_events": 0.2,
                "dropout": 0.3,
                "average_from": 0.6,
            },
            "privacy": {"clip_norm": 1.0},
            "federation": {"secure_sum": False},  # hundreds of rounds, and masks cancel: the sum is the same
        }
    steps = {"rounds": 3, "local_steps": 4} if mode == "local" else {"rounds": 8}
    quiet = users < FEW_USERS or epsilon < SMALL_EPSILON
    return {
        "model": {"lora_rank": 4, "lora_alpha": 8, "temperature": 0.3 if quiet else 1.0, "max_events": 30},
        "prior": {"epsilon_share": 0.97 if quiet else 0.9},
        "training": {**steps, "sampling_rate": 0.2, "learning_rate": 3e-3, "average_from": 0.5},
        "privacy": {"clip_norm": 0.015 if quiet else 0.05},  # in proportion to the temperature
    }


def for_population(config: RunConfig, population: int, items: int) -> RunConfig:
    """`config` with what its preset would be for another number of declared users, where it is its preset."""
    mode, epsilon, tree = config.privacy.mode, config.privacy.epsilon, config.model_dump()
    was, now = (
        merged(_recipe(mode, epsilon, users, items), {"prior": {"history_decay": _history_decay(users)}})
        for users in (config.privacy.population, population)
    )
    for section, values in was.items():
        for key, value in values.items():
            if tree[section][key] == value:
                tree[section][key] = now[section][key]
    tree["privacy"]["population"] = population
    return RunConfig.model_validate(tree)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of settings as one; what is in both is that of `over`."""
    both = dict(base)
    for key, value in over.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both
