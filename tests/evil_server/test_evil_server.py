"""The evil server is refused; and where a partner has a bug, the kit says that it is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

import client.agent
import client.door
import client.masking_rules
import client.secure_sum
import shared.privacy.ledger_state
import shared.wire
from client.agent import PartnerAgent
from client.learner import Learner
from client.policy import Policy
from client.run_folder import RoundState, RunFolder
from client.secure_sum import MaskingSession
from shared.errors import ConfigError, PolicyViolationError, VeilrecError
from shared.hazmat.signing import VerifyKey
from shared.messages import SignedPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.ledger import Ledger
from shared.wire_frames import ERROR
from simulations.evil_server.adversary import Adversary
from simulations.evil_server.attack import Attack, Result
from simulations.evil_server.play import Play
from simulations.evil_server.practice import LARGEST_EPSILON, Practice, practice_limits
from simulations.evil_server.runner import ATTACKS, attack_partner, run

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", [attack.name for attack in ATTACKS])
def test_the_attack_is_refused_with_the_right_error_and_without_trace(name: str, results: dict[str, Result]) -> None:
    result = results[name]
    assert (result.refused, result.got) == (True, result.expected)


def test_every_attack_has_a_name_of_its_own_and_says_what_it_would_gain() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert all(attack.description and attack.expected is not VeilrecError for attack in ATTACKS)


def test_the_practice_is_afterwards_as_it_was(practice: Practice, results: dict[str, Result]) -> None:
    assert set(practice.digests()) == set(practice.pristine)
    assert all(path.read_bytes() == data for path, data in practice.pristine.items())


def test_an_honest_round_is_answered_to_its_end(practice: Practice) -> None:
    """Else partners that refuse everything would pass."""
    practice.restore()
    assert len(Play(Adversary(practice)).opened().sums) == 3
    practice.restore()


@pytest.mark.parametrize("policy", [Policy(modes=("local",)), Policy(min_cohort=4, min_colluders=2, max_rounds=1)])
def test_the_attacks_are_refused_under_other_policies_too(policy: Policy) -> None:
    names = ("cohort of one", "lowered", "two survivor", "alive", "low order", "above the", "n-1", "second", "seed")
    chosen = [attack for attack in ATTACKS if any(name in attack.name for name in names)]
    results = attack_partner(policy, chosen)
    assert len(results) > 12
    assert [(result.name, result.got) for result in results if not result.refused] == []


# --- planted bugs -----------------------------------------------------------------------------------


class Anything:
    """Equal to all that it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


class Forgetful(tuple[str, ...]):
    """Nonces that nobody remembers."""

    def __contains__(self, nonce: object) -> bool:
        return False


def nothing(*_: object, **__: object) -> None:
    """A check that was left out."""


def no_survivor_sets(patch: Patch) -> None:
    patch.setattr(Ledger, "open", nothing)


def no_signatures(patch: Patch) -> None:
    patch.setattr(VerifyKey, "verify", nothing)


def no_nonces(patch: Patch) -> None:
    state = RunFolder.state

    def forgetful(folder: RunFolder) -> RoundState | None:
        kept = state(folder)
        return kept and replace(kept, attempts=Forgetful(kept.attempts))

    patch.setattr(RunFolder, "state", forgetful)


def nonces_of_one_round(patch: Patch) -> None:
    begin = PartnerAgent._begin

    def forgetful(agent: PartnerAgent, order: Any, *rest: Any) -> None:
        folder = agent._folder(order.run_id)
        state = folder.state()
        if state is not None and state.round != order.round:
            folder.keep_state(replace(state, attempts=()))
        begin(agent, order, *rest)

    patch.setattr(PartnerAgent, "_begin", forgetful)


def no_policy(patch: Patch) -> None:
    patch.setattr(client.agent, "check", nothing)


def no_receipts(patch: Patch) -> None:
    patch.setattr(Ledger, "accept_receipt", nothing)


def any_survivors(patch: Patch) -> None:
    patch.setattr(client.secure_sum, "check_survivors", nothing)


def no_threshold(patch: Patch) -> None:
    patch.setattr(client.masking_rules, "check_size", nothing)
    patch.setattr(client.secure_sum, "check_size", nothing)


