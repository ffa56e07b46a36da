"""A federation on disk as the commands make it: a coordinator's home and the folders of partners."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from client.enrolment import Requested, Review, init_partner, join
from client.premises import Premises
from server.enrolment import enroll, init_home
from shared.config import RunConfig, parse_config
from shared.federation_bundle import Bundle
from shared.hazmat import key_files
from shared.hazmat.key_files import Passphrase

FLOOR: dict[str, Any] = {"max_epsilon": 8.0, "max_delta": 1e-5, "min_cohort": 3}
NAMES = ("alder", "birch", "cedar")


def real_config(partners: int = 3) -> RunConfig:
    return parse_config(
        '{"simulation": false, "seed": null, "privacy": {"population": 1000}, '
        f'"federation": {{"partners": {partners}}}}}'
    )


def write_items(file: Path, items: int = 4) -> Path:
    columns = {
        "item_id": [f"i{k}" for k in range(items)],
        "title": [f"Item {k}" for k in range(items)],
        "text": ["words"] * items,
        "categories": [""] * items,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(file)
    return file


@dataclass
class Enrolled:
    """A coordinator and partners; every party has a passphrase file of its own."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "server"

    @property
    def bundle(self) -> Path:
        return self.home / "bundle"

    def passphrase_file(self, party: str) -> Path:
        return self.root / "passphrases" / party

    def passphrase(self, party: str) -> Passphrase:
        return Passphrase.read(self.passphrase_file(party))

    def folder(self, name: str) -> Path:
        return self.root / name

    def init_server(self, address: str = "coordinator.test:8443", partners: int = 3) -> None:
        items = write_items(self.root / "items.parquet")
        init_home(self.home, address, items, real_config(partners), self.passphrase_file("server"))

    def init_partner(self, name: str) -> Requested:
        return init_partner(self.folder(name), name, self.passphrase_file(name))

    def enroll(self, *requests: Path) -> Bundle:
        return enroll(self.home, requests, self.passphrase("server"))

    def join(self, name: str, fingerprint: str | None = None, **floor: Any) -> tuple[Review, Premises]:
        return join(self.folder(name), self.bundle, fingerprint=fingerprint, floor=floor)

    def everybody(self) -> Bundle:
        """A home with three partners who have all joined."""
        self.init_server()
        bundle = self.enroll(*(self.init_partner(name).file for name in NAMES))
        for name in NAMES:
            self.join(name, bundle.fingerprint, **FLOOR)
        return bundle


@contextmanager
def cheap_scrypt() -> Iterator[None]:
    """What passphrases cost is measured in `test_key_files` alone; files tell their own cost."""
    before = key_files.SCRYPT_LOG_N, key_files.SCRYPT_P
    key_files.SCRYPT_LOG_N, key_files.SCRYPT_P = 4, 1
    try:
        yield
    finally:
        key_files.SCRYPT_LOG_N, key_files.SCRYPT_P = before


_made: list[Enrolled] = []


def joined(factory: pytest.TempPathFactory) -> Enrolled:
    """A federation that three partners have joined; made once, to be read or copied and never changed."""
    if not _made:
        made = Enrolled(factory.mktemp("federation"))
        with cheap_scrypt():
            made.everybody()
        _made.append(made)
    return _made[0]


def copied(source: Enrolled, root: Path) -> Enrolled:
    """The same federation in another folder; may be changed."""
    shutil.copytree(source.root, root, dirs_exist_ok=True)
    return Enrolled(root)
