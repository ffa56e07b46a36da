"""The Flower ClientApp: a thin relay between the coordinator and the partner's agent.

Where the data are is the partner's own setting (``data-path`` in the SuperNode's ``--node-config``).
Only in a simulation, where a SuperNode has a ``partition-id`` and no data of its own, does the run say
where the simulated partners' folders lie; the agent still decides by the folder's own ``partner.toml``
whether they are simulated.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from shared.errors import ConfigError, VeilrecError
from shared.wire import unpack_request
from shared.wire_answers import pack_answer, pack_error

app = ClientApp()
_log = logging.getLogger("veilrec.client")


@app.train()
def train(message: Message, context: Context) -> Message:
    """Hand a request to the agent and its answer, or the name of its error, back."""
    return Message(_answer(message, context), reply_to=message)


def _answer(message: Message, context: Context) -> RecordDict:
    try:
        return _ask_agent(message, context)
    except VeilrecError as error:
        _log.error("round refused: %s", error)
        return pack_error(error.wire_name)
    except Exception:  # the text of an unforeseen error may hold data: it stays here
        _log.exception("round failed")
        return pack_error("VeilrecError")


def _ask_agent(message: Message, context: Context) -> RecordDict:
    from client.agent import agent_for

    request = unpack_request(message.content)
    return pack_answer(agent_for(_folder(context)).answer(request))


def _folder(context: Context) -> Path:
    own = str(context.node_config.get("data-path", ""))
    if own:
        return Path(own)
    root, partition = str(context.run_config.get("data-root", "")), context.node_config.get("partition-id")
    if not root or partition is None:
        raise ConfigError("Expected data-path in the node's configuration.")
    return partner_folder(Path(root), int(partition))


def partner_folder(root: Path, partition: int) -> Path:
    """The folder of a simulated partner."""
    return root / f"partner-{partition:03d}"
