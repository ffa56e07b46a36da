"""`partner.toml`: what it says, and all that it may not leave out or get wrong."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from client.policy import Policy, RealPolicy
from client.premises import IDENTITY_FILE, PARTNER_FILE, Premises, _settings, write_partner
from shared.config import DEFAULT_BASE
from shared.errors import ConfigError, DataError
from shared.hazmat.signing import SigningKey
from shared.settings_file import parse_toml

Tree = dict[str, Any]
OWN = SigningKey.generate()
KEYS = [OWN.public.text, *(SigningKey.generate().public.text for _ in range(3))]
SERVER = SigningKey.generate().public.text
FLOOR: Tree = {"max_epsilon": 8.0, "max_delta": 1e-5, "min_cohort": 3, "server_key": SERVER}
PEERS: Tree = {f"partner-{k:03d}": key for k, key in enumerate(KEYS)}
NAME = "partner-000"


def real(**changes: Any) -> Tree:
    return {"name": NAME, "policy": FLOOR, "peers": PEERS, **changes}


def simulated(**changes: Any) -> Tree:
    return {"name": NAME, "simulated": True, **changes}


def floor(**changes: Any) -> Tree:
    return real(policy={**FLOOR, **changes})


def without(tree: Tree, key: str) -> Tree:
    return {name: value for name, value in tree.items() if name != key}


# --- what is read ---------------------------------------------------------------------------------


def test_a_real_partner_is_read_whole(tmp_path: Path) -> None:
    premises = write_partner(tmp_path, real(data="exports", cache="c.sqlite", tie_seed=7))
    assert (premises.folder, premises.name, premises.simulated, premises.tie_seed) == (tmp_path, NAME, False, 7)
    assert (premises.data, premises.cache) == (tmp_path / "exports", tmp_path / "c.sqlite")
    assert {name: key.text for name, key in premises.peers.items()} == PEERS
    assert isinstance(premises.policy, RealPolicy)
    assert premises.policy.server_key is not None and premises.policy.server_key.text == SERVER
    assert premises.ledger_file == tmp_path / "ledger.jsonl"


def test_what_a_real_partner_leaves_out_is_strict(tmp_path: Path) -> None:
    policy = write_partner(tmp_path, real()).policy
    assert policy.modes == ("distributed", "local") and policy.bases == (DEFAULT_BASE,)
    assert (policy.max_rounds, policy.max_lora_rank, policy.max_adapted_layers, policy.max_item_rank) == (200, 64, 6, 0)


def test_what_a_simulated_partner_leaves_out_is_open(tmp_path: Path) -> None:
    premises = write_partner(tmp_path, simulated())
    assert premises.simulated and premises.policy == Policy() and not premises.peers
    assert premises.policy.max_epsilon == math.inf and "none" in premises.policy.modes
    assert (premises.data, premises.cache) == (tmp_path / ".", tmp_path / "text-cache.sqlite")


def test_a_simulated_partner_may_have_a_floor(tmp_path: Path) -> None:
    policy = write_partner(tmp_path, simulated(policy={"max_epsilon": 3, "modes": ["local"]})).policy
    assert (policy.max_epsilon, policy.modes) == (3.0, ("local",))


def test_a_path_outside_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "cache" / "vectors.sqlite"
    assert write_partner(tmp_path / "shop", simulated(cache=str(elsewhere))).cache == elsewhere


# --- what is refused ------------------------------------------------------------------------------


def test_without_a_partner_file_nothing_is_assumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no partner\.toml.* Expected one with name, \[policy\]"):
        Premises.open(tmp_path)


def test_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Premises.open(tmp_path / "none")


@pytest.mark.parametrize("key", ["max_epsilon", "max_delta", "min_cohort", "server_key"])
def test_real_data_need_the_heart_of_a_floor(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"partner\.toml: policy\.{key}: Field required"):
        write_partner(tmp_path, real(policy=without(FLOOR, key)))


@pytest.mark.parametrize("key", ["policy", "peers", "name"])
def test_real_data_need_name_policy_and_peers(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"partner\.toml: {key}: Field required"):
        write_partner(tmp_path, without(real(), key))


@pytest.mark.parametrize("value", ["true", 1, "yes", [True]])
def test_only_a_plain_true_makes_a_folder_simulated(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="simulated: Input should be a valid boolean"):
        write_partner(tmp_path, simulated(simulated=value))


WRONG = [
    (real(colour="red"), "colour: Extra inputs"),
    (real(name="shop one"), "name: "),
    (real(name=""), "name: "),
    (real(name="a" * 65), "name: "),
    (real(name=3), "name: Input should be a valid string"),
    (real(data=""), "data: "),
    (real(tie_seed="0"), "tie_seed: Input should be a valid integer"),
    (real(policy="strict"), "policy: "),
    (floor(max_epsilom=3.0), "policy.max_epsilom: Extra inputs"),
    ({**real(), "policy": {**without(FLOOR, "max_delta"), "max_detla": 1e-5}}, "policy.max_detla: Extra inputs"),
    (floor(max_epsilon="8"), "policy.max_epsilon: Input should be a valid number"),
    (floor(max_epsilon=math.inf), "policy.max_epsilon: Input should be a finite number"),
    (floor(max_epsilon=math.nan), "policy.max_epsilon: Input should be a finite number"),
    (floor(max_epsilon=0.0), "policy.max_epsilon: "),
    (floor(max_delta=1.0), "policy.max_delta: Input should be less than 1"),
    (floor(max_delta=0.0), "policy.max_delta: "),
    (floor(min_cohort=2), "policy.min_cohort: Input should be greater than or equal to 3"),
    (floor(min_cohort=3.0), "policy.min_cohort: Input should be a valid integer"),
    (floor(min_cohort=True), "policy.min_cohort: Input should be a valid integer"),
    (floor(min_colluders=-1), "policy.min_colluders: "),
    (floor(modes=["none"]), "policy.modes.0: Input should be 'distributed' or 'local'"),
    (floor(modes=["distributed", "none"]), "policy.modes.1: "),
    (floor(modes=[]), "policy.modes: "),
    (floor(modes="local"), "policy.modes: "),
    (floor(bases=[]), "policy.bases: "),
    (floor(bases=[1]), "policy.bases.0: Input should be a valid string"),
    (floor(max_rounds=-1), "policy.max_rounds: "),
    (floor(max_lora_rank="64"), "policy.max_lora_rank: "),
    (floor(max_adapted_layers=1.5), "policy.max_adapted_layers: "),
    (floor(max_item_rank=-1), "policy.max_item_rank: "),
    (floor(server_key="abc"), "policy.server_key: Expected an identity as base64"),
    (floor(server_key=1), "policy.server_key: Expected base64"),
    (real(peers={}), "peers: "),
    (real(peers={NAME: "abc"}), f"peers.{NAME}: Expected an identity as base64"),
    (real(peers={NAME: 5}), f"peers.{NAME}: Expected base64"),
    (real(peers={**PEERS, "a b": SigningKey.generate().public.text}), "peers.a b: String should match"),
    (real(peers=without(PEERS, NAME)), f"peers: Expected the partner's own name {NAME}"),
    (real(peers={**PEERS, "twin": KEYS[1]}), "Expected another key for every partner"),
    (real(peers={**PEERS, "server": SERVER}), "Expected another key for every partner and the coordinator"),
    (simulated(policy={"max_epsilon": math.nan}), "policy.max_epsilon: "),
    (simulated(policy={"min_cohort": 0}), "policy.min_cohort: "),
    (simulated(peers={"other": KEYS[1]}), f"peers: Expected the partner's own name {NAME}"),
]


@pytest.mark.parametrize(("tree", "told"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_key_or_value_is_named(tmp_path: Path, tree: Tree, told: str) -> None:
    (tmp_path / PARTNER_FILE).write_text(tomli_w.dumps(tree))
    with pytest.raises(ConfigError) as error:
        Premises.open(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / PARTNER_FILE}: ")
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["name", "[policy", 'name = "p"\nname = "q"', "n = " + "[" * 5000, "n = " + "9" * 5000, '{"name": "p"}'],
    ids=["half a line", "half a table", "a key twice", "too deep", "too long", "json"],
)
def test_what_is_not_toml_is_a_wrong_setting(tmp_path: Path, text: str) -> None:
    (tmp_path / PARTNER_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"partner\.toml: Expected TOML: "):
        Premises.open(tmp_path)


def test_a_file_that_cannot_be_read_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / PARTNER_FILE).write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"cannot be read \(UnicodeDecodeError\)"):
        Premises.open(tmp_path)
    (tmp_path / "other" / PARTNER_FILE).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot be read \(IsADirectoryError\)"):
        Premises.open(tmp_path / "other")


LINES = ["simulated = true", 'name = "p"', "[policy]", "[peers]", "max_epsilon = inf", 'modes = ["none"]', "\t= ["]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(LINES), max_size=6).map("\n".join)))
def test_any_text_is_a_partner_or_a_wrong_setting(text: str) -> None:
    try:
        told = _settings(parse_toml(text, Path(PARTNER_FILE)), Path(PARTNER_FILE))
    except ConfigError:
        return
    # Without keys that peers and server could have, only simulated data can have been described.
    assert told.simulated is True


# --- writing --------------------------------------------------------------------------------------


def test_a_wrong_partner_is_not_written_over_a_right_one(tmp_path: Path) -> None:
    write_partner(tmp_path, real())
    before = (tmp_path / PARTNER_FILE).read_bytes()
    for wrong in (floor(min_cohort=1), real(tie_seed=None), real(data=tmp_path)):
        with pytest.raises(ConfigError):
            write_partner(tmp_path, wrong)
    assert (tmp_path / PARTNER_FILE).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [PARTNER_FILE]


# --- identity -------------------------------------------------------------------------------------


@pytest.fixture
def pinned(tmp_path: Path) -> Callable[..., Premises]:
    """A real partner whose own key is the one in its folder, unless another is pinned."""

    def make(key: str | None = None) -> Premises:
        own = SigningKey.load_or_create(tmp_path / IDENTITY_FILE)
        return write_partner(tmp_path, real(peers={**PEERS, NAME: key or own.public.text}))

    return make


def test_a_simulated_identity_is_made_on_first_use_for_its_owner_alone(tmp_path: Path) -> None:
    premises = write_partner(tmp_path, simulated())
    assert not (tmp_path / IDENTITY_FILE).exists()
    key = premises.identity
    assert stat.S_IMODE((tmp_path / IDENTITY_FILE).stat().st_mode) == 0o600
    assert premises.identity is key
    assert Premises.open(tmp_path).identity.public == key.public


def test_a_pinned_identity_is_the_one_in_the_folder(pinned: Callable[..., Premises]) -> None:
    premises = pinned()
    assert premises.identity.public == premises.peers[NAME]


def test_a_pinned_identity_that_is_lost_is_not_replaced(tmp_path: Path, pinned: Callable[..., Premises]) -> None:
    premises = pinned()
    (tmp_path / IDENTITY_FILE).unlink()
    with pytest.raises(ConfigError, match=r"identity\.key"):
        _ = premises.identity
    assert not (tmp_path / IDENTITY_FILE).exists()


def test_an_identity_that_is_not_the_pinned_one_is_refused(pinned: Callable[..., Premises]) -> None:
    with pytest.raises(ConfigError, match=rf"identity\.key: Expected the key that partner\.toml pins as peers\.{NAME}"):
        _ = pinned(OWN.public.text).identity


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_an_identity_that_others_may_use_is_refused(tmp_path: Path, pinned: Callable[..., Premises], mode: int) -> None:
    premises = pinned()
    (tmp_path / IDENTITY_FILE).chmod(mode)
    with pytest.raises(ConfigError, match="mode=0600"):
        _ = premises.identity


def test_an_identity_file_that_is_none_is_refused(tmp_path: Path, pinned: Callable[..., Premises]) -> None:
    premises = pinned()
    (tmp_path / IDENTITY_FILE).write_text("no key")
    with pytest.raises(DataError, match="Ed25519"):
        _ = premises.identity


def test_a_key_is_not_shown(pinned: Callable[..., Premises]) -> None:
    premises = pinned()
    assert "SigningKey" not in repr(premises) and premises.identity and "SigningKey" not in repr(premises)
