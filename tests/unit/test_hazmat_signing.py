"""Identities: published vectors, one purpose a signature, and keys that only their owner can read."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from shared.errors import ConfigError, DataError, InvalidSignatureError
from shared.hazmat import signing
from shared.hazmat.signing import SigningKey, VerifyKey

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "hazmat.json").read_text())


def write_key(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def pem(key: Ed25519PrivateKey | X25519PrivateKey, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


# --- signatures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["ed25519"]["cases"])
def test_signatures_are_those_of_rfc_8032(case: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "_statement", lambda purpose, message: message)
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["secret"])))
    message, signature = bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])
    assert key.public.raw.hex() == case["public"]
    assert key.sign("any", message) == signature
    key.public.verify("any", message, signature)


def test_the_signed_statement_names_version_and_purpose() -> None:
    secret = Ed25519PrivateKey.generate()
    expected = secret.sign(b"veilrec/v1/roster\0message")
    assert SigningKey(secret).sign("roster", b"message") == expected


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    key = SigningKey.generate()
    signature = key.sign("consent", b"set")
    key.public.verify("consent", b"set", signature)
    with pytest.raises(InvalidSignatureError, match="purpose=offer"):
        key.public.verify("offer", b"set", signature)


def test_purpose_and_message_cannot_be_shifted_into_each_other() -> None:
    key = SigningKey.generate()
    with pytest.raises(InvalidSignatureError):
        key.public.verify("ab", b"c", key.sign("a", b"bc"))


@pytest.mark.parametrize("purpose", ["", "a\0b"])
def test_a_purpose_that_separates_nothing_is_refused(purpose: str) -> None:
    with pytest.raises(ConfigError, match="Expected a purpose"):
        SigningKey.generate().sign(purpose, b"")


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_changed_signature_is_refused(place: int) -> None:
    key = SigningKey.generate()
    signature = bytearray(key.sign("p", b"m"))
    signature[place] ^= 1
    with pytest.raises(InvalidSignatureError):
        key.public.verify("p", b"m", bytes(signature))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(InvalidSignatureError):
        SigningKey.generate().public.verify("p", b"m", signature)


def test_a_changed_message_or_another_key_is_refused() -> None:
    key = SigningKey.generate()
    signature = key.sign("p", b"m")
    with pytest.raises(InvalidSignatureError):
        key.public.verify("p", b"n", signature)
    with pytest.raises(InvalidSignatureError):
        SigningKey.generate().public.verify("p", b"m", signature)


# --- public keys ----------------------------------------------------------------------------------


def test_a_public_key_goes_through_its_text() -> None:
    public = SigningKey.generate().public
    again = VerifyKey.from_text(public.text)
    assert again == public
    assert {again: 1}[public] == 1
    assert len(public.text) == 44


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        "é" * 44,
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        base64.b64encode(bytes(32)).decode() + "\n",
        base64.b64encode(bytes(32)).decode()[:-2] + "B=",
    ],
    ids=["empty", "letters", "not ASCII", "short", "long", "newline", "not canonical"],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected an"):
        VerifyKey.from_text(text)


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 bytes, got 5"):
        VerifyKey(b"12345")


# --- key files ------------------------------------------------------------------------------------


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity.pem"
    first = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load_or_create(path).public == first.public == SigningKey.load(path).public
    assert [file.name for file in path.parent.iterdir()] == ["identity.pem"]


def test_the_key_of_the_process_that_was_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity.pem"
    first = SigningKey.load_or_create(path)
    monkeypatch.setattr(Path, "exists", lambda self: False)  # as the other process saw it
    assert SigningKey.load_or_create(path).public == first.public
    assert [file.name for file in tmp_path.iterdir()] == ["identity.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o666])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "identity.pem", pem(Ed25519PrivateKey.generate()), mode)
    with pytest.raises(ConfigError, match=f"Expected mode=0600 .* got {mode:04o}"):
        SigningKey.load(path)


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Expected a readable key file identity\.pem"):
        SigningKey.load(tmp_path / "identity.pem")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"SECRET-LOOKING GARBAGE",
        pem(X25519PrivateKey.generate()),
        pem(Ed25519PrivateKey.generate())[:-40],
    ],
    ids=["empty", "garbage", "another kind", "torn"],
)
def test_what_is_no_key_is_refused_and_neither_quoted_nor_replaced(tmp_path: Path, content: bytes) -> None:
    path = write_key(tmp_path / "identity.pem", content)
    with pytest.raises(DataError, match="Expected an Ed25519 key") as caught:
        SigningKey.load_or_create(path)
    assert caught.value.__cause__ is None
    assert "SECRET" not in str(caught.value)
    assert path.read_bytes() == content


def test_an_encrypted_key_without_a_passphrase_is_a_wrong_setting(tmp_path: Path) -> None:
    path = write_key(tmp_path / "identity.pem", pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"password")))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"Expected a passphrase for the file identity\.pem, which is encrypted"):
        SigningKey.load_or_create(path)
    assert path.read_bytes() == before


def test_a_secret_is_not_in_the_text_of_a_key_and_cannot_be_pickled() -> None:
    secret = Ed25519PrivateKey.generate()
    key = SigningKey(secret)
    for text in (repr(key), str(key), f"{[key]}"):
        assert secret.private_bytes_raw().hex() not in text
        assert base64.b64encode(secret.private_bytes_raw()).decode() not in text
        assert key.public.text in text
    with pytest.raises(TypeError):
        pickle.dumps(key)
