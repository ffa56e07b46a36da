"""Key agreement and sealed messages: published vectors, and nothing that does not fit."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ProtocolError, UnmaskError
from shared.hazmat.agreement import EphemeralKey, seal, unseal
from shared.hazmat.randomness import SeededRandomness, SystemRandomness

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "hazmat.json").read_text())
SOURCE = SystemRandomness()
KEY = bytes(range(32))


class Fixed:
    """A source that returns the given bytes."""

    name = "fixed"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, n: int, context: str) -> bytes:
        assert n == len(self._data)
        return self._data


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256, from the standard library alone."""
    pseudorandom = hmac.digest(salt or bytes(32), ikm, hashlib.sha256)
    block, output = b"", b""
    for counter in range(1, 256):
        block = hmac.digest(pseudorandom, block + info + bytes([counter]), hashlib.sha256)
        output += block
        if len(output) >= length:
            break
    return output[:length]


@pytest.mark.parametrize("case", VECTORS["hkdf_sha256"]["cases"])
def test_the_reference_hkdf_of_these_tests_is_that_of_rfc_5869(case: dict[str, str]) -> None:
    ikm, salt, info, okm = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info", "okm"))
    assert hkdf(ikm, salt, info, len(okm)) == okm


def test_public_keys_are_those_of_rfc_7748() -> None:
    case = VECTORS["x25519"]
    for name in ("alice", "bob"):
        assert EphemeralKey(bytes.fromhex(case[f"{name}_secret"])).public.hex() == case[f"{name}_public"]


@pytest.mark.parametrize(("own", "peer"), [("alice", "bob"), ("bob", "alice")])
@pytest.mark.parametrize("case", VECTORS["hkdf_sha256"]["cases"])
def test_an_agreed_key_is_hkdf_of_the_shared_secret_of_rfc_7748(own: str, peer: str, case: dict[str, str]) -> None:
    x25519, salt, info = VECTORS["x25519"], bytes.fromhex(case["salt"]), bytes.fromhex(case["info"])
    key = EphemeralKey(bytes.fromhex(x25519[f"{own}_secret"]))
    agreed = key.agree(bytes.fromhex(x25519[f"{peer}_public"]), salt=salt, info=info)
    assert agreed == hkdf(bytes.fromhex(x25519["shared"]), salt, info, 32)


def test_two_parties_agree_and_each_salt_and_info_has_its_own_key() -> None:
    a, b = (EphemeralKey.generate(SOURCE, name) for name in "ab")
    keys = {(s, i): a.agree(b.public, salt=s, info=i) for s in (b"1", b"2") for i in (b"x", b"y")}
    assert len(set(keys.values())) == 4
    assert all(b.agree(a.public, salt=s, info=i) == key for (s, i), key in keys.items())


@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "ec" + "ff" * 30 + "7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "00" * 31,
        "09" * 33,
        "",
    ],
)
def test_a_point_of_low_order_or_another_length_is_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="Expected an X25519 public key"):
        EphemeralKey.generate(SOURCE, "c").agree(bytes.fromhex(point), salt=b"", info=b"")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="Expected an X25519 secret of 32 bytes"):
        EphemeralKey(bytes(length))


def test_a_secret_is_not_in_the_text_of_a_key() -> None:
    key = EphemeralKey(KEY)
    assert key.secret == KEY
    for text in (repr(key), str(key), f"{[key]}"):
        assert KEY.hex() not in text
        assert "\\x01\\x02" not in text


def test_a_seeded_source_gives_one_key_a_context() -> None:
    source = SeededRandomness(1, "partner")
    assert EphemeralKey.generate(source, "a").public == EphemeralKey.generate(source, "a").public
    assert EphemeralKey.generate(source, "a").public != EphemeralKey.generate(source, "b").public


# --- sealed messages ------------------------------------------------------------------------------


def test_a_sealed_message_is_aes_256_gcm() -> None:
    case = {name: bytes.fromhex(text) for name, text in VECTORS["aes256_gcm"].items() if name != "source"}
    sealed = seal(case["key"], case["plaintext"], case["associated"], Fixed(case["nonce"]), "c")
    assert sealed == case["nonce"] + case["ciphertext"] + case["tag"]
    assert unseal(case["key"], sealed, case["associated"]) == case["plaintext"]


@pytest.mark.parametrize("place", [0, 11, 12, 20, -16, -1])
def test_a_changed_message_is_refused(place: int) -> None:
    sealed = bytearray(seal(KEY, b"a share of a seed", b"a to b", SOURCE, "c"))
    sealed[place] ^= 1
    with pytest.raises(UnmaskError, match="Expected a sealed message"):
        unseal(KEY, bytes(sealed), b"a to b")


def test_a_message_for_another_place_or_key_is_refused() -> None:
    sealed = seal(KEY, b"share", b"a to b", SOURCE, "c")
    with pytest.raises(UnmaskError):
        unseal(KEY, sealed, b"a to c")
    with pytest.raises(UnmaskError):
        unseal(bytes(32), sealed, b"a to b")


@pytest.mark.parametrize("length", [0, 12, 27])
def test_a_message_that_is_too_short_is_refused(length: int) -> None:
    with pytest.raises(UnmaskError, match="28 bytes or more"):
        unseal(KEY, bytes(length), b"")


@pytest.mark.parametrize("length", [0, 16, 24, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="Expected a sealing key of 32 bytes"):
        seal(bytes(length), b"", b"", SOURCE, "c")
    with pytest.raises(ProtocolError, match="Expected a sealing key of 32 bytes"):
        unseal(bytes(length), bytes(40), b"")


def test_nonces_of_the_system_source_differ() -> None:
    assert len({seal(KEY, b"x", b"", SOURCE, "c")[:12] for _ in range(100)}) == 100
