"""The Flower ClientApp of a simulated partner, and of a real one whose node is Flower's own SuperNode.

A real partner's agent is another process, of its own user: this app hands the message to its socket (``agent-socket``
in the SuperNode's ``--node-config``) and the answer back. It reads neither, and loads no model, as Flower starts a
process for every message. Only in a simulation, where a node has a ``partition-id`` and no agent of its own, does the
run say where the simulated partners' folders lie; the agent then works in this process, and still decides by the
folder's own ``partner.toml`` whether they are simulated.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.door import refusal_of
from shared.errors import ConfigError
from shared.wire import unpack_request
from shared.wire_answers import pack_answer

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Hand a request to the agent and its answer, or the name of its error, back."""
    return Message(_answer(message.content, context), reply_to=message)


def _answer(content: RecordDict, context: Context) -> RecordDict:
    try:
        return _ask_agent(content, context)
    except Exception as error:
        return refusal_of(error)


def _ask_agent(content: RecordDict, context: Context) -> RecordDict:
    own = str(context.node_config.get("agent-socket", ""))
    if own:
        from client.agent_socket import post_message

        return post_message(Path(own), content)
    from client.agent import agent_for

    return pack_answer(agent_for(_folder(context)).answer(unpack_request(content)))


def _folder(context: Context) -> Path:
    root, partition = str(context.run_config.get("data-root", "")), context.node_config.get("partition-id")
    if not root or partition is None:
        raise ConfigError("Expected agent-socket in the node's configuration.")
    return partner_folder(Path(root), int(partition))


def partner_folder(root: Path, partition: int) -> Path:
    """The folder of a simulated partner."""
    return root / f"partner-{partition:03d}"
