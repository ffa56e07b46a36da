"""A partner's folder: its keys and request, what it joins, and what it refuses to join."""

from __future__ import annotations

import hashlib
import json
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer
from enrolled import FLOOR, NAMES, Enrolled, cheap_scrypt, copied, joined, write_items
from typer.testing import CliRunner

from client import enrolment as client_enrolment
from client.data.pseudonyms import PseudonymKey
from client.enrolment import Enrolment, Review, init_partner, join, shortfalls
from client.node_settings import NodeSettings
from client.partner_commands import init as init_command
from client.partner_commands import join as join_command
from client.partner_commands import rotate as rotate_command
from client.premises import Premises
from server.enrolment import revoke
from shared.enrolment import EnrolmentRequest, parse, spelled
from shared.errors import ConfigError, DataError, IntegrityError, InvalidSignatureError, ReplayError
from shared.federation_bundle import Federation, read_bundle, write_bundle
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, is_encrypted
from shared.hazmat.signing import SigningKey


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    with cheap_scrypt():
        yield


@pytest.fixture
def federation(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Enrolled:
    return copied(joined(tmp_path_factory), tmp_path / "copy")


def everything(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def reissued(federation: Enrolled, **changes: Any) -> Path:
    """A bundle that the coordinator's own key has signed, whatever its own rules say."""
    told = json.loads((federation.bundle / "federation.json").read_bytes())
    told = {**told, "serial": told["serial"] + 1, **changes}
    items = (federation.bundle / "items.parquet").read_bytes()
    key = SigningKey.load(federation.home / "server.key", federation.passphrase("server"))
    folder = federation.root / "reissued"
    write_bundle(folder, parse(Federation, spelled(told), "f"), [key], items)
    return folder


# --- init -----------------------------------------------------------------------------------------


def test_all_keys_of_a_partner_are_encrypted_and_its_own(tmp_path: Path) -> None:
    made = Enrolled(tmp_path)
    first, again = made.init_partner("alder"), made.init_partner("alder")
    folder = made.folder("alder")
    for name in ("identity.key", "pseudonym.key", "node/node.key"):
        assert is_encrypted(folder / name) and stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert first.passphrase_file_made and not again.passphrase_file_made and first.fingerprint == again.fingerprint
    request = EnrolmentRequest.read(first.file)
    assert request.name == "alder" and first.file.name == "alder.request.json"
    secrets = [PseudonymKey.load_or_create(folder / "pseudonym.key", made.passphrase("alder")).secret]
    assert all(secret not in first.file.read_bytes() for secret in secrets)


def test_a_folder_of_another_partner_or_with_open_keys_is_refused(tmp_path: Path) -> None:
    made = Enrolled(tmp_path)
    made.init_partner("alder")
    with pytest.raises(ConfigError, match="got a partner's"):
        init_partner(made.folder("alder"), "birch", made.passphrase_file("alder"))
    SigningKey.load_or_create(made.folder("cedar") / "identity.key")
    with pytest.raises(ConfigError, match=r"identity\.key: Expected an encrypted key"):
        made.init_partner("cedar")
    with pytest.raises(ConfigError, match="always encrypted"):
        init_partner(tmp_path / "none", "none", None)


# --- the first bundle -----------------------------------------------------------------------------


def test_a_joined_partner_has_pins_floor_catalogue_and_node(federation: Enrolled) -> None:
    folder, told = federation.folder("alder"), read_bundle(federation.bundle).federation
    premises = Premises.open(folder)
    assert dict(premises.peers) == told.roster and premises.policy.server_key == told.server
    assert premises.policy.max_epsilon == 8.0 and not premises.simulated
    assert (folder / "data" / "items.parquet").read_bytes() == (federation.bundle / "items.parquet").read_bytes()
    assert (folder / "node" / "ca.crt").read_text() == told.authority
    node = NodeSettings.open(folder / "node")
    assert (node.address, node.bundles, node.socket) == (told.address, told.bundles, str(folder / "agent.sock"))
    assert stat.S_IMODE((folder / "partner.toml").stat().st_mode) == 0o600


def test_the_identity_opens_with_the_passphrase_of_the_environment(
    federation: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(federation.passphrase_file("alder")))
    premises = Premises.open(federation.folder("alder"))
    assert premises.identity.public == premises.peers["alder"]


@pytest.fixture
def unjoined(federation: Enrolled) -> Path:
    """A partner that is enrolled and has not joined yet."""
    folder = federation.folder("birch")
    for name in ("partner.toml", "node/node.toml", "node/ca.crt", "data/items.parquet"):
        (folder / name).unlink()
    state = Enrolment.open(folder)
    state.model_copy(update={"joined": None}).save(folder)
    return folder


def test_the_first_bundle_is_taken_by_its_fingerprint_alone(federation: Enrolled, unjoined: Path) -> None:
    before, told = everything(unjoined), read_bundle(federation.bundle).fingerprint
    with pytest.raises(ConfigError, match="Expected --fingerprint") as caught:
        join(unjoined, federation.bundle, floor=FLOOR)
    assert told not in str(caught.value)  # it has to come from the coordinator's mouth
    with pytest.raises(IntegrityError, match="Expected the fingerprint that was read out"):
        join(unjoined, federation.bundle, fingerprint=told[:-1] + str((int(told[-1]) + 1) % 10), floor=FLOOR)
    with pytest.raises(IntegrityError, match="nothing was changed"):
        join(unjoined, federation.bundle, floor=FLOOR, confirm=lambda _: False)
    with pytest.raises(
        ConfigError, match="--max-epsilon, --max-delta, --min-cohort; the federation asks for epsilon=8"
    ):
        join(unjoined, federation.bundle, fingerprint=told)
    assert everything(unjoined) == before
    seen: list[Review] = []
    join(unjoined, federation.bundle, floor=FLOOR, confirm=lambda review: bool(seen.append(review)) or True)
    assert seen[0].first and seen[0].bundle.fingerprint == told


def test_a_partner_that_is_not_in_the_roster_or_has_other_keys_there_is_refused(
    federation: Enrolled, tmp_path: Path
) -> None:
    told = read_bundle(federation.bundle).fingerprint
    stranger = Enrolled(tmp_path / "strangers")
    for name, error in (("willow", DataError), ("alder", IntegrityError)):
        stranger.init_partner(name)
        with pytest.raises(error, match=name):
            join(stranger.folder(name), federation.bundle, fingerprint=told, floor=FLOOR)
        assert not (stranger.folder(name) / "partner.toml").exists()


def test_a_folder_without_keys_is_told_to_make_them(federation: Enrolled, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="veilrec partner init"):
        join(tmp_path, federation.bundle, fingerprint="1", floor=FLOOR)


# --- later bundles --------------------------------------------------------------------------------


def test_a_later_bundle_of_the_same_partners_needs_no_telephone_and_leaves_the_floor(federation: Enrolled) -> None:
    folder = federation.folder("alder")
    own = tomllib.loads((folder / "partner.toml").read_text())
    own["policy"] |= {"max_epsilon": 2.5, "max_rounds": 7}
    (folder / "partner.toml").write_text(tomli_w.dumps({**own, "tie_seed": 5}))
    config = json.loads((federation.home / "config.json").read_bytes())
    config["privacy"]["epsilon"] = 50.0
    (federation.home / "config.json").write_text(json.dumps(config))
    assert federation.enroll().federation.serial == 2
    review, premises = federation.join("alder")
    assert not review.needs_voice
    assert (premises.policy.max_epsilon, premises.policy.max_rounds, premises.tie_seed) == (2.5, 7, 5)
    words = shortfalls(review.bundle.federation, premises.policy, len(premises.peers))
    assert words == ["epsilon=50 above max_epsilon=2.5"]
    _, premises = federation.join("alder", max_epsilon=3.0)  # the partner's own word
    assert premises.policy.max_epsilon == 3.0


def test_a_replayed_older_bundle_is_refused(federation: Enrolled) -> None:
    old = copied(federation, federation.root.parent / "old")
    (federation.bundle / "federation.sig").unlink()
    assert federation.enroll().federation.serial == 2
    federation.join("alder")
    before = everything(federation.folder("alder"))
    with pytest.raises(ReplayError, match="serial > 2, got 1"):
        join(federation.folder("alder"), old.bundle, fingerprint=read_bundle(old.bundle).fingerprint)
    assert everything(federation.folder("alder")) == before
    federation.join("alder")  # the same one again is no replay
    other = reissued(federation, serial=2, address="elsewhere.test:1")
    with pytest.raises(ReplayError):
        join(federation.folder("alder"), other)


def test_a_bundle_of_another_coordinator_is_refused_even_with_its_fingerprint(
    federation: Enrolled, tmp_path: Path
) -> None:
    other = Enrolled(tmp_path / "other")
    other.init_server()
    bundle = other.enroll(*(federation.folder(name) / f"{name}.request.json" for name in NAMES))
    with pytest.raises(InvalidSignatureError, match="pinned key"):
        join(federation.folder("alder"), other.bundle, fingerprint=bundle.fingerprint)


def test_who_comes_or_goes_is_asked_by_voice(federation: Enrolled, tmp_path: Path) -> None:
    new = Enrolled(tmp_path / "new")
    bundle = federation.enroll(new.init_partner("willow").file)
    with pytest.raises(ConfigError, match="no signature shows who belongs"):
        federation.join("alder")
    review, premises = federation.join("alder", bundle.fingerprint)
    assert review.added == ("willow",) and "willow" in premises.peers
    bundle = revoke(federation.home, "cedar", federation.passphrase("server"))
    with pytest.raises(ConfigError, match="no signature shows who belongs"):
        federation.join("alder")
    review, premises = federation.join("alder", bundle.fingerprint)
    assert review.removed == ("cedar",) and set(premises.peers) == {"alder", "birch", "willow"}


def test_a_coordinator_cannot_replace_a_partners_key_without_the_telephone(
    federation: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys of its own for all the others it would see this partner's sum alone."""
    puppet = Enrolled(tmp_path / "puppets")
    false = json.loads(puppet.init_partner("cedar").file.read_bytes())
    partners = json.loads((federation.bundle / "federation.json").read_bytes())["partners"]
    folder = reissued(federation, partners=[*partners[:2], false])
    with pytest.raises(ConfigError, match="no signature shows who belongs"):
        join(federation.folder("alder"), folder)
    monkeypatch.setattr(client_enrolment.Review, "needs_voice", False)  # the planted bug
    _, premises = join(federation.folder("alder"), folder)
    assert premises.peers["cedar"].keys[0].text == false["identities"][0]


def test_a_swapped_authority_or_app_shows_in_the_fingerprint(federation: Enrolled, tmp_path: Path) -> None:
    other = Enrolled(tmp_path / "other")
    other.init_server()
    told = read_bundle(federation.bundle).fingerprint
    for change in (
        {"authority": (other.home / "ca.crt").read_text()},
        {"bundles": ["0" * 64]},
        {"address": "b.test:1"},
    ):
        folder = reissued(federation, serial=1, **change)
        assert read_bundle(folder).fingerprint != told
        with pytest.raises(ReplayError):
            join(federation.folder("alder"), folder)


def test_a_catalogue_that_is_not_the_one_of_the_digest_is_refused(federation: Enrolled) -> None:
    folder = reissued(federation, catalogue="0" * 64)
    with pytest.raises(DataError, match="catalogue"):
        join(federation.folder("alder"), folder)
    write_items(folder / "items.parquet", 9)
    with pytest.raises(DataError, match="catalogue"):
        join(federation.folder("alder"), folder)


def test_the_nodes_own_socket_is_kept(federation: Enrolled) -> None:
    folder = federation.folder("alder") / "node"
    NodeSettings.open(folder).model_copy(update={"socket": "/run/veilrec/agent.sock"}).write(folder)
    (federation.bundle / "federation.sig").unlink()
    federation.enroll()
    federation.join("alder")
    assert NodeSettings.open(folder).socket == "/run/veilrec/agent.sock"


@pytest.mark.parametrize(
    "text",
    ['address = "a:1"\n', 'address = "a"\nbundles = ["0"]\n', "x = 1\n", "[", 'address = "a:1"\nbundles = []\n'],
)
def test_settings_of_a_node_that_are_wrong_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"node\.toml"):
        NodeSettings.open(tmp_path)


# --- commands -------------------------------------------------------------------------------------


def test_the_commands_lead_from_keys_to_a_joined_partner(tmp_path: Path) -> None:
    app, made = typer.Typer(), Enrolled(tmp_path)
    for command in (init_command, join_command, rotate_command):
        app.command()(command)
    run, options = CliRunner(), ["--max-epsilon", "8", "--max-delta", "1e-5", "--min-cohort", "3"]
    made.init_server(partners=4)
    for name in NAMES:
        secret = ["--passphrase-file", str(made.passphrase_file(name))]
        done = run.invoke(app, ["init", str(made.folder(name)), "--name", name, *secret])
        assert done.exit_code == 0 and "keep it apart from the backups" in done.output, done.output
    bundle = made.enroll(*(made.folder(name) / f"{name}.request.json" for name in NAMES))
    for name in NAMES:
        told = [str(made.folder(name)), str(made.bundle), "--fingerprint", bundle.fingerprint]
        done = run.invoke(app, ["join", *told, *options])
        assert done.exit_code == 0, done.output
        assert "will refuse the rounds: partners=4 of whom 3 are enrolled" in done.output
        assert bundle.fingerprint in done.output
    done = run.invoke(
        app, ["rotate", str(made.folder("alder")), "--passphrase-file", str(made.passphrase_file("alder"))]
    )
    assert done.exit_code == 0 and "alder.request.json" in done.output, done.output
