"""Row "clip per example, or parameters that the clip misses": one user is one row, however much they wrote."""

from __future__ import annotations

from stub_federation import Holds


def test_a_user_of_1_and_one_of_50_maximal_reviews_reach_the_same_norm(holds: Holds) -> None:
    """At most C over all that is trained, and not by being far from it."""
    holds("gradients.one_row")


def test_the_bound_holds_beside_others(holds: Holds) -> None:
    holds("gradients.one_row")


def test_a_long_history_moves_no_other_user_whatever_model_the_coordinator_sends(holds: Holds) -> None:
    """Padding that hangs on the batch turned 32 short histories into NaN at parameters x 100: the sum moved by 32 C."""
    holds("gradients.beside")


def test_a_sum_is_a_sum_and_not_divided_by_how_many_took_part(holds: Holds) -> None:
    """The mean over a sample tells its size; what it is divided by, q N0, is the coordinator's and public."""
    holds("gradients.one_row")


def test_the_statistics_of_a_user_are_clipped_however_many_events_they_have(holds: Holds) -> None:
    holds("clipping.statistics")


def test_a_user_at_k_partners_moves_the_sum_by_no_more_than_c(holds: Holds) -> None:
    """Every partner clips to C / k; without noise, of a learner with one user that all partners hold."""
    holds("clipping.user")


def test_a_user_at_k_partners_moves_the_prior_s_sum_by_no_more_than_1(holds: Holds) -> None:
    holds("clipping.prior")
