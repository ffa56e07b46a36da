"""One round's sum, or the sums of its buckets: the exchanges with the partners, masked or not.

A partner that does not answer an exchange, or refuses it, is out of the round; with fewer than the quorum
the round fails and nothing is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.admission import Admission
from server.combine import BucketSum
from server.promise import Promise
from server.receipts import ReceiptBook
from server.secure_sum import SecureSum
from server.transcript import SumTranscript
from shared.buckets import assign, least_sums
from shared.errors import CohortTooSmallError, ConfigError, ProtocolError, UnmaskError
from shared.exchange import Consent, KeyOffer, Opening, Outbox
from shared.hazmat.fixed_point import from_ring
from shared.messages import RoundPlan, SignedPlan
from shared.privacy.ledger import LedgerHead, Receipt
from shared.requests import (
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
from shared.wire import pack_request, payload_bytes
from shared.wire_answers import error_name, unpack_answer
from shared.wire_frames import ERROR

A = TypeVar("A", KeyOffer, Outbox, Contribution, Consent, Opening)
T = TypeVar("T")
Models = Mapping[int, Model]
"""What each node is told of the model, by node."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A round's sum.

    Attributes
    ----------
    total : (P,) int64
        Lattice steps, over the partners that are in the sum.
    partners : int
        How many they are.
    answered : tuple of int
        Nodes that were sent the model and answered.
    bytes_up : int
        The most that one partner sent in this round.
    losses : tuple of float
        Only in mode ``none``.
    sums : tuple of SumTranscript
        What is public of each sum of the round.
    buckets : tuple of BucketSum
        The sums that were opened, where the round has several; `total` is then their plain sum.
    """

    total: NDArray[np.int64]
    partners: int
    answered: tuple[int, ...]
    bytes_up: int
    losses: tuple[float, ...] = ()
    sums: tuple[SumTranscript, ...] = ()
    buckets: tuple[BucketSum, ...] = ()


class Gathering(Protocol):
    """One attempt at one round."""

    def requests(self, models: Models) -> dict[int, Request]:
        """What to send to which node, once all that comes before it is done."""
        ...

    def finish(self, replies: Iterable[Message]) -> Gathered:
        """The sum, from the answers to those requests."""
        ...


@dataclass
class Exchanges:
    """Sends requests and reads answers, and remembers what each node sent.

    Attributes
    ----------
    order : RoundPlan
    grid : Grid
    admission : Admission
    receipts : ReceiptBook
    names : dict
        Which node is which partner, as far as it is known; goes on from round to round.
    promise : Promise
        What an earlier attempt at the round, in this process or in one before, was bound to.
    timeout_s : float, optional
        For the answers to an exchange without training; the federation's by default.
    """

    order: RoundPlan
    grid: Grid
    admission: Admission
    receipts: ReceiptBook
    names: dict[int, str]
    promise: Promise
    timeout_s: float | None = None
    _sent: dict[int, int] = field(default_factory=dict)

    def ask(self, requests: Mapping[int, Request], kind: type[A]) -> dict[int, A]:
        """Send each node its request and read the answers; too few of them end the round."""
        contents = {node: pack_request(request) for node, request in requests.items()}
        timeout = self.timeout_s or self.order.config.federation.timeout_s
        return self.read(self.grid.send_and_receive(self.messages(contents), timeout=timeout), kind)

    def messages(self, contents: Mapping[int, RecordDict]) -> list[Message]:
        """Flower's messages."""
        group = str(self.order.round)
        return [
            Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=group)
            for node, content in contents.items()
        ]

    def read(self, replies: Iterable[Message], kind: type[A]) -> dict[int, A]:
        """Answers of one kind by node, in the order of nodes.

        Raises
        ------
        ProtocolError
            If there are fewer than the quorum because partners refused; names their errors' families.
        CohortTooSmallError
            If there are fewer than the quorum.
        """
        return dict(sorted(self.each(replies, kind)))

    def each(self, replies: Iterable[Message], kind: type[A]) -> Iterator[tuple[int, A]]:
        """Answers of one kind as they come, one of a node; too few of them are an error once all have come.

        Whoever adds them up need not hold them all: of ten thousand partners that is gigabytes.
        """
        answered: set[int] = set()
        refusals: set[str] = set()
        for reply in replies:
            if not reply.has_content():
                continue
            node = reply.metadata.src_node_id
            self._sent[node] = self._sent.get(node, 0) + payload_bytes(reply.content)
            if ERROR in reply.content:
                refusals.add(error_name(reply.content))
                continue
            try:
                answer = unpack_answer(reply.content)
            except ProtocolError:
                continue
            if node in answered or not isinstance(answer, kind):
                continue
            if self.names.setdefault(node, answer.name) == answer.name:
                answered.add(node)
                yield node, answer
        plan = self.order.plan
        needed = plan.survivors * least_sums(plan.buckets)
        if len(answered) < needed and refusals:
            raise ProtocolError(f"Expected answers >= {needed}, partners refused with {', '.join(sorted(refusals))}.")
        if len(answered) < needed:
            raise CohortTooSmallError(f"Expected answers >= {needed} in round {self.order.round}, got {len(answered)}.")

    @property
    def most_sent(self) -> int:
        """Bytes of the partner that sent most."""
        return max(self._sent.values(), default=0)

    def receipt(self, node: int) -> Receipt | None:
        """The last receipt of the partner at a node, if the two are known."""
        return self.receipts.last(self.names.get(node, ""))

    def countersign(self, heads: Mapping[str, LedgerHead]) -> None:
        """Keep a receipt for the ledger head of every partner that paid for an update."""
        self.receipts.add(heads, self.admission.key)


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the secure sums of a round: over all partners, or over a bucket's `members`."""

    number: int
    members: frozenset[str]
    promise: Promise
    sum_: SecureSum

    def shares(self, exchanges: Exchanges, attempt: Attempt, offers: Mapping[int, KeyOffer]) -> dict[int, Request]:
        offers = {node: offer for node, offer in self._own(offers).items() if self.promise.allows(offer.name)}
        roster = self.sum_.roster(offers.values())
        return {node: SharesRequest(attempt, roster, exchanges.receipt(node)) for node in self._live(offers)}

    def sums(self, attempt: Attempt, outboxes: Mapping[int, Outbox], models: Models) -> dict[int, Request]:
        outboxes = self._own(outboxes)
        inboxes = self.sum_.inboxes(outboxes.values())
        return {node: SumRequest(attempt, inboxes[outboxes[node].name], models[node]) for node in self._live(outboxes)}

    def consents(self, attempt: Attempt, updates: Mapping[int, Contribution]) -> dict[int, Request]:
        updates = self._own(updates)
        survivors = self.sum_.survivors({c.name: c.update.values for c in updates.values()})
        self.promise.make(survivors.names)
        return dict.fromkeys(self._live(updates), ConsentRequest(attempt, survivors))

    def openings(self, attempt: Attempt, consents: Mapping[int, Consent]) -> dict[int, Request]:
        consents = self._own(consents)
        agreed = self.sum_.consents(consents.values())
        return dict.fromkeys(self._live(consents), OpenRequest(attempt, agreed))

    def opened(self, openings: Mapping[int, Opening], updates: Mapping[int, Contribution]) -> _Opened:
        total = self.sum_.open(self._own(openings).values())
        told = self.sum_.transcript({c.name: c.head for c in self._own(updates).values()}, total)
        return _Opened(BucketSum(self.number, total, len(told.survivors)), told)

    def _own(self, answers: Mapping[int, A]) -> dict[int, A]:
        return {node: answer for node, answer in answers.items() if answer.name in self.members}

    def _live(self, answers: Mapping[int, A]) -> list[int]:
        return [node for node, answer in answers.items() if answer.name in self.sum_.live]


