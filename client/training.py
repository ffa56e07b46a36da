"""User-level private gradients: one user is one row, clipped once. The only import of Opacus.

Opacus' ``GradSampleModule`` hooks give the gradient of every row of a batch. Its ``make_private`` is
not used: it derives the sampling rate and the normaliser from the size of the data set, which leaks
it; here both are constants of the public plan. Noise is not drawn here (`client.privatize`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor

from shared.adapter import flatten_parameters, load_parameters
from shared.errors import SensitivityError
from shared.messages import ClippedSum
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch, trainable_parameters
from shared.model.candidates import SampledPrior

PriorLogits = Callable[[EventBatch], Tensor | SampledPrior]
ROUNDING_SLACK = 1e-3
"""The part of the clip norm that is kept free for the rounding of other users' gradients."""
PROBED = 13
"""Users of a probe: odd, so that whole blocks of a matrix product and what is left of them both occur."""
LARGEST_GRADIENT = 1e18
"""A longer gradient counts as not finite: float32 cannot scale it down without loss."""


class UserGradients:
    """Per-user gradients of one behaviour stage.

    The hooks stay on the module for its whole life (Opacus refuses to add them twice); new rounds
    load new weights.

    Parameters
    ----------
    model : BehaviourStage
    """

    def __init__(self, model: BehaviourStage) -> None:
        self.model = model
        self._parameters = trainable_parameters(model)
        _only_trained_leaves_train(model)
        self._hooked = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
        self._hooked.disable_hooks()

    @property
    def size(self) -> int:
        """Trained parameters: the length of a flat gradient."""
        return sum(p.numel() for p in self._parameters.values())

    def of(
        self, batch: EventBatch, catalogue: CatalogueVectors, prior: Tensor | SampledPrior, *, bf16: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Flat gradient of each user's own mean loss, shape ``(B, P)``, and the losses, shape ``(B,)``.

        With `bf16` the products of the forward and backward pass are in bfloat16; clipping, sums and weights
        never are.
        """
        with self._hooks():
            with torch.autocast(catalogue.items.device.type, torch.bfloat16, enabled=bf16):
                losses = self._hooked(batch, catalogue, prior)
            losses.sum().backward()
            flat = torch.cat([_grad_sample(p).flatten(1).float() for p in self._parameters.values()], dim=1)
        return flat, losses.detach()

    def rows_stand_alone(self, catalogue: CatalogueVectors, widths: Iterable[int], prior: PriorLogits) -> bool:
        """Whether a user's gradient in bfloat16 has the same bits whoever else is in the batch.

        A matter of the machine's matrix products, so it is tried out: made-up users of each width, in several
        batches. Then one user more or less moves no other user's rounding, and what a user adds is clipped exactly.

        Notes
        -----
        Seen on x86 CPUs with bf16 products, and asked for on CPUs only: a GPU picks its kernels by the size of a batch.
        """
        if catalogue.items.device.type != "cpu":
            return False
        with self._moved():
            return all(self._stands_alone(catalogue, width, prior) for width in widths)

    @contextmanager
    def _moved(self) -> Iterator[None]:
        """Other parameters for a while: at a start of zeros half of a gradient is zero whatever the rounding."""
        kept, random = flatten_parameters(self.model), torch.Generator().manual_seed(0)
        step = 0.02 * torch.randn(self.size, generator=random)
        try:
            load_parameters(self.model, kept + step.numpy().astype(np.float32))
            yield
        finally:
            load_parameters(self.model, kept)

    def _stands_alone(self, catalogue: CatalogueVectors, width: int, prior: PriorLogits) -> bool:
        n_items, random = len(catalogue.items), torch.Generator().manual_seed(width)
        shape = (PROBED, width)
        items = torch.randint(n_items, shape, generator=random)
        targets = torch.randint(n_items, shape, generator=random)
        codes = torch.zeros_like(items)
        users = EventBatch(items, codes, codes, torch.full((PROBED,), width), None, targets)
        whole, _ = self._with_prior(users, catalogue, prior, bf16=True)
        for some in (slice(0, 1), slice(1, None), slice(0, None, 2), slice(PROBED // 2, None)):
            batch = EventBatch(items[some], codes[some], codes[some], users.lengths[some], None, targets[some])
            if not torch.equal(self._with_prior(batch, catalogue, prior, bf16=True)[0], whole[some]):
                return False
        return True

    def clipped_sum(
        self,
        batches: Iterable[EventBatch],
        catalogue: CatalogueVectors,
        prior: PriorLogits,
        clip_norm: float,
        *,
        bf16: bool = False,
    ) -> ClippedSum:
        """Sum over users of their gradients, each clipped once to `clip_norm`; zeros if there is no user.

        Guarantees
        ----------
        Adding or removing one user, with any history, moves the sum by at most `clip_norm` in L2: a
        user's gradient is a function of that user's row alone, is scaled as one flat vector over all
        trained parameters, and is left out if not finite. One more user also regroups the batches, and
        float32 rounds a row a little differently in another batch (1e-5 C over 257 users, measured): users
        are clipped to ``clip_norm (1 - ROUNDING_SLACK)``, which leaves room for that. It does not leave
        room for `bf16`, whose rounding is a thousand times coarser: under noise only where `rows_stand_alone`.
        """
        total = torch.zeros(self.size, dtype=torch.float64)
        loss, users = 0.0, 0
        for batch in batches:
            on_device = batch.to(catalogue.items.device)
            gradients, losses = self._with_prior(on_device, catalogue, prior, bf16=bf16)
            total += clip_and_sum(gradients, clip_norm * (1 - ROUNDING_SLACK)).double().cpu()
            loss, users = loss + float(losses.sum()), users + len(losses)
        if not bool(torch.isfinite(total).all()):
            raise SensitivityError("Expected a finite sum of clipped gradients.")
        return ClippedSum(total.numpy(), clip_norm, private_loss=loss / users if users else None)

    def _with_prior(
        self, batch: EventBatch, catalogue: CatalogueVectors, prior: PriorLogits, *, bf16: bool
    ) -> tuple[Tensor, Tensor]:
        """`of`, on top of a prior whose products have the same precision: so that they too are tried out."""
        with torch.autocast(catalogue.items.device.type, torch.bfloat16, enabled=bf16):
            logits = prior(batch)
        return self.of(batch, catalogue, logits, bf16=bf16)

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        self._hooked.enable_hooks()
        try:
            yield
        finally:
            self._hooked.disable_hooks()
            # A pass that an error cut short leaves activations behind, which would spoil all later passes.
            for module in self.model.modules():
                module.__dict__.pop("activations", None)
                module.__dict__.pop("max_batch_len", None)
            for p in self._parameters.values():
                p.__dict__.pop("_current_grad_sample", None)
                p._forward_counter = 0  # type: ignore[attr-defined]
                p.grad_sample = None  # type: ignore[attr-defined]
                p.grad = None


def clip_and_sum(gradients: Tensor, clip_norm: float) -> Tensor:
    """Sum of rows, each scaled to norm at most `clip_norm`; ``(B, P)`` to ``(P,)``.

    Rows that are not finite, or longer than `LARGEST_GRADIENT`, count as 0.
    """
    # Norms in float64, which mps has not: in float32 they are off by up to 4e-6 (measured), to the users' harm.
    exact = gradients.cpu() if gradients.device.type == "mps" else gradients
    # Row by row: over all rows at once torch copies the whole table to float64 first, a fifth of a round's time.
    norms = torch.zeros(len(exact), dtype=torch.float64, device=exact.device)  # (B,)
    for place, row in enumerate(exact):
        norms[place] = torch.linalg.vector_norm(row, dtype=torch.float64)
    usable = norms <= LARGEST_GRADIENT  # False for NaN
    norms = torch.where(usable, norms, 0.0)
    factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0).to(gradients)
    if not bool(usable.all()):
        gradients = torch.where(usable.to(gradients.device).unsqueeze(1), gradients, 0.0)
    total: Tensor = factors @ gradients
    return total


def _grad_sample(parameter: torch.nn.Parameter) -> Tensor:
    sample = parameter.grad_sample  # type: ignore[attr-defined]
    if not isinstance(sample, Tensor):
        raise SensitivityError("Expected one backward pass a forward pass, so that a user is counted once.")
    return sample


def _only_trained_leaves_train(model: torch.nn.Module) -> None:
    """Opacus records activations of modules in training mode; the frozen base must stay in evaluation mode."""
    model.eval()
    for module in model.modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            module.training = True
