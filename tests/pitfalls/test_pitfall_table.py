"""The table of pitfalls that other systems fell into, and the tests that look for each of them here.

Each test states its statistic and how often correct code would fail it; a row whose check is elsewhere names that
test and does not repeat it.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NOISE, SAMPLING = "pitfalls/test_noise_pitfalls.py", "pitfalls/test_sampling_pitfalls.py"
ROUNDS, CLIPPING = "pitfalls/test_round_pitfalls.py", "pitfalls/test_clipping_pitfalls.py"
MINIMISATION, TRAINING = "integration/test_minimisation.py", "unit/test_training.py"
CANARIES, COMMITMENTS = "unit/test_production_canaries.py", "unit/test_canary_commitments.py"

TABLE: dict[str, tuple[str, ...]] = {
    "fixed or shuffled batches": (
        f"{SAMPLING}::test_participation_of_a_user_varies_as_independent_coins_do",
        f"{SAMPLING}::test_participation_of_two_users_is_not_correlated",
        f"{SAMPLING}::test_the_learner_samples_anew_in_every_step",
        "unit/test_sampling.py::test_a_planted_sampler_that_is_not_poisson_is_caught",
    ),
    "rate or normaliser that depends on N": (
        f"{NOISE}::test_the_noise_of_n_and_of_n_plus_1_users_has_one_deviation",
        f"{NOISE}::test_what_is_divided_by_is_public",
        f"{SAMPLING}::test_the_rate_does_not_depend_on_how_many_users_there_are",
        f"{CLIPPING}::test_a_sum_is_a_sum_and_not_divided_by_how_many_took_part",
        f"{CLIPPING}::test_a_long_history_moves_no_other_user_whatever_model_the_coordinator_sends",
        "unit/test_plan.py::test_neither_the_plan_nor_its_builder_can_see_a_data_set",
    ),
    "clip per example, or parameters that the clip misses": (
        f"{CLIPPING}::test_a_user_of_1_and_one_of_50_maximal_reviews_reach_the_same_norm",
        f"{CLIPPING}::test_the_bound_holds_beside_others",
        f"{CLIPPING}::test_the_statistics_of_a_user_are_clipped_however_many_events_they_have",
        f"{CLIPPING}::test_a_user_at_k_partners_moves_the_sum_by_no_more_than_c",
        f"{CLIPPING}::test_a_user_at_k_partners_moves_the_prior_s_sum_by_no_more_than_1",
        f"{TRAINING}::test_every_trained_tensor_gets_a_gradient_and_no_other_does",
    ),
    "scale of the noise": (
        f"{NOISE}::test_the_residual_of_an_opened_sum_has_the_deviation_that_is_billed",
        f"{NOISE}::test_in_local_mode_every_step_of_every_partner_has_all_of_the_noise",
        f"{NOISE}::test_a_round_in_which_nobody_takes_part_has_all_of_the_noise",
        f"{NOISE}::test_a_partner_whose_users_hold_nothing_is_as_noisy_as_any",
    ),
    "noise that is reused or can be replayed": (
        f"{NOISE}::test_residuals_of_rounds_and_of_partners_are_not_correlated",
        f"{NOISE}::test_steps_of_one_round_have_noise_of_their_own",
        f"{NOISE}::test_a_partner_that_starts_again_draws_other_noise",
        f"{NOISE}::test_the_noise_of_a_run_over_other_data_is_other_noise_even_with_one_seed",
        f"{NOISE}::test_a_seed_is_refused_wherever_data_are_real",
    ),
    "holes of floating-point noise": (
        f"{NOISE}::test_noise_is_whole_and_on_a_public_lattice_before_it_is_masked",
        f"{NOISE}::test_rounding_is_dithered_by_a_coin_that_no_data_touch",
        f"{NOISE}::test_rounding_is_billed_as_part_of_what_a_user_moves",
        f"{NOISE}::test_a_sum_too_large_for_the_ring_loses_none_of_its_noise",
        f"{ROUNDS}::test_coarse_floats_under_noise_need_users_that_stand_alone",
    ),
    "uneven or failed rounds": (
        f"{ROUNDS}::test_a_partner_that_is_killed_in_a_round_has_paid_and_the_sum_has_the_noise_that_is_billed",
        f"{ROUNDS}::test_a_round_that_fails_below_the_quorum_releases_nothing_and_stays_paid",
        f"{ROUNDS}::test_a_partner_that_dies_after_its_noise_is_drawn_never_draws_a_second",
        "integration/test_ledger_crash.py::test_killed_at_random_points_of_200_rounds_it_never_spends_unrecorded",
    ),
    "epsilon from a wrong number of steps": (
        f"{ROUNDS}::test_the_ledgers_count_the_steps_of_the_optimiser_also_after_a_crash",
        "unit/test_accounting.py::test_a_round_of_several_local_steps_counts_every_step",
    ),
    "metrics, early stopping, choices on private data": (
        f"{ROUNDS}::test_nothing_leaves_that_is_not_on_the_list_and_data_leave_only_paid_for",
        f"{ROUNDS}::test_what_was_paid_for_names_the_entry_that_paid",
        f"{ROUNDS}::test_neither_a_loss_nor_a_count_is_told_where_there_is_noise",
        f"{MINIMISATION}::test_what_a_release_holds_of_the_partners_are_public_numbers",
    ),
    "example counts as weights": (
        f"{ROUNDS}::test_a_partner_counts_once_however_many_users_it_has",
        f"{MINIMISATION}::test_every_byte_but_the_masked_vector_is_the_same_with_one_user_more",
        f"{MINIMISATION}::test_the_masked_vector_is_where_the_user_is",
    ),
    "vocabulary, popularity, normalisation statistics": (
        f"{ROUNDS}::test_the_text_of_an_error_stays_at_the_partner",
        f"{MINIMISATION}::test_a_word_of_a_user_is_in_no_message_no_file_of_the_coordinator_and_no_release",
        f"{MINIMISATION}::test_the_text_of_an_error_crosses_in_no_byte",
    ),
    "batch statistics, negatives and losses across users": (
        f"{TRAINING}::test_another_users_data_do_not_change_a_users_gradient",
        f"{TRAINING}::test_a_planted_coupling_of_users_is_caught",
    ),
    "adaptive clip, state of an optimiser": (
        f"{ROUNDS}::test_the_clip_norm_is_a_constant_of_the_plan",
        f"{ROUNDS}::test_a_partner_keeps_no_optimiser_between_rounds",
        f"{ROUNDS}::test_the_coordinators_optimiser_is_a_function_of_opened_sums_alone",
    ),
    "canaries or test users in production": (
        f"{ROUNDS}::test_nothing_in_production_marks_a_user_as_a_canary",
        f"{COMMITMENTS}::test_a_partner_with_real_data_refuses_canaries_that_it_did_not_allow",
        f"{CANARIES}::test_what_a_user_moves_is_the_same_vector_with_canaries_and_without",
        f"{COMMITMENTS}::test_a_round_with_canaries_needs_them_in_the_ledger_first",
    ),
    "released intermediate models": (f"{ROUNDS}::test_every_iterate_is_billed_whether_or_not_it_is_released",),
    "time and size of messages": (
        f"{ROUNDS}::test_all_messages_of_an_exchange_have_one_size_whoever_holds_how_many_users",
        f"{MINIMISATION}::test_messages_have_one_size_whoever_is_there",
    ),
}


@lru_cache
def functions(file: str) -> frozenset[str]:
    """The tests that pytest would collect from a file: functions at its top."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("row", TABLE)
def test_every_row_has_tests_that_exist(row: str) -> None:
    missing = [test for test in TABLE[row] if test.split("::")[1] not in functions(test.split("::")[0])]
    assert TABLE[row] and not missing


def test_every_test_of_a_pitfall_is_in_the_table() -> None:
    named = {test for row in TABLE.values() for test in row}
    for file in (NOISE, SAMPLING, ROUNDS, CLIPPING):
        tests = {f"{file}::{name}" for name in functions(file) if name.startswith("test_")}
        assert tests <= named
