"""What a person sees while a run goes on, and the table at its end.

All of it goes to stderr: stdout belongs to the result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from simulations.report import guarantee
from simulations.report.figures import duration_text, epsilon_text, number_text, ratio_text
from simulations.report.methods import METRICS, Comparison, Method, compare, ratio
from simulations.report.source import Fields, Round, check_run, read_round

PLAIN_LINES = 10
"""About so many lines are printed over a run where there is no terminal."""
RECENT_ROUNDS = 10
"""The time left is estimated from so many rounds."""


TERMINAL_COLUMNS = ("ndcg@10", "hr@10", "mrr", "coverage@10")
"""What fits 80 columns; the report has the rest."""


class StageProgress:
    """Progress of one stage; made by `RunProgress.stage`."""

    def __init__(self, display: Progress | None, task: TaskID | None) -> None:
        self._display = display
        self._task = task

    def advance(self, count: int = 1) -> None:
        """So many more parts of the stage are done."""
        if self._display is not None and self._task is not None:
            self._display.advance(self._task, count)


class RunProgress:
    """A progress display on stderr; plain lines where stderr is no terminal or `enabled` is False.

    Parameters
    ----------
    total_rounds : int
        Number of the last round.
    enabled : bool
        False with ``--json``: no moving display even on a terminal.
    console : Console, optional
        Where to draw; stderr by default.

    Examples
    --------
    >>> with RunProgress(100, enabled=True) as progress:      # doctest: +SKIP
    ...     with progress.stage("text vectors", total=901) as stage:
    ...         stage.advance(64)
    ...     progress.round_done({"round": 1, "stage": "train", "seconds": 1.2, "epsilon": 0.3})
    """

    def __init__(self, total_rounds: int, *, enabled: bool, console: Console | None = None) -> None:
        self._total = total_rounds
        self._console = console or Console(stderr=True)
        self._display = _display(self._console) if enabled and self._console.is_terminal else None
        self._rounds: TaskID | None = None
        self._recent: deque[float] = deque(maxlen=RECENT_ROUNDS)

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[StageProgress]:
        """Show a stage outside the rounds, such as the text vectors, until the block ends.

        Parameters
        ----------
        name : str
            What is done.
        total : int, optional
            Number of parts, where it is known.
        """
        start = time.monotonic()
        if self._display is None:
            self._plain(f"{name} ...")
            yield StageProgress(None, None)
        else:
            task = self._display.add_task(name, total=total, told="")
            try:
                yield StageProgress(self._display, task)
            finally:
                self._display.remove_task(task)
        self._plain(f"{name}: {duration_text(time.monotonic() - start)}")

    def round_done(self, record: Mapping[str, object]) -> None:
        """Show a round that is over.

        Parameters
        ----------
        record : mapping
            The line of ``rounds.jsonl``.

        Raises
        ------
        SchemaError
            The record has no round number, or a field is mistyped.
        """
        line = read_round(Fields(record, "the round record"))
        if line.seconds is not None and line.stage != "prior":
            self._recent.append(line.seconds)
        told = "  ".join(self._told(line))
        if self._display is None:
            if self._is_due(line.number):
                self._plain(f"round {line.number}/{self._total}  {told}")
            return
        if self._rounds is None:
            self._rounds = self._display.add_task("rounds", total=self._total, told="")
        self._display.update(self._rounds, completed=line.number, told=told)

    def _told(self, line: Round) -> Iterator[str]:
        yield "no privacy" if line.epsilon is None else f"epsilon {epsilon_text(line.epsilon)}"
        if line.seconds is not None:
            yield f"{duration_text(line.seconds)}/round"
        left = self._total - line.number
        if self._recent and left > 0:
            yield f"{duration_text(sum(self._recent) / len(self._recent) * left)} left"
        # A loss that stands beside an epsilon is covered by none: it is not shown.
        if line.loss is not None and line.epsilon is None:
            yield f"loss {line.loss:.4f}"
        if line.ndcg is not None:
            yield f"NDCG@10 {line.ndcg:.4f}"

    def _is_due(self, number: int) -> bool:
        return number >= self._total or number % math.ceil(self._total / PLAIN_LINES) == 0

    def _plain(self, text: str) -> None:
        if self._display is None:
            print(text, file=self._console.file, flush=True)
        else:
            self._display.console.print(Text(text, style="dim"))


def results_table(run: Mapping[str, object]) -> Table:
    """The final table: one row a method, the best value of each column in bold.

    Parameters
    ----------
    run : mapping
        The content of ``run.json``.

    Raises
    ------
    SchemaError
        A field is missing or mistyped.
    """
    checked = check_run(Fields(run, "run.json"))
    comparison = compare(checked.fields)
    name = checked.fields.section("data").text("name")
    table = Table(
        title=Text(f"Results on {name}" if name else "Results"),
        caption=Text(f"federated: {guarantee.headline(checked)}"),
    )
    table.add_column("method", no_wrap=True)
    columns = [key for key in comparison.columns if key in TERMINAL_COLUMNS]
    for key in columns:
        table.add_column(METRICS[key], justify="right")
    table.add_column("× popularity", justify="right")
    for method in comparison.methods:
        table.add_row(*_cells(method, comparison, columns), style="cyan" if method.key == "federated" else None)
    return table


def _cells(method: Method, comparison: Comparison, columns: list[str]) -> Iterator[Text]:
    # Text, not str: names come from files and may look like rich's markup.
    yield Text(method.label)
    for key in columns:
        value = method.values.get(key)
        best = value is not None and value == comparison.best_value(key)
        yield Text(number_text(value, 4), style="bold" if best else "")
    yield Text(ratio_text(ratio(method.headline, comparison.get("popularity"))))


def _display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        # By default rich sends what is printed to stdout to its own console, which is stderr here.
        redirect_stdout=False,
    )
