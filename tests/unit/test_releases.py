"""Signed releases: whose word counts, what a manifest may say, which version a release has, and the command."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from signed_releases import CATALOGUE, KEY, PRIVACY, STRANGER, save, saved, shelve, signed, write
from typer.testing import CliRunner

from client.release_commands import adapter_app
from server.admission import Admission
from server.release import RELEASES_FILE, ReleaseBook
from shared.adapter import load_release
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError, InvalidSignatureError, VeilrecError
from shared.hazmat.signing import SigningKey
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE, read_manifest, read_release
from shared.release_manifest import FILES, fingerprint_of, parse_manifest
from shared.release_signature import RELEASE_MANIFEST, read_trust, signature_text

TRUST = KEY.public


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A signed release of version 1."""
    return write(tmp_path / "release", saved())


@dataclass(frozen=True)
class Bomb:
    """What an attacker would like to be unpickled: it makes a file."""

    marker: Path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.open, (str(self.marker), os.O_CREAT)


# --- signatures -----------------------------------------------------------------------------------


def test_what_the_coordinator_signed_is_loaded(release: Path) -> None:
    found = load_release(release, TRUST)
    assert (found.manifest["version"], found.manifest["privacy"]) == (1, PRIVACY)
    assert load_release(release, frozenset({STRANGER.public, TRUST})).fingerprint == found.fingerprint


def test_a_signature_names_the_key_and_is_the_same_every_time(release: Path) -> None:
    told = json.loads((release / SIGNATURE_FILE).read_text())
    assert set(told) == {"algorithm", "key", "signature"} and told["key"] == TRUST.text
    assert signature_text(KEY, saved()[MANIFEST_FILE]) == saved()[SIGNATURE_FILE]


def test_the_key_in_the_file_is_not_trusted_for_being_there(tmp_path: Path) -> None:
    forged = shelve(tmp_path / "forged", 1, STRANGER)
    assert read_manifest(forged, STRANGER.public)["version"] == 1
    for trust in (TRUST, frozenset({TRUST}), frozenset[Any]()):
        with pytest.raises(InvalidSignatureError, match="trusted key"):
            read_manifest(forged, trust)


def test_a_stranger_s_signature_under_a_trusted_name_is_refused(release: Path) -> None:
    told = json.loads(signature_text(STRANGER, saved()[MANIFEST_FILE]))
    (release / SIGNATURE_FILE).write_text(json.dumps({**told, "key": TRUST.text}, indent=1) + "\n")
    with pytest.raises(InvalidSignatureError, match="of this manifest"):
        read_manifest(release, TRUST)


def test_a_signature_for_another_purpose_is_refused(release: Path) -> None:
    class Other:
        public = KEY.public

        def sign(self, purpose: str, message: bytes) -> bytes:
            assert purpose == RELEASE_MANIFEST
            return KEY.sign("round plan", message)

    (release / SIGNATURE_FILE).write_bytes(signature_text(Other(), saved()[MANIFEST_FILE]))  # type: ignore[arg-type]
    with pytest.raises(InvalidSignatureError):
        read_manifest(release, TRUST)


def test_without_a_signature_only_digests_can_be_asked_for(release: Path) -> None:
    (release / SIGNATURE_FILE).unlink()
    assert read_release(release).manifest["version"] == 1
    with pytest.raises(IntegrityError, match=r"manifest\.sig"):
        read_release(release, TRUST)


def test_the_signature_comes_before_anything_of_the_manifest(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a manifest was parsed that nobody signed")

    monkeypatch.setattr("shared.release_files.parse_manifest", never)
    with pytest.raises(AssertionError):
        read_manifest(release, TRUST)
    (release / MANIFEST_FILE).write_bytes(saved()[MANIFEST_FILE] + b" ")
    with pytest.raises(InvalidSignatureError):
        read_manifest(release, TRUST)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 50_000, b'{"key": 1, "signature": ""}'])
def test_what_is_no_signature_is_refused(release: Path, text: bytes) -> None:
    (release / SIGNATURE_FILE).write_bytes(text)
    with pytest.raises(InvalidSignatureError, match="Expected a signature of a release"):
        read_manifest(release, TRUST)


