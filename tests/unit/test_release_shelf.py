"""The shelf: the newest release that verifies is served, nothing older comes back, and a bad one disturbs nothing."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from signed_releases import KEY, STRANGER, Partner, saved, shelve, signed, write

from client.ranking import release_folders
from client.ranking.release_memory import Known, Memory, ReleaseMemory
from client.ranking.releases import Standing
from shared import adapter
from shared.adapter import Release
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE

TRUST = KEY.public


@pytest.fixture
def partner(tmp_path: Path) -> Partner:
    return Partner(tmp_path)


# --- the newest -----------------------------------------------------------------------------------


def test_the_newest_release_is_served_whatever_the_folders_are_called(partner: Partner) -> None:
    for version, name in ((1, "zebra"), (10, "apple"), (9, "mango")):
        partner.shelve(version, name)
    assert partner.latest() == 10
    assert partner.standings() == {"apple": "chosen", "mango": "waiting", "zebra": "waiting"}
    assert partner.poll() == [10]
    assert partner.standings() == {"apple": "chosen", "mango": "older", "zebra": "older"}


def test_a_release_is_handed_over_once_and_the_next_one_when_it_comes(partner: Partner) -> None:
    assert partner.poll() == []
    partner.shelve(1)
    assert [partner.poll()[:] for _ in range(3)] == [[1]] * 3
    partner.shelve(2)
    assert partner.poll() == [1, 2]
    assert partner.shelf.serving is not None and partner.shelf.serving.version == 2


def test_an_unsigned_release_and_one_of_a_stranger_are_no_releases(partner: Partner) -> None:
    (partner.shelve(3) / SIGNATURE_FILE).unlink()
    shelve(partner.folder / "stranger", 4, STRANGER)
    assert partner.latest() is None
    families = {entry.name: entry.refusal.family for entry in partner.shelf.entries() if entry.refusal}
    assert families == {"release-3": "IntegrityError", "stranger": "InvalidSignatureError"}
    partner.restarted(frozenset({TRUST, STRANGER.public}))
    assert partner.latest() == 4


# --- what is older does not come back -------------------------------------------------------------


def test_an_old_signed_release_does_not_come_back_even_after_a_restart(partner: Partner) -> None:
    partner.shelve(1)
    partner.shelve(2)
    assert partner.poll() == [2]
    shutil.rmtree(partner.folder / "release-2")
    for _ in range(2):
        assert partner.latest() is None and partner.poll() == [2]
        assert partner.standings() == {"release-1": "older"}
        partner.restarted()
    with pytest.raises(IntegrityError, match="version >= 2"):
        raise partner.shelf.nothing()
    partner.shelve(2)
    assert partner.poll() == [2, 2]


def test_seeing_a_release_is_not_serving_it(partner: Partner) -> None:
    """Only what was served binds: else a release that cannot be loaded would leave nothing to serve."""
    partner.shelve(1)
    partner.shelve(2)
    assert partner.latest() == 2 and not partner.state.exists()
    shutil.rmtree(partner.folder / "release-2")
    assert partner.poll() == [1]


def test_a_state_file_that_cannot_be_read_serves_nothing(partner: Partner) -> None:
    partner.shelve(1)
    assert partner.poll() == [1]
    told = json.loads(partner.state.read_text())
    for text in ("", "{}", "[]", json.dumps({**told, "newest": {"version": True, "fingerprint": "a"}})):
        partner.state.write_text(text)
        with pytest.raises(IntegrityError, match=r"releases\.json"):
            partner.restarted().latest()
    partner.state.unlink()
    partner.state.mkdir()
    with pytest.raises(IntegrityError, match=r"releases\.json"):
        partner.latest()


def test_what_is_remembered_only_rises(tmp_path: Path) -> None:
    memory = ReleaseMemory(tmp_path / "state.json")
    for version in (3, 1, 4, 2):
        memory.served(Known(version, f"{version}" * 64))
    assert memory.read() == Memory(Known(4, "4" * 64), None)
    memory.pin(Known(1, "1" * 64))
    memory.served(Known(1, "1" * 64))
    assert ReleaseMemory(tmp_path / "state.json").read() == Memory(Known(4, "4" * 64), Known(1, "1" * 64))


# --- a version that was signed twice --------------------------------------------------------------


def test_of_two_releases_of_one_version_neither_is_taken_unless_it_was_served_before(partner: Partner) -> None:
    partner.shelve(1)
    partner.shelve(2, "copy")
    partner.shelve(2, "one")
    assert partner.latest() == 2  # two copies of one release are one release
    shutil.rmtree(partner.folder / "copy")
    other = {"catalogue_sha256": "d" * 64}
    partner.shelve(2, "other", **other)
    assert partner.latest() == 1
    assert partner.standings() == {"one": "contradicted", "other": "contradicted", "release-1": "chosen"}
    shutil.rmtree(partner.folder / "other")
    assert partner.poll() == [2]
    partner.shelve(2, "other", **other)
    assert partner.standings() == {"one": "chosen", "other": "contradicted", "release-1": "older"}
    shutil.rmtree(partner.folder / "one")
    assert partner.latest() is None


# --- copies in the making, and bad releases -------------------------------------------------------


def test_a_release_that_is_being_copied_is_taken_when_it_is_whole(partner: Partner) -> None:
    """In any order of files: nothing is served before the last of them is there."""
    partner.shelve(1)
    assert partner.poll() == [1]
    files = signed(saved(), version=2)
    for version, order in ((2, sorted(files)), (3, sorted(files, reverse=True))):
        files = signed(saved(), version=version)
        for name in order:
            assert partner.latest() == version - 1
            whole = files[name]
            write(partner.folder / f"{version}", {name: whole[: len(whole) // 2]})
            assert partner.latest() == version - 1
            write(partner.folder / f"{version}", {name: whole})
        assert partner.latest() == version
        assert partner.poll()[-1] == version


def test_a_refused_folder_is_looked_at_again_only_when_it_changes(
    partner: Partner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, opened = release_folders.read_manifest, list[str]()

    def counted(folder: Path, trust: Any) -> dict[str, Any]:
        opened.append(folder.name)
        return read(folder, trust)

    monkeypatch.setattr(release_folders, "read_manifest", counted)
    partner.shelve(1)
    bad = shelve(partner.folder / "bad", 2, STRANGER)
    partner.latest()
    partner.latest()
    assert opened == ["bad", "release-1", "bad"]  # it may still be in the middle of a copy
    monkeypatch.setattr(release_folders, "SETTLED_NS", -(10**12))
    partner.latest()
    opened.clear()
    for _ in range(3):
        partner.latest()
    assert opened == []
    (bad / SIGNATURE_FILE).write_bytes(b"?")
    partner.latest()
    assert opened == ["bad"]


def test_a_release_that_cannot_be_served_disturbs_nothing_and_the_next_best_is_taken(partner: Partner) -> None:
    """It is well signed, but for another base model: only loading shows it."""
    partner.shelve(1)
    assert partner.poll() == [1]
    partner.shelve(3, base_sha256="0" * 64)
    partner.shelve(2)
    assert partner.poll() == [1, 2]
    assert json.loads(partner.state.read_text())["newest"]["version"] == 2
    assert partner.restarted().poll(partner.serve) is not None
    assert partner.served == [1, 2, 2]


def test_a_service_that_refuses_a_release_keeps_the_one_before(partner: Partner) -> None:
    def picky(release: Release) -> None:
        if release.manifest["version"] == 2:
            raise AdapterMismatchError("Expected the catalogue that the adapter was trained with: digests differ.")
        partner.serve(release)

    partner.shelve(1)
    partner.shelf.poll(picky)
    partner.shelve(2)
    assert partner.shelf.poll(picky) is None
    assert partner.served == [1] and partner.shelf.serving is not None and partner.shelf.serving.version == 1
    (entry,) = (entry for entry in partner.shelf.entries() if entry.name == "release-1")
    assert entry.standing is Standing.chosen or partner.latest() == 2  # a folder this fresh is tried again


def test_a_folder_that_changes_between_look_and_load_is_not_served(
    partner: Partner, monkeypatch: pytest.MonkeyPatch
) -> None:
    partner.shelve(2)
    assert partner.poll() == [2]
    partner.shelve(3)
    load = adapter.load_release

    def swapped(folder: Path, trust: Any) -> Release:
        partner.shelve(1, folder.name)  # signed, whole, and older
        return load(folder, trust)

    monkeypatch.setattr(adapter, "load_release", swapped)
    assert partner.poll() == [2]


# --- a hostile folder -----------------------------------------------------------------------------


def test_a_shelf_that_vanishes_and_comes_back_goes_on(partner: Partner) -> None:
    partner.shelve(1)
    assert partner.poll() == [1]
    partner.folder.rename(partner.folder.with_name("away"))
    assert partner.latest() is None and partner.shelf.entries() == () and partner.poll() == [1]
    partner.folder.write_text("a file")
    assert partner.latest() is None
    partner.folder.unlink()
    partner.folder.with_name("away").rename(partner.folder)
    partner.shelve(2)
    assert partner.poll() == [1, 2]


def test_entries_of_any_kind_are_survived(partner: Partner, tmp_path: Path) -> None:
    away = shelve(tmp_path / "away", 9)
    good = partner.shelve(1)
    folder = partner.folder
    (folder / "file").write_text("")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "leads-away").symlink_to(away)
    (folder / "current").symlink_to(good)
    os.mkfifo(folder / "pipe")
    shutil.copytree(away, folder / ".hidden")
    (folder / "empty").mkdir()
    (folder / "manifest-is-a-folder" / MANIFEST_FILE).mkdir(parents=True)
    (folder / "two\nlines\x1b[31m").mkdir()
    (folder / os.fsdecode(b"\xff")).mkdir()
    assert partner.latest() == 1
    entries = partner.shelf.entries()
    assert {entry.name for entry in entries if entry.standing is not Standing.refused} == {"current", "release-1"}
    assert all((entry.name + (entry.refusal.reason if entry.refusal else "")).isprintable() for entry in entries)
    assert {"leads-away", "empty", "manifest-is-a-folder"} < {entry.name for entry in entries}


def test_hundreds_of_folders_are_no_burden(partner: Partner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are checked of the release that is chosen alone."""
    read, opened = release_folders.read_contents, list[str]()

    def counted(folder: Path, manifest: dict[str, Any]) -> dict[str, bytes]:
        opened.append(folder.name)
        return read(folder, manifest)

    monkeypatch.setattr(release_folders, "read_contents", counted)
    manifests = {name: data for name, data in saved().items() if name.startswith("manifest")}
    for version in range(1, 301):
        files = signed(saved(), version=version)
        write(partner.folder / f"{version}", {name: files[name] for name in manifests})
    partner.shelve(301, "newest")
    assert partner.latest() == 301
    assert opened == ["newest"]
    assert len(partner.shelf.entries()) == 301


