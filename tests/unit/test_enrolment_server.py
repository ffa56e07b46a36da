"""The coordinator's home: what `veilrec server` makes, whom it takes, and whom it never takes."""

from __future__ import annotations

import hashlib
import json
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from enrolled import FLOOR, NAMES, Enrolled, cheap_scrypt, copied, joined, real_config, write_items
from typer.testing import CliRunner

from client.key_rotation import begin as begin_change
from server.admission import Admission
from server.app_bundle import build_app
from server.commands import server_app
from server.enrolment import init_home, renew, revoke
from server.partners import Registry
from server.receipts import ReceiptBook
from server.rotation import begin, finish
from server.settings import ServerSettings
from shared.config import RunConfig
from shared.enrolment import EnrolmentRequest
from shared.errors import ConfigError, DataError, InvalidSignatureError, ReplayError, SchemaError
from shared.federation_bundle import read_bundle
from shared.hazmat.certificates import certificate_facts
from shared.hazmat.key_files import PASSPHRASE_VARIABLE, Passphrase, is_encrypted
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.signing import PinnedKeys, SigningKey
from shared.privacy.ledger import LedgerHead


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    with cheap_scrypt():
        yield


@pytest.fixture
def federation(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Enrolled:
    return copied(joined(tmp_path_factory), tmp_path / "copy")


def written(folder: Path, name: str, serial: int = 1, key: SigningKey | None = None) -> Path:
    """A request of keys of its own."""
    node = NodeKey.load_or_create(folder / f"{name}.node", Passphrase(b"x" * 16))
    request = EnrolmentRequest.make(name, serial, [key or SigningKey.generate()], [node])
    file = folder / f"{name}-{serial}.json"
    file.write_bytes(request.to_bytes())
    return file


def everything(home: Path) -> dict[str, str]:
    files = (file for file in home.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# --- init -----------------------------------------------------------------------------------------


def test_a_home_has_encrypted_keys_that_only_its_owner_may_use(federation: Enrolled) -> None:
    for name in ("ca.key", "tls.key", "server.key"):
        assert is_encrypted(federation.home / name)
        assert stat.S_IMODE((federation.home / name).stat().st_mode) == 0o600
    assert ServerSettings.open(federation.home).address == "coordinator.test:8443"
    assert certificate_facts((federation.home / "tls.crt").read_text()).names[0] == "coordinator.test"


def test_the_run_opens_a_home_with_the_passphrase_of_its_environment(
    federation: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="passphrase"):
        Admission.open(federation.home)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(federation.passphrase_file("server")))
    assert tuple(Admission.open(federation.home).identities) == NAMES


def test_a_home_is_not_made_over_another(federation: Enrolled) -> None:
    before = everything(federation.home)
    with pytest.raises(ConfigError, match="got a coordinator's home"):
        federation.init_server()
    assert everything(federation.home) == before


def test_what_cannot_be_a_federation_is_refused_before_a_key_is_made(tmp_path: Path) -> None:
    items, made = write_items(tmp_path / "items.parquet"), tmp_path / "home"
    with pytest.raises(ConfigError, match="simulation: Expected false"):
        init_home(made, "a:1", items, RunConfig(), tmp_path / "p")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        init_home(made, "a", items, real_config(), tmp_path / "p")
    with pytest.raises(SchemaError):
        init_home(made, "a:1", tmp_path / "none.parquet", real_config(), tmp_path / "p")
    with pytest.raises(ConfigError, match="always encrypted"):
        init_home(made, "a:1", items, real_config(), None)
    assert not made.exists() and not (tmp_path / "p").exists()


def test_an_app_has_one_hash_wherever_it_is_built(tmp_path: Path, federation: Enrolled) -> None:
    first, second = build_app(tmp_path / "one"), build_app(tmp_path / "two")
    assert first == second == build_app(tmp_path / "one")
    assert read_bundle(federation.bundle).federation.bundles == (first,)
    told = tomllib.loads((tmp_path / "one" / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert told["components"] == {"serverapp": "veilrec_app.server:app", "clientapp": "veilrec_app.client:app"}
    assert set(told["config"]) >= {"config", "data-root", "out"}
    (tmp_path / "one" / "app" / "veilrec_app" / "client.py").write_text("print('other')\n")
    assert build_app(tmp_path / "one") == first  # what somebody changed is written anew
    (tmp_path / "two" / "app" / "veilrec_app" / "more.py").write_text("print('other')\n")
    assert build_app(tmp_path / "two") != first  # what somebody added shows


def test_settings_that_are_wrong_name_the_key(federation: Enrolled) -> None:
    file = federation.home / "server.toml"
    for text, told in (("address = 3", "address"), ('address = "a:1"\nmore = 1', "more"), ("[", "Expected TOML")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=told):
            ServerSettings.open(federation.home)


# --- enroll ---------------------------------------------------------------------------------------


def test_enrolled_partners_are_in_registry_identities_and_bundle(federation: Enrolled) -> None:
    registry, bundle = Registry.open(federation.home), read_bundle(federation.bundle)
    assert [record.name for record in registry.active] == list(NAMES)
    assert registry.serial == bundle.federation.serial == 1
    identities = json.loads((federation.home / "identities.json").read_bytes())
    assert identities == {name: pin.text for name, pin in bundle.federation.roster.items()}
    row = json.loads((federation.home / "partners.json").read_bytes())["partners"][0]
    assert (row["name"], row["status"], row["serial"]) == ("alder", "active", 1)
    assert row["node_key"] == row["request"]["nodes"][0]


def test_the_same_requests_again_change_nothing(federation: Enrolled) -> None:
    before = everything(federation.home)
    federation.enroll(*(federation.folder(name) / f"{name}.request.json" for name in NAMES))
    federation.enroll()
    assert everything(federation.home) == before


def test_a_bundle_that_was_torn_is_made_again_with_a_higher_serial(federation: Enrolled) -> None:
    (federation.bundle / "federation.sig").write_bytes(b"[")
    assert federation.enroll().federation.serial == 2
    (federation.bundle / "items.parquet").write_bytes(b"torn")
    assert federation.enroll().federation.serial == 3


def test_a_changed_configuration_is_issued_without_requests(federation: Enrolled) -> None:
    told = json.loads((federation.home / "config.json").read_bytes())
    told["privacy"]["epsilon"] = 4.0
    (federation.home / "config.json").write_text(json.dumps(told))
    bundle = federation.enroll()
    assert bundle.federation.serial == 2 and bundle.federation.config.privacy.epsilon == 4.0


def test_of_several_requests_all_are_taken_or_none(federation: Enrolled, tmp_path: Path) -> None:
    before = everything(federation.home)
    (tmp_path / "bad.json").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"bad\.json"):
        federation.enroll(written(tmp_path, "willow"), tmp_path / "bad.json")
    assert everything(federation.home) == before


def test_a_request_whose_identity_is_somebody_elses_is_refused(federation: Enrolled, tmp_path: Path) -> None:
    """Signed by all its keys it may be: a name that is enrolled is its holder's."""
    with pytest.raises(InvalidSignatureError, match="alder: Expected the signature of an identity that is enrolled"):
        federation.enroll(written(tmp_path, "alder", 9))
    told = json.loads((federation.folder("birch") / "birch.request.json").read_bytes())
    (tmp_path / "stolen.json").write_bytes(EnrolmentRequest(**_tuples({**told, "name": "willow"})).to_bytes())
    with pytest.raises(InvalidSignatureError, match=r"stolen\.json"):
        federation.enroll(tmp_path / "stolen.json")
    key = SigningKey.load(federation.folder("birch") / "identity.key", federation.passphrase("birch"))
    with pytest.raises(ConfigError, match="willow: Expected keys of its own"):
        federation.enroll(written(tmp_path, "willow", key=key))
    server = SigningKey.load(federation.home / "server.key", federation.passphrase("server"))
    with pytest.raises(ConfigError, match="willow: Expected keys of its own"):
        federation.enroll(written(tmp_path, "willow", 2, key=server))


def _tuples(told: dict[str, object]) -> dict[str, object]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}


def test_an_older_request_is_not_taken_again(federation: Enrolled) -> None:
    first = (federation.folder("alder") / "alder.request.json").read_bytes()
    begin_change(federation.folder("alder"), federation.passphrase("alder"))
    bundle = federation.enroll(federation.folder("alder") / "alder.request.json")
    assert isinstance(bundle.federation.roster["alder"], PinnedKeys)
    (federation.root / "old.json").write_bytes(first)
    with pytest.raises(ReplayError, match="serial > 2, got 1"):
        federation.enroll(federation.root / "old.json")


def test_a_wrong_passphrase_or_none_changes_nothing(federation: Enrolled, tmp_path: Path) -> None:
    before = everything(federation.home)
    revoked = [lambda told: revoke(federation.home, "birch", told), lambda told: renew(federation.home, told)]
    for command in revoked:
        with pytest.raises(DataError, match="under this passphrase"):
            command(Passphrase(b"not the passphrase"))
        with pytest.raises(ConfigError, match="passphrase"):
            command(None)
    assert everything(federation.home) == before


def test_a_folder_that_is_no_home_is_refused_and_left(tmp_path: Path) -> None:
    for command in (lambda: revoke(tmp_path, "a"), lambda: renew(tmp_path), lambda: begin(tmp_path)):
        with pytest.raises(ConfigError, match=r"no server\.toml"):
            command()
    assert not any(tmp_path.iterdir())


# --- revoke, renew --------------------------------------------------------------------------------


def test_a_revoked_partner_is_out_for_good_name_and_keys(federation: Enrolled, tmp_path: Path) -> None:
    bundle = revoke(federation.home, "birch", federation.passphrase("server"))
    assert bundle.federation.serial == 2 and tuple(bundle.federation.roster) == ("alder", "cedar")
    assert set(json.loads((federation.home / "identities.json").read_bytes())) == {"alder", "cedar"}
    with pytest.raises(ConfigError, match="this one was revoked"):
        federation.enroll(federation.folder("birch") / "birch.request.json")
    key = SigningKey.load(federation.folder("birch") / "identity.key", federation.passphrase("birch"))
    with pytest.raises(ConfigError, match="keys of its own"):
        federation.enroll(written(tmp_path, "willow", key=key))
    for name in ("birch", "nobody"):
        with pytest.raises(ConfigError, match="name of an active partner"):
            revoke(federation.home, name, federation.passphrase("server"))
    with pytest.raises(DataError, match="not enrolled yet, or revoked"):
        federation.join("birch", bundle.fingerprint, **FLOOR)


def test_a_renewed_server_certificate_needs_no_new_bundle(federation: Enrolled) -> None:
    before = everything(federation.home)
    renew(federation.home, federation.passphrase("server"))
    after = everything(federation.home)
    assert {name for name in after if after[name] != before[name]} == {"tls.crt", "tls.key"}
    assert federation.enroll().federation.serial == 1


# --- the coordinator's own key --------------------------------------------------------------------


def test_the_coordinators_key_changes_with_an_overlap(federation: Enrolled) -> None:
    told, home = federation.passphrase("server"), federation.home
    old = SigningKey.load(home / "server.key", told)
    receipts = ReceiptBook(home / "receipts.json")
    receipts.add({"alder": LedgerHead(3, "a" * 64)}, old)

    SigningKey.load_or_create(home / "server.next.key", told)  # as a crash leaves it
    with pytest.raises(ConfigError, match="a bundle that both keys signed"):
        finish(home, told)
    both = begin(home, told).federation.server
    assert isinstance(both, PinnedKeys) and both.keys[0] == old.public
    assert begin(home, told).federation.serial == 2  # again: nothing new
    _, premises = federation.join("alder")
    assert premises.policy.server_key == both
    finish(home, told)
    new = SigningKey.load(home / "server.key", told)
    assert new.public == both.keys[1] and not (home / "server.next.key").exists()
    receipt = ReceiptBook(home / "receipts.json").last("alder")
    assert receipt is not None and receipt.count == 3
    receipt.verify(both)
    receipt.verify(new.public)
    _, premises = federation.join("alder")
    assert premises.policy.server_key == new.public
    with pytest.raises(InvalidSignatureError, match="pinned key"):  # birch missed the bundle of the overlap
        federation.join("birch")
    with pytest.raises(ConfigError, match="rotate"):
        finish(home, told)


# --- commands -------------------------------------------------------------------------------------


def test_the_commands_say_what_to_compare_and_what_to_do_next(tmp_path: Path, federation: Enrolled) -> None:
    run, home, secret = CliRunner(), tmp_path / "home", str(tmp_path / "secret")
    items = str(write_items(tmp_path / "items.parquet"))
    options = ["--items", items, "--population", "1000", "--partners", "3", "--passphrase-file", secret]
    done = run.invoke(server_app, ["init", str(home), "--address", "a.test:1", *options])
    assert done.exit_code == 0, done.output
    assert f"made {secret}: keep it apart from the backups" in done.output
    requests = [str(federation.folder(name) / f"{name}.request.json") for name in NAMES]
    done = run.invoke(server_app, ["enroll", str(home), *requests, "--passphrase-file", secret])
    assert done.exit_code == 0, done.output
    fingerprint = read_bundle(home / "bundle").fingerprint
    assert fingerprint in done.output and "serial 1, alder, birch, cedar" in done.output
    assert EnrolmentRequest.read(Path(requests[0])).fingerprint in done.output
    done = run.invoke(server_app, ["revoke", str(home), "cedar", "--passphrase-file", secret])
    assert "cedar: revoked; the SuperLink does not run" in done.output and "2 of the configured 3" in done.output
    for command in ("renew", "rotate"):
        assert run.invoke(server_app, [command, str(home), "--passphrase-file", secret]).exit_code == 0
    done = run.invoke(server_app, ["init", str(tmp_path / "x"), "--address", "a.test:1", "--items", items])
    assert isinstance(done.exception, ConfigError) and "--population" in str(done.exception)
    for command in ("init", "enroll", "revoke", "renew", "rotate"):
        assert run.invoke(server_app, [command, "--help"]).exit_code == 0
