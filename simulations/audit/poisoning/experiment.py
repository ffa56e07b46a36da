"""Attack a marketplace federation under each defence, and ask the honest partners' users what they see.

The target is an item that a federation without attackers shows to about one user in a hundred: one that people could
be shown, and are not. All figures are of honest partners' users, against a clean run with the same defence and seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.ranking.promotion_gate import leaps, met
from shared.config import RunConfig
from shared.errors import ConfigError
from simulations.audit.poisoning.attacks import Attack
from simulations.audit.poisoning.defences import BARE, DEFENCES, Defence
from simulations.audit.poisoning.detection import detection_auc, likeness
from simulations.audit.poisoning.federation import Trained, honest, train
from simulations.audit.poisoning.measures import (
    PartnerView,
    exposure,
    exposures,
    hits_by_partner,
    quality,
    triggered,
    views,
)
from simulations.datasets import MARKETPLACE
from simulations.presets import preset
from simulations.simulate import Request, prepare_partners
from simulations.workspace import Workspace

Row = dict[str, Any]
Say = Callable[[str], None]
TARGET_EXPOSURE, TRIGGER_SHARE = 0.01, 0.1
"""Share of users who are shown the target without an attack, and who have met the trigger."""
RIDERS = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """The federation that is attacked.

    Attributes
    ----------
    users, items, partners, seed
        Of the marketplace; more user-partner pairs than users, as some shop at two.
    rounds : int
        Of training, after the prior's.
    sampling_rate, epsilon : float
    """

    users: int = 12_000
    items: int = 300
    partners: int = 10
    seed: int = 0
    rounds: int = 4
    sampling_rate: float = 0.1
    epsilon: float = 8.0

    def prepared(self, work: Path) -> Path:
        """The partners' folders, made once."""
        root = work / f"federation-{self.users}-{self.items}-{self.partners}-{self.seed}"
        if not (root / "held_out.parquet").is_file():
            prepare_partners(self._request, root)
        return root

    def config(self, users: int, seed: int | None = None) -> RunConfig:
        """The run, before any defence; `users` are those of all partners."""
        settings = {
            "training": {"rounds": self.rounds, "sampling_rate": self.sampling_rate},
            "privacy": {"epsilon": self.epsilon},
        }
        return preset(
            users=users,
            items=self.items,
            partners=self.partners,
            seed=self.seed if seed is None else seed,
            marketplace=True,
            rating_max=5.0,
            settings=settings,
        )

    @property
    def _request(self) -> Request:
        return Request(
            MARKETPLACE,
            self.partners,
            "iid",
            self.seed,
            "inprocess",
            self.users,
            self.items,
            local_only=False,
            settings={},
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One attack against one defence; what it aims at is chosen when the clean run is there.

    Attributes
    ----------
    defence : str
        A name of `DEFENCES`.
    kind : {"promotion", "backdoor"}
    attackers : int
    boost : float
    stealth : bool
    """

    defence: str
    kind: str = "promotion"
    attackers: int = 1
    boost: float = 10.0
    stealth: bool = False


GRID = (
    *(Case("masked", boost=boost) for boost in (1.0, 10.0, 100.0)),
    Case("masked", stealth=True),
    Case("clipped"),
    Case("median"),
    *(Case("screened", boost=boost) for boost in (1.0, 10.0, 100.0)),
    Case("screened", stealth=True),
    Case("screened", attackers=2),
    Case("screened", attackers=3),
    Case("masked", kind="backdoor"),
    Case("screened", kind="backdoor"),
)
"""The table of docs/audits.md, with a clean run for each defence before it."""


@dataclass
class Experiment:
    """A prepared federation, its clean runs, and what is aimed at.

    Attributes
    ----------
    setting : Setting
    work : Path
        Keeps the federation between experiments, and the runs.
    say : callable
        Told of each run.
    """

    setting: Setting
    work: Path
    say: Say

    def __post_init__(self) -> None:
        self.root = self.setting.prepared(self.work)
        workspace = Workspace.open(self.root)
        self._sizes = np.array([len(h) for h in workspace.histories(self.setting.config(1).model)])
        self.config = self.setting.config(int(self._sizes.sum()))
        self._clean: dict[str, list[PartnerView]] = {}
        self._aim: tuple[int, int] | None = None

    def clean_row(self, defence: Defence) -> Row:
        """Train without attackers: the row says what the defence costs."""
        began = time.monotonic()
        trained = self._train(defence, Attack(), f"{defence.name}-clean")
        seen = self._views(trained, Attack())
        self._clean[defence.name] = seen
        self._aim = self._aim or self._chosen(seen)
        first, *rest = trained.rounds
        return {
            "defence": defence.name,
            "attack": "none",
            "attackers": 0,
            "strength": "-",
            **self._shown(seen, self._aim[0]),
            **quality(seen),
            "anonymity_set": defence.anonymity_set(self.config),
            "prior_noise": _noise(first, self._statistics),
            "training_noise": float(np.mean([_noise(one, 1) for one in rest])),
            "hr@10_by_partner": hits_by_partner(seen),
            "seconds": time.monotonic() - began,
        }

    def attacked_row(self, case: Case) -> Row:
        """Train with attackers, and compare with the clean run of the same defence."""
        began = time.monotonic()
        attack = self.attack_of(case)
        trained = self._train(DEFENCES[case.defence], attack, f"{case.defence}-{case.kind}-{attack.strength}")
        seen, clean = self._views(trained, attack), self._clean_views(case.defence, attack)
        now, before = quality(seen), quality(clean)
        row: Row = {
            "defence": case.defence,
            "attack": case.kind,
            "attackers": case.attackers,
            "strength": attack.strength,
            **self._shown(seen, attack.target),
            "er@10_clean": exposure(clean, attack.target).at_10,
            **now,
            "hr@10_clean": before["hr@10"],
            "hr@10_change": now["hr@10"] / before["hr@10"] - 1,
            "gate_holds": gate_holds(seen, clean),
            "hr@10_by_partner": hits_by_partner(seen),
            "seconds": time.monotonic() - began,
        }
        if case.kind == "backdoor":
            row["backdoor_rate"] = triggered(seen, attack.target, attack.trigger).at_10
            row["backdoor_rate_clean"] = triggered(clean, attack.target, attack.trigger).at_10
        return row

    def free_rider_row(self) -> Row:
        """Some partners send noise alone, in the open: by how much does their likeness to the others give them away?"""
        began = time.monotonic()
        attack = Attack("free-rider", tuple(self._attackers(RIDERS)))
        trained = self._train(BARE, attack, "bare-free-riders")
        row: Row = {"defence": "bare", "attack": attack.kind, "attackers": RIDERS, "strength": attack.strength}
        for stage in ("prior", "train"):
            scores = likeness(trained.seen, stage, self.setting.partners)
            row[f"detection_auc_{stage}"] = None if scores is None else detection_auc(scores, attack.partners)
        return {**row, **quality(self._views(trained, attack)), "seconds": time.monotonic() - began}

    def false_alarm_row(self, defence: Defence) -> Row:
        """A second clean run with other noise and another model at the start: would the gate hold it back?"""
        began = time.monotonic()
        trained = self._train(defence, Attack(), f"{defence.name}-again", seed=self.setting.seed + 1)
        seen = self._views(trained, Attack())
        row: Row = {
            "defence": defence.name,
            "attack": "none, retrained",
            "attackers": 0,
            "strength": "-",
            **quality(seen),
        }
        held = gate_holds(seen, self._clean[defence.name])
        return {**row, "gate_holds": held, "seconds": time.monotonic() - began}

    def attack_of(self, case: Case) -> Attack:
        """What a case means in this federation."""
        if self._aim is None or case.defence not in self._clean:
            raise ConfigError(f"Expected a clean run of defence={case.defence} before an attack on it.")
        target, trigger = self._aim
        aim = {"promotion": (target, -1), "backdoor": (target, trigger)}.get(case.kind)
        if aim is None:
            raise ConfigError(f"Expected kind promotion or backdoor, got {case.kind}.")
        partners = tuple(sorted(self._attackers(case.attackers)))
        return Attack(case.kind, partners, *aim, boost=case.boost, stealth=case.stealth)  # type: ignore[arg-type]

    @property
    def _statistics(self) -> int:
        return self.setting.items * (self.setting.items + 1) // 2

    def _attackers(self, count: int) -> list[int]:
        """Those of about the usual size."""
        return [int(k) for k in np.argsort(np.abs(self._sizes - self._sizes.mean()), kind="stable")[:count]]

    def _train(self, defence: Defence, attack: Attack, name: str, seed: int | None = None) -> Trained:
        runs = self.work / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        config = self.config if seed is None else self.setting.config(int(self._sizes.sum()), seed)
        number = sum(1 for _ in runs.iterdir())
        self.say(f"{name}: training")
        return train(self.root, defence.over(config), attack, runs / f"{number:03d}-{name}")

    def _views(self, trained: Trained, attack: Attack) -> list[PartnerView]:
        return views(trained.release, trained.workspace, list(honest(trained.workspace, attack)))

    def _clean_views(self, defence: str, attack: Attack) -> list[PartnerView]:
        return [view for view in self._clean[defence] if view.partition not in attack.partners]

    def _shown(self, seen: Sequence[PartnerView], target: int) -> Row:
        found = exposure(seen, target)
        return {"er@10": found.at_10, "er@50": found.at_50, "mean_rank": found.mean_rank}

    def _chosen(self, seen: Sequence[PartnerView]) -> tuple[int, int]:
        """Target and trigger, by what the first clean run shows and by what users have met."""
        sizes = np.array([len(view.histories) for view in seen])
        shown = np.average([exposures(view) for view in seen], axis=0, weights=sizes)
        known = np.average([met(view.histories, self.setting.items) for view in seen], axis=0, weights=sizes)
        target = int(np.argmin(np.abs(shown - TARGET_EXPOSURE)))
        away = np.abs(known - TRIGGER_SHARE)
        away[target] = np.inf
        return target, int(np.argmin(away))


def gate_holds(candidate: Sequence[PartnerView], served: Sequence[PartnerView]) -> float:
    """Share of partners whose promotion gate holds a release back, where another is served."""
    held = [
        bool(leaps(exposures(new), exposures(old), met(new.histories, new.scores.shape[1])))
        for new, old in zip(candidate, served, strict=True)
    ]
    return float(np.mean(held))


def run_experiment(
    setting: Setting,
    work: Path,
    *,
    grid: Sequence[Case] = GRID,
    free_riders: bool = True,
    false_alarms: Sequence[str] = ("masked", "screened"),
    say: Say = lambda _: None,
) -> list[Row]:
    """All clean runs, then all attacks.

    Parameters
    ----------
    setting : Setting
    work : Path
        A folder for the federation and the runs.
    grid : sequence of Case
    free_riders : bool
        Also ask whether partners that send noise alone are found out, without masks.
    false_alarms : sequence of str
        Defences under which a second clean run is held against the first.
    say : callable
        Told what is done.

    Returns
    -------
    list of dict
        Rows with ``defence``, ``attack``, ``strength``, ``er@10`` and so on, as JSON takes them.
    """
    experiment = Experiment(setting, work, say)
    wanted = {case.defence for case in grid} | set(false_alarms) | {"masked"}
    rows = [experiment.clean_row(one) for name, one in DEFENCES.items() if name in wanted]
    rows += [experiment.attacked_row(case) for case in grid]
    rows += [experiment.false_alarm_row(DEFENCES[name]) for name in false_alarms]
    return [*rows, experiment.free_rider_row()] if free_riders else rows


def _noise(record: dict[str, object], size: int) -> float:
    """Standard deviation of a round's noise: in every entry for a `size`, of the whole vector for 1."""
    norm = record["noise_norm"]
    if not isinstance(norm, float):
        raise AssertionError("a round's record without its noise")
    return float(norm / np.sqrt(size))
