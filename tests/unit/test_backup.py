"""What is kept of a partner and of a coordinator, and that a restore forgets nothing that was spent."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from coordinator_setting import home_once, quick_keys, superlink, write_run
from filelock import FileLock
from gathering_setting import Federation as Whole
from gathering_setting import configured
from partner_setting import CONFIG, SECRET, SIMULATED, Federation, changed

from client import backup_command as partner
from client.intake.state import IntakeState, SourceState
from client.learner import Learner
from client.premises import Premises
from server import backup_command as server
from server.checkpoint import CheckpointStore
from server.monitor import CoordinatorMonitor
from server.receipts import ReceiptBook
from shared.backup import read_archive
from shared.errors import ConfigError, IntegrityError, LedgerError, ProtocolError
from shared.hazmat.key_files import PASSPHRASE_VARIABLE
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import LedgerHead
from shared.privacy.ledger_audit import read_ledger


def folder_of(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- a partner ------------------------------------------------------------------------------------


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """A partner whose keys are encrypted, after one round."""
    quick_keys(monkeypatch)
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text("of the test and of nobody else\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(secret))
    made = Federation.of(tmp_path / "root")
    made.play().finish()
    return made


def test_a_partner_s_backup_has_ledger_keys_and_settings_and_no_data(federation: Federation, tmp_path: Path) -> None:
    folder_of(federation.folder, {"intake/receipts/erasure-00001.json": b"{}", "releases/1/manifest.json": b"{}"})
    file = tmp_path / "p.tar"
    partner.backup(federation.folder, file)
    names = {kept.name for kept in read_archive(file, "partner").files}
    assert {"partner.toml", "identity.key", "pseudonym.key", "ledger.jsonl", "releases/1/manifest.json"} <= names
    assert "intake/receipts/erasure-00001.json" in names
    assert not [name for name in names if name.endswith(("parquet", "sqlite", "lock", "sock", "round.json", "sum"))]
    assert SECRET.encode() not in file.read_bytes() and b"user 1" not in file.read_bytes()
    partner.backup(federation.folder, tmp_path / "d.tar", with_data=True)
    assert {"interactions.parquet", "items.parquet"} <= {
        kept.name for kept in read_archive(tmp_path / "d.tar", "partner").files
    }


def test_a_partner_with_plain_keys_is_refused_without_its_leave(tmp_path: Path) -> None:
    made = Federation.of(tmp_path / "root", simulated=True, config=changed(CONFIG, SIMULATED))
    with pytest.raises(ConfigError, match=r"identity\.key in the clear"):
        partner.backup(made.folder, tmp_path / "p.tar")
    partner.backup(made.folder, tmp_path / "p.tar", include_plain_keys=True)


def test_a_partner_before_its_first_round_has_a_backup_that_says_so(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation.ledger_file.unlink()
    partner.backup(federation.folder, tmp_path / "p.tar")
    assert "has no ledger.jsonl" in capsys.readouterr().out
    partner.restore(tmp_path / "p.tar", tmp_path / "again")
    assert "ledger: 0 entries" in capsys.readouterr().out


def test_a_restored_partner_is_the_same_partner(federation: Federation, tmp_path: Path) -> None:
    partner.backup(federation.folder, tmp_path / "p.tar", with_data=True)
    before = read_ledger(federation.ledger_file)
    partner.restore(tmp_path / "p.tar", tmp_path / "again")
    premises = Premises.open(tmp_path / "again")
    assert premises.identity.public == Premises.open(federation.folder).identity.public
    assert read_ledger(premises.ledger_file) == before
    assert Learner(premises, "cpu").catalogue.digest == federation.learner().catalogue.digest
    assert (tmp_path / "again" / "identity.key").stat().st_mode & 0o777 == 0o600


def test_a_ledger_that_grew_since_is_kept(federation: Federation, tmp_path: Path) -> None:
    grown, whole = federation.ledger_file, federation.ledger_file.read_bytes()
    grown.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    partner.backup(federation.folder, tmp_path / "p.tar")
    torn = whole + b'{"torn'
    grown.write_bytes(torn)
    partner.restore(tmp_path / "p.tar", federation.folder, replace=True)
    assert grown.read_bytes() == torn
    assert read_ledger(grown).head.count == len(whole.splitlines()) > 2


def test_a_longer_ledger_of_the_archive_is_taken(federation: Federation, tmp_path: Path) -> None:
    partner.backup(federation.folder, tmp_path / "p.tar")
    whole = federation.ledger_file.read_bytes()
    federation.ledger_file.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    partner.restore(tmp_path / "p.tar", federation.folder, replace=True)
    assert federation.ledger_file.read_bytes() == whole


def test_a_ledger_that_does_not_go_on_from_the_archive_s_is_not_replaced(
    federation: Federation, tmp_path: Path
) -> None:
    partner.backup(federation.folder, tmp_path / "p.tar")
    other = Federation.of(tmp_path / "other")
    before = contents(other.folder)
    with pytest.raises(LedgerError, match="go on from the other"):
        partner.restore(tmp_path / "p.tar", other.folder, replace=True)
    assert contents(other.folder) == before


def test_a_damaged_ledger_is_not_kept_as_if_it_were_one(federation: Federation, tmp_path: Path) -> None:
    whole = federation.ledger_file.read_bytes()
    federation.ledger_file.write_bytes(whole.replace(b'"round":1', b'"round":2', 1))
    with pytest.raises(LedgerError):
        partner.backup(federation.folder, tmp_path / "p.tar")
    assert not (tmp_path / "p.tar").exists()


def test_sessions_of_what_was_replaced_do_not_come_back(federation: Federation, tmp_path: Path) -> None:
    """An older session could answer an exchange twice."""
    partner.backup(federation.folder, tmp_path / "p.tar")
    folder_of(federation.folder, {"runs/run/answers/keys": b"x", "runs/run/secret": b"x"})
    assert (federation.folder / "runs" / "run" / "round.json").exists()
    partner.restore(tmp_path / "p.tar", federation.folder, replace=True)
    left = {file.name for file in (federation.folder / "runs" / "run").iterdir()}
    assert not left & {"round.json", "secret", "answers"}


def test_who_was_erased_stays_erased_over_a_restore(federation: Federation, tmp_path: Path) -> None:
    """Marks go in without the watermarks, which are of the data; marks that are there are never lost."""
    state = federation.folder / "intake" / "state.json"
    taken = {"drop": SourceState({"digest": "stamp"})}
    folder_of(federation.folder, {"intake/state.json": IntakeState(taken, frozenset({"m1"}), data="d").to_bytes()})
    folder_of(federation.folder, {"intake/erasure.json": b'{"user_id": "user 1"}'})
    (federation.folder / "intake" / "erasure.json").unlink()
    partner.backup(federation.folder, tmp_path / "p.tar")
    state.write_bytes(IntakeState(taken, frozenset({"m2"}), data="e").to_bytes())
    partner.restore(tmp_path / "p.tar", federation.folder, replace=True)
    kept = IntakeState.read(state)
    assert kept.suppressed == {"m1", "m2"} and kept.data == "e" and kept.sources == taken
    partner.restore(tmp_path / "p.tar", tmp_path / "new")
    fresh = IntakeState.read(tmp_path / "new" / "intake" / "state.json")
    assert fresh.suppressed == {"m1"} and fresh.data == "" and not fresh.sources


def test_watermarks_come_back_with_the_data_that_they_are_of(federation: Federation, tmp_path: Path) -> None:
    """Newer ones over older rows would leave a gap that no import closes."""
    state = federation.folder / "intake" / "state.json"
    old, new = ({"drop": SourceState({"digest": stamp})} for stamp in ("old", "new"))
    folder_of(federation.folder, {"intake/state.json": IntakeState(old, frozenset({"m1"}), data="d").to_bytes()})
    partner.backup(federation.folder, tmp_path / "p.tar", with_data=True)
    state.write_bytes(IntakeState(new, frozenset({"m1", "m2"}), data="e").to_bytes())
    partner.restore(tmp_path / "p.tar", federation.folder, replace=True)
    kept = IntakeState.read(state)
    assert kept.sources == old and kept.suppressed == {"m1", "m2"} and kept.data == ""


def test_an_agent_at_work_is_not_disturbed(federation: Federation, tmp_path: Path) -> None:
    partner.backup(federation.folder, tmp_path / "p.tar")
    with FileLock(federation.folder / "agent.lock"), pytest.raises(ConfigError, match="stop it"):
        partner.restore(tmp_path / "p.tar", federation.folder, replace=True)


# --- what was spent -------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Whole:
    return Whole.of(tmp_path / "root", monkeypatch, configured())


def lost_and_restored(whole: Whole, tmp_path: Path) -> None:
    """Partner 1's disk is lost after round 2; its backup is of round 1."""
    folder = whole.root / "partner-001"
    whole.attempt(1)
    partner.backup(folder, tmp_path / "p.tar", include_plain_keys=True)
    whole.attempt(2)
    shutil.rmtree(folder)
    partner.restore(tmp_path / "p.tar", folder)
    whole.restart("partner-001")


