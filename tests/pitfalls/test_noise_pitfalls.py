"""Rows on noise: its scale, its independence of the data's size, its freshness, and that it is whole.

The checks are those of the audit (`simulations.audit.mechanism`), five standard errors each; seeds are fixed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from stub_federation import Holds

from simulations.audit.mechanism.checks import REFERENCE

# --- row: N-dependent q or normaliser ---------------------------------------------------------------


def test_the_noise_of_n_and_of_n_plus_1_users_has_one_deviation(holds: Holds) -> None:
    """Opacus' default missed it by 85 standard errors."""
    holds("noise.apart")


def test_what_is_divided_by_is_public(holds: Holds) -> None:
    """The model moves by the opened sum over q N0, and neither knows how many users there are."""
    holds("rounds.divided")


# --- row: noise scale or denominator ----------------------------------------------------------------


@pytest.mark.parametrize(("quorum", "colluders"), [(3, 0), (4, 0), (3, 1)])
def test_the_residual_of_an_opened_sum_has_the_deviation_that_is_billed(
    holds: Holds, quorum: int, colluders: int
) -> None:
    """All four deliver, so it is sqrt(n / (t - c)) of what the accountant charges for, never below it."""
    holds("noise.opened", replace(REFERENCE, survivors=quorum, colluders=colluders))


def test_in_local_mode_every_step_of_every_partner_has_all_of_the_noise(holds: Holds) -> None:
    holds("noise.deviation")
    holds("noise.deviation", replace(REFERENCE, mode="local", local_steps=3))


def test_a_round_in_which_nobody_takes_part_has_all_of_the_noise(holds: Holds) -> None:
    holds("noise.empty")


# --- row: noise reuse, seeded sources, equal seeds --------------------------------------------------


def test_residuals_of_rounds_and_of_partners_are_not_correlated(holds: Holds) -> None:
    """Reused noise has 1.000."""
    holds("noise.fresh")


def test_steps_of_one_round_have_noise_of_their_own(holds: Holds) -> None:
    holds("noise.steps")


def test_a_partner_that_starts_again_draws_other_noise(holds: Holds) -> None:
    holds("noise.runs")


def test_the_noise_of_a_run_over_other_data_is_other_noise_even_with_one_seed(holds: Holds) -> None:
    """A seeded simulation draws by run and round, so that two runs do not cancel each other's noise."""
    holds("noise.runs")


def test_a_seed_is_refused_wherever_data_are_real(holds: Holds) -> None:
    """In the configuration, in the source of randomness, and by the partner's own premises whatever a plan says."""
    holds("randomness.seeds")


# --- row: float holes -------------------------------------------------------------------------------


def test_noise_is_whole_and_on_a_public_lattice_before_it_is_masked(holds: Holds) -> None:
    """Integers all the way: no low bits of floats, and no value that only one sum could have led to."""
    holds("lattice.whole")


def test_rounding_is_dithered_by_a_coin_that_no_data_touch(holds: Holds) -> None:
    holds("lattice.dither")


def test_a_sum_too_large_for_the_ring_loses_none_of_its_noise(holds: Holds) -> None:
    """Cut off before the noise, not after: in the ring the residual still has the deviation that is billed."""
    holds("lattice.ring")


def test_rounding_is_billed_as_part_of_what_a_user_moves(holds: Holds) -> None:
    """A user moves a sum by C / step steps, and by rounding up to another sqrt(d) / 2: noise covers both."""
    holds("lattice.variance")
    holds("lattice.moves")


def test_a_partner_whose_users_hold_nothing_is_as_noisy_as_any(holds: Holds) -> None:
    """Noise says nothing of the users: the same whatever they do, to the bit, from one source."""
    holds("noise.apart")