# --- manifests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        *({"version": version} for version in (0, -1, True, 1.0, "1", None, 2**31)),
        *({"format": value} for value in (2, True, "1")),
        *({"base_sha256": value} for value in ("0" * 63, "G" * 64, 1)),
        {"base": ""},
        {"privacy": {}},
        {"privacy": {**PRIVACY, "users": 3}},
        {"privacy": {**PRIVACY, "mode": "central"}},
        {"privacy": {**PRIVACY, "mode": "none"}},
        {"privacy": {**PRIVACY, "epsilon": -1.0}},
        {"privacy": {**PRIVACY, "epsilon": True}},
        {"privacy": {**PRIVACY, "epsilon": None}},
        {"privacy": {**PRIVACY, "delta": 1.0}},
        {"files": {"config.json": "0" * 64}},
        {"files": dict.fromkeys((*FILES, "../evil"), "0" * 64)},
        {"sizes": dict.fromkeys(FILES, -1)},
        {"sizes": {}},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_signed_manifest_that_is_mistaken_is_refused_by_its_key(tmp_path: Path, told: dict[str, Any]) -> None:
    folder = write(tmp_path / "release", signed(saved(), **told))
    with pytest.raises(IntegrityError, match=f"{MANIFEST_FILE}: .*({next(iter(told))}|files and sizes|Extra)") as error:
        read_manifest(folder, TRUST)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_an_epsilon_that_is_no_number_is_refused(constant: str) -> None:
    data = saved()[MANIFEST_FILE].replace(b"7.5", constant.encode())
    assert data != saved()[MANIFEST_FILE]
    with pytest.raises(IntegrityError):
        parse_manifest(data, Path(MANIFEST_FILE))


def test_a_key_that_is_there_twice_is_refused() -> None:
    data = saved()[MANIFEST_FILE].replace(b'"version": 1', b'"version": 1,\n "version": 1')
    assert json.loads(data) == json.loads(saved()[MANIFEST_FILE])
    with pytest.raises(IntegrityError, match="twice"):
        parse_manifest(data, Path(MANIFEST_FILE))


def test_nothing_is_saved_that_nobody_could_load(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="version"):
        save(tmp_path / "release", version=0)
    assert not (tmp_path / "release").exists()


def test_a_manifest_and_a_configuration_that_name_two_bases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"model\.base"):
        read_release(write(tmp_path / "release", signed(saved(), base="another")), TRUST)


def test_a_base_that_is_not_on_this_machine_is_a_mismatch(tmp_path: Path) -> None:
    config = json.loads(saved()["config.json"])
    config["model"]["base"] = "/no/such/bert"
    files = {**saved(), "config.json": json.dumps(config).encode()}
    with pytest.raises(AdapterMismatchError, match="/no/such/bert"):
        load_release(write(tmp_path / "release", signed(files, base="/no/such/bert")), TRUST)


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 10**9), ("head_rank", 10**9), ("item_rank", 10**9)])
def test_a_configuration_that_asks_for_more_than_there_is_builds_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr("shared.adapter.BehaviourStage", None)
    config = json.loads(saved()["config.json"])
    config["model"][name] = value
    files = {**saved(), "config.json": json.dumps(config).encode()}
    with pytest.raises(IntegrityError, match="ranks"):
        load_release(write(tmp_path / "release", signed(files)), TRUST)


def test_more_layers_than_the_base_has_are_a_mismatch(tmp_path: Path) -> None:
    config = json.loads(saved()["config.json"])
    config["model"]["adapted_layers"] = 99
    files = {**saved(), "config.json": json.dumps(config).encode()}
    with pytest.raises(AdapterMismatchError, match="adapted_layers"):
        load_release(write(tmp_path / "release", signed(files)), TRUST)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE, SIGNATURE_FILE])
