"""What happened round by round: charts, and the same as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulations.report.charts import Limit, Line, line_chart
from simulations.report.figures import NOTHING, compact_text, epsilon_text
from simulations.report.markup import Html, element
from simulations.report.source import Round, Run
from simulations.report.tables import table

MOST_ROUND_ROWS = 200


def curves(run: Run) -> Html | None:
    """All charts that the run has numbers for, and their table."""
    drawn = [element("figure", element("h3", name), chart) for name, chart in _charts(run) if chart is not None]
    if not drawn:
        return None
    charts = element("div", *drawn, class_="charts")
    return element("section", element("h2", "Curves"), charts, _round_table(run))


def _charts(run: Run) -> list[tuple[str, Html | None]]:
    return [
        ("Epsilon spent", _epsilon_chart(run)),
        ("Update and noise", _norm_chart(run)),
        ("NDCG@10", _chart(run.rounds, "ndcg", "NDCG@10 by round", lambda line: line.ndcg)),
        ("Loss", _loss_chart(run)),
        ("Seconds per round", _chart(run.rounds, "seconds", "Seconds by round", lambda line: line.seconds)),
    ]


def _chart(rounds: Sequence[Round], name: str, title: str, value: Callable[[Round], float | None]) -> Html | None:
    return line_chart(name, title, [Line(title, _points(rounds, value))])


def _epsilon_chart(run: Run) -> Html | None:
    spent = Line("spent", _points(run.rounds, lambda line: line.epsilon))
    return line_chart("epsilon", "Epsilon spent by round", [spent], Limit("the whole plan", run.epsilon))


def _norm_chart(run: Run) -> Html | None:
    # The prior's message is a matrix of counts: its norm cannot share an axis with those of training.
    train = [line for line in run.rounds if line.stage != "prior"]
    lines = [
        Line("update, with noise", _points(train, lambda line: line.update_norm)),
        Line("noise, expected", _points(train, lambda line: line.noise_norm)),
    ]
    return line_chart("norms", "Norm of the update and of its noise by round", lines)


def _loss_chart(run: Run) -> Html | None:
    # A loss is computed on raw data and accounted for by nothing: it is shown only where nothing is promised.
    if run.mode != "none":
        return None
    return _chart(run.rounds, "loss", "Training loss by round", lambda line: line.loss)


def _points(rounds: Sequence[Round], value: Callable[[Round], float | None]) -> tuple[tuple[float, float], ...]:
    return tuple((float(line.number), found) for line in rounds if (found := value(line)) is not None)


def _round_table(run: Run) -> Html:
    columns: dict[str, Callable[[Round], float | None]] = {
        "Epsilon": lambda line: line.epsilon,
        "Update norm": lambda line: line.update_norm,
        "Noise norm": lambda line: line.noise_norm,
        "NDCG@10": lambda line: line.ndcg,
        "Seconds": lambda line: line.seconds,
        "Partners": lambda line: line.cohort,
    }
    shown = {name: value for name, value in columns.items() if any(value(line) is not None for line in run.rounds)}
    stride = max(1, math.ceil(len(run.rounds) / MOST_ROUND_ROWS))
    lines = [*run.rounds[:-1:stride], *run.rounds[-1:]]
    rows = [
        [str(line.number), line.stage, *(_round_cell(name, value(line)) for name, value in shown.items())]
        for line in lines
    ]
    caption = "What the charts show." if stride == 1 else f"What the charts show, every {stride}th round."
    return element(
        "details",
        element("summary", "The same as a table"),
        table(caption, ["Round", "Stage", *shown], rows),
    )


def _round_cell(name: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    return epsilon_text(value) if name == "Epsilon" else compact_text(value)