def test_threads_share_a_shelf_whose_folders_come_and_go(partner: Partner) -> None:
    """A service is asked for its list while it watches."""
    partner.shelve(1)
    failed, stop = list[Exception](), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert partner.shelf.latest() is not None and partner.shelf.entries()
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 32):
        shutil.rmtree(partner.shelve(version))
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []


# --- pins -----------------------------------------------------------------------------------------


def test_an_operator_rolls_back_by_a_pin_and_forward_again(partner: Partner) -> None:
    for version in (1, 2, 3):
        partner.shelve(version)
    assert partner.poll() == [3]
    assert partner.shelf.pin(1).known.version == 1
    assert partner.standings() == {"release-1": "chosen", "release-2": "older", "release-3": "waiting"}
    assert partner.poll() == [3, 1]
    assert partner.shelf.open(2).manifest["version"] == 2 and partner.poll() == [3, 1]  # to compare, not to serve
    partner.shelve(4)
    assert partner.restarted().poll(partner.serve) is not None and partner.served == [3, 1, 1]
    partner.shelf.unpin()
    assert partner.poll() == [3, 1, 1, 4]
    shutil.rmtree(partner.folder / "release-4")
    assert partner.latest() is None  # the pin has not lowered what was served


def test_a_pin_holds_the_release_not_its_number(partner: Partner) -> None:
    partner.shelve(1)
    partner.shelf.pin(1)
    shutil.rmtree(partner.folder / "release-1")
    partner.shelve(1, catalogue_sha256="d" * 64)
    partner.shelve(2)
    assert partner.latest() is None
    with pytest.raises(IntegrityError, match="pinned"):
        raise partner.shelf.nothing()


