"""The partner's agent: the one that decides. It answers requests or refuses them, and pays in the ledger.

It decides by itself what it may do: whether its data are simulated, and what its floor is, is written in
its own folder, never in a message. Nothing is computed before the plan is checked, no noise is drawn
before it is reserved, and nothing is sent that was not released.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from client.audit_canaries import CanarySeed, commitment_of
from client.learner import Learner
from client.masking_rules import check_bucket
from client.policy import Facts, check
from client.premises import AGENT_LOCK, RUNS, Premises
from client.privatize import leave_bare, mask
from client.run_folder import RoundState, RunFolder
from client.secure_sum import MaskingSession
from shared.buckets import own_bucket
from shared.errors import (
    AdapterMismatchError,
    ConfigError,
    LedgerError,
    PolicyViolationError,
    ReplayError,
    UnmaskError,
)
from shared.exchange import Consent, KeyOffer, Opening, Outbox
from shared.hazmat.randomness import SystemRandomness
from shared.messages import ROUND_PLAN, NoisedSum, RoundPlan, SignedPlan, model_digest
from shared.model.prior import CollaborativePrior
from shared.model.weights import find_base
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.ledger import Ledger, Receipt, Reservation
from shared.privacy.ledger_entries import Commitment
from shared.privacy.plan import PrivacyPlan
from shared.requests import (
    Answer,
    Attempt,
    BareRequest,
    ConsentRequest,
    Contribution,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)
from shared.wire import parse_plan


class PartnerAgent:
    """One partner.

    Parameters
    ----------
    premises : Premises
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, premises: Premises, device: str = "auto") -> None:
        self.premises = premises
        self.learner = Learner(premises, device)
        self.ledger = Ledger(premises.ledger_file, premises.identity)
        self._secrets = SystemRandomness()
        self._lock = FileLock(premises.folder / AGENT_LOCK)

    def answer(self, request: Request) -> Answer:
        """Do what a request asks, or refuse.

        Raises
        ------
        PolicyViolationError
            If the plan asks for what this partner does not allow.
        BudgetExhaustedError
            If the ledger has not enough left for it.
        AdapterMismatchError
            If it is for another catalogue, another model, or another shape of adapter.
        ReplayError
            If a message is out of its turn.
        InvalidSignatureError, CohortTooSmallError, UnmaskError, LedgerError
            See `client.secure_sum` and `shared.privacy.ledger`.
        """
        with self._lock:  # two processes on one folder would answer one step twice
            return self._answer(request)

    def _answer(self, request: Request) -> Answer:
        match request:
            case KeysRequest(signed):
                return self._offer(signed)
            case SharesRequest():
                return self._share(request)
            case SumRequest():
                return self._sum(request)
            case ConsentRequest():
                return self._consent(request)
            case OpenRequest():
                return self._open(request)
            case BareRequest():
                return self._bare(request)

    # --- the exchanges ----------------------------------------------------------------------------

    def _offer(self, signed: SignedPlan) -> KeyOffer:
        order = self._accept(signed)
        if not order.plan.masked:
            raise ReplayError("Expected a request without masks: the plan says masked=false.")
        premises = self.premises
        session = MaskingSession(
            premises.name, signed.context, premises.identity, premises.peers, order.plan.survivors, self._secrets
        )
        offer = session.offer()
        self._begin(order, signed, session.to_bytes())
        return offer

    def _share(self, request: SharesRequest) -> Outbox:
        with self._session(request.attempt) as (order, session):
            self._check_receipt(request.receipt)
            if len(request.roster.offers) > order.plan.partners:
                raise UnmaskError(f"Expected members <= partners={order.plan.partners} of the plan, got more.")
            if order.plan.buckets > 1:
                check_bucket(request.roster, self._bucket(order))
            return session.share(request.roster)

    def _sum(self, request: SumRequest) -> Contribution:
        with self._session(request.attempt) as (order, session):
            session.receive(request.inbox)
            update = mask(self._noised_sum(order, request.model), order.plan, session)
        return Contribution(self.premises.name, update, self.ledger.head())

    def _consent(self, request: ConsentRequest) -> Consent:
        with self._session(request.attempt) as (order, session):
            consent = session.consent(request.survivors)
            # A round has one noised sum here. Opened for two sets of partners, the two would give away a third.
            self.ledger.open(order.run_id, order.round, request.survivors.names)
            return consent

    def _open(self, request: OpenRequest) -> Opening:
        with self._session(request.attempt) as (_, session):
            return session.open(request.consents)

    def _bare(self, request: BareRequest) -> Contribution:
        order = self._accept(request.signed)
        if order.plan.masked:
            raise ReplayError("Expected the exchanges of a secure sum: the plan says masked=true.")
        self._check_receipt(request.receipt)
        self._begin(order, request.signed, None)
        update = leave_bare(self._noised_sum(order, request.model), order.plan)
        return Contribution(self.premises.name, update, self.ledger.head())

    # --- what they have in common -----------------------------------------------------------------

    def _accept(self, signed: SignedPlan) -> RoundPlan:
        """Check a round plan against all that this partner holds itself; nothing is written."""
        policy = self.premises.policy
        if policy.server_key is None:
            raise PolicyViolationError("Expected a pinned policy.server_key: nobody else may ask.")
        policy.server_key.verify(ROUND_PLAN, signed.text.encode(), signed.signature)
        order = parse_plan(signed.text)
        if order.plan.digest() != build_plan(order.config).digest():
            raise PolicyViolationError("Expected the privacy plan that follows from the configuration.")
        epsilon = self._epsilon(order.plan)
        check(policy, Facts(self.premises.simulated, len(self.premises.peers), epsilon, self._digest_of(order)), order)
        if order.catalogue_digest != self.learner.catalogue.digest:
            raise AdapterMismatchError("Expected the catalogue of the federation: digests differ.")
        self.learner.check_canaries(order)
        state = self._folder(order.run_id).state()
        if state is not None and order.attempt in state.attempts:
            raise ReplayError(f"Expected a new attempt at round {order.round}, this one was made before.")
        self.ledger.check(self._reservation(order), order.plan, epsilon, *self._limits)
        return order

    def _noised_sum(self, order: RoundPlan, model: Model) -> NoisedSum:
        """The noised sum of a round: reserved, then drawn, then released; once, however often it is asked for."""
        folder = self._folder(order.run_id)
        prior = self._starting_point(folder, order, model)
        self.ledger.declare(order.run_id, order.plan, self._epsilon(order.plan), *self._limits)
        canary_seed = self._canary_seed(order)
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
        self.ledger.release(order.run_id, order.round, folder.keep_sum(self._kept_for(order), noised))
        folder.forget_secret()
        return noised

    def _canary_seed(self, order: RoundPlan) -> bytes | None:
        """The seed of the run's audit canaries: kept first, then committed to, then used; None where there are none."""
        if order.stage == "prior" or not order.plan.canaries:
            return None
        file, run = CanarySeed(self.premises.folder / RUNS / order.run_id), self.ledger.run(order.run_id)
        if run is not None and run.audit is not None:
            return file.read(run.audit.commitment)
        seed = file.kept()  # a crash may have come between file and ledger
        if seed is None:
            seed = self.learner.canary_seed(order)
            file.keep(seed)
        self.ledger.commit(Commitment(order.run_id, order.plan.canaries, commitment_of(seed)))
        return seed

    def _starting_point(self, folder: RunFolder, order: RoundPlan, model: Model) -> CollaborativePrior | None:
        """The prior of a training round, once the model is known to be the one of the plan; None for the prior's."""
        if order.stage == "prior":
            if model.parameters is not None or model.prior is not None:
                raise AdapterMismatchError("Expected no model with the round of the prior's sum.")
            return None
        if model.parameters is None:
            raise AdapterMismatchError("Expected parameters with a training round.")
        prior = model.prior or folder.prior()
        if prior is None:
            raise ReplayError("Expected the prior of this run before its training rounds.")
        if model_digest(model.parameters, prior) != order.model_digest:
            raise AdapterMismatchError("Expected the model of the round plan: digests differ.")
        prior.check(len(self.learner.catalogue))
        self.learner.check_parameters(order.config, model.parameters)
        if model.prior is not None:
            folder.keep_prior(model.prior)
        return prior

    def _check_receipt(self, receipt: Receipt | None) -> None:
        """A head that the coordinator countersigned must still be in the ledger: else it was rolled back."""
        server = self.premises.policy.server_key
        if receipt is not None and server is not None:
            receipt.verify(server)
            if receipt.partner != self.premises.name:
                raise LedgerError("Expected a receipt for this partner, got another's.")
            self.ledger.accept_receipt(receipt, server)

    def _reservation(self, order: RoundPlan) -> Reservation:
        return Reservation.of(order.plan, order.run_id, order.round, order.stage, order.request)

    def _bucket(self, order: RoundPlan) -> tuple[str, ...]:
        """The partners whom this one's sum of a round may meet, itself included, whatever the coordinator says."""
        plan, names = order.plan, self.premises.peers
        return own_bucket(order.run_id, order.round, names, plan.buckets, self.premises.name)

    def _kept_for(self, order: RoundPlan) -> str:
        """What a noised sum is kept for: the request, and with buckets these members: not for others, pinned since."""
        if order.plan.buckets == 1:
            return order.request
        return hashlib.sha256(json.dumps([order.request, self._bucket(order)]).encode()).hexdigest()

    def _begin(self, order: RoundPlan, signed: SignedPlan, session: bytes | None) -> None:
        """Remember an attempt: it will not be begun again."""
        folder = self._folder(order.run_id)
        before = folder.state()
        earlier = () if before is None else before.attempts
        state = RoundState(order.round, (*earlier, order.attempt), signed, session)
        folder.keep_state(state, durable=False)

    @contextmanager
    def _session(self, attempt: Attempt) -> Iterator[tuple[RoundPlan, MaskingSession]]:
        """The session of the current attempt and its plan. What fails ends it; a message out of turn does not."""
        folder, premises = self._folder(attempt.run_id), self.premises
        state = folder.state()
        if state is None or state.session is None or state.attempts[-1] != attempt.nonce:
            raise ReplayError("Expected a message of the current attempt of a round.")
        session = MaskingSession.from_bytes(state.session, premises.identity, premises.peers, self._secrets)
        turn = session.next_step
        try:
            yield parse_plan(state.signed.text), session
        except BaseException:
            if session.next_step != turn:
                folder.keep_state(replace(state, session=None))
            raise
        kept = None if session.next_step == "over" else session.to_bytes()
        folder.keep_state(replace(state, session=kept), durable=session.next_step not in ("share", "receive"))

    def _folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.premises.folder / RUNS / run_id)

    def _digest_of(self, order: RoundPlan) -> str | None:
        """SHA-256 of the base model, only where the floor names models by digest: a name must not start a download."""
        base, allowed = order.config.model.base, self.premises.policy.bases
        if allowed is None or base in allowed:
            return None
        with suppress(ConfigError):
            return find_base(base, local_only=True).sha256
        return None

    def _epsilon(self, plan: PrivacyPlan) -> float | None:
        return epsilon_spent(plan, plan.rounds)

    @property
    def _limits(self) -> tuple[float, float]:
        return self.premises.policy.max_epsilon, self.premises.policy.max_delta


@lru_cache(maxsize=256)
def agent_for(folder: Path) -> PartnerAgent:
    """The agent of a partner's folder; one a process."""
    return PartnerAgent(Premises.open(folder))
