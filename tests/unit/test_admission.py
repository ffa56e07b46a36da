"""What the coordinator knows of itself and of the partners."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from server.admission import IDENTITIES_FILE, SERVER_KEY_FILE, Admission
from shared.errors import ConfigError, DataError
from shared.hazmat.signing import SigningKey, VerifyKey

IDENTITIES = {f"partner-{k:03d}": SigningKey.generate().public for k in range(3)}
KEY = SigningKey.generate()


def test_what_was_made_is_read_again(tmp_path: Path) -> None:
    made = Admission.create(tmp_path / "federation", IDENTITIES)
    read = Admission.open(tmp_path / "federation")
    assert read.key.public == made.key.public
    assert read.identities == made.identities == IDENTITIES
    assert stat.S_IMODE((tmp_path / "federation" / SERVER_KEY_FILE).stat().st_mode) == 0o600


def test_a_key_that_partners_have_pinned_is_kept(tmp_path: Path) -> None:
    first = Admission.create(tmp_path, IDENTITIES)
    fewer = {name: IDENTITIES[name] for name in list(IDENTITIES)[:2]}
    second = Admission.create(tmp_path, fewer)
    assert second.key.public == first.key.public
    assert Admission.open(tmp_path).identities == fewer


def test_opening_never_makes_a_key(tmp_path: Path) -> None:
    Admission.create(tmp_path, IDENTITIES)
    (tmp_path / SERVER_KEY_FILE).unlink()
    with pytest.raises(ConfigError, match=r"server\.key"):
        Admission.open(tmp_path)
    assert not (tmp_path / SERVER_KEY_FILE).exists()


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    Admission.create(tmp_path, IDENTITIES)
    (tmp_path / SERVER_KEY_FILE).chmod(mode)
    with pytest.raises(ConfigError, match="mode=0600"):
        Admission.open(tmp_path)


def test_a_key_file_that_is_none_is_refused(tmp_path: Path) -> None:
    Admission.create(tmp_path, IDENTITIES)
    (tmp_path / SERVER_KEY_FILE).write_text("no key")
    with pytest.raises(DataError, match="Ed25519"):
        Admission.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "cannot be read (JSONDecodeError). Expected JSON"),
        (b"\xff", "cannot be read (UnicodeDecodeError). Expected JSON"),
        (b"[" * 100_000, "cannot be read (RecursionError). Expected JSON"),
        (b"[]", "Expected a JSON object"),
        (b'{"p": 3}', "p: Expected a key as text"),
        (b'{"p": "abc"}', "p: Expected an identity as base64"),
    ],
    ids=["half", "not UTF-8", "too deep", "a list", "a number", "no key"],
)
def test_identities_that_are_none_are_named(tmp_path: Path, content: bytes, told: str) -> None:
    Admission.create(tmp_path, IDENTITIES)
    (tmp_path / IDENTITIES_FILE).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        Admission.open(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / IDENTITIES_FILE}: {told}")


def test_identities_that_are_absent_are_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"identities\.json: cannot be read \(FileNotFoundError\)"):
        Admission.open(tmp_path)


TWIN = next(iter(IDENTITIES.values()))


@pytest.mark.parametrize(
    ("identities", "told"),
    [
        ({}, "at least one partner"),
        ({"a b": TWIN}, "Expected names of 1 to 64"),
        ({"": TWIN}, "Expected names of 1 to 64"),
        ({"a\n": TWIN}, "Expected names of 1 to 64"),
        ({"a" * 65: TWIN}, "Expected names of 1 to 64"),
        ({**IDENTITIES, "twin": TWIN}, "Expected another key for every partner"),
        ({**IDENTITIES, "server": KEY.public}, "Expected another key for every partner and the coordinator"),
    ],
    ids=["nobody", "a space", "no name", "a line", "too long", "a key twice", "the coordinator"],
)
def test_identities_that_cannot_be_are_refused(identities: dict[str, VerifyKey], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Admission(KEY, identities)


def test_wrong_identities_are_not_written_over_right_ones(tmp_path: Path) -> None:
    Admission.create(tmp_path, IDENTITIES)
    with pytest.raises(ConfigError):
        Admission.create(tmp_path, {"a b": TWIN})
    told = json.loads((tmp_path / IDENTITIES_FILE).read_text())
    assert told == {name: key.text for name, key in IDENTITIES.items()}


def test_the_secret_is_not_shown() -> None:
    assert "SigningKey" not in repr(Admission(KEY, IDENTITIES))
