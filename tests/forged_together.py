"""Corruptions of a bundle by a bundler whom the coordinator helps: partners alone stand against them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from evidence_setting import made
from forged_evidence import PARTNERS, Corrupt, again, entries_of, transcript_of

from server.transcript import ROUND_TRANSCRIPT, transcript_statement
from shared.messages import ROUND_PLAN
from shared.privacy.ledger_heads import to_base64
from simulations.audit.bundle.seal import spelled


def coordinated(name: str, change: Callable[[Any], None]) -> bytes:
    """A transcript that the coordinator signs again; with it the line of ``rounds.jsonl`` that it tells."""
    told = json.loads(made().members[name])
    change(told)
    told["signature"] = to_base64(made().coordinator.sign(ROUND_TRANSCRIPT, transcript_statement(told)))
    lines = made().members["rounds.jsonl"].splitlines()
    lines[int(name[-9:-5]) - 1] = json.dumps(told["record"]).encode()
    return again({**made().members, name: spelled(told), "rounds.jsonl": b"\n".join(lines) + b"\n"})


def other_survivors(random_: random.Random) -> bytes:
    gone = random_.choice(PARTNERS)

    def change(told: Any) -> None:
        one = told["sums"][0]
        one["survivors"].remove(gone)
        one["heads"].pop(gone)
        one["consents"] = [each for each in one["consents"] if each["name"] != gone]
        told["record"]["cohort"] -= 1

    return coordinated(transcript_of(random_), change)


def too_few_consents(random_: random.Random) -> bytes:
    return coordinated(transcript_of(random_), lambda told: told["sums"][0]["consents"].__delitem__(slice(2, None)))


def others_consent(random_: random.Random) -> bytes:
    def change(told: Any) -> None:
        one, other = random_.sample(told["sums"][0]["consents"], 2)
        one["signature"] = other["signature"]

    return coordinated(transcript_of(random_), change)


def other_offer(random_: random.Random) -> bytes:
    """A key of the coordinator's own in the place of a partner's: it would read the partner's shares."""
    key = to_base64(random_.randbytes(32))
    place = random_.choice(["sealing_key", "mask_key"])
    return coordinated(
        transcript_of(random_), lambda told: told["sums"][0]["roster"][random_.randrange(4)].update({place: key})
    )


def smaller_roster(random_: random.Random) -> bytes:
    return coordinated(transcript_of(random_), lambda told: told["sums"][0]["roster"].pop(random_.randrange(4)))


def second_sum(random_: random.Random) -> bytes:
    return coordinated(transcript_of(random_), lambda told: told["sums"].append(told["sums"][0]))


def head_before_payment(random_: random.Random) -> bytes:
    """An entry of the chain, but from before the round was paid for."""
    name = random_.choice(PARTNERS)
    early = entries_of(name)[random_.randrange(2)]
    told = {"count": early.index + 1, "hash": early.hash}
    return coordinated(transcript_of(random_), lambda one: one["sums"][0]["heads"].update({name: told}))


def other_round_plan(random_: random.Random) -> bytes:
    """The coordinator signs another plan afterwards: with more noise, of another model, for another round."""
    change = random_.choice(
        [
            lambda plan: plan["plan"].update(noise_multiplier=20.0),
            lambda plan: plan.update(model_digest="0" * 64),
            lambda plan: plan.update(round=plan["round"] + 1),
            lambda plan: plan.update(attempt="0" * 32),
            lambda plan: plan["config"]["training"].update(learning_rate=0.5),
        ]
    )

    def changed(told: Any) -> None:
        plan = json.loads(told["plan"]["text"])
        change(plan)
        text = json.dumps(plan, sort_keys=True)
        told["plan"] = {"text": text, "signature": to_base64(made().coordinator.sign(ROUND_PLAN, text.encode()))}

    return coordinated(transcript_of(random_), changed)


def last_epsilon(random_: random.Random) -> bytes:
    return coordinated("transcripts/round-0003.json", lambda told: told["record"].update(epsilon=1.0))


def first_epsilon(random_: random.Random) -> bytes:
    return coordinated("transcripts/round-0001.json", lambda told: told["record"].update(epsilon=0.5))


COLLUDING_KINDS: dict[str, Corrupt] = {
    "other survivors": other_survivors,
    "too few consents": too_few_consents,
    "another's consent": others_consent,
    "another key offered": other_offer,
    "a smaller roster": smaller_roster,
    "a second sum": second_sum,
    "a head before payment": head_before_payment,
    "another round plan": other_round_plan,
    "the last epsilon": last_epsilon,
    "the first epsilon": first_epsilon,
}
