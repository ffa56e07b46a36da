"""What a federation is worth to a partner: ranking for its own users before joining, with the global model, and with
what it adds at home; and what the noise costs.

``veilrec partner value`` prints it. The held-out items are an evaluator's in a simulation. A real partner has trained
on all that its folder holds, so it has to bring events that came later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.app import partner_folder
from client.data.histories import in_time_order
from client.data.ingest import read
from client.learner import Learner
from client.premises import PARTNER_FILE, Premises
from client.ranking.personal import personalise
from client.ranking.personal_adapter import adapt
from client.ranking.scorer import ModelScorer, histories_scorer
from shared import metrics
from shared.adapter import Release, load_release
from shared.errors import AdapterMismatchError, ConfigError, DataError, EmptyHistoryError
from shared.model.prior import CollaborativePrior
from simulations.evaluation import Evaluation, Scorer, bootstrap, evaluate, merge, paired_bootstrap, targets_of
from simulations.results import model_scorer
from simulations.workspace import HELD_OUT, Workspace

ALONE, GLOBAL, OWN_PRIOR, PERSONAL = "alone", "global", "global_and_own_prior", "global_and_personal"
ALONE_TRAINED = "alone_and_own_adapter"
"""The same own adapter beside the partner's own closed forms: it began with the release, of which little is left."""
WITHOUT_NOISE = "global_without_noise"
GAINS = {
    "joining": (GLOBAL, ALONE),
    "own_prior": (OWN_PRIOR, GLOBAL),
    "own_adapter": (PERSONAL, OWN_PRIOR),
    "personalising": (PERSONAL, GLOBAL),
    "joining_and_personalising": (PERSONAL, ALONE_TRAINED),
    "without_noise": (WITHOUT_NOISE, GLOBAL),
}
"""Differences of NDCG@10, as (of, over)."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Value:
    """One partner's users under each method.

    Parameters
    ----------
    partner : str
    ranked : mapping of str to Evaluation
        By the names of this module.
    taken : mapping of str to float
        What the partner adds at home: weight and popularity share of its own prior, what stays of the likeness by text,
        steps of its own adapter. Empty for several partners together.
    """

    partner: str
    ranked: Mapping[str, Evaluation]
    taken: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Figures with 95 % bootstrap intervals over users, and differences with paired ones."""
        told: dict[str, Any] = {"partner": self.partner, "users": len(self.ranked[GLOBAL])}
        if self.taken:
            told["taken"] = dict(self.taken)
        told["methods"] = {name: _figures(one.ranks) for name, one in self.ranked.items()}
        told["gains"] = {
            name: _difference(self.ranked[of].ranks, self.ranked[over].ranks)
            for name, (of, over) in GAINS.items()
            if of in self.ranked
        }
        return told


def partner_values(
    folder: Path, run: Path, *, without_noise: Path | None = None, held_out: Path | None = None
) -> list[Value]:
    """Measure a partner, or all partners of a simulation and then all of them together.

    What each partner adds at home is fitted here and kept in its ``personal/`` folder.

    Parameters
    ----------
    folder : Path
        A partner's folder, or the folder of the partners of a simulation.
    run : Path
        Run folder with the adapter.
    without_noise : Path, optional
        Run folder of the same federation in mode none.
    held_out : Path, optional
        Parquet file with user_id, item_id and timestamp of events that came after training, for a partner's folder.

    Raises
    ------
    ConfigError
        If there is nothing to evaluate on, or `without_noise` is a run with noise.
    DataError
        If the folder is neither, held-out events were trained on, or the file does not hold what was expected.
    EmptyHistoryError
        If no user of a partner has a held-out item.
    AdapterMismatchError
        If a run belongs to another catalogue.
    """
    release = load_release(run / "adapter")
    exact = None if without_noise is None else _exact(without_noise)
    if (folder / PARTNER_FILE).is_file():
        return [_value(folder, release, exact, _held_out_of(folder, held_out))]
    if held_out is not None:
        raise ConfigError("Expected --held-out only with one partner's folder: a simulation brings its own.")
    partners = [partner_folder(folder, k) for k in range(Workspace.open(folder).partners)]
    values = [_value(partner, release, exact, _held_out_of(partner, None)) for partner in partners]
    pooled = {name: merge([value.ranked[name] for value in values]) for name in values[0].ranked}
    return [*values, Value("all", pooled, {})]


