"""Planted in what a partner refuses, in the masks, and in what leaves."""

from __future__ import annotations

from planting import Mutation

ROUNDS = "pitfalls/test_round_pitfalls.py::"
AGENT = "unit/test_agent.py::"
RULES = "unit/test_masking_rules.py::"
SUM = "unit/test_secure_sum.py::"
WIRE = "unit/test_wire_answers.py::"
BUCKETS = "unit/test_buckets.py::"
BUCKET_SUMS = "unit/test_bucket_sums.py::"

REFUSALS = (
    Mutation(
        "a plan that nobody signed",
        "client/agent.py",
        "        policy.server_key.verify(ROUND_PLAN, signed.text.encode(), signed.signature)\n",
        "",
        (AGENT + "test_only_what_the_pinned_coordinator_signed_is_answered",),
        check="refusals.weak_plans",
    ),
    Mutation(
        "policy not checked",
        "client/agent.py",
        "        check(policy, Facts(",
        "        (policy, Facts(",
        (AGENT + "test_the_partner_s_own_floor_refuses_in_the_first_exchange",),
        check="refusals.weak_plans",
    ),
    Mutation(
        "a plan that is not that of its configuration",
        "client/agent.py",
        "if order.plan.digest() != build_plan(order.config).digest():",
        "if not order.plan.digest():",
        (AGENT + "test_a_plan_that_does_not_follow_from_the_configuration_is_refused",),
        check="refusals.weak_plans",
    ),
    Mutation(
        "a model that is not that of the plan",
        "client/agent.py",
        "if model_digest(model.parameters, prior) != order.model_digest:",
        "if not model_digest(model.parameters, prior):",
        (AGENT + "test_another_model_than_the_plan_s_is_refused_before_anything_is_reserved",),
        check="refusals.other_models",
    ),
    Mutation(
        "an attempt that is made twice",
        "client/agent.py",
        "if state is not None and order.attempt in state.attempts:",
        "if state is not None and not state.attempts:",
        (AGENT + "test_a_message_out_of_turn_is_refused_and_disturbs_nothing",),
        check="refusals.replayed",
    ),
    Mutation(
        "keys that the pinned identity did not sign",
        "client/masking_rules.py",
        "            peers[offer.name].verify(OFFER, statement, offer.signature)\n",
        "            assert statement\n",
        (RULES + "test_a_substituted_key_is_refused",),
        check="secure_sum.cohorts",
    ),
    Mutation(
        "consents that nobody signed",
        "client/masking_rules.py",
        "        peers[consent.name].verify(CONSENT, statement, consent.signature)\n",
        "        assert statement\n",
        (RULES + "test_consents_to_different_sets_do_not_open",),
        check="secure_sum.turns",
    ),
    Mutation(
        "a cohort of two",
        "client/masking_rules.py",
        '    check_size(len(offers), max(threshold, SMALLEST_COHORT), "members")\n',
        "",
        (RULES + "test_two_members_are_refused_even_at_threshold_two",),
        check="secure_sum.cohorts",
    ),
    Mutation(
        "a threshold at which two sums can be opened",
        "client/masking_rules.py",
        "if 2 * threshold <= len(offers):",
        "if 2 * threshold <= 0:",
        (RULES + "test_a_threshold_at_which_two_sums_could_be_opened_is_refused",),
        check="secure_sum.cohorts",
    ),
    Mutation(
        "a step that can be taken twice",
        "client/secure_sum.py",
        "        if self._next != step:\n",
        "        if self._next == _OVER and not step:\n",
        (SUM + "test_a_step_out_of_its_turn_is_refused",),
        check="secure_sum.turns",
    ),
    Mutation(
        "both shares of one member handed out",
        "client/secure_sum.py",
        "mask_keys={name: pair[SHARE_BYTES:] for name, pair in held.items() if name not in alive},",
        "mask_keys={name: pair[SHARE_BYTES:] for name, pair in held.items()},",
        (RULES + "test_a_member_loses_one_share_and_never_both",),
        check="secure_sum.openings",
    ),
    Mutation(
        "a member of another bucket",
        "client/agent.py",
        "            if order.plan.buckets > 1:\n",
        "            if order.plan.buckets > 99:\n",
        (BUCKET_SUMS + "test_a_roster_with_somebody_of_another_bucket_is_refused",),
        check="buckets.members",
    ),
    Mutation(
        "buckets of fewer partners than are pinned",
        "client/policy.py",
        '_least("partners", plan.partners, 1 if plan.buckets == 1 else facts.peers)',
        '_least("partners", plan.partners, 1)',
        (BUCKET_SUMS + "test_a_plan_for_fewer_partners_than_are_pinned_is_refused_with_buckets",),
        check="buckets.members",
    ),
    Mutation(
        "a quorum at which two sums of one bucket can be opened",
        "shared/privacy/plan.py",
        "2 * self.survivors <= self.largest_cohort + self.colluders",
        "2 * self.survivors <= self.largest_cohort",
        (BUCKETS + "test_a_plan_with_buckets_that_protect_nobody_is_refused",),
        check="buckets.quorums",
    ),
    Mutation(
        "noise for all buckets together",
        "shared/privacy/plan.py",
        "return full / (self.survivors - self.colluders)",
        "return full / (self.buckets * self.survivors - self.colluders)",
        (BUCKET_SUMS + "test_every_bucket_alone_has_the_noise_that_the_plan_bills_and_never_less",),
        check="noise.deviation",
    ),
    Mutation(
        "one noised sum for two buckets of one round",
        "client/agent.py",
        "        if order.plan.buckets == 1:\n",
        "        if order.plan.buckets:\n",
        (BUCKET_SUMS + "test_a_noised_sum_that_was_kept_meets_no_partners_that_were_pinned_since",),
        check="buckets.kept",
    ),
    Mutation(
        "one split for all rounds",
        "shared/buckets.py",
        '["veilrec/v1/buckets", run_id, round_, name]',
        '["veilrec/v1/buckets", run_id, name]',
        (BUCKETS + "test_every_round_and_every_run_deals_anew_so_that_any_two_partners_meet_and_part",),
        check="buckets.split",
    ),
)