@dataclass(frozen=True, slots=True)
class _Opened:
    bucket: BucketSum
    transcript: SumTranscript


class MaskedGathering:
    """The five exchanges of a secure sum (`shared.exchange`), or those of all buckets' sums at once.

    Every exchange asks the nodes of all buckets together. A bucket with too few answers, or whose shares do not fit
    together, is out of the round; with fewer than `LEAST_BUCKETS` of several the round fails, as it does without the
    one sum where there are no buckets.

    Parameters
    ----------
    exchanges : Exchanges
    signed : SignedPlan
    nodes : sequence of int
    size : int
        P, coordinates of the sum.

    Raises
    ------
    ConfigError
        If the plan has buckets for another number of partners than are registered.
    """

    def __init__(self, exchanges: Exchanges, signed: SignedPlan, nodes: Iterable[int], size: int) -> None:
        self._exchanges, self._signed, self._nodes = exchanges, signed, list(nodes)
        order = exchanges.order
        self._attempt = Attempt(order.run_id, order.attempt)
        self._parts = _parts(exchanges, signed, size)

    def requests(self, models: Models) -> dict[int, Request]:
        """Exchanges 1 and 2, and the requests of exchange 3."""
        exchanges, attempt = self._exchanges, self._attempt
        offers = exchanges.ask(dict.fromkeys(self._nodes, KeysRequest(self._signed)), KeyOffer)
        shares = self._in_all(lambda part: part.shares(exchanges, attempt, offers))
        outboxes = exchanges.ask(shares, Outbox)
        return self._in_all(lambda part: part.sums(attempt, outboxes, models))

    def finish(self, replies: Iterable[Message]) -> Gathered:
        """Add up what came in exchange 3, and open the sums with exchanges 4 and 5."""
        exchanges, attempt = self._exchanges, self._attempt
        updates = exchanges.read(replies, Contribution)
        asked = self._in_all(lambda part: part.consents(attempt, updates))
        exchanges.countersign({c.name: c.head for c in updates.values()})
        consents = exchanges.ask(asked, Consent)
        openings = exchanges.ask(self._in_all(lambda part: part.openings(attempt, consents)), Opening)
        opened: dict[int, _Opened] = self._in_all(lambda part: {part.number: part.opened(openings, updates)})
        buckets = tuple(each.bucket for each in opened.values())
        return Gathered(
            total=np.sum([bucket.total for bucket in buckets], axis=0),
            partners=sum(bucket.partners for bucket in buckets),
            answered=tuple(updates),
            bytes_up=exchanges.most_sent,
            losses=_losses(updates),
            sums=tuple(each.transcript for each in opened.values()),
            buckets=buckets if exchanges.order.plan.buckets > 1 else (),
        )

    def _in_all(self, step: Callable[[_Part], dict[int, T]]) -> dict[int, T]:
        """Take a step in every sum that is left. One that fails is out of the round; too few are the round's end."""
        done: dict[int, T] = {}
        parts, failed = [], None
        for part in self._parts:
            try:
                done |= step(part)
                parts.append(part)
            except (CohortTooSmallError, UnmaskError) as error:
                failed = error
        least = least_sums(self._exchanges.order.plan.buckets)
        self._parts = parts
        if len(parts) < least:
            raise failed or CohortTooSmallError(f"Expected at least {least} sums of a round, got {len(parts)}.")
        return done


