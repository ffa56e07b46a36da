"""What was summed over whom: each round's transcript against plan, pinned keys and ledgers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from server.transcript import ROUND_TRANSCRIPT, transcript_statement
from shared.buckets import assign, least_sums
from shared.errors import IntegrityError, InvalidSignatureError, VeilrecError
from shared.exchange import (
    CONSENT,
    OFFER,
    SMALLEST_COHORT,
    Roster,
    Survivors,
    ascending,
    consent_statement,
    offer_statement,
    roster_digest,
)
from shared.messages import ROUND_PLAN, RoundPlan
from shared.wire import parse_plan
from simulations.audit.bundle.check_ledgers import confirmed, run_of
from simulations.audit.bundle.evidence import PLAN, RECEIPTS, ROUNDS, Evidence
from simulations.audit.bundle.transcripts import ToldSum, Transcript

Places = Mapping[str, Mapping[int, int]]
"""By partner and round: how many entries its ledger had once the round was released."""


def check_transcripts(evidence: Evidence) -> tuple[RoundPlan, ...]:
    """Check every round, and that there are all of them.

    Returns
    -------
    tuple of RoundPlan
        What was asked in each round.

    Raises
    ------
    IntegrityError, LedgerError
        Names the transcript and what is wrong.
    """
    expected = evidence.prior_rounds + evidence.plan.rounds
    if len(evidence.transcripts) != expected or len(evidence.records) != expected:
        told = f"{len(evidence.transcripts)} transcripts and {len(evidence.records)} lines of {ROUNDS}"
        raise IntegrityError(f"transcripts: Expected {expected} rounds as planned, got {told}.")
    places = {name: _places(evidence, name) for name in evidence.ledgers}
    orders = tuple(_check_round(evidence, transcript, places) for transcript in evidence.transcripts)
    if len({order.attempt for order in orders}) < len(orders):
        raise IntegrityError("transcripts: Expected another attempt in every round, got one twice.")
    _check_no_other_sum(evidence)
    _check_newest_receipts(evidence)
    return orders


def _check_round(evidence: Evidence, transcript: Transcript, places: Places) -> RoundPlan:
    order = _order(evidence, transcript)
    members = [name for one in transcript.sums for name in one.survivors]
    if len(set(members)) < len(members):
        raise IntegrityError(f"{transcript.name}: Expected every partner in one sum, got one in two.")
    _check_buckets(evidence, transcript)
    for one in transcript.sums:
        _check_sum(evidence, transcript, one)
        for name in one.survivors:
            _check_payment(evidence, transcript, order, one, name, places[name])
    _check_record(evidence, transcript, order, len(members))
    return order


def _check_buckets(evidence: Evidence, transcript: Transcript) -> None:
    """As many sums as the plan can have, each among the members of one bucket of the public split."""
    name, buckets = transcript.name, evidence.plan.buckets
    if not least_sums(buckets) <= len(transcript.sums) <= buckets:
        raise IntegrityError(
            f"{name}: Expected {least_sums(buckets)} to {buckets} sums as planned, got {len(transcript.sums)}."
        )
    split = [set(members) for members in assign(evidence.run_id, transcript.round, evidence.identities, buckets)]
    for one in transcript.sums:
        members = {offer.name for offer in one.roster} | set(one.survivors)
        if not any(members <= bucket for bucket in split):
            raise IntegrityError(f"{name}: Expected each sum among the members of one bucket, got others.")


def _order(evidence: Evidence, transcript: Transcript) -> RoundPlan:
    """The round plan, signed by the coordinator and of this run."""
    name, signed = transcript.name, transcript.signed
    try:
        confirmed(evidence).verify(ROUND_TRANSCRIPT, transcript_statement(transcript.told), transcript.signature)
        confirmed(evidence).verify(ROUND_PLAN, signed.text.encode(), signed.signature)
    except InvalidSignatureError as error:
        raise IntegrityError(f"{name}: {error}") from None
    try:
        order = parse_plan(signed.text)
    except VeilrecError as error:
        raise IntegrityError(f"{name}: {error}") from None
    number = int(name.rsplit("-", 1)[1].removesuffix(".json"))
    stage = "prior" if number <= evidence.prior_rounds else "train"
    if (transcript.round, order.round, order.stage) != (number, number, stage):
        raise IntegrityError(f"{name}: Expected round={number}, stage={stage}, got another round's.")
    if order.run_id != evidence.run_id or order.plan != evidence.plan or order.config != evidence.config:
        raise IntegrityError(f"{name}: Expected run, plan and configuration of {PLAN}, got others.")
    return order


def _check_sum(evidence: Evidence, transcript: Transcript, one: ToldSum) -> None:
    name, needed = transcript.name, evidence.plan.survivors
    if one.masked is not evidence.plan.masked:
        raise IntegrityError(f"{name}: Expected masked={evidence.plan.masked} as planned, got {one.masked}.")
    if not ascending(one.survivors) or len(one.survivors) < needed or one.heads.keys() != set(one.survivors):
        raise IntegrityError(f"{name}: Expected at least {needed} survivors in order, each with the entry that paid.")
    for survivor in one.survivors:
        run_of(evidence, survivor)
    if one.masked:
        _check_signatures(evidence, transcript, one, needed)
    elif one.roster or one.consents:
        raise IntegrityError(f"{name}: Expected no roster and no consents without masks.")


def _check_signatures(evidence: Evidence, transcript: Transcript, one: ToldSum, needed: int) -> None:
    """Offers of pinned partners, and consents of the survivors under their own set."""
    name, context = transcript.name, transcript.signed.context
    roster, consents = Roster(one.offers), one.signed
    keys = [key for offer in roster.offers for key in (offer.sealing_key, offer.mask_key)]
    if not ascending(roster.names) or len(roster.names) < max(needed, SMALLEST_COHORT) or len(set(keys)) < len(keys):
        raise IntegrityError(f"{name}: Expected a roster of enough partners in order, each with keys of its own.")
    if not set(one.survivors) <= set(roster.names) or not set(roster.names) <= evidence.ledgers.keys():
        raise IntegrityError(f"{name}: Expected survivors of the roster, and a ledger of each of its members.")
    signers = [consent.name for consent in consents]
    if not ascending(signers) or len(signers) < needed or not set(signers) <= set(one.survivors):
        raise IntegrityError(f"{name}: Expected consents of at least {needed} survivors, in order.")
    statement = consent_statement(roster_digest(context, roster), Survivors(tuple(one.survivors)))
    try:
        for offer in roster.offers:
            offered = offer_statement(context, offer.name, offer.sealing_key, offer.mask_key)
            _verify(evidence, offer.name, OFFER, offered, offer.signature)
        for consent in consents:
            _verify(evidence, consent.name, CONSENT, statement, consent.signature)
    except InvalidSignatureError as error:
        raise IntegrityError(f"{name}: {error}") from None


def _verify(evidence: Evidence, name: str, purpose: str, message: bytes, signature: bytes) -> None:
    """By one of the keys that signed the partner's ledger: each handed it over to the next, up to the pinned one."""
    *earlier, last = evidence.ledgers[name].identities
    for key in earlier:
        with suppress(InvalidSignatureError):
            return key.verify(purpose, message, signature)
    return last.verify(purpose, message, signature)


