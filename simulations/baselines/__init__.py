"""What a federated model has to beat: classical, neural and federated baselines, with and without privacy."""

from simulations.baselines.classical import BASELINES, EASE_RIDGE, ease, item_counts, item_knn, popularity
from simulations.baselines.problem import Budget, Problem

__all__ = ["BASELINES", "EASE_RIDGE", "Budget", "Problem", "ease", "item_counts", "item_knn", "popularity"]
