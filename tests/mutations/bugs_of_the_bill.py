"""Planted in accountant, ledger, and what a crash or a retry costs."""

from __future__ import annotations

from planting import Mutation

ROUNDS = "pitfalls/test_round_pitfalls.py::"
LEDGER = "unit/test_ledger.py::"
LEDGER_FILE = "unit/test_ledger_file.py::"
ACCOUNTING = "unit/test_accounting.py::"
PAYMENTS = "unit/test_agent_payments.py::"
RESERVE_LINE = "        self.ledger.reserve(self._reservation(order))\n"
RESERVE_TO_RELEASE = """\
        self.ledger.reserve(self._reservation(order))
        released = self.ledger.released(order.run_id, order.round)
        if released is not None:
            kept = folder.kept_sum(self._kept_for(order), released)
            if kept is None:
                raise LedgerError(f"Expected the noised sum of round {order.round}, which was released, to be kept.")
            return kept
        secret = folder.secret(order.request)
        if prior is None or model.parameters is None:
            noised = self.learner.noised_statistics(order, secret=secret)
        else:
            noised = self.learner.noised_gradients(
                order, model.parameters, prior, secret=secret, canary_seed=canary_seed
            )
"""
RELEASE_LAST = (
    "        self.ledger.release(order.run_id, order.round, folder.keep_sum(self._kept_for(order), noised))\n"
)