def test_a_partner_restored_from_an_old_backup_refuses_the_next_round(whole: Whole, tmp_path: Path) -> None:
    """The coordinator's receipt of round 2 is ahead of the ledger; nothing is drawn, nothing is spent."""
    lost_and_restored(whole, tmp_path)
    before = whole.ledger_file(1).read_bytes()
    gathered = whole.attempt(3)  # the quorum is 3 of 4
    assert gathered.partners == 3 and ("partner-001", 3) not in whole.drawn
    assert whole.ledger_file(1).read_bytes() == before
    whole.faults[2, "keys"] = "silent"
    with pytest.raises(ProtocolError, match="partners refused with LedgerError"):
        whole.attempt(4)


def test_without_the_receipt_the_old_ledger_would_be_believed(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: the coordinator forgets. It is why a coordinator's restore keeps newer receipts."""
    lost_and_restored(whole, tmp_path)
    monkeypatch.setattr(ReceiptBook, "last", lambda *_: None)
    assert whole.attempt(3).partners == 4


def test_a_newer_ledger_from_elsewhere_is_the_way_out(whole: Whole, tmp_path: Path) -> None:
    """Whoever still has the ledger as it was, such as a later backup, restores it over the old one."""
    folder = whole.root / "partner-001"
    whole.attempt(1)
    partner.backup(folder, tmp_path / "old.tar", include_plain_keys=True)
    whole.attempt(2)
    partner.backup(folder, tmp_path / "new.tar", include_plain_keys=True)
    (folder / "ledger.jsonl").unlink()
    partner.restore(tmp_path / "old.tar", folder, replace=True)
    partner.restore(tmp_path / "new.tar", folder, replace=True)
    whole.restart("partner-001")
    assert whole.attempt(3).partners == 4


def test_a_coordinator_one_round_back_goes_on_and_one_further_back_is_refused(whole: Whole) -> None:
    """What an older checkpoint comes to: partners repeat their last round, and none before it."""
    whole.attempt(1)
    whole.attempt(2)
    ledgers = [whole.ledger_file(k).read_bytes() for k in range(4)]
    assert whole.attempt(2).partners == 4 and len(whole.drawn["partner-000", 2]) == 1
    for k, ledger in enumerate(ledgers):  # only the receipt of round 2 is news
        added = whole.ledger_file(k).read_bytes().removeprefix(ledger).splitlines()
        assert [json.loads(line)["kind"] for line in added] in (["receipt"], [])
    with pytest.raises(ProtocolError, match="refused with ReplayError"):
        whole.attempt(1)


# --- a coordinator --------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home_once(tmp_path_factory)[0], tmp_path / "home"))


def test_a_coordinator_s_backup_has_all_that_a_new_machine_needs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(
        home, {"passphrase.txt": b"p", "superlink/flwr-home/config.toml": b"x", "run/run.lock": b"", "a.log": b""}
    )
    folder_of(home, {"secret place": b"p", ".hidden": b"x"})
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(home / "secret place"))
    server.backup(home, tmp_path / "s.tar")
    names = {kept.name for kept in read_archive(tmp_path / "s.tar", "server").files}
    wanted = {"server.toml", "ca.key", "ca.crt", "tls.key", "tls.crt", "server.key", "partners.json", "config.json"}
    wanted |= {"receipts.json", "releases.json", "superlink/state.db", "run/rounds.jsonl", "run/config.json"}
    assert names == wanted | {"run/checkpoints/state.safetensors"}
    server.restore(tmp_path / "s.tar", tmp_path / "again")
    assert CoordinatorMonitor(tmp_path / "again").status()["partners"] == CoordinatorMonitor(home).status()["partners"]
    checkpoint = CheckpointStore(tmp_path / "again" / "run" / "checkpoints").load("0123456789abcdef")
    assert checkpoint is not None and checkpoint.round == 6


