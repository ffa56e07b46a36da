"""TensorBoard event files of a run: the numbers of ``rounds.jsonl`` and nothing else."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from simulations.report.source import Fields, Round, read_round

FOLDER = "tensorboard"


class EventWriter:
    """Writes rounds to ``<run folder>/tensorboard`` as they end.

    Parameters
    ----------
    run_dir : Path
        The run folder.
    first_round : int
        Where a resumed run goes on: TensorBoard drops what an earlier process wrote from there on.

    Notes
    -----
    Training rounds and the prior's messages have tags of their own: their norms are on different scales.
    A loss beside an epsilon is covered by no accountant and is not written.
    """

    def __init__(self, run_dir: Path, *, first_round: int = 1) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = first_round if first_round > 1 else None
        self._writer = SummaryWriter(str(run_dir / FOLDER), purge_step=purge_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def round(self, record: Mapping[str, object]) -> None:
        """Write one line of ``rounds.jsonl``; missing, null and infinite fields are left out.

        Raises
        ------
        SchemaError
            The record has no round number, or a field is mistyped.
        """
        line = read_round(Fields(record, "the round record"))
        for tag, value in _scalars(line):
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(tag, value, line.number)
        # A run may be killed: what TensorBoard shows should be what rounds.jsonl holds.
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def write_events(run_dir: Path, rounds: Sequence[Mapping[str, object]]) -> Path:
    """Write the event files of all rounds anew, in place of those that were there.

    Parameters
    ----------
    run_dir : Path
        The run folder.
    rounds : sequence of mapping
        The lines of ``rounds.jsonl``.

    Returns
    -------
    Path
        The folder ``tensorboard``.

    Raises
    ------
    SchemaError
        A record has no round number, or a field is mistyped; event files from before are kept.
    """
    target = run_dir / FOLDER
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=".tensorboard-") as temporary:
        with EventWriter(Path(temporary)) as writer:
            for record in rounds:
                writer.round(record)
        if target.exists():
            shutil.rmtree(target)
        (Path(temporary) / FOLDER).replace(target)
    return target


def _scalars(line: Round) -> Iterator[tuple[str, float | None]]:
    # Tags must not hold "@".
    yield "privacy/epsilon", line.epsilon
    yield "quality/ndcg_at_10", line.ndcg
    yield f"{line.stage}/update_norm", line.update_norm
    yield f"{line.stage}/noise_norm", line.noise_norm
    yield f"{line.stage}/loss", line.loss if line.epsilon is None else None
    yield f"{line.stage}/seconds", line.seconds
    yield f"{line.stage}/cohort", line.cohort
    yield "traffic/bytes_up", line.bytes_up
    yield "traffic/bytes_down", line.bytes_down
