"""What a partner holds and learns from: data, model, and the way from users to a noised sum."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.audit_canaries import SEED_BYTES, add_canaries, canary_names
from client.batches import BatchMaker
from client.data.histories import build_histories
from client.data.ingest import RawData, read
from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.premises import Premises
from client.privatize import add_noise_share, sample_users
from client.statistics import clipped_statistics
from client.training import PriorLogits
from client.workbench import Workbench, open_workbench
from shared.adapter import load_parameters
from shared.catalogue import build_catalogue
from shared.config import ModelConfig, RunConfig
from shared.errors import AdapterMismatchError, PolicyViolationError
from shared.hazmat.randomness import Randomness, randomness_for
from shared.messages import ClippedSum, NoisedSum, RoundPlan
from shared.model.prior import CollaborativePrior, effective_kind
from shared.model.weights import choose_device, has_fast_bf16
from shared.privacy.lattice import LARGEST_VECTOR
from shared.privacy.plan import PrivacyPlan
from shared.schema import Catalogue, Histories

Vector = NDArray[np.float32]
LARGEST_PARAMETER = 4.0
"""Training leaves parameters far below 1. Large ones blow up float32's rounding, and with it what one user can move."""


class Learner:
    """The data of one partner, and what is computed from them; nothing here decides whether it may be.

    Parameters
    ----------
    premises : Premises
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, premises: Premises, device: str = "auto") -> None:
        self.premises = premises
        self.device = choose_device(device)
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
                self.key,
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
            self._maker = (model, self.maker_of(self.histories(model), model, seed))
        return self._maker[1]

    def maker_of(self, histories: Histories, model: ModelConfig, seed: int) -> BatchMaker:
        """Batches of other histories: a part of the partner's, or its users' without some events."""
        bench, cache = self.workbench(model, seed), TextCache(self.premises.cache)
        vectors = cache.vectors(bench.text, histories.review_texts, width=bench.model.width, items=False)
        return BatchMaker(histories, vectors[:, 0], model)

    def check_parameters(self, config: RunConfig, parameters: Vector) -> None:
        """Refuse parameters that no round can start from, before anything is paid for it.

        Raises
        ------
        AdapterMismatchError
            If they are of another shape, not finite, or beyond `LARGEST_PARAMETER`.
        """
        size = self.workbench(config.model, config.seed or 0).gradients.size
        # Not "any > bound": what is no number is refused too.
        if size > LARGEST_VECTOR:
            raise AdapterMismatchError(f"Expected at most {LARGEST_VECTOR} parameters, the configuration has {size}.")
        if parameters.shape != (size,) or not bool((np.abs(parameters) <= LARGEST_PARAMETER).all()):
            raise AdapterMismatchError(
                f"Expected {size} parameters of size <= {LARGEST_PARAMETER:g}, got shape={parameters.shape}."
            )

    def check_canaries(self, order: RoundPlan) -> None:
        """Refuse more audit canaries than the model tells apart, before anything is paid for them.

        Raises
        ------
        PolicyViolationError
        """
        if order.plan.canaries:
            order.plan.check_canaries(self.workbench(order.config.model, order.config.seed or 0).gradients.size)

    def canary_seed(self, order: RoundPlan) -> bytes:
        """A new seed for the audit canaries of a run: of the system, but for a simulation that names a seed."""
        source = self._randomness(order, self.premises.name, None)
        return source.read(SEED_BYTES, f"{order.run_id}/canaries")

    def noised_statistics(self, order: RoundPlan, *, secret: bytes | None = None) -> NoisedSum:
        """The prior's sum over all users, with the partner's share of the noise, drawn from a round's `secret`."""
        source = self._randomness(order, self.premises.name, secret)
        return add_noise_share(self._statistics(order), order.plan, "prior", source, f"{order.run_id}/{order.round}")

    def noised_gradients(
        self,
        order: RoundPlan,
        parameters: Vector,
        prior: CollaborativePrior,
        *,
        secret: bytes | None = None,
        canary_seed: bytes | None = None,
    ) -> NoisedSum:
        """Sample, clip, sum, noise; in ``local`` mode several times, each step from where the last one ended.

        Where the plan has audit canaries, those of `canary_seed` are in each sum before it is rounded and noised.
        """
        config, plan = order.config, order.plan
        bench = self.workbench(config.model, config.seed or 0)
        maker, logits = self.batch_maker(config.model, config.seed or 0), self._logits(prior, order, bench)
        # Under noise only where nobody's bfloat16 moves the rounding of anybody else.
        bf16 = config.training.precision == "auto" and has_fast_bf16(self.device.type)
        bf16 = bf16 and (plan.mode == "none" or bench.bf16_stands_alone(prior, logits))
        # In a simulation the sample is a property of users, whichever partner holds them, in whichever run:
        # so that a federation without noise can be compared with the same model on pooled data.
        source = self._randomness(order, self.premises.name, secret)
        sampling = self._randomness(order, "federation", secret)
        users = self.histories(config.model).users
        here, steps = parameters.astype(np.float64), []
        for step in range(plan.local_steps):
            at = f"{order.round}/{step}"
            load_parameters(bench.model, here.astype(np.float32))
            taken = sample_users(users, plan, sampling, at)
            batches = maker.training(taken, config.training, sampling.read(32, f"{at}/windows"))
            with self._dropout(bench, config.training.dropout, source, at):
                clipped = bench.gradients.clipped_sum(
                    batches, bench.catalogue, logits, plan.partner_clip_norm, bf16=bf16
                )
            if plan.canaries:
                clipped = _with_canaries(clipped, plan, canary_seed, source, f"{order.run_id}/{at}")
            steps.append(add_noise_share(clipped, plan, "train", source, f"{order.run_id}/{at}"))
            mean = steps[-1].values * (plan.step("train") * config.federation.partners / plan.normaliser)
            here -= config.training.local_learning_rate * mean
        return NoisedSum(np.sum([one.values for one in steps], axis=0), steps[-1].loss)

    def _statistics(self, order: RoundPlan) -> ClippedSum:
        config, n_items = order.config, len(self.catalogue)
        kind = effective_kind(config.prior, order.plan, n_items)
        clip_norm = 1.0 / order.plan.partners_per_user
        return clipped_statistics(self.histories(config.model), n_items, config.prior, kind, clip_norm=clip_norm)

    def _dropout(self, bench: Workbench, chance: float, source: Randomness, at: str) -> AbstractContextManager[None]:
        # Never under noise: `shared.config.RunConfig` refuses it.
        if not chance:
            return nullcontext()
        return bench.model.dropping_out(chance, int.from_bytes(source.read(7, f"{at}/dropout"), "big"))

    def _logits(self, prior: CollaborativePrior, order: RoundPlan, bench: Workbench) -> PriorLogits:
        return bench.prior_logits(prior, order.config.prior, order.round)

    def _randomness(self, order: RoundPlan, party: str, secret: bytes | None) -> Randomness:
        return randomness_for(seed=order.config.seed, simulation=self.premises.simulated, party=party, secret=secret)

    @cached_property
    def _data(self) -> RawData:
        return read(self.premises.data)

    @cached_property
    def key(self) -> PseudonymKey:
        """The partner's own key to its pseudonyms; never sent."""
        if self.premises.simulated:
            return PseudonymKey.derive(0)
        return PseudonymKey.load_or_create(self.premises.folder / "pseudonym.key")


def _with_canaries(
    clipped: ClippedSum, plan: PrivacyPlan, seed: bytes | None, source: Randomness, context: str
) -> ClippedSum:
    """The plan's audit canaries in a step's sum, each with the probability with which any user takes part."""
    if seed is None:
        raise PolicyViolationError("Expected the seed of the audit canaries that the plan has.")
    taken = sample_users(canary_names(plan), plan, source, f"{context}/canaries")
    return add_canaries(clipped, plan, seed, taken.tolist())