def test_the_superlink_s_database_is_copied_whole_while_it_is_written(home: Path, tmp_path: Path) -> None:
    state = superlink(home)
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            state.create_node("owner", "owner", os.urandom(40), 30.0)
            written += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            server.backup(home, tmp_path / f"{number}.tar")
    finally:
        stop.set()
        thread.join(30)
    assert written > 3
    counts = []
    for number in range(3):
        server.restore(tmp_path / f"{number}.tar", tmp_path / str(number))
        with closing(sqlite3.connect(tmp_path / str(number) / "superlink" / "state.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            counts.append(database.execute("SELECT count(*) FROM node").fetchone()[0])
    assert 4 <= counts[0] <= counts[1] <= counts[2] <= 4 + written


def test_a_journal_of_the_replaced_database_is_not_played_into_the_restored_one(home: Path, tmp_path: Path) -> None:
    server.backup(home, tmp_path / "s.tar")
    journal = home / "superlink" / "state.db-wal"
    journal.write_bytes(b"of another database")
    server.restore(tmp_path / "s.tar", home, replace=True)
    assert not journal.exists() or journal.read_bytes() != b"of another database"
    assert len(CoordinatorMonitor(home).status()["partners"]) == 4


def test_receipts_and_releases_that_are_newer_are_kept(home: Path, tmp_path: Path) -> None:
    server.backup(home, tmp_path / "s.tar")
    key = SigningKey.generate()
    ReceiptBook(home / "receipts.json").add({"anna": LedgerHead(20, "c" * 64), "carl": LedgerHead(3, "d" * 64)}, key)
    releases = [*json.loads((home / "releases.json").read_text()), "e" * 64]
    (home / "releases.json").write_text(json.dumps(releases))
    write_run(home / "run", 8)
    server.restore(tmp_path / "s.tar", home, replace=True)
    book = ReceiptBook(home / "receipts.json")
    assert [book.last(name).count for name in ("anna", "ben", "carl")] == [20, 9, 3]  # type: ignore[union-attr]
    assert json.loads((home / "releases.json").read_text()) == releases
    assert CoordinatorMonitor(home).status()["run"]["rounds_done"] == 6


def test_releases_of_another_coordinator_are_not_mixed(home: Path, tmp_path: Path) -> None:
    server.backup(home, tmp_path / "s.tar")
    (home / "releases.json").write_text(json.dumps(["f" * 64]))
    with pytest.raises(IntegrityError, match="go on from the other"):
        server.restore(tmp_path / "s.tar", home, replace=True)
    (home / "releases.json").write_text("damaged")
    server.restore(tmp_path / "s.tar", home, replace=True)
    assert len(json.loads((home / "releases.json").read_text())) == 1


def test_a_coordinator_at_work_is_not_disturbed(home: Path, tmp_path: Path) -> None:
    server.backup(home, tmp_path / "s.tar")
    monitor = CoordinatorMonitor(home)
    monitor.beat()
    with pytest.raises(ConfigError, match="stop it"):
        server.restore(tmp_path / "s.tar", home, replace=True)
    monitor.beat("stopped")
    server.restore(tmp_path / "s.tar", home, replace=True)


def test_archives_beside_the_folder_s_own_files_do_not_grow_into_each_other(home: Path) -> None:
    for number in range(3):
        server.backup(home, home / "backups" / f"{number}.tar")
    server.backup(home, home / "here.tar")
    names = {kept.name for kept in read_archive(home / "here.tar", "server").files}
    assert not [name for name in names if name.endswith(".tar")]


def test_a_folder_of_nobody_has_no_backup(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        server.backup(tmp_path, tmp_path / "s.tar")
    with pytest.raises(ConfigError):
        partner.backup(tmp_path, tmp_path / "p.tar")
