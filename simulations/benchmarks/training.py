"""Users per second of training: Veilrec with and without privacy, against BERT on concatenated text.

All contenders take turns over the same people of the embedded marketplace (`simulations.benchmarks.turns`). A turn of
Veilrec is a partner's whole training round, `client.learner.Learner.noised_gradients`: sampling, windows, gradients,
clipping, rounding, noise. A turn of the usual way is a client's: model loaded, texts read, gradients.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations.benchmarks.turns import Contender, Measured, Turn, take_turns

if TYPE_CHECKING:
    from client.learner import Learner
    from shared.config import RunConfig
    from shared.model.prior import CollaborativePrior

PARTNERS, POPULATION, ITEMS = 4, 3000, 300
"""Of the marketplace at its default size: what the noise is shared among and calibrated for."""
CLIENT_USERS = 150
"""Users over whom a client of the usual way loads its model once: a fifth of a partner's, as a round of ours takes."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """A way of training.

    Attributes
    ----------
    method : str
        ``veilrec`` or ``concatenated-text``.
    privacy : {"none", "local", "distributed", "dp"}
    variant : str
        What is special about it.
    precision : {"auto", "float32"}
    recipe : str
        Of Veilrec: the privacy mode whose preset gives the size of the model.
    """

    method: str
    privacy: str
    variant: str
    precision: str
    recipe: str = ""

    @property
    def name(self) -> str:
        """One line."""
        return f"{self.method}, privacy={self.privacy}, {self.variant}, {self.precision}"


SHIPPED, EQUAL, ONE_GRADIENT = "shipped", "same size", "one gradient"
USUAL, BUCKETED = "all of 128", "bucketed"
WAYS = (
    Way("veilrec", "none", SHIPPED, "auto", "none"),
    Way("veilrec", "none", EQUAL, "auto", "distributed"),
    *(Way("veilrec", "none", ONE_GRADIENT, precision, "distributed") for precision in ("auto", "float32")),
    Way("veilrec", "distributed", SHIPPED, "auto", "distributed"),
    Way("veilrec", "distributed", SHIPPED, "float32", "distributed"),
    Way("veilrec", "local", SHIPPED, "auto", "local"),
    Way("concatenated-text", "none", USUAL, "float32"),
    Way("concatenated-text", "none", BUCKETED, "auto"),
    Way("concatenated-text", "dp", USUAL, "float32"),
    Way("concatenated-text", "dp", BUCKETED, "auto"),
)
"""The same size is that of the private model. One gradient a batch, not a user, tells what privacy costs at equal size
and precision. The usual way pads all texts to 128 word pieces; bucketed, by their own length, is the same made faster.
"""


def benchmark(
    users: int, usual_users: int, repeat: int, items: int = ITEMS, told: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """One row a way of training; figures are medians over `repeat` turns.

    Parameters
    ----------
    users, usual_users : int
        Users of a turn, of Veilrec and of the usual way, which takes longer for each.
    repeat : int
    items : int
        Of the marketplace.
    told : callable
        Called with a line about what is going on.
    """
    with tempfile.TemporaryDirectory() as folder:
        told("making the marketplace")
        root = prepare_shop(max(users, usual_users), items, Path(folder) / "partners")
        contenders: dict[str, Contender] = {
            way.name: partial(veilrec_turns, way, root)
            if way.method == "veilrec"
            else partial(usual_turns, way, root, usual_users)
            for way in WAYS
        }
        measured = take_turns(contenders, repeat, told)
    return rows_of({way: measured[way.name] for way in WAYS})


def prepare_shop(users: int, items: int, root: Path) -> Path:
    """The first `users` people of the marketplace as one simulated partner; returns `root`."""
    import polars as pl

    from client.data.ingest import RawData
    from simulations.marketplace import MarketplaceConfig, generate
    from simulations.workspace import prepare

    interactions, catalogue = generate(MarketplaceConfig(users=users, items=items, partners=PARTNERS))
    at_one = interactions.with_columns(partner=pl.lit(0, dtype=pl.Int32))
    prepare(RawData("marketplace", interactions, catalogue), at_one, root, seed=0)
    return root


def veilrec_turns(way: Way, root: Path) -> Turn:
    """Open the partner; a turn is one training round over all its users."""
    import numpy as np

    from server.app import describe_run
    from shared.adapter import flatten_parameters
    from shared.messages import RoundPlan
    from simulations.workspace import Workspace

    workspace = Workspace.open(root)
    learner, config = workspace.learner(0), run_config(way)
    run, bench = describe_run(config, workspace.catalogue), learner.workbench(config.model, 0)
    order = RoundPlan(run.run_id, 2, "train", config, run.plan, run.catalogue_digest, "", "0" * 32)
    prior, parameters = _prior(run.n_items), flatten_parameters(bench.model)
    users = len(learner.histories(config.model))
    windows = learner.batch_maker(config.model, 0).training(np.arange(users), config.training, bytes(32))
    targets = sum(int((batch.targets >= 0).sum()) for batch in windows)
    steps = run.plan.local_steps

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        if way.variant == ONE_GRADIENT:
            _one_gradient(learner, config, prior)
        else:
            learner.noised_gradients(order, parameters, prior)
        return _figures(users * steps, targets * steps, time.perf_counter() - began, 0.0)

    return turn


def _prior(items: int) -> CollaborativePrior:
    """Made-up weights: what they are changes no speed."""
    import numpy as np

    from shared.model.prior import CollaborativePrior

    weights = np.random.default_rng(0).normal(size=(items, items)).astype(np.float32)
    return CollaborativePrior(np.zeros(items, np.float32), weights)


def _one_gradient(learner: Learner, config: RunConfig, prior: CollaborativePrior) -> None:
    """What training costs that no privacy asks for: the same batches, and one gradient of each."""
    import numpy as np
    import torch

    from shared.model.behaviour import trainable_parameters
    from shared.model.prior_scores import PriorScorer, mask_seen
    from shared.model.weights import has_fast_bf16

    device = learner.device
    bf16 = config.training.precision == "auto" and has_fast_bf16(device.type)
    bench = learner.workbench(config.model, 0)
    scorer = PriorScorer(prior, config.prior, bench.catalogue.items)
    users = np.arange(len(learner.histories(config.model)))
    for batch in learner.batch_maker(config.model, 0).training(users, config.training, bytes(32)):
        there = batch.to(device)
        logits = mask_seen(scorer.all_positions(there.items), there.items)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = bench.model(there, bench.catalogue, logits)
        losses.sum().backward()
    for parameter in trainable_parameters(bench.model).values():
        parameter.grad = None


def run_config(way: Way) -> RunConfig:
    """The preset of a way's recipe, with every user taken in every step."""
    from simulations.presets import preset

    recipe = preset(
        users=POPULATION,
        items=ITEMS,
        partners=PARTNERS,
        seed=0,
        marketplace=True,
        rating_max=5.0,
        settings={"privacy": {"mode": way.recipe}, "training": {"sampling_rate": 1.0}},
    )
    training = recipe.training.model_copy(update={"precision": way.precision})
    privacy = recipe.privacy.model_copy(update={"mode": way.privacy})
    return recipe.model_copy(update={"training": training, "privacy": privacy})


