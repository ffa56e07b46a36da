"""``server.toml``: where the coordinator listens and where its SuperLink does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from shared.federation_bundle import Address
from shared.files import write_bytes
from shared.settings_file import read_toml, settings_of

SERVER_FILE, RUN = "server.toml", "run"
"""Its settings, and the folder of its run."""
Port = Annotated[int, Field(ge=1, le=65535)]


class ServerSettings(BaseModel):
    """What the operator decides of a coordinator's home.

    Attributes
    ----------
    address : str
        ``HOST:PORT`` by which partners reach the gate.
    superlink_port, page_port : int
        Of the SuperLink and of the operator's page, both on this machine's loopback alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    address: Address
    superlink_port: Port = 9441
    page_port: Port = 9440

    @property
    def superlink(self) -> str:
        """``HOST:PORT`` of the SuperLink; never another host than this one."""
        return f"127.0.0.1:{self.superlink_port}"

    @classmethod
    def open(cls, home: Path) -> ServerSettings:
        """Read ``server.toml``.

        Raises
        ------
        ConfigError
            If there is none, or a key in it is not what was expected.
        """
        file = home / SERVER_FILE
        absent = f"{home}: no {SERVER_FILE}. Expected a folder that `veilrec server init` made."
        return settings_of(cls, read_toml(file, absent), file)

    def write(self, home: Path) -> None:
        """Replace ``server.toml``."""
        write_bytes(home / SERVER_FILE, tomli_w.dumps(self.model_dump()).encode())
