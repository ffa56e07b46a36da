"""Rows on rounds: what is billed when they fail, are repeated or resumed, what leaves in them, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_federation import RUN, Federate, Holds, config_of

from client.data.formats.columns import INTERACTION_COLUMNS
from client.policy import RealPolicy
from shared.config import RunConfig
from shared.errors import ProtocolError
from shared.wire_frames import ERROR
from simulations.audit.mechanism.recording import crossed

ROOT = Path(__file__).parents[2]


# --- row: uneven or failed rounds -------------------------------------------------------------------


def test_a_partner_that_is_killed_in_a_round_has_paid_and_the_sum_has_the_noise_that_is_billed(holds: Holds) -> None:
    """A share for n instead of t has 0.87 of it."""
    holds("rounds.killed")
    holds("rounds.paid_first")


def test_a_round_that_fails_below_the_quorum_releases_nothing_and_stays_paid(holds: Holds) -> None:
    holds("rounds.failed")


# --- row: epsilon from a wrong number of steps ------------------------------------------------------


def test_the_ledgers_count_the_steps_of_the_optimiser_also_after_a_crash(holds: Holds) -> None:
    """A coordinator that dies before its checkpoint asks round 2 again: the same sum, billed once."""
    holds("rounds.resumed")


def test_a_partner_that_dies_after_its_noise_is_drawn_never_draws_a_second(holds: Holds) -> None:
    """Two draws over one sum would average the noise out."""
    holds("rounds.drawn_once")


# --- rows: metrics, counts and sizes ----------------------------------------------------------------


def test_nothing_leaves_that_is_not_on_the_list_and_data_leave_only_paid_for(holds: Holds) -> None:
    """Every field of every record is on the list; the one array is the paid vector; no metric is told."""
    holds("wire.listed")


def test_what_was_paid_for_names_the_entry_that_paid(holds: Holds) -> None:
    """The head beside a vector is a line of that partner's ledger: the release of that round, after its reserve."""
    holds("wire.paid")


def test_neither_a_loss_nor_a_count_is_told_where_there_is_noise(holds: Holds) -> None:
    """The loss of a rehearsed learner is the number of users: it must be nowhere."""
    holds("wire.listed")
    holds("wire.losses")


def test_all_messages_of_an_exchange_have_one_size_whoever_holds_how_many_users(holds: Holds) -> None:
    """Bytes as they cross. (Times are not hidden: docs/privacy.md says so.)"""
    holds("wire.sizes")
    holds("wire.same")


def test_a_partner_counts_once_however_many_users_it_has(holds: Holds) -> None:
    """The sum is that of all users' clipped gradients, and no partner's part of it is divided by its users."""
    holds("rounds.divided")


def test_the_text_of_an_error_stays_at_the_partner(federate: Federate, tmp_path: Path) -> None:
    """Only the family's name crosses, of an error that was foreseen or not."""
    federation = federate(2, 2, 2)
    learner = federation.agent(0).learner

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{learner.users[0]} wrote: my secret")  # type: ignore[attr-defined]

    learner.noised_gradients = fail  # type: ignore[method-assign]
    grid = federation.grid()
    with pytest.raises(ProtocolError, match="refused with VeilrecError"):
        federation.train(config_of(), tmp_path / "out", grid)
    refusals = [one.answer for one in grid.exchanged if ERROR in one.answer]
    assert [dict(refusal.config_records[ERROR]) for refusal in refusals] == [{"family": "VeilrecError"}]
    assert not any(b"secret" in crossed(one.answer) or b"user" in crossed(one.answer) for one in grid.exchanged)


# --- rows: state, canaries, released iterates -------------------------------------------------------


def test_a_partner_keeps_no_optimiser_between_rounds(federate: Federate, tmp_path: Path) -> None:
    """What it sends in round 3 is the same whether or not it took part before, and its run folder holds no state."""
    config = config_of()
    trained, new = federate(2, 2, 2, at="trained"), federate(2, 2, 2, at="new")
    trained.train(config, tmp_path / "out")
    for k in range(3):
        np.testing.assert_array_equal(trained.noised(k, config, 3).values, new.noised(k, config, 3).values)
        kept = {file.name for file in (trained.agent(k).premises.folder / "runs" / RUN).iterdir()}
        assert kept == {"round.json", "prior.safetensors", "sum"}


def test_the_coordinators_optimiser_is_a_function_of_opened_sums_alone(holds: Holds) -> None:
    """Adam's moments are post-processing: they can be computed again from what was released."""
    holds("rounds.stateless")


def test_the_clip_norm_is_a_constant_of_the_plan(holds: Holds) -> None:
    """No adaptive clipping: a bit about norms would have to be noised and billed."""
    holds("clipping.constant")


def test_nothing_in_production_marks_a_user_as_a_canary() -> None:
    """No column or setting makes a canary of a user. Directions of an audit are off unless coordinator and partner
    both say so, and no code that reads data knows of them.
    """
    assert set(INTERACTION_COLUMNS) == {"user_id", "item_id", "timestamp", "event", "rating", "review"}
    sources = [file for package in ("client", "server", "shared") for file in (ROOT / package).rglob("*.py")]
    assert len(sources) > 40
    assert RunConfig().audit.canaries == 0 and not RealPolicy.model_fields["allow_audit_canaries"].default
    known = {file.stem for file in sources if "canar" in file.read_text(encoding="utf-8").lower()}
    own = {"audit_canaries", "audit_command", "audit_sum", "config", "plan", "accounting", "policy", "app"}
    assert known <= own | {"agent", "learner", "commands", "ledger", "ledger_entries", "ledger_state", "ledger_audit"}


def test_every_iterate_is_billed_whether_or_not_it_is_released(holds: Holds) -> None:
    """The coordinator and all partners see every one of them."""
    holds("accountant.iterates")


def test_coarse_floats_under_noise_need_users_that_stand_alone(holds: Holds) -> None:
    """In bfloat16 one user would else move the rounding of all others."""
    holds("clipping.precision")