def any_roster(patch: Patch) -> None:
    patch.setattr(client.secure_sum, "check_roster", nothing)


def any_consents(patch: Patch) -> None:
    patch.setattr(client.secure_sum, "check_consents", nothing)


def any_plan(patch: Patch) -> None:
    patch.setattr(client.agent, "build_plan", lambda config: SimpleNamespace(digest=Anything))


def any_model(patch: Patch) -> None:
    patch.setattr(client.agent, "model_digest", lambda *_: Anything())


def any_parameters(patch: Patch) -> None:
    patch.setattr(Learner, "check_parameters", nothing)


def any_prior(patch: Patch) -> None:
    patch.setattr(CollaborativePrior, "check", nothing)


def any_budget(patch: Patch) -> None:
    patch.setattr(shared.privacy.ledger_state, "_afford", nothing)


def any_run_id(patch: Patch) -> None:
    patch.setattr(shared.wire, "_RUN_ID", re.compile(r"(?s).*"))


def any_field(patch: Patch) -> None:
    patch.setattr(shared.wire, "pack_request", lambda request: Anything())


def no_turns(patch: Patch) -> None:
    @contextmanager
    def turn(session: MaskingSession, step: str) -> Any:
        yield session._known
        session._next = "consent" if step == "mask" else "open"

    patch.setattr(MaskingSession, "_turn", turn)


BUGS: tuple[tuple[Callable[[Patch], None], tuple[str, ...]], ...] = (
    (no_survivor_sets, ("n-1 differencing", "n-1 differencing, first sum unopened")),
    (no_signatures, ("man in the middle", "sybil under a pinned name", "forged consents", "alive and dead")),
    (no_signatures, ("unsigned plan", "plan signed by another key", "different models, a plan each")),
    (no_nonces, ("a whole attempt replayed", "every exchange repeated")),
    (nonces_of_one_round, ("an attempt replayed after another round",)),
    (no_policy, ("lowered threshold: plan", "seeded noise", "mode none", "more rounds than the plan")),
    (no_receipts, ("a ledger rolled back", "receipt of a ledger that never was")),
    (any_survivors, ("survivors without the partner itself", "stranger among the survivors")),
    (no_threshold, ("lowered threshold: consents", "withheld signatures", "shares of too few")),
    (any_roster, ("roster below the threshold", "cohort of one: roster", "one key under two names")),
    (any_consents, ("two survivor sets in one attempt", "a consent twice", "consents of an earlier attempt")),
    (any_plan, ("shares of noise for more survivors", "less noise than the epsilon says")),
    (any_model, ("different models, one plan",)),
    (any_parameters, ("parameters that are not finite",)),
    (any_prior, ("a prior that is none",)),
    (any_budget, ("a second run over the budget", "two runs at once")),
    (any_run_id, ("a run id that is a path",)),
    (any_field, ("extra fields",)),
    (no_turns, ("second set after the first", "every exchange repeated")),
)


@pytest.mark.parametrize(("bug", "names"), BUGS, ids=[f"{bug.__name__}-{names[0]}" for bug, names in BUGS])
def test_where_a_partner_has_this_bug_the_kit_says_that_it_does_not_refuse(
    bug: Callable[[Patch], None], names: tuple[str, ...], attacked: Any, monkeypatch: Patch
) -> None:
    bug(monkeypatch)
    results = attacked(*names)
    assert [result.name for result in results if result.refused] == []
    # Not for some other reason: something was obtained, or something was left behind.
    assert any("answered: " in result.got or "changed " in result.got for result in results)


def test_a_bug_in_one_rule_leaves_the_others_standing(attacked: Any, monkeypatch: Patch) -> None:
    """What the kit says is about that rule: it does not fail whatever it is given."""
    no_receipts(monkeypatch)
    assert all(result.refused for result in attacked("n-1 differencing", "man in the middle", "unsigned plan"))


# --- what counts as refused -------------------------------------------------------------------------


