"""What tables and plots call things."""

from __future__ import annotations

from simulations.benchmarks.quality.study import GIVEN, POOLED

NAMES = {
    "prior_only": "prior only",
    "untrained": "before training",
    "local_only": "each partner alone",
    "frozen_bert": "frozen BERT",
    "concatenated_text": "BERT on concatenated text",
    "item_knn": "item cosine",
    "ease": "EASE",
    "ease_recency": "EASE, recency-weighted",
    "next_item_ridge": "next-item ridge",
    "als": "ALS",
    "bpr": "BPR",
    "sasrec": "SASRec",
    "federated_mf": "federated matrix factorisation",
}


def method_label(method: str, partition: str) -> str:
    """A method's name, with the partition where the study chose it."""
    name = NAMES.get(method, method.replace("_", " "))
    return name if partition in (POOLED, GIVEN) else f"{name} ({partition})"


def promise_label(epsilon: float | None) -> str:
    """What users were promised."""
    return "no privacy" if epsilon is None else f"epsilon {epsilon:g}"
