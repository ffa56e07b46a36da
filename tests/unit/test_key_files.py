"""Keys at rest: whose they are, what opens them, and what never does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from enrolled import cheap_scrypt
from hypothesis import given
from hypothesis import strategies as st

from client.data.pseudonyms import PseudonymKey
from shared.errors import ConfigError, DataError, IntegrityError, VeilrecError
from shared.hazmat import key_files
from shared.hazmat.key_files import (
    CREDENTIAL,
    PASSPHRASE_VARIABLE,
    Passphrase,
    create_passphrase_file,
    memory_copy,
    open_secret,
    seal_secret,
    wanted_passphrase,
    write_once,
)
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.signing import SigningKey

PASSPHRASE, OTHER = Passphrase(b"a passphrase of some length"), Passphrase(b"another passphrase, as long")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (PASSPHRASE_VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    with cheap_scrypt():
        yield


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


# --- the passphrase -------------------------------------------------------------------------------


def test_the_file_that_is_named_comes_before_the_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Passphrase.of_environment() is None
    write(tmp_path / CREDENTIAL, OTHER.secret, 0o440)  # as systemd's access list shows
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Passphrase.of_environment() == OTHER
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(write(tmp_path / "own", PASSPHRASE.secret + b"\r\n")))
    assert Passphrase.of_environment() == PASSPHRASE


def test_a_named_file_that_is_not_there_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / CREDENTIAL, OTHER.secret)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Expected a readable passphrase file none"):
        Passphrase.of_environment()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_passphrase_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=rf"Expected mode=0600 of the passphrase file p, got {mode:04o}"):
        Passphrase.read(write(tmp_path / "p", PASSPHRASE.secret, mode))


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o446])
def test_a_credential_that_everybody_may_read_or_a_group_may_write_is_refused(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / CREDENTIAL, PASSPHRASE.secret, mode)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="Expected mode=0600"):
        Passphrase.of_environment()


@pytest.mark.parametrize("content", [b"", b"\n", b"fifteen letters", b"first line of it\nsecond"])
def test_a_short_passphrase_or_two_lines_are_refused_unquoted(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        Passphrase.read(write(tmp_path / "p", content))
    assert "letters" not in str(caught.value) and "second" not in str(caught.value)


def test_a_passphrase_is_made_once_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "p"
    made, fresh = wanted_passphrase(file)
    assert fresh and stat.S_IMODE(file.stat().st_mode) == 0o600 and len(made.secret) == 43
    assert wanted_passphrase(file) == (made, False) and not create_passphrase_file(file)
    assert made.secret.decode() not in repr(made)
    assert wanted_passphrase(tmp_path / "other")[0] != made


def test_new_keys_need_a_passphrase() -> None:
    with pytest.raises(ConfigError, match="new keys are always encrypted"):
        wanted_passphrase(None)


# --- private keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SigningKey, NodeKey])
def test_a_key_made_with_a_passphrase_is_encrypted_and_read_with_it_alone(
    tmp_path: Path, kind: type[SigningKey | NodeKey]
) -> None:
    file = tmp_path / "k.key"
    made = kind.load_or_create(file, PASSPHRASE)
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in file.read_bytes() and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert repr(kind.load(file, PASSPHRASE)) == repr(made)
    with pytest.raises(ConfigError, match=r"Expected a passphrase for the file k\.key, which is encrypted"):
        kind.load(file)
    with pytest.raises(DataError, match=r"in the file k\.key, under this passphrase") as caught:
        kind.load(file, OTHER)
    assert caught.value.__cause__ is None and "passphrase of some" not in str(caught.value)


def test_the_environments_passphrase_encrypts_and_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(write(tmp_path / "p", PASSPHRASE.secret)))
    made = SigningKey.load_or_create(tmp_path / "k")
    assert SigningKey.load(tmp_path / "k", PASSPHRASE).public == made.public
    assert SigningKey.load(tmp_path / "k").public == made.public


def test_a_key_of_before_that_is_not_encrypted_is_still_read(tmp_path: Path) -> None:
    made = SigningKey.load_or_create(tmp_path / "k")
    assert b"ENCRYPTED" not in (tmp_path / "k").read_bytes()
    assert SigningKey.load(tmp_path / "k", PASSPHRASE).public == made.public


def test_the_pem_block_does_not_open_with_the_passphrase_itself(tmp_path: Path) -> None:
    """PKCS8's own 2,048 rounds are not what stands between a thief and the key."""
    SigningKey.load_or_create(tmp_path / "k", PASSPHRASE)
    block = (tmp_path / "k").read_bytes()
    block = block[block.index(b"-----BEGIN") :]
    with pytest.raises(ValueError, match=r"."):
        load_pem_private_key(block, PASSPHRASE.secret)