def test_a_refusal_that_leaves_a_trace_is_none(attacked: Any, monkeypatch: Patch) -> None:
    accept = PartnerAgent._accept

    def tattling(agent: PartnerAgent, signed: SignedPlan) -> Any:
        try:
            return accept(agent, signed)
        except VeilrecError:
            with agent.premises.ledger_file.open("ab") as file:
                file.write(b"{")
            raise

    monkeypatch.setattr(PartnerAgent, "_accept", tattling)
    (result,) = attacked("unsigned plan")
    assert not result.refused
    assert result.got == "InvalidSignatureError, changed federation/partner-000/ledger.jsonl"


def test_a_file_that_a_refusal_makes_is_a_trace(attacked: Any, monkeypatch: Patch) -> None:
    def escaped(pattern: Any, value: Any) -> str:
        if "escaped" in value:
            (made_below[0] / "runs").mkdir(exist_ok=True)
            (made_below[0] / "runs" / "round.json").write_text("{}")
        return str(matching(pattern, value))

    made_below: list[Path] = []
    accept, matching = PartnerAgent._accept, shared.wire._matching

    def note(agent: PartnerAgent, signed: SignedPlan) -> Any:
        made_below[:] = [agent.premises.folder.parent.parent]
        return accept(agent, signed)

    monkeypatch.setattr(PartnerAgent, "_accept", note)
    monkeypatch.setattr(shared.wire, "_matching", escaped)
    (result,) = attacked("a run id that is a path")
    assert result.got == "ProtocolError, changed runs/round.json"


def test_a_refusal_for_another_reason_is_none(attacked: Any, monkeypatch: Patch) -> None:
    def refuse(*_: object) -> None:
        raise PolicyViolationError("Expected nothing at all.")

    monkeypatch.setattr(PartnerAgent, "answer", refuse)
    (result,) = attacked("unsigned plan")
    assert (result.refused, result.got) == (False, "PolicyViolationError")


def test_a_refusal_that_says_why_is_none(attacked: Any, monkeypatch: Patch) -> None:
    told = {"family": "InvalidSignatureError", "text": "user 17"}
    monkeypatch.setattr(client.door, "pack_error", lambda name: RecordDict({ERROR: ConfigRecord(told)}))
    (result,) = attacked("unsigned plan")
    assert (result.refused, result.got) == (False, "an error with more in it")


def test_an_attack_that_could_not_be_made_counts_as_not_refused(practice: Practice) -> None:
    def barred(evil: Adversary) -> None:
        evil.ask(evil.victim, Play(evil).shares_request())

    def idle(evil: Adversary) -> None:
        """Aims at nothing."""

    attacks = [Attack("barred", "nothing", ConfigError, barred), Attack("idle", "nothing", ConfigError, idle)]
    first, second = run(practice, attacks)
    assert not first.refused and first.got.startswith("not tried: ")
    assert (second.refused, second.got) == (False, "nothing was tried")


# --- the practice -----------------------------------------------------------------------------------


def test_a_practice_is_as_strict_as_the_partner_and_at_least_as_real_data_are() -> None:
    strict = Policy(max_epsilon=1.5, max_delta=1e-7, min_cohort=5, min_colluders=2, max_rounds=7, modes=("local",))
    limits = practice_limits(strict)
    assert all(limits[key] == getattr(strict, key) for key in ("max_epsilon", "max_delta", "min_cohort", "max_rounds"))
    assert (limits["min_colluders"], limits["modes"]) == (2, ["local"])
    lax = practice_limits(Policy())
    assert (lax["max_epsilon"], lax["min_cohort"], lax["modes"]) == (LARGEST_EPSILON, 3, ["distributed", "local"])


def test_a_practice_says_that_its_data_are_real(practice: Practice) -> None:
    assert not any(practice.agent(name).premises.simulated for name in practice.names)
    practice.restore()


def test_a_cohort_that_no_practice_has_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="practice of 20 partners"):
        Practice.build(tmp_path, Policy(min_cohort=21))


def test_a_plan_can_only_be_edited_where_it_has_a_field(practice: Practice) -> None:
    evil = Adversary(practice)
    with pytest.raises(VeilrecError, match=r"Expected a field of a plan to change, got plan\.nois"):
        evil.edited(evil.order(), {"plan.nois": 0.0})
    practice.restore()
