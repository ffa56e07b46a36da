"""Attacks on the ledger: spend what is not there, or have it forgotten."""

from __future__ import annotations

from dataclasses import replace

from client.premises import LEDGER_FILE
from shared.errors import BudgetExhaustedError, InvalidSignatureError, LedgerError, ReplayError
from shared.hazmat.signing import SigningKey
from shared.privacy.accounting import epsilon_spent
from shared.privacy.ledger import LedgerHead, Reservation, sign_receipt
from simulations.evil_server.adversary import Adversary, other_attempt
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play

ATTACKS: list[Attack] = []


@attack(ATTACKS, "a second run over the budget", "two runs that each fit, together do not", BudgetExhaustedError)
def _second_run(evil: Adversary) -> None:
    Play(evil).summed()
    evil.aim(evil.victim, Play(evil, evil.order(run_id="second")).keys_request)


@attack(ATTACKS, "two runs at once", "both accepted before either is paid for", BudgetExhaustedError)
def _two_runs(evil: Adversary) -> None:
    first, second = Play(evil).shares(), Play(evil, evil.order(run_id="second")).shares()
    evil.ask(evil.victim, first.sum_request(evil.victim))
    evil.aim(evil.victim, second.sum_request(evil.victim))


@attack(ATTACKS, "a changed plan for the same run", "other sums than were paid for", ReplayError)
def _changed_plan(evil: Adversary) -> None:
    Play(evil).summed()
    other = evil.config(privacy__clip_norm=100.0)
    evil.aim(evil.victim, Play(evil, evil.order(config=other)).keys_request)


@attack(ATTACKS, "another request for a paid round", "two sums of one round, noise drawn twice", ReplayError)
def _second_request(evil: Adversary) -> None:
    Play(evil).summed()
    other = evil.config(training__learning_rate=0.5)
    evil.aim(evil.victim, Play(evil, evil.order(config=other)).keys_request)


@attack(ATTACKS, "two requests for one round at once", "both accepted before either is paid for", ReplayError)
def _two_requests(evil: Adversary) -> None:
    first = Play(evil).shares()
    evil.ask(evil.victim, first.sum_request(evil.victim))
    other = evil.order(config=evil.config(training__learning_rate=0.5))
    evil.aim(evil.victim, Play(evil, other).keys_request)
    evil.aim(evil.victim, first.sum_request(evil.victim))


@attack(ATTACKS, "back to an earlier round", "a round that was skipped, or its sum once more", ReplayError)
def _earlier_round(evil: Adversary) -> None:
    reached = evil.order(3, model_digest="0" * 64)
    agent, policy = evil.practice.agent(evil.victim), evil.practice.policy
    epsilon = epsilon_spent(reached.plan, reached.plan.rounds)
    agent.ledger.declare(reached.run_id, reached.plan, epsilon, policy.max_epsilon, policy.max_delta)
    agent.ledger.reserve(Reservation.of(reached.plan, reached.run_id, 3, "train", reached.request))
    for number in (1, 2):
        evil.aim(evil.victim, Play(evil, evil.order(number, model_digest="0" * 64 if number > 1 else "")).keys_request)


@attack(ATTACKS, "a ledger rolled back", "spend again what an old copy of the ledger forgot", LedgerError)
def _rolled_back(evil: Adversary) -> None:
    play = Play(evil).summed()
    receipt = sign_receipt(evil.server_key, evil.victim, play.sums[evil.victim].head)
    evil.practice.set_back(evil.victim, LEDGER_FILE)
    again = Play(evil, other_attempt(play.order)).keys()
    evil.aim(evil.victim, replace(again.shares_request(), receipt=receipt))


@attack(ATTACKS, "receipt of a ledger that never was", "have false spending recorded as true", LedgerError)
def _false_receipt(evil: Adversary) -> None:
    play = Play(evil).keys()
    for head in (LedgerHead(1, "0" * 64), LedgerHead(10**6, "0" * 64)):
        receipt = sign_receipt(evil.server_key, evil.victim, head)
        evil.aim(evil.victim, replace(play.shares_request(), receipt=receipt))


@attack(ATTACKS, "receipt by another key", "have somebody else's word recorded", InvalidSignatureError)
def _other_receipt(evil: Adversary) -> None:
    play = Play(evil).keys()
    head = evil.practice.agent(evil.victim).ledger.head()
    true = sign_receipt(evil.server_key, evil.victim, head)
    for receipt in (
        sign_receipt(SigningKey.generate(), evil.victim, head),
        replace(true, signature=sign_receipt(SigningKey.generate(), evil.victim, head).signature),
        replace(true, partner=evil.honest[1]),
        replace(true, count=true.count + 1),
    ):
        evil.aim(evil.victim, replace(play.shares_request(), receipt=receipt))
