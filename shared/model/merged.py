"""A behaviour stage for inference: LoRA added into the linear maps that it adapts.

With ``W x + (alpha / r) B A x = (W + (alpha / r) B A) x`` (Hu et al., LoRA, ICLR 2022, section 4.1) the side paths
cost nothing when ranking, and the layers are plain BERT layers again, as other runtimes know them.
"""

from __future__ import annotations

import copy

from shared.model.behaviour import BehaviourStage


def merged(model: BehaviourStage) -> BehaviourStage:
    """A frozen copy of `model` without LoRA's side paths; `model` stays as it was.

    `hidden` and `score` are those of `model` up to rounding, head and item residuals included. Nothing of the copy is
    trainable: it cannot be trained on or written as a release, which holds LoRA's own matrices.

    Parameters
    ----------
    model : BehaviourStage
        Of a release, or of the same kind: without hooks of training, which would be copied too.
    """
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    adapted = [(name, module) for name, module in plain.layers.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(plain.layers.get_submodule(parent), child, module.get_base_layer())
    return plain.requires_grad_(False)