def _parts(exchanges: Exchanges, signed: SignedPlan, size: int) -> list[_Part]:
    """A sum over all partners, or one a bucket."""
    plan, order, identities = exchanges.order.plan, exchanges.order, exchanges.admission.identities
    if plan.buckets > 1 and len(identities) != plan.partners:
        raise ConfigError(f"Expected as many registered partners as federation.partners={plan.partners} with buckets.")
    parts = []
    for number, members in enumerate(assign(order.run_id, order.round, identities, plan.buckets)):
        promise = exchanges.promise if plan.buckets == 1 else exchanges.promise.of_bucket(number)
        sum_ = SecureSum(signed.context, plan.survivors, {name: identities[name] for name in members}, size)
        parts.append(_Part(number, frozenset(members), promise, sum_))
    return parts


class BareGathering:
    """One exchange, and a sum in the open: `local` mode, and simulations.

    Parameters
    ----------
    exchanges : Exchanges
    signed : SignedPlan
    nodes : sequence of int
    size : int
        P, coordinates of the sum.
    """

    def __init__(self, exchanges: Exchanges, signed: SignedPlan, nodes: Iterable[int], size: int) -> None:
        self._exchanges, self._signed, self._nodes, self._size = exchanges, signed, list(nodes), size

    def requests(self, models: Models) -> dict[int, Request]:
        """The requests of the one exchange."""
        receipt = self._exchanges.receipt
        return {node: BareRequest(self._signed, models[node], receipt(node)) for node in self._nodes}

    def finish(self, replies: Iterable[Message]) -> Gathered:
        """Add up what came.

        Raises
        ------
        ProtocolError
            If a vector has another size.
        """
        total = np.zeros(self._size, dtype=np.int64)
        heads: dict[str, LedgerHead] = {}
        losses: dict[int, float | None] = {}
        for node, contribution in self._exchanges.each(replies, Contribution):
            if contribution.update.values.shape != (self._size,):
                raise ProtocolError(f"Expected updates of {self._size} values.")
            total += from_ring(contribution.update.values)
            heads[contribution.name], losses[node] = contribution.head, contribution.update.loss
        self._exchanges.countersign(heads)
        told = tuple(loss for _, loss in sorted(losses.items()) if loss is not None)
        sums = (SumTranscript.bare(heads, total),)
        return Gathered(total, len(losses), tuple(sorted(losses)), self._exchanges.most_sent, told, sums)


def _losses(updates: Mapping[int, Contribution]) -> tuple[float, ...]:
    return tuple(c.update.loss for c in updates.values() if c.update.loss is not None)