def test_only_what_verifies_can_be_pinned(partner: Partner) -> None:
    partner.shelve(1)
    write(partner.shelve(2), {"behaviour.safetensors": b""})
    shelve(partner.folder / "stranger", 3, STRANGER)
    partner.shelve(4, "one")
    partner.shelve(4, "other", catalogue_sha256="d" * 64)
    for version, found in ((2, 0), (3, 0), (4, 2), (5, 0)):
        with pytest.raises(ConfigError, match=f"version={version}, got {found}"):
            partner.shelf.pin(version)
    assert not partner.state.exists()


def test_a_passing_fault_does_not_refuse_a_release_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A locked cache, a disk that was full: the release is tried once more, later."""
    monkeypatch.setattr(release_folders, "SETTLED_NS", 0)  # files this new are otherwise looked at each time
    partner, tried = Partner(tmp_path), []
    partner.shelve(1)
    partner.shelf.poll(lambda _: None)
    partner.shelve(2)

    def busy(_: object) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise IntegrityError("another process has kept it")

    assert partner.shelf.poll(busy) is None and partner.shelf.poll(busy) is None
    assert len(tried) == 1 and partner.shelf.serving is not None and partner.shelf.serving.version == 1
    monkeypatch.setattr(release_folders, "time", _Later(release_folders.time))
    assert partner.shelf.poll(busy) is not None
    assert partner.shelf.serving.version == 2


class _Later:
    """The clock, an hour ahead."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def monotonic(self) -> float:
        return float(self._real.monotonic()) + 3600

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_release_that_is_served_is_not_loaded_again_while_it_cannot_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partner, served = Partner(tmp_path), []
    partner.shelve(1)

    def full(*_: object) -> None:
        raise IntegrityError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(ReleaseMemory, "served", full)
        for _ in range(3):
            with pytest.raises(IntegrityError, match="space"):
                partner.shelf.poll(served.append)
    assert len(served) == 1
    assert partner.shelf.poll(served.append) is None
    assert partner.restarted().latest() is not None
    assert ReleaseMemory(partner.state).read().newest is not None, "it was written once it could be"