BILLS = (
    Mutation(
        "a round that crashed drawn anew",
        "client/run_folder.py",
        "        if known != request:\n",
        "        if True:\n",
        (PAYMENTS + "test_a_round_that_crashed_before_its_release_is_drawn_again_to_the_bit",),
        check="rounds.drawn_once",
    ),
    Mutation(
        "one round too few billed after a resume",
        "server/strategy.py",
        "max(0, number - self.prior_rounds)",
        "max(0, number - self.prior_rounds - 1)",
        (ROUNDS + "test_every_iterate_is_billed_whether_or_not_it_is_released",),
        check="accountant.iterates",
    ),
    Mutation(
        "a resumed run that counts from its start",
        "server/strategy.py",
        "self._offset = checkpoint.round",
        "self._offset = 0",
        (ROUNDS + "test_the_ledgers_count_the_steps_of_the_optimiser_also_after_a_crash",),
        check="rounds.resumed",
    ),
    Mutation(
        "local steps not counted",
        "shared/privacy/accounting.py",
        "    steps = rounds * plan.local_steps\n",
        "    steps = rounds\n",
        (ACCOUNTING + "test_a_round_of_several_local_steps_counts_every_step",),
        check="accountant.figures",
    ),
    Mutation(
        "the prior not counted",
        "shared/privacy/accounting.py",
        'events.append(_Event(1.0, plan.prior_noise_multiplier, 1, plan.scale("prior"), partners))',
        "partners = plan.partners_per_user",
        (ACCOUNTING + "test_the_prior_and_the_rounds_compose_above_each_and_below_their_sum",),
        check="accountant.figures",
    ),
    Mutation(
        "partners of a user not counted",
        "shared/privacy/accounting.py",
        "for k in (1, plan.partners_per_user)})",
        "for k in (1,)})",
        (ACCOUNTING + "test_the_larger_of_the_two_worlds_is_reported",),
        check="accountant.worlds",
    ),
    Mutation(
        "partners that sample a user together not counted",
        "shared/privacy/accounting.py",
        "for k in (1, plan.partners_per_user)})",
        "for k in (plan.partners_per_user,)})",
        (ACCOUNTING + "test_a_user_at_several_partners_is_covered_however_they_sample",),
        check="accountant.worlds",
    ),
    Mutation(
        "the cross-check dropped",
        "shared/privacy/accounting.py",
        "if not math.isfinite(pld) or not pld <= rdp * RDP_TOLERANCE + PLD_INTERVAL:",
        "if not math.isfinite(pld):",
        (ACCOUNTING + "test_a_cross_check_below_the_headline_is_noticed",),
        check="accountant.cross_check",
    ),
    Mutation(
        "reserved after the noise was drawn",
        "client/agent.py",
        RESERVE_TO_RELEASE,
        RESERVE_TO_RELEASE.replace(RESERVE_LINE, "") + RESERVE_LINE,
        (ROUNDS + "test_a_partner_that_is_killed_in_a_round_has_paid_and_the_sum_has_the_noise_that_is_billed",),
        check="rounds.paid_first",
    ),
    Mutation(
        "a released sum drawn again",
        "client/agent.py",
        "if released is not None:",
        'if released == "again":',
        (ROUNDS + "test_a_partner_that_dies_after_its_noise_is_drawn_never_draws_a_second",),
        check="rounds.drawn_once",
    ),
    Mutation(
        "sent without a release",
        "client/agent.py",
        RELEASE_LAST,
        "        folder.keep_sum(self._kept_for(order), noised)\n",
        (ROUNDS + "test_what_was_paid_for_names_the_entry_that_paid",),
        check="rounds.paid_first",
    ),
    Mutation(
        "an entry that is not synced",
        "shared/privacy/ledger.py",
        "            os.fsync(file)\n        except OSError as error:",
        "            os.fstat(file)\n        except OSError as error:",
        (LEDGER_FILE + "test_a_line_is_on_the_disk_before_the_operation_returns",),
        check="ledger.synced",
    ),
    Mutation(
        "a budget that forgets other runs",
        "shared/privacy/ledger_state.py",
        "_afford(self._without(body.run_id), body",
        "_afford([], body",
        (LEDGER + "test_a_plan_over_the_epsilon_that_is_left_is_refused",),
        check="ledger.budgets",
    ),
    Mutation(
        "one round more than planned",
        "shared/privacy/ledger_state.py",
        "if done >= run.planned(body.stage):",
        "if done > run.planned(body.stage):",
        (LEDGER + "test_rounds_beyond_the_plan_are_refused",),
        check="ledger.rounds",
    ),
    Mutation(
        "a second output of a round",
        "shared/privacy/ledger_state.py",
        "if state.output not in (None, body.output):",
        "if state.output == body:",
        (LEDGER + "test_a_release_needs_its_reserve_and_is_one",),
        check="ledger.rounds",
    ),
    Mutation(
        "a round opened for two sets of survivors",
        "shared/privacy/ledger_state.py",
        "if state.survivors is not None and state.survivors != body.survivors:",
        "if state.survivors == body:",
        (LEDGER + "test_a_round_is_opened_for_one_set_of_survivors",),
        check="ledger.rounds",
    ),
    Mutation(
        "a consent that the ledger does not know of",
        "client/agent.py",
        "            self.ledger.open(order.run_id, order.round, request.survivors.names)\n",
        "",
        (PAYMENTS + "test_a_round_is_opened_for_one_set_of_survivors_in_all_attempts",),
        check="rounds.paid_first",
    ),
    Mutation(
        "a ledger that was rolled back",
        "shared/privacy/ledger_state.py",
        "        self.confirm(body)\n",
        "",
        (LEDGER + "test_a_ledger_that_lost_its_tail_is_found_out_by_the_servers_receipt",),
        check="ledger.rewritten",
    ),
    Mutation(
        "lines that anybody signed",
        "shared/privacy/ledger_entries.py",
        "        identity.verify(ENTRY_PURPOSE, _encode(told), _unbase64(signature))\n",
        "        _unbase64(signature)\n",
        (LEDGER_FILE + "test_a_line_that_is_not_as_it_was_sealed_is_refused",),
        check="ledger.rewritten",
    ),
    Mutation(
        "a head that covers the sum",
        "shared/privacy/ledger_entries.py",
        "if key != UNCHAINED}",
        "if key}",
        (LEDGER + "test_the_head_depends_neither_on_the_sum_nor_on_the_time_it_took",),
        check="ledger.heads",
    ),
)
