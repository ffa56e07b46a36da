"""The vocabulary of both sides: catalogue and histories, errors, and the configuration."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from shared import errors
from shared.config import ModelConfig, RunConfig, load_config, parse_config
from shared.errors import ConfigError, SchemaError, VeilrecError
from shared.schema import EVENT_KINDS, Catalogue, Histories, RankedItem, RankedList

if TYPE_CHECKING:
    from conftest import HistoriesOf

CATALOGUE = Catalogue(("a", "b"), ("Kettle", ""), ("boils water", "a lamp"), ("kitchen", "light"))


# --- schema


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"titles": ("one",)}, "one title, text and categories"),
        ({"texts": ()}, "one title, text and categories"),
        ({"categories": ("x", "y", "z")}, "one title, text and categories"),
        ({"item_ids": ("b", "a")}, "unique and sorted"),
        ({"item_ids": ("a", "a")}, "unique and sorted"),
    ],
)
def test_a_catalogue_that_is_not_whole_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SchemaError, match=f"Expected .*{told}"):
        replace(CATALOGUE, **changes)


def test_a_passage_is_title_text_and_what_the_text_does_not_say() -> None:
    assert CATALOGUE.passages() == ["Kettle. boils water. kitchen", "a lamp. light"]
    told = Catalogue(("a", "b"), ("T", ""), ("it is about light", ""), ("light", ""))
    assert told.passages() == ["T. it is about light", ""]


def test_rows_are_places_of_ids() -> None:
    assert CATALOGUE.rows == {"a": 0, "b": 1}
    assert len(CATALOGUE) == 2


def test_the_digest_tells_catalogues_apart() -> None:
    others = [
        replace(CATALOGUE, item_ids=("a", "c")),
        replace(CATALOGUE, titles=("Kettles", "")),
        replace(CATALOGUE, texts=("boils", "a lamp")),
        # What ends one field cannot begin the next.
        Catalogue(("aKettle", "b"), ("", ""), ("boils water", "a lamp"), ("kitchen", "light")),
    ]
    assert len({catalogue.digest for catalogue in (CATALOGUE, *others)}) == 5
    assert replace(CATALOGUE).digest == CATALOGUE.digest


@pytest.mark.parametrize("offsets", [[0, 2], [0, 2, 4], [0, 1, 2, 3]])
def test_offsets_that_do_not_fit_are_refused(histories_of: HistoriesOf, offsets: list[int]) -> None:
    with pytest.raises(SchemaError, match="Expected offsets"):
        replace(histories_of([[1, 2], [3]]), offsets=np.array(offsets))


def test_histories_are_a_sequence_of_users(histories_of: HistoriesOf) -> None:
    histories = histories_of([[1, 2], [3], [4, 5, 6]])
    assert [user.items.tolist() for user in histories] == [[1, 2], [3], [4, 5, 6]]
    assert [len(user) for user in histories] == histories.lengths.tolist() == [2, 1, 3]
    assert (histories[1].user, histories[-1].user, len(histories)) == ("u001", "u002", 3)
    for index in (3, -4):
        with pytest.raises(IndexError):
            histories[index]


def test_what_flows_cannot_be_changed(histories_of: HistoriesOf) -> None:
    ranked = RankedList("query", (RankedItem(1, "a", "Kettle", 0.5),))
    for record, name in ((CATALOGUE, "item_ids"), (histories_of([[1]]), "users"), (ranked, "items")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, ())


def test_codes_of_events_are_never_reordered() -> None:
    # Adapters depend on these places: append only.
    known = ("view", "cart", "purchase", "rating", "review", "checkin", "tip", "query", "other")
    assert EVENT_KINDS[: len(known)] == known


def test_no_users_are_histories_too() -> None:
    none = np.zeros(0, dtype=np.int32)
    empty = Histories((), np.zeros(1, dtype=np.int64), none, none.astype(np.int64), none.astype(np.int8),
                      none.astype(np.float32), none)  # fmt: skip
    assert len(empty) == 0 and list(empty) == []


# --- errors


def classes() -> list[type[VeilrecError]]:
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, VeilrecError)]


def test_every_class_has_an_exit_code_of_its_own() -> None:
    codes = [c.exit_code for c in classes()]
    assert len(set(codes)) == len(codes) == 23
    assert all(0 < code < 126 for code in codes)  # the shell keeps those above for itself


def test_the_tree_at_the_top_of_the_file_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, int] = {}
    assert errors.__doc__ is not None
    for name, code in re.findall(r"(\w+Error)\s+(?:exit code )?(\d+)", errors.__doc__):
        drawn[name] = int(code)
    assert drawn == {c.__name__: c.exit_code for c in classes()}


def test_a_member_of_a_family_has_a_code_in_the_tens_of_its_family() -> None:
    for c in classes():
        parent = c.__mro__[1]
        if issubclass(parent, VeilrecError) and parent is not VeilrecError:
            assert c.exit_code // 10 == parent.exit_code // 10


def test_only_the_name_of_a_family_crosses_to_the_other_side() -> None:
    for c in classes():
        error = c("Expected nothing of user=anna to be told")
        assert error.wire_name == c.__name__
        assert "anna" not in error.wire_name


# --- configuration


def test_no_text_means_the_defaults() -> None:
    assert parse_config("") == parse_config("{}") == RunConfig()
    assert RunConfig().privacy.mode == "distributed"  # privacy is never off by default


def test_a_configuration_survives_json() -> None:
    config = RunConfig(model=ModelConfig(lora_targets=("output.dense",)), seed=None)
    assert parse_config(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"privacy": {"epsilonn": 3}}, "privacy.epsilonn: Extra inputs"),
        ({"privacy": {"epsilon": 0}}, "privacy.epsilon"),
        ({"privacy": {"epsilon": -1}}, "privacy.epsilon"),
        ({"privacy": {"delta": 1}}, "privacy.delta"),
        ({"privacy": {"clip_norm": 0}}, "privacy.clip_norm"),
        ({"privacy": {"noise_multiplier": 0}}, "privacy.noise_multiplier"),
        ({"privacy": {"mode": "off"}}, "privacy.mode"),
        ({"privacy": {"partners_per_user": 0}}, "privacy.partners_per_user"),
        ({"training": {"sampling_rate": 1.5}}, "training.sampling_rate"),
        ({"training": {"rounds": "many"}}, "training.rounds"),
        ({"prior": {"decay": 0}}, "prior.decay"),
        ({"prior": {"epsilon_share": 1}}, "prior.epsilon_share"),
        ({"model": {"lora_targets": ["pooler"]}}, "model.lora_targets"),
        ({"federation": {"partners": 2, "quorum": 3}}, "quorum=3 is above federation.partners=2"),
        ({"federation": {"partners": 2}, "privacy": {"colluders": 2}}, "leaves no honest noise share"),
        ({"federation": {"partners": 4, "quorum": 2}}, "quorum=2 must be above half of partners and colluders"),
        ({"federation": {"partners": 4, "quorum": 3}, "privacy": {"colluders": 2}}, "quorum=3 must be above half"),
        ({"federation": {"secure_sum": "perhaps"}}, "federation.secure_sum"),
        ({"training": {"local_steps": 2}}, "needs privacy.mode=local"),
        ({"training": {"dropout": 0.1}}, "training.dropout needs privacy.mode=none"),
        ({"training": {"dropout": 0.1}, "privacy": {"mode": "local"}}, "training.dropout needs privacy.mode=none"),
        ({"simulation": False}, "seed is only allowed in simulations"),
        (
            {"simulation": False, "seed": None, "privacy": {"mode": "none"}},
            "mode=none is only allowed in simulations",
        ),
        ({"simulation": False, "seed": None}, "population must be declared"),
        (
            {"simulation": False, "seed": None, "privacy": {"population": 9}, "federation": {"secure_sum": False}},
            "federation.secure_sum and three partners are needed by privacy.mode=distributed",
        ),
        (
            {"simulation": False, "seed": None, "privacy": {"population": 9}, "federation": {"partners": 2}},
            "federation.secure_sum and three partners are needed by privacy.mode=distributed",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(tree: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: .*{re.escape(told)}"):
        parse_config(json.dumps(tree), "here")


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999"])
@pytest.mark.parametrize("key", ["epsilon", "clip_norm", "noise_multiplier", "delta"])
def test_numbers_that_are_none_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"privacy.{key}"):
        parse_config(f'{{"privacy": {{"{key}": {value}}}}}')


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", "{'a': 1}"])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^configuration: "):
        parse_config(text)


def test_a_file_is_read_or_named(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"seed": 5}')
    assert load_config(file).seed == 5
    file.write_text('{"sead": 5}')
    with pytest.raises(ConfigError, match=r"run\.json: sead"):
        load_config(file)
    file.write_bytes(b"\xff\xfe\x00")
    for unreadable in (file, tmp_path, tmp_path / "absent.json"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(unreadable)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        RunConfig().privacy.epsilon = 100.0  # type: ignore[misc]


def test_a_deployment_declares_what_a_simulation_may_leave_out() -> None:
    config = parse_config('{"simulation": false, "seed": null, "privacy": {"population": 5000}}')
    assert (config.privacy.population, config.seed) == (5000, None)


def test_the_quorum_is_the_number_of_survivors() -> None:
    assert parse_config('{"federation": {"partners": 7}}').federation.survivors == 7
    assert parse_config('{"federation": {"partners": 7, "quorum": 5}}').federation.survivors == 5


@pytest.mark.parametrize(
    ("partners", "secure_sum", "masked"), [(1, True, False), (2, True, False), (3, True, True), (3, False, False)]
)
def test_sums_are_masked_from_three_partners_on_unless_a_simulation_says_otherwise(
    partners: int, secure_sum: bool, masked: bool
) -> None:
    told = {"federation": {"partners": partners, "secure_sum": secure_sum}}
    assert parse_config(json.dumps(told)).federation.masked is masked


def test_real_data_in_local_mode_need_no_masks() -> None:
    private = {"mode": "local", "population": 5000}
    told = {"simulation": False, "seed": None, "privacy": private, "federation": {"secure_sum": False}}
    assert not parse_config(json.dumps(told)).federation.masked