MASKS = (
    Mutation(
        "masks of one sign",
        "shared/exchange.py",
        "return 1 if own > peer else -1",
        "return 1 if own != peer else -1",
        (SUM + "test_the_opened_sum_is_exact",),
        check="secure_sum.exact",
    ),
    Mutation(
        "self mask missing",
        "client/secure_sum.py",
        "            add_mask(masked, _present(known.self_seed), 1)  # PRG(b_u)\n",
        "",
        (SUM + "test_the_opened_sum_is_exact",),
        check="secure_sum.exact",
    ),
    Mutation(
        "mask keys that do not depend on the roster",
        "client/secure_sum.py",
        "peer.name: mask_key.agree(peer.mask_key, salt=_present(known.digest), info=",
        'peer.name: mask_key.agree(peer.mask_key, salt=b"", info=',
        (SUM + "test_two_of_five_may_fall_silent_at_any_step",),
        check="secure_sum.exact",
    ),
    Mutation(
        "one digest for all rosters",
        "shared/exchange.py",
        '_join(b"veilrec/v1/roster", context, *fields)',
        '_join(b"veilrec/v1/roster")',
        (SUM + "test_statements_of_different_things_have_different_bytes",),
        check="secure_sum.statements",
    ),
    Mutation(
        "secrets that forget the attempt",
        "client/secure_sum.py",
        'return f"secure sum/{self.context.hex()}/{purpose}"',
        'return f"secure sum/{purpose}"',
        (SUM + "test_a_seeded_source_gives_other_secrets_in_another_round",),
        check="secure_sum.fresh",
    ),
    Mutation(
        "a key stream that repeats",
        "shared/hazmat/masking.py",
        "        stream.update_into(_ZEROS[: 4 * part.size], buffer)\n",
        "        Cipher(algorithms.AES(seed), modes.CTR(_FIRST_COUNTER)).encryptor()"
        ".update_into(_ZEROS[: 4 * part.size], buffer)\n",
        ("unit/test_hazmat_masking.py::test_no_part_of_a_long_mask_repeats",),
        check="secure_sum.fresh",
    ),
    Mutation(
        "randomness that is none",
        "shared/hazmat/randomness.py",
        "return os.urandom(n)",
        "return os.urandom(1) * n",
        ("unit/test_randomness.py::test_the_system_source_never_repeats_itself",),
        check="randomness.source",
    ),
)

LEAKS = (
    Mutation(
        "a loss sent from under the noise",
        "client/privatize.py",
        'loss = clipped.private_loss if plan.mode == "none" else None',
        "loss = clipped.private_loss",
        (ROUNDS + "test_neither_a_loss_nor_a_count_is_told_where_there_is_noise",),
        check="wire.losses",
    ),
    Mutation(
        "the text of an error sent",
        "client/door.py",
        "return pack_error(VeilrecError.__name__)",
        "return pack_error(str(error))",
        (ROUNDS + "test_the_text_of_an_error_stays_at_the_partner",),
        check="wire.errors",
    ),
    Mutation(
        "the text of a refusal sent",
        "shared/errors.py",
        "return type(self).__name__",
        "return str(self)",
        (WIRE + "test_every_error_crosses_by_name",),
        check="wire.errors",
    ),
    Mutation(
        "a field that is not on the list",
        "shared/wire_answers.py",
        "        head_hash=answer.head.hash,\n",
        '        head_hash=answer.head.hash,\n        **{"spread": int(update.values.max())},\n',
        (ROUNDS + "test_what_was_paid_for_names_the_entry_that_paid",),
        check="wire.paid",
    ),
    Mutation(
        "a public number that depends on data",
        "shared/wire_answers.py",
        "        head_count=answer.head.count,\n",
        "        head_count=answer.head.count + int(update.values[0] % 3),\n",
        (ROUNDS + "test_what_was_paid_for_names_the_entry_that_paid",),
        check="wire.same",
    ),
    Mutation(
        "a list that is not kept to",
        "shared/wire_answers.py",
        "    if unknown:\n",
        "    if len(unknown) > 99:\n",
        (WIRE + "test_a_field_that_is_not_on_the_list_cannot_be_packed",),
        check="wire.kept",
    ),
    Mutation(
        "a sum that leaves without its masks",
        "client/privatize.py",
        "return MaskedUpdate(session.mask(to_ring(noised.values, plan.partners)), masked=True",
        "session.mask(to_ring(noised.values, plan.partners)); return MaskedUpdate("
        "to_ring(noised.values, plan.partners), masked=True",
        ("unit/test_privatize.py::test_what_leaves_under_masks_tells_nothing_of_the_sum",),
        check="secure_sum.uniform",
    ),
)
