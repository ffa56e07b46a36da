"""The service without HTTP: store, desk, device thread, and the watch over the shelf of releases."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.ranking.promotion_gate import USERS, PromotionGate
from client.ranking.release_folders import known_of
from client.ranking.release_memory import Known
from client.ranking.releases import ReleaseShelf
from client.ranking.store import Appended, EventStore
from client.ranking.store_rows import Event
from client.service.batcher import Batcher
from client.service.desk import Answer, Desk
from client.service.monitor import Monitor
from client.service.requests import RankRequest, ShelfResponse
from client.service.stand import Stand, StandMaker
from shared.adapter import Release, load_release
from shared.errors import ConfigError, RankingError, VeilrecError
from shared.files import write_json

HIDDEN_FILE = "hidden.json"
KEPT = 2
"""Other releases than the served one that are held ready for comparisons."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where releases come from: one folder, or a shelf that is watched.

    Parameters
    ----------
    adapter : Path or None
        A run's own adapter: digests are checked, no signature.
    shelf : ReleaseShelf or None
    """

    adapter: Path | None = None
    shelf: ReleaseShelf | None = None


class Service:
    """What answers, and all that it owns; `close` ends it.

    Parameters
    ----------
    maker : StandMaker
    source : Source
    store : EventStore
    monitor : Monitor
    every_s : float
        How often the shelf is looked at.
    gate : PromotionGate, optional
        Holds releases of the shelf back that put an item before too many of the partner's users.

    Raises
    ------
    IntegrityError
        If there is nothing to serve that verifies.
    """

    def __init__(
        self,
        maker: StandMaker,
        source: Source,
        store: EventStore,
        monitor: Monitor,
        *,
        every_s: float = 2.0,
        gate: PromotionGate | None = None,
    ) -> None:
        self._maker, self._source, self.store, self.monitor, self._gate = maker, source, store, monitor, gate
        self._others: dict[int, Stand] = {}
        self._lock, self._answered_until = threading.Lock(), 0.0
        self._first: Stand | None = None
        self.desk = Desk(self._open(), store, self._find)
        self._hidden_file = maker.folder / HIDDEN_FILE
        self.desk.hide(_hidden(self._hidden_file), available=False)
        self.batcher: Batcher[RankRequest, Answer] = Batcher(self.desk.answer, observe=monitor.batches.observe)
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(every_s,), name="releases", daemon=True)
        if source.shelf is not None:
            self._watcher.start()

    def hide(self, item_ids: Sequence[str], *, available: bool) -> int:
        """`Desk.hide`, kept over a restart."""
        with self._lock:
            hidden = self.desk.hide(item_ids, available=available)
            write_json(self._hidden_file, sorted(self.desk.hidden))
        return hidden

    def forget(self, user_id: str) -> int:
        """Erase all that is held of a user: events, and vectors of the user's own texts."""
        # The texts' vectors first: were the events gone, nobody would know any more which vectors they are.
        self._unread(self.store.reviews(user_id))
        return self.store.forget(user_id)

    def keep(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Add events of a user. A review that is sent again with other words replaces the first, and its vector."""
        before = self.store.reviews(user_id) if any(event.review for event in events) else frozenset()
        kept = self.store.append(user_id, events, self.desk.stand.engine.catalogue)
        if before and (gone := before - self.store.reviews(user_id)):
            self._unread(gone)
        return kept

    def _unread(self, texts: frozenset[str]) -> None:
        """Erase the vectors of texts, as the releases at hand read them."""
        for stand in (self.desk.stand, *self._others.values()):
            self._maker.forget(texts, stand.engine.text)

    def check_store(self) -> None:
        """Return if the store answered within the last second, or does now; whoever may ask for that asks often.

        Raises
        ------
        RankingError
        """
        now = time.monotonic()
        if now < self._answered_until:
            return
        try:
            self.store.ping()
        except VeilrecError:
            raise RankingError("Expected a store that answers.") from None
        self._answered_until = now + 1.0

    def shelved(self) -> ShelfResponse:
        """What can be asked for by version."""
        served, shelf = self.desk.stand.info, self._source.shelf
        if shelf is None:
            return ShelfResponse(served=served, versions=(served.version,), refused=0)
        entries = shelf.entries()
        whole = {int(one.manifest["version"]) for one in entries if one.manifest is not None and one.refusal is None}
        refused = sum(one.refusal is not None for one in entries)
        return ShelfResponse(served=served, versions=tuple(sorted(whole, reverse=True)), refused=refused)

    def close(self) -> None:
        """Answer what waits, then let go of everything."""
        self._stop.set()
        self.batcher.close()
        if self._watcher.is_alive():
            self._watcher.join(30.0)
        self.store.close()

    def look(self) -> bool:
        """Serve what is new on the shelf; whether anything was."""
        shelf = self._source.shelf
        if shelf is None:
            return False
        before = self.desk.stand
        found = shelf.poll(lambda release: self._serve(self._admitted(shelf, release)))
        entries = shelf.entries()
        self.monitor.refused.set(sum(entry.refusal is not None for entry in entries))
        whole = {entry.manifest["fingerprint"] for entry in entries if entry.manifest is not None and not entry.refusal}
        self._others = {v: stand for v, stand in self._others.items() if stand.info.fingerprint in whole}
        if found is None:
            return False
        self._others.pop(self.desk.stand.info.version, None)
        self._others = {before.info.version: before, **self._others}
        self._others = dict(list(self._others.items())[:KEPT])
        return True

    def _open(self) -> Stand:
        if self._source.adapter is not None:
            self._first = self._maker.make(load_release(self._source.adapter), signed=False)
        shelf = self._source.shelf
        if shelf is not None:
            shelf.poll(lambda release: self._begin(shelf, release))
            if self._first is None:
                raise shelf.nothing()
        if self._first is None:
            raise ConfigError("Expected a run folder or a shelf of releases.")
        self.monitor.version.set(self._first.info.version)
        return self._first

    def _begin(self, shelf: ReleaseShelf, release: Release) -> None:
        self._first = self._admitted(shelf, release)

    def _admitted(self, shelf: ReleaseShelf, release: Release) -> Stand:
        """A stand for a release of the shelf, unless the gate holds it back; it lets pass what is pinned or was served.

        Raises
        ------
        RankingError
            If the gate holds it back.
        """
        if self._gate is None:
            return self._maker.make(release, signed=True)
        known, memory = known_of(release.manifest), shelf.remembered
        trusted = known in (memory.pinned, memory.newest)
        if not trusted:
            self._gate.check_known(known)  # it is asked again and again: a stand takes seconds to make
        stand = self._maker.make(release, signed=True)
        histories = self.store.sample(USERS, stand.engine.catalogue)
        if trusted:
            self._gate.look(known, stand.engine, histories)
            return stand
        served = self._recalled(shelf, shelf.serving or memory.newest)
        try:
            self._gate.admit(known, stand.engine, histories, served)
        except RankingError:
            self.monitor.tell("held", version=known.version)
            raise
        return stand

    def _recalled(self, shelf: ReleaseShelf, served: Known | None) -> Known | None:
        """The release that was served last, looked at once more if this process did not; None if it is gone."""
        if self._gate is None or served is None or served.fingerprint in self._gate.shown:
            return served
        try:
            stand = self._maker.make(shelf.open(served.version), signed=True)
        except VeilrecError:
            return None
        if stand.info.fingerprint != served.fingerprint:
            return None
        self._gate.look(served, stand.engine, self.store.sample(USERS, stand.engine.catalogue))
        return served

    def _serve(self, stand: Stand) -> None:
        self.desk.serve(stand)
        self.monitor.version.set(stand.info.version)
        self.monitor.tell("release", version=stand.info.version)

    def _find(self, version: int) -> Stand:
        """A stand for another verified release of the shelf; it is held for the next question."""
        if (found := self._others.get(version)) is not None:
            return found
        shelf = self._source.shelf
        if shelf is None:
            raise ConfigError(f"Expected release={self.desk.stand.info.version}: no other is at hand.")
        stand = self._maker.make(shelf.open(version), signed=True)
        self._others = dict([(version, stand), *self._others.items()][:KEPT])
        return stand

    def _watch(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                self.look()
            except VeilrecError as error:  # the shelf's own state: what is served stays
                self.monitor.tell("shelf", error=error.wire_name)
            except Exception as error:  # the watch must go on
                self.monitor.trouble(error)


def _hidden(file: Path) -> list[str]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        raise ConfigError(f"{file}: Expected a JSON list of item ids. Mend or delete it.") from None
    if not isinstance(told, list) or not all(isinstance(one, str) for one in told):
        raise ConfigError(f"{file}: Expected a JSON list of item ids. Mend or delete it.")
    return told
