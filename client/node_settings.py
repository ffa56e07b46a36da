"""``node/node.toml``: what a partner's Flower node is told; written by ``veilrec partner join``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError
from shared.federation_bundle import Address, Digest
from shared.files import write_bytes

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
        try:
            told = cls.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{file}: {where}: {first['msg'].removeprefix('Value error, ').rstrip('.')}.") from None
        except FileNotFoundError:
            raise ConfigError(f"{folder}: no {NODE_FILE}. Expected one that `veilrec partner join` wrote.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: cannot be read ({type(error).__name__}). Expected TOML in UTF-8.") from None
        return told.model_copy(update={"socket": str((folder / told.socket).resolve())})

    def write(self, folder: Path) -> None:
        """Replace ``node.toml``."""
        write_bytes(folder / NODE_FILE, tomli_w.dumps(self.model_dump()).encode())
