"""Planted in sampling, clipping, rounding and noise."""

from __future__ import annotations

from planting import Mutation

NOISE = "pitfalls/test_noise_pitfalls.py::"
SAMPLING = "pitfalls/test_sampling_pitfalls.py::"
ROUNDS = "pitfalls/test_round_pitfalls.py::"
CLIPPING = "pitfalls/test_clipping_pitfalls.py::"
BATCHES = "unit/test_batches.py::"
NOISE_LINE = 'noise = skellam(source, f"{context}/noise", len(steps), variance)'
SAMPLE_LINE = 'return np.flatnonzero(uniforms(source, f"{context}/sample", users) < plan.sampling_rate)'
SHARE_LINE = 'return full / (self.survivors - self.colluders) if self.mode == "distributed" else full'
RANDOMNESS_LINE = """\
        source = self._randomness(order, self.premises.name, secret)
        sampling =\
"""


MECHANISM = (
    Mutation(
        "noise halved",
        "client/privatize.py",
        NOISE_LINE,
        NOISE_LINE.replace("variance)", "variance / 4)"),
        (NOISE + "test_in_local_mode_every_step_of_every_partner_has_all_of_the_noise",),
        check="noise.deviation",
    ),
    Mutation(
        "noise missing",
        "client/privatize.py",
        NOISE_LINE,
        "noise = np.zeros_like(steps)",
        (NOISE + "test_the_residual_of_an_opened_sum_has_the_deviation_that_is_billed",),
        check="noise.deviation",
    ),
    Mutation(
        "a share of the noise for n instead of t - c",
        "shared/privacy/plan.py",
        SHARE_LINE,
        SHARE_LINE.replace("(self.survivors - self.colluders)", "self.partners"),
        (ROUNDS + "test_a_partner_that_is_killed_in_a_round_has_paid_and_the_sum_has_the_noise_that_is_billed",),
        check="noise.deviation",
    ),
    Mutation(
        "colluders not provided for",
        "shared/privacy/plan.py",
        SHARE_LINE,
        SHARE_LINE.replace("(self.survivors - self.colluders)", "self.survivors"),
        (NOISE + "test_the_residual_of_an_opened_sum_has_the_deviation_that_is_billed",),
        check="noise.opened",
    ),
    Mutation(
        "a share of the noise lost in the ring",
        "client/privatize.py",
        "limit_sum(steps, plan.partners) + noise",
        "limit_sum(steps + noise, plan.partners)",
        (NOISE + "test_a_sum_too_large_for_the_ring_loses_none_of_its_noise",),
        check="lattice.ring",
    ),
    Mutation(
        "the sum not limited before the noise",
        "client/privatize.py",
        "limit_sum(steps, plan.partners) + noise",
        "steps + noise",
        (NOISE + "test_a_sum_too_large_for_the_ring_loses_none_of_its_noise",),
        check="lattice.ring",
    ),
    Mutation(
        "an empty sample skipped",
        "client/privatize.py",
        NOISE_LINE,
        NOISE_LINE.replace("variance)", "variance if clipped.values.any() else 0.0)"),
        (NOISE + "test_a_round_in_which_nobody_takes_part_has_all_of_the_noise",),
        check="noise.empty",
    ),
    Mutation(
        "clip missing",
        "client/training.py",
        "factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0).to(gradients)",
        "factors = torch.ones_like(norms).to(gradients)",
        (CLIPPING + "test_a_user_at_k_partners_moves_the_sum_by_no_more_than_c",),
        check="gradients.one_row",
    ),
    Mutation(
        "clip measured on half of the parameters",
        "client/training.py",
        "norms[place] = torch.linalg.vector_norm(row, dtype=torch.float64)",
        "norms[place] = torch.linalg.vector_norm(row[::2], dtype=torch.float64)",
        (CLIPPING + "test_a_user_at_k_partners_moves_the_sum_by_no_more_than_c",),
        check="clipping.user",
    ),
    Mutation(
        "clip per event",
        "client/batches.py",
        "windows = [self._training_window(self.histories[int(k)], training, key) for k in users]",
        "events = [self.histories[int(k)] for k in users for _ in self.histories[int(k)].items]; "
        "windows = [self._training_window(history, training, key) for history in events]",
        (BATCHES + "test_every_user_is_in_exactly_one_batch",),
        check="gradients.one_row",
    ),
    Mutation(
        "padding that hangs on who else is in the batch",
        "client/batches.py",
        "alike.setdefault(self._padded(len(window.items)), []).append(window)",
        "alike.setdefault(max(self._padded(len(one.items)) for one in windows), []).append(window)",
        (CLIPPING + "test_a_long_history_moves_no_other_user_whatever_model_the_coordinator_sends",),
        check="gradients.beside",
    ),
    Mutation(
        "parameters of any size accepted",
        "client/learner.py",
        "np.abs(parameters) <= LARGEST_PARAMETER",
        "np.abs(parameters) < np.inf",
        ("unit/test_learner.py::test_parameters_that_no_round_can_start_from_are_refused",),
        check="refusals.parameters",
    ),
    Mutation(
        "clip at C instead of C / k",
        "client/learner.py",
        "logits, plan.partner_clip_norm, bf16=bf16\n",
        "logits, plan.clip_norm, bf16=bf16\n",
        (CLIPPING + "test_a_user_at_k_partners_moves_the_sum_by_no_more_than_c",),
        check="clipping.user",
    ),
    Mutation(
        "a clip norm that the plan does not allow accepted",
        "client/privatize.py",
        'allowed = (1.0 if stage == "prior" else plan.clip_norm) / plan.partners_per_user',
        'allowed = 1.0 if stage == "prior" else plan.clip_norm',
        ("unit/test_privatize.py::test_a_sum_clipped_to_another_norm_is_refused",),
        check="clipping.bounds",
    ),
    Mutation(
        "prior not clipped",
        "client/statistics.py",
        "norms = np.sqrt(np.asarray(y.multiply(y).sum(axis=1)).ravel())\n    return sparse.diags(1.0 / np.where",
        "norms = np.ones(y.shape[0])\n    return sparse.diags(1.0 / np.where",
        (CLIPPING + "test_the_statistics_of_a_user_are_clipped_however_many_events_they_have",),
        check="clipping.statistics",
    ),
    Mutation(
        "prior clipped at 1 instead of 1 / k",
        "client/learner.py",
        "clip_norm = 1.0 / order.plan.partners_per_user",
        "clip_norm = 1.0",
        (CLIPPING + "test_a_user_at_k_partners_moves_the_prior_s_sum_by_no_more_than_1",),
        check="clipping.prior",
    ),
    Mutation(
        "batches of a fixed size",
        "client/privatize.py",
        SAMPLE_LINE,
        'order = np.argsort(uniforms(source, f"{context}/sample", users)); '
        "return np.sort(order[: round(len(users) * plan.sampling_rate)])",
        (SAMPLING + "test_participation_of_two_users_is_not_correlated",),
        check="sampling.coins",
    ),
    Mutation(
        "shuffled epochs instead of coins",
        "client/privatize.py",
        SAMPLE_LINE,
        'step = int(context.split("/")[0]); rank = np.argsort(np.argsort(uniforms(source, "epoch", users))); '
        "every = round(1 / plan.sampling_rate); return np.flatnonzero(rank % every == step % every)",
        (SAMPLING + "test_participation_of_a_user_varies_as_independent_coins_do",),
        check="sampling.coins",
    ),
    Mutation(
        "users that are always in",
        "client/privatize.py",
        "users) < plan.sampling_rate)",
        "users) < 1.0)",
        (SAMPLING + "test_participation_of_a_user_varies_as_independent_coins_do",),
        check="sampling.learner",
    ),
    Mutation(
        "a rate made from the size of the data",
        "client/privatize.py",
        "users) < plan.sampling_rate)",
        "users) < plan.sampling_rate * 12 / len(users))",
        (SAMPLING + "test_the_rate_does_not_depend_on_how_many_users_there_are",),
        check="sampling.rate",
    ),
    Mutation(
        "a sum divided by the users in it",
        "client/training.py",
        "return ClippedSum(total.numpy(), clip_norm,",
        "return ClippedSum(total.numpy() / max(users, 1), clip_norm,",
        (CLIPPING + "test_a_sum_is_a_sum_and_not_divided_by_how_many_took_part",),
        check="gradients.one_row",
    ),
    Mutation(
        "a normaliser that counts answers",
        "server/strategy.py",
        "divisor = plan.normaliser * plan.local_steps",
        "divisor = gathered.partners * plan.local_steps",
        (ROUNDS + "test_a_partner_counts_once_however_many_users_it_has",),
        check="rounds.divided",
    ),
    Mutation(
        "one context of the noise for all rounds",
        "client/privatize.py",
        NOISE_LINE,
        NOISE_LINE.replace('f"{context}/noise"', '"noise"'),
        (NOISE + "test_residuals_of_rounds_and_of_partners_are_not_correlated",),
        check="noise.fresh",
    ),
    Mutation(
        "one context for all steps of a round",
        "client/learner.py",
        'at = f"{order.round}/{step}"',
        'at = f"{order.round}"',
        (NOISE + "test_steps_of_one_round_have_noise_of_their_own",),
        check="noise.steps",
    ),
    Mutation(
        "one seed for all partners",
        "client/learner.py",
        RANDOMNESS_LINE,
        RANDOMNESS_LINE.replace("self.premises.name", '"federation"'),
        (NOISE + "test_residuals_of_rounds_and_of_partners_are_not_correlated",),
        check="noise.fresh",
    ),
    Mutation(
        "the same noise in every run",
        "client/learner.py",
        'source, f"{order.run_id}/{at}"))',
        "source, at))",
        (NOISE + "test_the_noise_of_a_run_over_other_data_is_other_noise_even_with_one_seed",),
        check="noise.runs",
    ),
    Mutation(
        "a seed accepted for real data",
        "shared/hazmat/randomness.py",
        "    if not simulation:\n",
        "    if seed < 0:\n",
        (NOISE + "test_a_seed_is_refused_wherever_data_are_real",),
        check="randomness.seeds",
    ),
    Mutation(
        "dither missing",
        "shared/hazmat/fixed_point.py",
        "(steps - below >= complement)",
        "(steps - below >= 0.5)",
        (NOISE + "test_rounding_is_dithered_by_a_coin_that_no_data_touch",),
        check="lattice.dither",
    ),
    Mutation(
        "rounding not in the sensitivity",
        "shared/privacy/lattice.py",
        "math.sqrt(own**2 + size / 4 + slack * (own + math.sqrt(size) / 2))",
        "math.sqrt(own**2 + 0 * size * slack)",
        (NOISE + "test_rounding_is_billed_as_part_of_what_a_user_moves",),
        check="lattice.moves",
    ),
    Mutation(
        "noise for the bare clip norm",
        "shared/privacy/plan.py",
        "sensitivity(self.scale(stage), size, self.partners_per_user)) ** 2",
        "self.scale(stage)) ** 2",
        (NOISE + "test_rounding_is_billed_as_part_of_what_a_user_moves",),
        check="lattice.variance",
    ),
    Mutation(
        "bfloat16 under the noise",
        "client/learner.py",
        'bf16 = bf16 and (plan.mode == "none" or bench.bf16_stands_alone(prior, logits))',
        "bf16 = bf16",
        (ROUNDS + "test_coarse_floats_under_noise_need_users_that_stand_alone",),
        check="clipping.precision",
    ),
    Mutation(
        "dropout under the noise",
        "shared/config.py",
        'if self.training.dropout and priv.mode != "none":',
        "if False:",
        ("unit/test_schema_errors_config.py::test_a_wrong_key_or_value_is_named",),
        check="randomness.settings",
    ),
    Mutation(
        "an adaptive clip norm",
        "client/learner.py",
        "logits, plan.partner_clip_norm, bf16=bf16\n",
        "logits, plan.partner_clip_norm / order.round, bf16=bf16\n",
        (ROUNDS + "test_the_clip_norm_is_a_constant_of_the_plan",),
        check="clipping.constant",
    ),
)
