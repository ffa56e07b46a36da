"""``node/node.toml``: what a partner's Flower node is told; written by ``veilrec partner join``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from shared.federation_bundle import Address, Digest
from shared.files import write_bytes
from shared.settings_file import read_toml, settings_of

NODE_FOLDER, NODE_FILE, NODE_KEY_FILE, AUTHORITY_FILE = "node", "node.toml", "node.key", "ca.crt"
SOCKET = "../agent.sock"
NODE_KEY_HANDLE = "VEILREC_NODE_KEY_FD"
"""Names the open file in which whoever started the node has put its key; without it the node opens ``node.key``."""


class NodeSettings(BaseModel):
    """Where the node connects, what it carries, and to whom.

    Attributes
    ----------
    address : str
        ``HOST:PORT`` of the coordinator's gate.
    bundles : tuple of str
        SHA-256 of the Flower apps whose runs are allowed.
    socket : str
        Path of the agent's socket; in the file it may be relative to the node's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    address: Address
    bundles: Annotated[tuple[Digest, ...], Field(min_length=1, strict=False)]
    socket: Annotated[str, Field(min_length=1)] = SOCKET

    @classmethod
    def open(cls, folder: Path) -> NodeSettings:
        """Read ``node.toml`` in the node's own folder; the socket's path is then absolute.

        Raises
        ------
        ConfigError
            If there is none, or a key in it is not what was expected.
        """
        file = folder / NODE_FILE
        absent = f"{folder}: no {NODE_FILE}. Expected one that `veilrec partner join` wrote."
        told = settings_of(cls, read_toml(file, absent), file)
        return told.model_copy(update={"socket": str((folder / told.socket).resolve())})

    def write(self, folder: Path) -> None:
        """Replace ``node.toml``."""
        write_bytes(folder / NODE_FILE, tomli_w.dumps(self.model_dump()).encode())