def test_a_key_that_another_program_encrypted_is_read(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE.secret))
    assert SigningKey.load(write(tmp_path / "k", pem), PASSPHRASE).public == SigningKey(key).public


def test_a_cost_that_would_stop_the_reader_is_refused(tmp_path: Path) -> None:
    SigningKey.load_or_create(tmp_path / "k", PASSPHRASE)
    costly = (tmp_path / "k").read_bytes().replace(b"log_n=4", b"log_n=40")
    with pytest.raises(DataError, match="log_n <= 20"):
        SigningKey.load(write(tmp_path / "k", costly), PASSPHRASE)


def test_a_guess_costs_what_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "SCRYPT_LOG_N", 15)
    monkeypatch.setattr(key_files, "SCRYPT_P", 3)
    began = time.process_time()
    sealed = seal_secret(b"s", "purpose", PASSPHRASE)
    assert sealed.startswith(b"veilrec-sealed: log_n=15 p=3 ")
    assert time.process_time() - began > 0.03  # 0.2 s where it was measured; PBKDF2 of 2,048 rounds: 0.0006 s


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files in memory are Linux's")
def test_a_copy_in_memory_can_be_read_by_a_child_and_is_on_no_disk(tmp_path: Path) -> None:
    made = SigningKey.load_or_create(tmp_path / "k.key", PASSPHRASE)
    handle = memory_copy(tmp_path / "k.key", PASSPHRASE)
    try:
        read = f"print(open('/proc/self/fd/{handle}').read() * 1, end='')"
        for _ in range(2):  # from its beginning each time
            done = subprocess.run([sys.executable, "-c", read], pass_fds=(handle,), capture_output=True, check=True)
            key = load_pem_private_key(done.stdout, None)
            assert isinstance(key, Ed25519PrivateKey) and SigningKey(key).public == made.public
    finally:
        os.close(handle)
    assert [file.name for file in tmp_path.iterdir()] == ["k.key"]


# --- raw secrets ----------------------------------------------------------------------------------


@given(secret=st.binary(max_size=100), at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_sealed_secret_opens_to_itself_and_not_with_one_bit_changed(secret: bytes, at: int, bit: int) -> None:
    sealed = seal_secret(secret, "purpose", PASSPHRASE)
    assert open_secret(sealed, "purpose", "f", PASSPHRASE) == secret
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1 << bit
    try:
        opened = open_secret(bytes(changed), "purpose", "f", PASSPHRASE)
    except VeilrecError:
        return
    assert opened == secret and bytes(changed).split() == sealed.split()  # another kind of white space


@pytest.mark.parametrize(("purpose", "passphrase"), [("other", PASSPHRASE), ("purpose", OTHER)])
def test_a_secret_of_another_purpose_or_passphrase_is_refused(purpose: str, passphrase: Passphrase) -> None:
    sealed = seal_secret(b"secret", "purpose", PASSPHRASE)
    with pytest.raises(IntegrityError, match="under this passphrase"):
        open_secret(sealed, purpose, "f", passphrase)
    with pytest.raises(ConfigError, match="Expected a passphrase for the file f"):
        open_secret(sealed, "purpose", "f")


def test_a_pseudonym_key_is_sealed_and_one_of_before_is_still_read(tmp_path: Path) -> None:
    made = PseudonymKey.load_or_create(tmp_path / "k", PASSPHRASE)
    assert made.secret not in (tmp_path / "k").read_bytes()
    assert PseudonymKey.load_or_create(tmp_path / "k", PASSPHRASE) == made
    with pytest.raises(ConfigError, match="Expected a passphrase"):
        PseudonymKey.load_or_create(tmp_path / "k")
    with pytest.raises(IntegrityError, match="under this passphrase"):
        PseudonymKey.load_or_create(tmp_path / "k", OTHER)
    write(tmp_path / "plain", bytes(range(32)))
    assert PseudonymKey.load_or_create(tmp_path / "plain", PASSPHRASE).secret == bytes(range(32))


def test_a_file_is_written_once(tmp_path: Path) -> None:
    assert write_once(tmp_path / "a" / "f", b"first")
    assert not write_once(tmp_path / "a" / "f", b"second")
    assert (tmp_path / "a" / "f").read_bytes() == b"first"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["f"]