def usual_turns(way: Way, root: Path, users: int) -> Turn:
    """Read the catalogue; a turn is one client's part in one round, its model loaded anew."""
    import numpy as np

    from shared.config import ModelConfig
    from shared.model.weights import has_fast_bf16
    from simulations.baselines.concatenated import PADDING, TOKENS, HistoryTexts, UsualClient
    from simulations.workspace import Workspace

    learner = Workspace.open(root).learner(0)
    histories, catalogue = learner.histories(ModelConfig()), learner.workbench(ModelConfig(), 0).catalogue
    texts, padding = HistoryTexts(learner.catalogue), TOKENS if way.variant == USUAL else PADDING
    bf16 = way.precision == "auto" and has_fast_bf16(learner.device.type)

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        client = UsualClient(private=way.privacy != "none", device=learner.device)
        load_s = time.perf_counter() - began
        batches = list(texts.training(histories, np.arange(users), np.random.default_rng(0), padding))
        client.gradient_sum(batches, catalogue, 0.5, bf16=bf16)
        seconds = time.perf_counter() - began - load_s
        return _figures(users, sum(len(batch.targets) for batch in batches), seconds, load_s)

    return turn


def _figures(users: float, targets: float, seconds: float, load_s: float) -> dict[str, float]:
    """Of one turn; a model that is loaded is shared among `CLIENT_USERS`."""
    each = seconds / users + load_s / CLIENT_USERS
    return {
        "users_per_s": 1 / each,
        "users_per_s_without_load": users / seconds,
        "targets_per_s": targets / users / each,
        "load_s": load_s,
    }


def rows_of(measured: Mapping[Way, Measured]) -> list[Row]:
    """Rows of the contract, with ratios.

    ``times_non_private``: time per user over that of the same model, precision and data with one gradient a batch and
    no noise; ``times_shipped_none``: over that of mode ``none`` as shipped. ``speed_up``: users per second over those
    of the usual way, with or without privacy; ``speed_up_bucketed``: over the same made faster.
    """
    speed = {way: figures.median("users_per_s") for way, figures in measured.items()}

    def of(method: str, privacy: str, variant: str, precision: str = "") -> float:
        fitting = (w for w in speed if (w.method, w.privacy, w.variant) == (method, privacy, variant))
        return speed[next(w for w in fitting if precision in ("", w.precision))]

    rows = []
    for way, figures in measured.items():
        row: Row = {"method": way.method, "privacy": way.privacy, "variant": way.variant, "precision": way.precision}
        row |= {name: figures.median(name) for name in figures.turns[0]}
        row |= {"peak_rss_mb": figures.peak_rss_mb, "repeat": len(figures.turns)}
        if way.method == "veilrec":
            usual = "none" if way.privacy == "none" else "dp"
            row["speed_up"] = speed[way] / of("concatenated-text", usual, USUAL)
            row["speed_up_bucketed"] = speed[way] / of("concatenated-text", usual, BUCKETED)
            row["times_shipped_none"] = of("veilrec", "none", SHIPPED) / speed[way]
            if way.recipe != "none":
                row["times_non_private"] = of("veilrec", "none", ONE_GRADIENT, way.precision) / speed[way]
        rows.append(row)
    return rows
