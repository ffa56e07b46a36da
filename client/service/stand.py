"""A stand: one release, ready to rank over the shop's own catalogue. A new release gets a new stand."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.text_cache import TextCache
from client.ranking.engine import Engine, own_texts
from client.ranking.index import CatalogueIndex, Progress
from client.ranking.local_catalogue import aligned
from client.ranking.personal import PersonalPrior
from client.ranking.personal_adapter import PersonalAdapter
from client.ranking.rerank_stages import Groups, ItemFacts
from client.service.requests import ReleaseInfo
from shared.adapter import Release
from shared.model.text import TextStage
from shared.model.weights import choose_device, has_fast_bf16
from shared.schema import Catalogue

CATEGORY = "category"


@dataclass(frozen=True)
class Stand:
    """What answers.

    Parameters
    ----------
    engine : Engine
    facts : ItemFacts
        What rerank stages read of the items.
    info : ReleaseInfo
    """

    engine: Engine
    facts: ItemFacts
    info: ReleaseInfo

    def inside(self, categories: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which items are in one of these categories, shape ``(I,)``."""
        return self.facts.kind(CATEGORY).inside(np.arange(len(self.facts), dtype=np.int32), frozenset(categories))


@dataclass(frozen=True, slots=True)
class StandMaker:
    """What stands are made of that stays when releases change.

    Parameters
    ----------
    theirs, ours : Catalogue
        The federation's, and the shop's own.
    folder : Path
        Keeps the catalogue's index.
    cache : Path
        File of text vectors; it holds those of users' reviews.
    device : str
        auto, cpu, cuda or mps.
    premises : Path, optional
        Of the partner, whose own part (``personal/``) is added to the release that it was made for.
    """

    theirs: Catalogue
    ours: Catalogue
    folder: Path
    cache: Path
    device: str = "auto"
    premises: Path | None = None

    def forget(self, texts: Collection[str], stage: TextStage) -> None:
        """Erase the vectors of users' own texts."""
        TextCache(self.cache).erase(stage, sorted(texts), items=False)

    def make(self, release: Release, *, signed: bool, progress: Progress | None = None) -> Stand:
        """A stand for a verified release.

        Raises
        ------
        AdapterMismatchError
            If the release was trained with another catalogue than the federation's.
        """
        model, device = release.config.model, choose_device(self.device)
        whole, personal = with_own_part(release, self.premises)
        local = aligned(whole, self.theirs, self.ours)
        text, cache, width = TextStage.of(model, device), TextCache(self.cache), release.model.width
        index = CatalogueIndex.build(
            self.folder / "index",
            self.ours,
            text.recipe(items=True),
            lambda passages: cache.vectors(text, passages, width=width),
            progress,
        )
        vectors = index.on(device)
        engine = Engine(local, self.ours, vectors, text, own_texts(cache, text, width), bf16=has_fast_bf16(device.type))
        facts = ItemFacts(
            vectors.items.cpu().numpy(),
            local.prior.popularity,
            groups={CATEGORY: Groups.of(self.ours.categories, split=True)},
        )
        return Stand(engine, facts, info_of(release, signed=signed, personal=personal))


def with_own_part(release: Release, premises: Path | None) -> tuple[Release, bool]:
    """The release with what the partner adds of its own to this one, and whether there is any.

    Raises
    ------
    IntegrityError
        If a file of ``personal/`` is not what was written.
    """
    found = [] if premises is None else [PersonalPrior.load(premises), PersonalAdapter.load(premises)]
    fitting = [part for part in found if part is not None and part.release == release.fingerprint]
    whole = release
    for part in fitting:
        whole = part.over(whole)
    return whole, bool(fitting)


def info_of(release: Release, *, signed: bool, personal: bool = False) -> ReleaseInfo:
    """What the service says of a release."""
    privacy = release.manifest["privacy"]
    told = "no differential privacy (simulation)"
    if privacy["mode"] != "none":
        told = f"{privacy['mode']}: user-level epsilon={privacy['epsilon']:.4g} at delta={privacy['delta']:.2g}"
    return ReleaseInfo(
        version=release.manifest["version"],
        fingerprint=release.fingerprint,
        privacy=told,
        signed=signed,
        personal=personal,
    )
