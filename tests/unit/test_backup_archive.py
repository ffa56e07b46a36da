"""Archives: what went in comes out, damage is found, no name leads elsewhere, and no key goes in the clear."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coordinator_setting import PASSPHRASE, quick_keys

from shared.backup import read_archive, restore_archive, write_archive
from shared.backup_manifest import MANIFEST, Kept, Manifest, encode
from shared.errors import ConfigError, IntegrityError
from shared.hazmat.signing import SigningKey
from shared.plain_keys import is_plain_key

FILES = {"partner.toml": b"name = 'anna'\n", "runs/run/prior.safetensors": bytes(range(256)) * 9, "empty": b""}


def folder_of(root: Path, files: dict[str, bytes]) -> dict[str, Path]:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return {name: root / name for name in files}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_archive(tmp_path / "a.tar", "partner", "anna", folder_of(tmp_path / "from", FILES))
    return tmp_path / "a.tar"


# --- an archive -----------------------------------------------------------------------------------


def test_what_went_in_comes_out(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "from" / "partner.toml").chmod(0o640)
    write_archive(tmp_path / "b.tar", "partner", "anna", folder_of(tmp_path / "from", FILES))
    manifest = restore_archive(tmp_path / "b.tar", tmp_path / "to", "partner")
    assert contents(tmp_path / "to") == FILES and manifest.name == "anna"
    assert manifest.files == read_archive(tmp_path / "b.tar", "partner").files
    assert archive.stat().st_mode & 0o777 == 0o600 and (tmp_path / "to").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "to" / "partner.toml").stat().st_mode & 0o777 == 0o640
    assert {file.name for file in tmp_path.iterdir()} == {"from", "to", "a.tar", "b.tar"}  # nothing is left over


def test_a_changed_byte_is_caught_or_is_no_byte_of_a_file(archive: Path, tmp_path: Path) -> None:
    """Every byte of the archive, one at a time; what tar fills blocks up with holds nothing."""
    whole, caught = archive.read_bytes(), 0
    last = whole.rindex(b"}\n")
    for at in [*range(0, last, 37), last - 1, last]:
        broken = bytearray(whole)
        broken[at] ^= 0x10
        archive.write_bytes(broken)
        try:
            manifest = read_archive(archive, "partner")
        except IntegrityError:
            caught += 1
        else:
            assert [kept.sha256 for kept in manifest.files], at
            restore_archive(archive, tmp_path / f"to {at}", "partner")
            assert contents(tmp_path / f"to {at}") == FILES, at
    assert caught > 0.4 * last / 37


def test_a_damaged_archive_changes_nothing(archive: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "to", {"partner.toml": b"mine"})
    broken = archive.read_bytes().replace(bytes(range(256)), bytes(range(1, 256)) + b"\0", 1)
    archive.write_bytes(broken)
    for target in ("to", "new"):
        with pytest.raises(IntegrityError, match="byte by byte"):
            restore_archive(archive, tmp_path / target, "partner", replace=True)
    assert contents(tmp_path / "to") == {"partner.toml": b"mine"} and contents(tmp_path / "new") == {}


@pytest.mark.parametrize("keep", [0, 100, 512, 3000])
def test_an_archive_that_was_cut_off_is_refused(archive: Path, tmp_path: Path, keep: int) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(IntegrityError):
        restore_archive(archive, tmp_path / "to", "partner")


def test_what_is_no_archive_of_this_side_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected a backup of a server, got one of a partner"):
        read_archive(archive, "server")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_archive(tmp_path / "none.tar", "partner")


def forged(archive: Path, target: Path, change: Callable[[tarfile.TarInfo], None]) -> None:
    """An archive whose last file was renamed or made into something else, with a manifest that agrees."""
    with tarfile.open(archive) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old:
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == "empty":
                change(member)
                data = data if member.isreg() else b""
            elif member.name == MANIFEST:
                told = json.loads(data)
                files = [{**kept, "name": name_of(kept["name"], change)} for kept in told["files"]]
                rest = {key: told[key] for key in ("kind", "name", "version", "created")}
                data = encode(Manifest(**rest, files=tuple(Kept(**kept) for kept in files)))
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def name_of(name: str, change: Callable[[tarfile.TarInfo], None]) -> str:
    if name != "empty":
        return name
    member = tarfile.TarInfo(name)
    change(member)
    return member.name


@pytest.mark.parametrize(
    "name",
    ["../outside", "/tmp/outside", "a/../../outside", "a//b", "./a", "a/.", "..", ".restore-x/a", "a\nb", "a\\..\\b"],
)
def test_a_name_that_leads_elsewhere_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    forged(archive, tmp_path / "forged.tar", lambda member: setattr(member, "name", name))
    with pytest.raises(IntegrityError) as caught:
        restore_archive(tmp_path / "forged.tar", tmp_path / "deep" / "to", "partner")
    assert name not in str(caught.value) or name == ".."
    assert not (tmp_path / "deep" / "outside").exists() and contents(tmp_path / "deep" / "to") == {}


def test_the_forgery_itself_would_be_restored_under_a_good_name(archive: Path, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    forged(archive, tmp_path / "forged.tar", lambda member: setattr(member, "name", "a/b"))
    restore_archive(tmp_path / "forged.tar", tmp_path / "to", "partner")
    assert (tmp_path / "to" / "a" / "b").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_files_are_restored(archive: Path, tmp_path: Path, kind: bytes) -> None:
    def become(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, "/etc/passwd"

    forged(archive, tmp_path / "forged.tar", become)
    with pytest.raises(IntegrityError):
        restore_archive(tmp_path / "forged.tar", tmp_path / "to", "partner")


def test_a_folder_with_files_is_left_alone_unless_told(archive: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "to", {"partner.toml": b"mine", "data/interactions.parquet": b"rows"})
    with pytest.raises(ConfigError, match="--replace"):
        restore_archive(archive, tmp_path / "to", "partner")
    assert contents(tmp_path / "to") == {"partner.toml": b"mine", "data/interactions.parquet": b"rows"}
    restore_archive(archive, tmp_path / "to", "partner", replace=True)
    assert contents(tmp_path / "to") == {**FILES, "data/interactions.parquet": b"rows"}


def test_a_restore_that_was_killed_is_done_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Path.replace, 0

    def dies(self: Path, to: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(self, to)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", dies)
        restore_archive(archive, tmp_path / "to", "partner")
    assert all(FILES[name] == data for name, data in contents(tmp_path / "to").items())
    restore_archive(archive, tmp_path / "to", "partner", replace=True)
    assert contents(tmp_path / "to") == FILES


def test_an_archive_never_replaces_a_file(archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(ConfigError, match="Expected a new file"):
        write_archive(archive, "partner", "anna", folder_of(tmp_path / "from", FILES))
    assert archive.read_bytes() == before
    with pytest.raises(ConfigError, match="cannot be written"):
        write_archive(tmp_path / "a.tar" / "b.tar", "partner", "anna", folder_of(tmp_path / "from", FILES))


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = folder_of(tmp_path / "from", {"a": b"x" * 100})
    real = os.fstat

    def longer(handle: int) -> Any:
        facts = real(handle)
        return os.stat_result((*facts[:6], facts.st_size + 10, *facts[7:10])) if facts.st_size == 100 else facts

    with monkeypatch.context() as patch:
        patch.setattr("shared.backup.os.fstat", longer)
        with pytest.raises(IntegrityError, match="became shorter"):
            write_archive(tmp_path / "a.tar", "partner", "anna", sources)
    assert [file.name for file in tmp_path.iterdir()] == ["from"]


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_that_is_not_encrypted_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_keys(monkeypatch)
    (tmp_path / "from").mkdir()
    SigningKey.load_or_create(tmp_path / "from" / "server.key", PASSPHRASE)
    sources = {"server.key": tmp_path / "from" / "server.key"}
    write_archive(tmp_path / "a.tar", "server", "", sources)
    SigningKey.load_or_create(tmp_path / "from" / "ca.key")
    sources["ca.key"] = tmp_path / "from" / "ca.key"
    with pytest.raises(ConfigError, match=r"got ca\.key in the clear") as caught:
        write_archive(tmp_path / "b.tar", "server", "", sources)
    assert "BEGIN" not in str(caught.value) and not (tmp_path / "b.tar").exists()
    write_archive(tmp_path / "b.tar", "server", "", sources, plain_keys=True)


@pytest.mark.parametrize("cipher", [False, True])
def test_openssh_s_keys_are_told_apart(tmp_path: Path, cipher: bool) -> None:
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "a passphrase" if cipher else "", "-f", str(tmp_path / "k")]
    try:
        subprocess.run(words, check=True)
    except FileNotFoundError:
        pytest.skip("no ssh-keygen on PATH")
    assert is_plain_key("node/k", (tmp_path / "k").read_bytes()) is not cipher


def test_a_raw_secret_is_known_by_its_name() -> None:
    assert is_plain_key("pseudonym.key", bytes(32)) and not is_plain_key("items.parquet", bytes(32))
    assert not is_plain_key("pseudonym.key", b"veilrec-sealed: log_n=15")
    assert is_plain_key("notes", b"-----BEGIN EC PRIVATE KEY-----\nMHc=\n")
    assert is_plain_key("k", b"-----BEGIN OPENSSH PRIVATE KEY-----\n!!\n-----END OPENSSH PRIVATE KEY-----")
