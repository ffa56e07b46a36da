"""Presets: a whole configuration from public sizes, in which what the user fixed stays fixed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import RunConfig
from shared.errors import ConfigError
from simulations.presets import declared_population, for_population, merged, preset


def configured(settings: dict[str, Any] | None = None, **sizes: Any) -> RunConfig:
    given_sizes: dict[str, Any] = {"users": 940, "items": 300, "partners": 4, "seed": 5}
    given_sizes |= {"marketplace": False, "rating_max": 5.0}
    return preset(**{**given_sizes, **sizes}, settings=settings or {})


@pytest.mark.parametrize(
    ("users", "declared"),
    [(1, 1), (3, 3), (10, 10), (12, 10), (13, 15), (94, 95), (943, 950), (6040, 6000), (43660, 45000)],
)
def test_the_declared_population_is_a_round_number(users: int, declared: int) -> None:
    assert declared_population(users) == declared


@given(st.integers(min_value=1, max_value=10**8))
def test_the_declared_population_is_near_and_tells_little(users: int) -> None:
    declared = declared_population(users)
    assert 0.75 * users <= declared <= 1.25 * users + 1
    digits = str(declared).rstrip("0")
    assert len(digits) <= 2 and (len(digits) < 2 or digits[-1] == "5")


def test_nobody_is_a_population_of_one() -> None:
    assert declared_population(0) == 1


def test_a_preset_says_what_it_was_given() -> None:
    config = configured(partners=7, seed=9)
    assert (config.seed, config.simulation, config.federation.partners) == (9, True, 7)
    assert config.privacy.population == 950
    assert config.privacy.mode == "distributed"


@pytest.mark.parametrize(("marketplace", "partners_per_user"), [(True, 2), (False, 1)])
def test_people_who_may_be_at_two_partners_are_accounted_for_at_both(marketplace: bool, partners_per_user: int) -> None:
    assert configured(marketplace=marketplace).privacy.partners_per_user == partners_per_user


@pytest.mark.parametrize("mode", ["none", "local", "distributed"])
def test_every_mode_has_a_recipe(mode: str) -> None:
    config = configured({"privacy": {"mode": mode}})
    assert config.privacy.mode == mode
    assert (config.training.rounds > 50) == (mode == "none")


MANY = {"users": 3_000}


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_little_is_spent_on_training_where_it_would_learn_nothing(mode: str) -> None:
    told, few = configured({"privacy": {"mode": mode}}, **MANY), configured({"privacy": {"mode": mode}}, users=1_500)
    small = configured({"privacy": {"mode": mode, "epsilon": 3.0}}, **MANY)
    for quiet in (few, small):
        assert quiet.prior.epsilon_share > told.prior.epsilon_share
        assert quiet.model.temperature < told.model.temperature
        # The gradient of a user is in proportion to the temperature: as much of it is clipped.
        scale = quiet.model.temperature / told.model.temperature
        assert quiet.privacy.clip_norm == pytest.approx(scale * told.privacy.clip_norm)


def test_a_wrong_epsilon_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        configured({"privacy": {"epsilon": "much"}})


def test_learned_items_are_for_catalogues_that_a_gradient_can_hold() -> None:
    none = {"privacy": {"mode": "none"}}
    assert configured(none, items=20_000).model.item_rank == 64
    assert configured(none, items=20_001).model.item_rank == 0
    assert configured(items=300).model.item_rank == 0  # under noise they cost noise


def test_what_the_user_fixed_wins_and_the_rest_stays() -> None:
    free = configured()
    fixed = configured({"training": {"rounds": 3}, "privacy": {"population": 77}, "model": {"lora_rank": 1}})
    assert (fixed.training.rounds, fixed.privacy.population, fixed.model.lora_rank) == (3, 77, 1)
    assert fixed.training.sampling_rate == free.training.sampling_rate
    assert fixed.model.max_events == free.model.max_events


def test_a_preset_does_not_change_what_it_was_given() -> None:
    settings: dict[str, Any] = {"privacy": {"mode": "none"}}
    configured(settings)
    assert settings == {"privacy": {"mode": "none"}}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"training": {"round": 3}}, r"training\.round: Extra inputs"),
        ({"training": {"rounds": -1}}, r"training\.rounds"),
        ({"training": {"rounds": "many"}}, r"training\.rounds"),
        ({"trainig": {"rounds": 1}}, "trainig"),
        ({"model": 3}, "model"),
        ({"privacy": {"epsilon": 0}}, r"privacy\.epsilon"),
        ({"federation": {"quorum": 9}}, r"federation\.quorum=9"),
        ({"privacy": {"colluders": 4}}, r"privacy\.colluders=4"),
        ({"federation": {"partners": 5}}, r"federation\.partners: Expected 4"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        configured(settings)


@pytest.mark.parametrize("mode", ["none", "distributed"])
def test_for_fewer_users_a_configuration_is_their_preset_but_for_what_was_fixed(mode: str) -> None:
    fixed: dict[str, Any] = {"privacy": {"mode": mode}, "training": {"rounds": 3, "learning_rate": 0.5}}
    many, few = configured(fixed, users=40_000), configured(fixed, users=1_000)
    assert many.training.sampling_rate != few.training.sampling_rate or many.model != few.model
    assert for_population(many, 1_000, items=300) == few
    chosen = configured(merged(fixed, {"training": {"sampling_rate": 0.7}, "prior": {"epsilon_share": 0.5}}))
    assert for_population(chosen, 1_000, items=300).training.sampling_rate == 0.7
    assert for_population(chosen, 1_000, items=300).prior.epsilon_share == 0.5


def test_as_many_may_collude_as_the_federation_s_own_partners_allow() -> None:
    many = configured({"privacy": {"colluders": 19}}, partners=20)
    assert (many.privacy.colluders, many.federation.partners) == (19, 20)


@pytest.mark.parametrize("value", [3, None, "none"])
def test_a_privacy_section_that_is_none_is_a_wrong_setting(value: object) -> None:
    with pytest.raises(ConfigError):
        configured({"privacy": value})
