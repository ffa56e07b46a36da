"""The door of a partner's agent, for errors: the name of an error's family leaves, and nothing else of it."""

from __future__ import annotations

import logging

from flwr.app import RecordDict

from shared.errors import VeilrecError
from shared.wire_frames import pack_error

_log = logging.getLogger("veilrec.client")


def refusal_of(error: Exception) -> RecordDict:
    """What crosses of an error; all of it is told to the partner's own log."""
    _log.error("round refused", exc_info=error)
    if isinstance(error, VeilrecError):
        return pack_error(error.wire_name)
    return pack_error(VeilrecError.__name__)  # its text may hold data
