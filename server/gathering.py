"""One round's sum: the exchanges with the partners, masked or not.

A partner that does not answer an exchange, or refuses it, is out of the round; with fewer than the quorum
the round fails and nothing is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.admission import Admission
from server.promise import Promise
from server.receipts import ReceiptBook
from server.secure_sum import SecureSum
from shared.errors import CohortTooSmallError, ProtocolError
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
    """

    total: NDArray[np.int64]
    partners: int
    answered: tuple[int, ...]
    bytes_up: int
    losses: tuple[float, ...] = ()


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
        needed = self.order.plan.survivors
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


class MaskedGathering:
    """The five exchanges of a secure sum (`shared.exchange`).

    Parameters
    ----------
    exchanges : Exchanges
    signed : SignedPlan
    nodes : sequence of int
    size : int
        P, coordinates of the sum.
    """

    def __init__(self, exchanges: Exchanges, signed: SignedPlan, nodes: Iterable[int], size: int) -> None:
        self._exchanges, self._signed, self._nodes = exchanges, signed, list(nodes)
        order = exchanges.order
        self._attempt = Attempt(order.run_id, order.attempt)
        self._sum = SecureSum(signed.context, order.plan.survivors, exchanges.admission.identities, size)

    def requests(self, models: Models) -> dict[int, Request]:
        """Exchanges 1 and 2, and the requests of exchange 3."""
        exchanges, attempt = self._exchanges, self._attempt
        offers = exchanges.ask(dict.fromkeys(self._nodes, KeysRequest(self._signed)), KeyOffer)
        offers = {node: offer for node, offer in offers.items() if exchanges.promise.allows(offer.name)}
        roster = self._sum.roster(offers.values())
        shares = {node: SharesRequest(attempt, roster, exchanges.receipt(node)) for node in self._live(offers)}
        outboxes = exchanges.ask(shares, Outbox)
        inboxes = self._sum.inboxes(outboxes.values())
        return {node: SumRequest(attempt, inboxes[outboxes[node].name], models[node]) for node in self._live(outboxes)}

    def finish(self, replies: Iterable[Message]) -> Gathered:
        """Add up what came in exchange 3, and open the sum with exchanges 4 and 5."""
        exchanges, attempt = self._exchanges, self._attempt
        updates = exchanges.read(replies, Contribution)
        survivors = self._sum.survivors({c.name: c.update.values for c in updates.values()})
        exchanges.promise.make(survivors.names)
        exchanges.countersign({c.name: c.head for c in updates.values()})
        ask = ConsentRequest(attempt, survivors)
        consents = exchanges.ask(dict.fromkeys(self._live(updates), ask), Consent)
        agreed = OpenRequest(attempt, self._sum.consents(consents.values()))
        openings = exchanges.ask(dict.fromkeys(self._live(consents), agreed), Opening)
        total = self._sum.open(openings.values())
        return Gathered(total, len(survivors.names), tuple(updates), exchanges.most_sent, _losses(updates))

    def _live(self, answers: Mapping[int, A]) -> list[int]:
        return [node for node, answer in answers.items() if answer.name in self._sum.live]


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
        return Gathered(total, len(losses), tuple(sorted(losses)), self._exchanges.most_sent, told)


def _losses(updates: Mapping[int, Contribution]) -> tuple[float, ...]:
    return tuple(c.update.loss for c in updates.values() if c.update.loss is not None)