def _check_payment(
    evidence: Evidence,
    transcript: Transcript,
    order: RoundPlan,
    one: ToldSum,
    partner: str,
    released: Mapping[int, int],
) -> None:
    """The survivor's own ledger: this request reserved and released, this set of survivors, the entry that paid."""
    where = f"{transcript.name}, ledgers/{partner}.jsonl"
    state = run_of(evidence, partner).rounds.get(order.round)
    if state is None or state.output is None or state.reservation.request != order.request:
        raise IntegrityError(f"{where}: Expected the round reserved and released for this request, got it not so.")
    consented = any(consent.name == partner for consent in one.consents)
    # Who delivered and then fell silent is in the sum, and may never have heard over whom it was opened.
    if list(state.survivors or ()) not in ([one.survivors] if consented else [[], one.survivors]):
        raise IntegrityError(
            f"{where}: Expected the round opened for these survivors, got {state.survivors or 'none'}."
        )
    head, hashes = one.paid(partner), evidence.ledgers[partner].hashes
    if head.count > len(hashes) or hashes[head.count - 1] != head.hash:
        raise IntegrityError(f"{where}: Expected the entry that paid in the chain: it was rolled back or forked.")
    if not released[order.round] <= head.count:
        raise IntegrityError(f"{where}: Expected the round released by entry {head.count}, got it later.")


def _check_record(evidence: Evidence, transcript: Transcript, order: RoundPlan, cohort: int) -> None:
    record, line = transcript.record, evidence.records[order.round - 1]
    # As text: a loss that is no number equals itself.
    if json.dumps(record, sort_keys=True) != json.dumps(line, sort_keys=True):
        raise IntegrityError(f"{ROUNDS}, line {order.round}: Expected the record of {transcript.name}, got another.")
    told = (record.get("round"), record.get("stage"), record.get("cohort"))
    if told != (order.round, order.stage, cohort):
        raise IntegrityError(
            f"{transcript.name}: Expected a record of round={order.round}, stage={order.stage}, cohort={cohort}, got "
            f"{told}."
        )


def _places(evidence: Evidence, partner: str) -> dict[int, int]:
    released: dict[int, int] = {}
    for count, line in enumerate(evidence.members[f"ledgers/{partner}.jsonl"].splitlines(), start=1):
        told = json.loads(line)  # read strictly before
        if told["kind"] == "release" and told["fields"]["run_id"] == evidence.run_id:
            released[told["fields"]["round"]] = count
    return released


def _check_no_other_sum(evidence: Evidence) -> None:
    """No ledger of the bundle consented to a set of survivors that no transcript tells of."""
    for partner in sorted(name for name, state in evidence.ledgers.items() if evidence.run_id in state.runs):
        for number, state in run_of(evidence, partner).rounds.items():
            told = [set(one.survivors) for one in evidence.transcripts[number - 1].sums]
            opened = set(state.survivors or ())
            # A bucket may have consented, and failed before its sum was opened.
            if opened and opened not in told and (evidence.plan.buckets == 1 or any(opened & one for one in told)):
                raise IntegrityError(
                    f"ledgers/{partner}.jsonl: Expected round {number} opened as its transcript tells, got otherwise."
                )


def _check_newest_receipts(evidence: Evidence) -> None:
    """The coordinator countersigns each head that it is told: its last receipt is not older than a transcript."""
    for transcript in evidence.transcripts:
        for one in transcript.sums:
            for partner in one.survivors:
                receipt, head = evidence.receipts.get(partner), one.paid(partner)
                if receipt is None or receipt.count < head.count:
                    at = f"at entry {head.count} or later"
                    raise IntegrityError(f"{RECEIPTS}: {partner}: Expected the last receipt {at}, got an older one.")
