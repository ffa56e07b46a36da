"""The partner's agent: owner of data, model and randomness; it answers round plans.

It decides by itself what it may do: whether its data are simulated is written in its own folder, never
in a message, and seeded noise or no noise at all is refused for data that are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.batches import BatchMaker
from client.data.histories import build_histories
from client.data.ingest import RawData, read
from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.privatize import add_noise_share, sample_users
from client.statistics import clipped_statistics
from client.training import PriorLogits
from client.workbench import Workbench, open_workbench
from shared.adapter import load_parameters
from shared.catalogue import build_catalogue
from shared.config import ModelConfig
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError, PolicyViolationError, ReplayError
from shared.files import write_bytes
from shared.hazmat.randomness import Randomness, randomness_for
from shared.messages import ClippedSum, NoisedSum, RoundPlan
from shared.model.behaviour import EventBatch
from shared.model.prior import CollaborativePrior, effective_kind
from shared.model.prior_scores import PriorScorer, mask_seen
from shared.model.weights import choose_device, has_fast_bf16
from shared.privacy.accounting import build_plan
from shared.schema import Catalogue, Histories

PARTNER_FILE, PRIOR_FILE = "partner.json", "prior.safetensors"
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Premises:
    """Where a partner keeps its things.

    Attributes
    ----------
    folder : Path
        ``interactions.parquet`` and ``items.parquet``; also the partner's key and caches.
    name : str
    simulated : bool
        True only if the folder's own ``partner.json`` says so.
    cache : Path
        The file of text vectors.
    tie_seed : int
        Orders events of equal time (`client.data.histories.in_time_order`).
    """

    folder: Path
    name: str
    simulated: bool
    cache: Path
    tie_seed: int = 0

    @classmethod
    def open(cls, folder: Path) -> Premises:
        """Read ``partner.json``; without one, the data are real and the caches lie beside them.

        Raises
        ------
        ConfigError
            If there is no such folder, or the file is not what was expected.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder. Expected a partner's data.")
        file = folder / PARTNER_FILE
        if not file.exists():
            return cls(folder, folder.name, simulated=False, cache=folder / "text-cache.sqlite")
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                folder,
                str(told["name"]),
                simulated=told["simulated"] is True,
                cache=folder / str(told["cache"]),
                tie_seed=int(told["tie_seed"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{file}: Expected JSON with name, simulated, cache and tie_seed.") from None


class PartnerAgent:
    """One partner.

    Parameters
    ----------
    premises : Premises
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, premises: Premises, device: str = "auto") -> None:
        self.premises = premises
        self.device = choose_device(device)
        self._prior: tuple[str, CollaborativePrior] | None = None
        self._histories: tuple[int, Histories] | None = None
        self._maker: tuple[ModelConfig, BatchMaker] | None = None

    @cached_property
    def catalogue(self) -> Catalogue:
        """The public catalogue, from the partner's own copy."""
        return build_catalogue(self._data.items)

    def histories(self, model: ModelConfig) -> Histories:
        """The partner's users, with at most ``model.max_history`` events each."""
        if self._histories is None or self._histories[0] != model.max_history:
            built = build_histories(
                self._data.interactions,
                self.catalogue,
                self._key,
                max_events=model.max_history,
                tie_seed=self.premises.tie_seed,
            )
            self._histories = (model.max_history, built)
        return self._histories[1]

    def workbench(self, model: ModelConfig, seed: int) -> Workbench:
        """The model with the catalogue's vectors; built once a process."""
        return open_workbench(model, seed, self.catalogue, self.premises.cache, self.device)

    def batch_maker(self, model: ModelConfig, seed: int) -> BatchMaker:
        """Batches of the partner's histories, with vectors of its reviews."""
        if self._maker is None or self._maker[0] != model:
            bench, histories = self.workbench(model, seed), self.histories(model)
            vectors = TextCache(self.premises.cache).vectors(
                bench.text, histories.review_texts, width=bench.model.width, items=False
            )
            self._maker = (model, BatchMaker(histories, vectors[:, 0], model))
        return self._maker[1]

    def take_prior(self, run_id: str, prior: CollaborativePrior) -> None:
        """Keep the federation's prior for the rounds of a run, on disk: another process may do the next one."""
        write_bytes(self.premises.folder / PRIOR_FILE, save(dict(prior.arrays()), {"run_id": run_id}))
        self._prior = (run_id, prior)

    def answer(self, round_plan: RoundPlan, parameters: Vector | None) -> NoisedSum:
        """Do what a round asks, or refuse.

        Raises
        ------
        PolicyViolationError
            If the plan asks for what this partner does not allow.
        AdapterMismatchError
            If it is for another catalogue or another shape of adapter.
        ReplayError
            If a training round comes without the prior that it builds on.
        """
        self._check(round_plan)
        source = self._randomness(round_plan, self.premises.name)
        context = f"{round_plan.run_id}/{round_plan.round}"
        if round_plan.stage == "prior":
            return add_noise_share(self._statistics(round_plan), round_plan.plan, "prior", source, context)
        if parameters is None:
            raise AdapterMismatchError("Expected parameters with a training round.")
        return self._train(round_plan, parameters, source, context)

    def _statistics(self, round_plan: RoundPlan) -> ClippedSum:
        config, n_items = round_plan.config, len(self.catalogue)
        kind = effective_kind(config.prior, n_items)
        clip_norm = 1.0 / round_plan.plan.partners_per_user
        histories = self.histories(config.model)
        return clipped_statistics(histories, n_items, config.prior, kind, clip_norm=clip_norm)

    def _train(self, round_plan: RoundPlan, parameters: Vector, source: Randomness, context: str) -> NoisedSum:
        """Sample, clip, sum, noise; in ``local`` mode several times, each step from where the last one ended."""
        config, plan = round_plan.config, round_plan.plan
        bench = self.workbench(config.model, config.seed or 0)
        maker, prior = self.batch_maker(config.model, config.seed or 0), self._prior_logits(round_plan)
        # In bfloat16 one user would move the rounding of all others: nothing that noise is to hide.
        bf16 = plan.mode == "none" and config.training.precision == "auto" and has_fast_bf16(self.device.type)
        # In a simulation the sample is a property of users, whichever partner holds them, in whichever run:
        # so that a federation without noise can be compared with the same model on pooled data.
        sampling = self._randomness(round_plan, "federation")
        users = self.histories(config.model).users
        total = np.zeros(bench.gradients.size)
        here = parameters.astype(np.float64)
        noised = NoisedSum(total, 0.0)
        for step in range(plan.local_steps):
            at = f"{context}/{step}"
            load_parameters(bench.model, here.astype(np.float32))
            taken = sample_users(users, plan, sampling, f"{round_plan.round}/{step}")
            batches = maker.training(taken, config.training, sampling.read(32, f"{round_plan.round}/{step}/windows"))
            clipped = bench.gradients.clipped_sum(batches, bench.catalogue, prior, plan.partner_clip_norm, bf16=bf16)
            noised = add_noise_share(clipped, plan, "train", source, at)
            total += noised.values
            here -= config.training.local_learning_rate * noised.values / (plan.normaliser / config.federation.partners)
        return NoisedSum(total, noised.noise_stddev, noised.loss)

    def _prior_logits(self, round_plan: RoundPlan) -> PriorLogits:
        if self._prior is None or self._prior[0] != round_plan.run_id:
            self._prior = _kept_prior(self.premises.folder / PRIOR_FILE)
        if self._prior is None or self._prior[0] != round_plan.run_id:
            raise ReplayError("Expected the prior of this run before its training rounds.")
        scorer = PriorScorer(self._prior[1], round_plan.config.prior, self.device)

        def logits(batch: EventBatch) -> torch.Tensor:
            return mask_seen(scorer.all_positions(batch.items), batch.items)

        return logits

    def _check(self, round_plan: RoundPlan) -> None:
        config = round_plan.config
        if not self.premises.simulated and (config.simulation or round_plan.plan.mode == "none"):
            raise PolicyViolationError("Expected simulation=false and a privacy mode other than none for real data.")
        if round_plan.plan != build_plan(config):
            raise PolicyViolationError("Expected the privacy plan that follows from the configuration.")
        if round_plan.catalogue_digest != self.catalogue.digest:
            raise AdapterMismatchError("Expected the catalogue of the federation: digests differ.")

    def _randomness(self, round_plan: RoundPlan, party: str) -> Randomness:
        return randomness_for(seed=round_plan.config.seed, simulation=self.premises.simulated, party=party)

    @cached_property
    def _data(self) -> RawData:
        return read(self.premises.folder)

    @cached_property
    def _key(self) -> PseudonymKey:
        if self.premises.simulated:
            return PseudonymKey.derive(0)
        return PseudonymKey.load_or_create(self.premises.folder / "pseudonym.key")


def _kept_prior(file: Path) -> tuple[str, CollaborativePrior] | None:
    """The run and the prior that were kept last."""
    try:
        with safe_open(file, framework="np") as kept:
            arrays = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
            return kept.metadata()["run_id"], CollaborativePrior(**arrays)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError):
        raise IntegrityError(f"{file}: Expected the prior of a run.") from None


@lru_cache(maxsize=256)
def agent_for(folder: Path) -> PartnerAgent:
    """The agent of a partner's folder; one a process."""
    return PartnerAgent(Premises.open(folder))
