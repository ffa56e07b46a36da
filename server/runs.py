"""Runs at the SuperLink: one is begun for each try, and looked after over Flower's control API."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.app_bundle import APP
from server.registry import control
from shared.errors import ProtocolError

COMPLETED, FINISHED = "finished:completed", "finished"


@dataclass(frozen=True, slots=True)
class RunState:
    """What the SuperLink says of a run.

    Attributes
    ----------
    status : str
        ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed`` or ``finished:stopped``.
    """

    status: str

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status.startswith(FINISHED)

    @property
    def completed(self) -> bool:
        """Whether it has done all that it was to do."""
        return self.status == COMPLETED


def start_run(home: Path, address: str, settings: Mapping[str, str]) -> int:
    """Submit the home's app bundle with these settings, as the one run that goes on; Flower's id of it.

    Raises
    ------
    ProtocolError
        If the SuperLink does not take it.
    """
    from flwr.cli.build import build_fab_from_disk
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.fab import Fab

    stop_open_runs(home, address)
    content = build_fab_from_disk(home / APP)
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(settings)))
    with control(home, address) as client:
        started = client.StartRun(request)
    if not started.HasField("run_id"):
        raise ProtocolError("Expected the SuperLink to start a run, it did not.")
    return int(started.run_id)


def state_of(home: Path, address: str, run_id: int) -> RunState:
    """How a run stands.

    Raises
    ------
    ProtocolError
        If the SuperLink does not answer, or does not know the run.
    """
    from flwr.proto.control_pb2 import ListRunsRequest

    with control(home, address) as client:
        run = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict.get(run_id)
    if run is None:
        raise ProtocolError("Expected the SuperLink to know the run, it does not.")
    status = run.status
    return RunState(f"{status.status}:{status.sub_status}" if status.sub_status else status.status)


def stop_open_runs(home: Path, address: str) -> None:
    """End all runs that go on, of an earlier life: partners' answers to them are dropped."""
    from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest

    with control(home, address) as client:
        for run_id, run in client.ListRuns(ListRunsRequest()).run_dict.items():
            if run.status.status != FINISHED:
                client.StopRun(StopRunRequest(run_id=run_id))
