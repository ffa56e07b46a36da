"""The hostile coordinator: it has the coordinator's real key and the keys of the partners that help it.

It speaks to the others through the real client app, in Flower's records, as any coordinator does.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from numpy.typing import NDArray

from client.app import app as client_app
from client.premises import IDENTITY_FILE
from shared.config import RunConfig
from shared.errors import ProtocolError
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, RoundPlan, SignedPlan
from shared.privacy.accounting import build_plan
from shared.privacy.plan import Stage
from shared.requests import Answer, Request
from shared.wire import pack_request
from shared.wire_answers import error_name, unpack_answer
from shared.wire_frames import ERROR
from simulations.evil_server.attack import Trial
from simulations.evil_server.practice import Practice
from simulations.federation import FIRST_NODE, InProcessGrid

RUN = "practice"


@dataclass
class Adversary:
    """One attacker at work on a practice federation.

    Attributes
    ----------
    practice : Practice
    trials : list of Trial
        The aimed requests so far.
    """

    practice: Practice
    trials: list[Trial] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """All partners, sorted."""
        return self.practice.names

    @property
    def honest(self) -> tuple[str, ...]:
        """The partners that keep to the protocol, at least three; the first one is the victim."""
        return self.names[: -self.practice.colluders]

    @property
    def victim(self) -> str:
        """The partner whose users are to be read."""
        return self.names[0]

    @property
    def server_key(self) -> SigningKey:
        """The coordinator's own."""
        return self.practice.admission.key

    @cached_property
    def helpers(self) -> Mapping[str, SigningKey]:
        """The identities of the partners that help the attacker."""
        helping = [name for name in self.names if name not in self.honest]
        return {name: SigningKey.load(self.practice.folder(name) / IDENTITY_FILE) for name in helping}

    @cached_property
    def parameters(self) -> NDArray[np.float32]:
        """A model from which a training round could start."""
        config = self.practice.config
        bench = self.practice.agent(self.victim).learner.workbench(config.model, config.seed or 0)
        return np.zeros(bench.gradients.size, dtype=np.float32)

    # --- what it says -----------------------------------------------------------------------------

    def config(self, **changes: object) -> RunConfig:
        """The practice's configuration with other values, ``section__key=value``; checked by its own rules."""
        told = {path.replace("__", "."): value for path, value in changes.items()}
        return RunConfig.model_validate(_edited(self.practice.config.model_dump(), told))

    def order(
        self,
        number: int = 1,
        *,
        config: RunConfig | None = None,
        run_id: str = RUN,
        model_digest: str = "",
        attempt: str = "",
    ) -> RoundPlan:
        """A round plan that is in order; the first round is that of the prior's sum."""
        config = config or self.practice.config
        plan, nonce = build_plan(config), attempt or secrets.token_hex(16)
        stage: Stage = "prior" if number == 1 and plan.prior_noise_multiplier is not None else "train"
        catalogue = self.practice.agent(self.victim).learner.catalogue.digest
        return RoundPlan(run_id, number, stage, config, plan, catalogue, model_digest, nonce)

    def sign(self, text: str | RoundPlan, key: SigningKey | None = None) -> SignedPlan:
        """Sign a plan, or any text as one."""
        text = text if isinstance(text, str) else text.text()
        return SignedPlan(text, (key or self.server_key).sign(ROUND_PLAN, text.encode()))

    def edited(self, order: RoundPlan, changes: Mapping[str, object]) -> SignedPlan:
        """A plan with values that no `RoundPlan` has, ``{"plan.noise_multiplier": 0.0}``, signed all the same."""
        return self.sign(json.dumps(_edited(json.loads(order.text()), changes), sort_keys=True))

    # --- how it says it ---------------------------------------------------------------------------

    def ask(self, name: str, request: Request) -> Answer:
        """Send a request that has to be answered for the attack to go on.

        Raises
        ------
        ProtocolError
            If it is refused.
        """
        return unpack_answer(self._send(name, pack_request(request)))

    def aim(self, name: str, request: Request | RecordDict) -> None:
        """Send the request that has to be refused, and note what came of it."""
        content = request if isinstance(request, RecordDict) else pack_request(request)
        before = self.practice.digests()
        got = _told(self._send(name, content))
        after = self.practice.digests()
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        self.trials.append(Trial(got, tuple(sorted(str(path.relative_to(self.practice.base)) for path in changed))))

    def _send(self, name: str, content: RecordDict) -> RecordDict:
        node, grid = FIRST_NODE + self.names.index(name), self._grid  # the grid first: messages need its identity
        message = Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id="1")
        reply: RecordDict = next(iter(grid.send_and_receive([message]))).content
        return reply

    @cached_property
    def _grid(self) -> InProcessGrid:
        return InProcessGrid(client_app, range(len(self.names)), self.practice.root)


def other_attempt(order: RoundPlan) -> RoundPlan:
    """The same request once more."""
    return replace(order, attempt=secrets.token_hex(16))


def _edited(tree: dict[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    for path, value in changes.items():
        *sections, key = path.split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        if key not in branch:
            raise ProtocolError(f"Expected a field of a plan to change, got {path}.")
        branch[key] = value
    return tree


def _told(content: RecordDict) -> str:
    """What an answer tells: the name of an error and no more, or more than that."""
    if ERROR not in content:
        return f"answered: {type(unpack_answer(content)).__name__}"
    alone = set(content) == {ERROR} and set(content.config_records[ERROR]) == {"family"}
    return error_name(content) if alone else "an error with more in it"
