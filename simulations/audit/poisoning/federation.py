"""A federation with dishonest partners in it: the real client app for the honest, other agents for the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.agent import PartnerAgent
from client.app import app as honest_app
from client.app import partner_folder
from client.door import refusal_of
from client.premises import Premises
from server.app import run_federation
from server.strategy import Witness
from shared.adapter import Release, load_release
from shared.config import RunConfig
from shared.requests import BareRequest, Contribution
from shared.wire import parse_plan, unpack_request
from shared.wire_answers import pack_answer, unpack_answer
from shared.wire_frames import ERROR
from simulations.audit.poisoning.attacks import Attack, learner_of
from simulations.federation import FIRST_NODE, InProcessGrid
from simulations.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Seen:
    """A partner's own noised sum, as a coordinator sees it where sums are not masked, in lattice steps."""

    partition: int
    stage: str
    round: int
    values: NDArray[np.int64]


class WatchingGrid(InProcessGrid):
    """An in-process grid that keeps what the coordinator could read of single partners: nothing, under masks."""

    def __init__(self, client_app: ClientApp, partitions: range, data_root: Path) -> None:
        super().__init__(client_app, partitions, data_root)
        self.seen: list[Seen] = []

    def _deliver(self, message: Message) -> Message:
        reply = super()._deliver(message)
        request = unpack_request(message.content)
        if isinstance(request, BareRequest) and ERROR not in reply.content:
            answer, order = unpack_answer(reply.content), parse_plan(request.signed.text)
            if isinstance(answer, Contribution):
                values = answer.update.values.view(np.int32).astype(np.int64)
                self.seen.append(Seen(message.metadata.dst_node_id - FIRST_NODE, order.stage, order.round, values))
        return reply


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes
    ----------
    release : Release
    workspace : Workspace
        Of the run's own copy of the federation; its learners are honest ones.
    seen : list of Seen
    rounds : list of dict
        The records of ``rounds.jsonl``.
    """

    release: Release
    workspace: Workspace
    seen: list[Seen] = field(default_factory=list)
    rounds: list[dict[str, object]] = field(default_factory=list)


def train(prepared: Path, config: RunConfig, attack: Attack, out: Path, witness: Witness | None = None) -> Trained:
    """Run a federation in which some partners attack.

    Parameters
    ----------
    prepared : Path
        A federation on which nothing was run; it is copied, as ledgers remember what a run has paid for.
    config : RunConfig
    attack : Attack
    out : Path
        A new folder.
    witness : callable, optional
        Is shown the opened sums of every round.
    """
    root = out / "partners"
    shutil.copytree(prepared, root)
    workspace = Workspace.open(root)
    grid = WatchingGrid(app_with(attack, root), range(workspace.partners), root)
    final = run_federation(grid, config, workspace.catalogue, out, root, witness=witness)
    return Trained(load_release(out / "adapter"), workspace, grid.seen, list(final.records))


def app_with(attack: Attack, root: Path) -> ClientApp:
    """The client app of all partners, of which some have another learner; nothing else of them is changed."""
    agents = {FIRST_NODE + k: _agent(attack, partner_folder(root, k)) for k in attack.partners}
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        agent = agents.get(context.node_id)
        if agent is None:
            return honest_app(message, context)
        try:
            return Message(pack_answer(agent.answer(unpack_request(message.content))), reply_to=message)
        except Exception as error:
            return Message(refusal_of(error), reply_to=message)

    return app


def _agent(attack: Attack, folder: Path) -> PartnerAgent:
    agent = PartnerAgent(Premises.open(folder))
    agent.learner = learner_of(attack, agent.premises)
    return agent


def honest(workspace: Workspace, attack: Attack) -> Iterable[int]:
    """The partners whose users are asked what they see."""
    return (k for k in range(workspace.partners) if k not in attack.partners)