@pytest.mark.parametrize("kind", ["link away", "loop", "folder", "pipe", "device"])
def test_what_is_no_plain_file_of_the_folder_is_refused(release: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A link that leads away is refused even where its target is the very file."""
    file = release / name
    file.rename(tmp_path / "away")
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        targets = {"link away": tmp_path / "away", "loop": file, "device": Path("/dev/zero")}
        file.symlink_to(targets[kind])
    with pytest.raises(IntegrityError, match=name):
        read_release(release, TRUST)


def test_a_link_within_the_folder_is_followed(release: Path) -> None:
    """As cluster managers mount files: ``manifest.json`` is a link to ``..data/manifest.json``."""
    (release / "..data").mkdir()
    for name in (*FILES, MANIFEST_FILE, SIGNATURE_FILE):
        (release / name).rename(release / "..data" / name)
        (release / name).symlink_to(Path("..data") / name)
    assert read_release(release, TRUST).manifest["version"] == 1


def test_a_file_that_is_larger_than_was_signed_is_not_read(release: Path) -> None:
    with (release / "behaviour.safetensors").open("ab") as file:
        file.truncate(2**40)  # a sparse file of a terabyte
    with pytest.raises(IntegrityError, match="size"):
        read_release(release, TRUST)


def test_a_pickle_beside_or_in_the_place_of_a_file_is_never_opened(release: Path, tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    data = pickle.dumps(Bomb(marker))
    pickle.loads(data)
    marker.unlink()  # it works, if it is ever opened
    for name in ("adapter_model.bin", "model.pkl", "training_args.pt"):
        (release / name).write_bytes(data)
    assert load_release(release, TRUST).manifest["version"] == 1
    for name in FILES:
        write(release, signed({**saved(), name: data}))
        if name != "adapter_config.json":  # for PEFT alone: not read here
            with pytest.raises(IntegrityError, match=name):
                load_release(release, TRUST)
    assert not marker.exists()


# --- versions -------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Admission.create(tmp_path / "home", {"anna": SigningKey.generate().public})
    return tmp_path / "home"


def book(home: Path) -> ReleaseBook:
    return ReleaseBook(home, Admission.open(home))


def test_a_coordinator_s_versions_rise_and_the_same_release_keeps_its_own(home: Path) -> None:
    digests = [letter * 64 for letter in "abc"]
    assert [book(home).version_of(digest) for digest in digests] == [1, 2, 3]
    assert [book(home).version_of(digest) for digest in (*digests, "d" * 64)] == [1, 2, 3, 4]


def test_a_release_that_is_made_again_is_the_same_to_the_byte_and_another_is_a_version_newer(
    home: Path, tmp_path: Path
) -> None:
    def released(name: str) -> dict[str, bytes]:
        save(tmp_path / name, version=book(home).version_of, sign=book(home).sign)
        return {entry.name: entry.read_bytes() for entry in (tmp_path / name).iterdir()}

    first = released("one")
    assert released("again") == first
    book(home).version_of("f" * 64)
    assert released("one") == first
    trust = Admission.open(home).key.public
    assert read_release(tmp_path / "one", trust).manifest["version"] == 1


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a"]', "null", f'["{"a" * 64}", "{"a" * 64}"]'])
def test_a_book_of_releases_that_is_none_is_refused(home: Path, text: str) -> None:
    (home / RELEASES_FILE).write_text(text)
    with pytest.raises(IntegrityError, match=RELEASES_FILE):
        book(home).version_of("a" * 64)
    assert (home / RELEASES_FILE).read_text() == text


# --- trust that an operator names, and the command ------------------------------------------------


def test_trust_is_a_key_or_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{TRUST.text}\n{STRANGER.public.text}\n")
    assert read_trust([TRUST.text]) == {TRUST}
    assert read_trust([str(tmp_path / "keys")]) == {TRUST, STRANGER.public}


def test_a_private_key_in_the_place_of_a_public_one_is_refused_and_not_quoted(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for told in (home / "server.key", tmp_path / "empty", tmp_path, "AAAA", ""):
        with pytest.raises(ConfigError) as error:
            read_trust([str(told)])
        assert "PRIVATE" not in str(error.value)
    with pytest.raises(ConfigError):
        read_trust([])


def verified(*arguments: object) -> tuple[int, str]:
    """Exit code as `simulations.cli.main` gives it, and stdout."""
    result = CliRunner().invoke(adapter_app, ["verify", *map(str, arguments)])
    code = result.exception.exit_code if isinstance(result.exception, VeilrecError) else result.exit_code
    return code, result.stdout


def test_the_command_tells_what_was_verified(release: Path) -> None:
    (release / "notes.txt").write_text("")
    code, out = verified(release, "--trust", TRUST.text, "--json")
    told = json.loads(out)
    assert code == 0
    assert told == {
        "verified": True,
        "version": 1,
        "fingerprint": fingerprint_of(json.loads(saved()[MANIFEST_FILE])),
        "base": "all-MiniLM-L6-v2",
        "base_sha256": json.loads(saved()[MANIFEST_FILE])["base_sha256"],
        "catalogue_sha256": CATALOGUE,
        **PRIVACY,
        "ignored": ["notes.txt"],
    }
    code, out = verified(release, "--trust", TRUST.text)
    assert code == 0
    for part in ("version 1", "epsilon 7.5", "delta 1e-05", "all-MiniLM-L6-v2", told["fingerprint"], "notes.txt"):
        assert part in out


def test_the_command_ends_with_the_code_of_the_family(release: Path, tmp_path: Path) -> None:
    assert verified(release, "--trust", STRANGER.public.text) == (InvalidSignatureError.exit_code, "")
    assert verified(release, "--trust", "nobody") == (ConfigError.exit_code, "")
    assert verified(tmp_path / "none", "--trust", TRUST.text) == (IntegrityError.exit_code, "")
    (release / "behaviour.safetensors").write_bytes(b"")
    assert verified(release, "--trust", TRUST.text, "--json") == (IntegrityError.exit_code, "")
    assert verified(release)[0] == 2  # no --trust: nothing is verified against the file's own word


def test_a_release_is_verified_without_torch(release: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from shared.release_files import read_release;"
        "from shared.release_signature import read_trust; read_release(Path(sys.argv[1]), read_trust([sys.argv[2]]));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(release), TRUST.text], check=True)