def _value(folder: Path, release: Release, exact: Release | None, held_out: pl.DataFrame) -> Value:
    premises = Premises.open(folder)
    learner = Learner(premises)
    for one in (release, exact):
        if one is not None and one.manifest["catalogue_sha256"] != learner.catalogue.digest:
            raise AdapterMismatchError(f"{folder}: Expected the catalogue that the adapter was trained with.")
    config = release.config
    histories = learner.histories(config.model)
    targets = targets_of(held_out, histories, learner.catalogue, learner.key)
    if not (targets >= 0).any():
        raise EmptyHistoryError(f"{folder}: Expected users with a held-out item, got users=0.")
    prior = personalise(learner, release)
    adapter = adapt(learner, release, prior)
    prior.save(folder)
    adapter.save(folder)
    mine, alone = adapter.over(release), _alone(learner, release, prior.own)
    scorers = {
        ALONE: alone,
        # Without a step the adapter is the released one: of that nobody has anything alone.
        ALONE_TRAINED: model_scorer(replace(mine, prior=prior.own), learner, histories) if adapter.steps else alone,
        GLOBAL: model_scorer(release, learner, histories),
        OWN_PRIOR: model_scorer(prior.over(release), learner, histories),
        PERSONAL: model_scorer(prior.over(mine), learner, histories),
    }
    if exact is not None:
        scorers[WITHOUT_NOISE] = model_scorer(exact, learner, learner.histories(exact.config.model))
    ranked = {name: evaluate(scorer, histories, targets) for name, scorer in scorers.items()}
    taken = prior.taken._asdict() | {"steps": adapter.steps}
    return Value(premises.name, ranked, taken)


def _alone(learner: Learner, release: Release, prior: CollaborativePrior) -> Scorer:
    """What a partner has before joining, in seconds: its `own_prior`, without a behaviour stage."""
    config, seed = release.config, release.config.seed or 0
    catalogue = learner.workbench(config.model, seed).catalogue
    return histories_scorer(ModelScorer(None, prior, config.prior, catalogue), learner.batch_maker(config.model, seed))


def _exact(run: Path) -> Release:
    release = load_release(run / "adapter")
    if (mode := release.manifest["privacy"]["mode"]) != "none":
        raise ConfigError(f"{run}: Expected a run with privacy.mode=none for --without-noise, got mode={mode}.")
    return release


def _held_out_of(folder: Path, file: Path | None) -> pl.DataFrame:
    """user_id and item_id, one row a user."""
    premises = Premises.open(folder)
    if file is not None:
        return _later_events(file, premises)
    evaluator = folder.resolve().parent / HELD_OUT
    if not premises.simulated or not evaluator.is_file():
        raise ConfigError(
            "Expected --held-out FILE with events that came after training: all events of the partner's folder were "
            "trained on, and would show any model to be good."
        )
    partners = Workspace.open(evaluator.parent).partners
    here = [
        k for k in range(partners) if partner_folder(evaluator.parent, k) == evaluator.parent / folder.resolve().name
    ]
    return pl.read_parquet(evaluator).filter(pl.col("partner").is_in(here))


def _later_events(file: Path, premises: Premises) -> pl.DataFrame:
    """The first item of each user in the file that the user had not met."""
    try:
        frame = pl.read_parquet(file).select(
            pl.col("user_id", "item_id").cast(pl.String), pl.col("timestamp").cast(pl.Int64), event=pl.lit("other")
        )
    except (OSError, pl.exceptions.PolarsError):
        raise DataError(f"{file}: Expected a parquet file with user_id, item_id and timestamp.") from None
    trained = read(premises.data).interactions.select("user_id", "item_id", "timestamp")
    known = frame.join(trained.unique(), on=["user_id", "item_id", "timestamp"], how="semi").height
    if known:
        raise DataError(f"{file}: Expected events that were not trained on, got {known} of {frame.height} that were.")
    new = frame.join(trained, on=["user_id", "item_id"], how="anti")
    return in_time_order(new, premises.tie_seed).group_by("user_id", maintain_order=True).first()


def _figures(ranks: NDArray[np.float64], k: int = 10) -> dict[str, Any]:
    per_user = {f"ndcg@{k}": metrics.ndcg_per_user(ranks, k), f"hr@{k}": (ranks + 1 <= k).astype(np.float64)}
    told: dict[str, Any] = {}
    for name, values in per_user.items():
        mean, low, high = bootstrap(values, SEED)
        told |= {name: mean, f"{name}_ci95": [low, high]}
    return told


def _difference(ranks: NDArray[np.float64], over: NDArray[np.float64]) -> dict[str, Any]:
    mean, low, high = paired_bootstrap(ranks, over, SEED)
    return {"ndcg@10": mean, "ci95": [low, high]}


def verdicts(values: Sequence[Value]) -> list[str]:
    """One sentence a partner: what helped it, as far as its users can tell (95 % intervals over users)."""
    return [f"{value.partner}: {_verdict(value.to_json()['gains'])}" for value in values]


def _verdict(gains: Mapping[str, Mapping[str, Any]]) -> str:
    words = {
        "joining": "the global model against alone",
        "personalising": "its own on top",
        "joining_and_personalising": "both against its own alone",
    }
    told = []
    for name, what in words.items():
        low, high = gains[name]["ci95"]
        sure = "helps" if low > 0 else "harms" if high < 0 else "unsure"
        told.append(f"{what} {gains[name]['ndcg@10']:+.4f} [{low:+.4f}, {high:+.4f}] ({sure})")
    return ", ".join(told) + "."
