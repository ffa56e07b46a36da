"""The in-process engine delivers as Flower's grids do, and a partner's relay finds the partner's data."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from client import app as relay
from client.agent_socket import AgentUnavailableError
from shared.errors import ConfigError, ProtocolError
from simulations.federation import FIRST_NODE, InProcessGrid

REPOSITORY = Path(__file__).parents[2]


def echo() -> ClientApp:
    """Answers with its partition, its data root, how often it was asked, and the array twice as large."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        asked = int(str(context.state.config_records.setdefault("n", ConfigRecord({"n": 0}))["n"])) + 1
        context.state["n"] = ConfigRecord({"n": asked})
        array = message.content.array_records["a"]["x"].numpy()
        array *= 2
        answer: dict[str, Any] = {
            "partition": context.node_config["partition-id"],
            "root": context.run_config["data-root"],
            "asked": asked,
        }
        content = RecordDict({"a": ArrayRecord(OrderedDict(x=Array(array))), "told": ConfigRecord(answer)})
        return Message(content, reply_to=message)

    return app


def grid_of(folder: Path, partitions: range | list[int]) -> InProcessGrid:
    return InProcessGrid(echo(), partitions, folder)


def message(grid: InProcessGrid, node: int, value: float = 1.0) -> Message:
    content = RecordDict({"a": ArrayRecord(OrderedDict(x=Array(np.full(3, value))))})
    return grid.create_message(content, "train", node, "1")


def test_every_partner_gets_its_own_message_and_answers_under_its_own_number(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, range(3))
    nodes = list(grid.get_node_ids())
    assert nodes == [FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2]
    replies = list(grid.send_and_receive([message(grid, node, node) for node in nodes]))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    for reply, node in zip(replies, nodes, strict=True):
        assert reply.content.config_records["told"]["partition"] == node - FIRST_NODE
        assert reply.content.config_records["told"]["root"] == str(tmp_path)
        np.testing.assert_array_equal(reply.content.array_records["a"]["x"].numpy(), np.full(3, 2.0 * node))


def test_a_partner_alone_keeps_its_number(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, [2])
    assert list(grid.get_node_ids()) == [FIRST_NODE + 2]
    (reply,) = grid.send_and_receive([message(grid, FIRST_NODE + 2)])
    assert reply.content.config_records["told"]["partition"] == 2


def test_what_a_partner_does_to_an_array_does_not_reach_the_sender(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, range(2))
    shared = message(grid, FIRST_NODE).content
    sent = [grid.create_message(shared, "train", node, "1") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(sent):
        np.testing.assert_array_equal(reply.content.array_records["a"]["x"].numpy(), np.full(3, 2.0))
    np.testing.assert_array_equal(shared.array_records["a"]["x"].numpy(), np.ones(3))


def test_a_partner_s_state_lasts_between_rounds_and_is_its_own(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, range(2))

    def asked(node: int) -> object:
        (reply,) = grid.send_and_receive([message(grid, node)])
        return reply.content.config_records["told"]["asked"]

    assert [asked(1), asked(1), asked(2), asked(1)] == [1, 2, 1, 3]


def test_an_answer_is_handed_out_once(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, range(2))
    ids = list(grid.push_messages([message(grid, node) for node in grid.get_node_ids()]))
    assert len(set(ids)) == 2
    assert len(list(grid.pull_messages(ids[:1]))) == 1
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages([*ids, "unknown"])) == []


def test_a_message_to_a_partner_that_is_not_there_is_refused(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, range(2))
    with pytest.raises(ProtocolError, match="Expected a node of 1 to 2, got 9"):
        list(grid.send_and_receive([message(grid, 9)]))


def test_the_run_of_a_grid_can_be_set(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, range(1))
    assert grid.run.run_id == 1
    other = Run.create_empty(7)
    grid.set_run(other)
    assert grid.run is other


# --- the relay at the other end -------------------------------------------------------------------


def context(node: dict[str, Any], run: dict[str, Any]) -> Context:
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)


def test_a_simulated_node_finds_its_folder_by_its_number(tmp_path: Path) -> None:
    none = context({"partition-id": 3}, {"data-root": str(tmp_path)})
    assert relay._folder(none) == tmp_path / "partner-003"


def test_a_node_with_an_agent_of_its_own_does_not_ask_the_run_where_data_are(tmp_path: Path) -> None:
    """Nobody listens there, so the refusal shows that it was tried, and the lure was not."""
    own = context({"agent-socket": str(tmp_path / "none.sock"), "partition-id": 3}, {"data-root": str(tmp_path)})
    with pytest.raises(AgentUnavailableError):
        relay._ask_agent(RecordDict(), own)


@pytest.mark.parametrize("place", [({}, {"data-root": "x"}), ({"partition-id": 1}, {}), ({}, {})])
def test_a_node_without_an_agent_says_so(place: tuple[dict[str, Any], dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="agent-socket"):
        relay._folder(context(*place))


def test_the_relay_loads_no_model_to_refuse_a_message() -> None:
    """Flower starts a process for every message."""
    heavy = ("opacus", "peft", "polars", "transformers")
    code = f"import sys, client.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"
