"""The page that the benchmark writes: per data set the command, the frontier, all figures, the differences, plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.files import write_bytes
from simulations.benchmarks.quality.labels import method_label, promise_label
from simulations.benchmarks.quality.runner import Outcome, Sizes
from simulations.benchmarks.quality.study import FEDERATED, data_name
from simulations.benchmarks.quality.summary import HEADLINE, Comparison, Row, comparisons_of, rows_of
from simulations.benchmarks.show import markdown

FIGURES = "figures"
COLUMNS = {
    HEADLINE: "NDCG@10",
    "hr@10": "HR@10",
    "mrr": "MRR",
    "coverage@10": "coverage",
    "tail_ndcg@10": "NDCG@10 long tail",
    "cold_ndcg@10": "NDCG@10 cold",
}
HEAD = """# Ranking quality

Written by `veilrec bench quality --write`; edit the program, not this page. Full ranking over all items that a user
has not met, last item held out, ties in time broken by a seeded hash, users with five or more events. Every baseline
is tuned on the last item but one, once a data set and promise, in the first seed's order of ties (under another seed
some of what is reported was in that split: docs/results.md); *federated* is the preset of `veilrec simulate`, with
what the command sets; without privacy its rounds and prior are tuned as the baselines are, unless `--no-tune` is
given, and under privacy they are not, while what tuning a private baseline would cost is not billed. *Before training*
is what it has before its first training round: the prior, and what frozen texts weigh; *prior only* has no texts.
A mean is over seeds, which change the order of ties (and with it what is held out), the start, the sampling, the
partition and the noise (which is the same for all partitions); ± is half of the 95 % Student-t interval over seeds,
from three seeds on. Epsilon is user level. Baselines without a partition in their name see all partners' data at
one place; one that is federated itself has the IID partition. Long tail: the held-out item is among the least
popular 80 % of the catalogue; cold: it has at most five training interactions.
"""


def write_document(outcome: Outcome, file: Path) -> None:
    """Write the page, and its plots to ``figures/`` beside it.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    from simulations.benchmarks.quality.figures import draw

    rows, differences = rows_of(outcome.results), comparisons_of(outcome.results)
    parts = [HEAD, _canary(outcome), *_state(outcome)]
    for asked in outcome.study.data:
        name = data_name(asked)
        own = [row for row in rows if row.group.data == name]
        if not own:
            continue
        plots = draw(name, own, file.parent / FIGURES)
        compared = [one for one in differences if one.ours.data == name]
        parts.append(_section(name, outcome.sizes[name], own[0].partners, outcome.study.command([asked]), own))
        parts.append(_differences(compared))
        parts += [f"![{title}]({FIGURES}/{plot.name})\n" for title, plot in plots.items()]
    write_bytes(file, "\n".join(part for part in parts if part).encode())


def _canary(outcome: Outcome) -> str:
    found = ", ".join(f"{name} {rate:.3f}" for name, rate in outcome.canary.hit_rates.items())
    return (
        "Before anything is measured, a canary seeks leaks in the evaluator, each of which would bring HR@10 near 1\n"
        f"(`simulations/benchmarks/quality/canary.py`): {found};\n"
        f"chance is {outcome.canary.chance:.3f}, the alarm goes off above {outcome.canary.alarm:g}.\n"
    )


def _state(outcome: Outcome) -> Iterable[str]:
    done = len(outcome.results)
    if done < outcome.cells:
        yield f"Of {outcome.cells} cells {done} are done; means are over the seeds that are there.\n"
    states = len({result.code for result in outcome.results})
    if states > 1:
        yield f"The cells were made by {states} states of the code.\n"


def _section(name: str, sizes: Sizes, partners: int, command: str, rows: Sequence[Row]) -> str:
    title = f"## {name}\n\n{sizes.users:,} users, {sizes.items:,} items, {sizes.interactions:,} interactions; "
    title += f"{partners} partners.\n\n```sh\n{command}\n```\n"
    return "\n".join(part for part in [title, _frontier(rows), _relative(rows), _all_figures(rows)] if part)


def _frontier(rows: Sequence[Row]) -> str:
    """NDCG@10: a line a method and partition, a column a promise; the best of a column is bold."""
    epsilons = _promises(rows)
    lines = list(dict.fromkeys((row.group.method, row.group.partition) for row in rows))
    found = {(row.group.method, row.group.partition, row.group.epsilon): row for row in rows}
    best = {e: max(row.means[HEADLINE] for row in rows if row.group.epsilon == e) for e in epsilons}
    lines.sort(key=lambda line: -max(found[*line, e].means[HEADLINE] for e in epsilons if (*line, e) in found))
    body = []
    for line in lines:
        cells = [_with_interval(found.get((*line, e)), best[e]) for e in epsilons]
        body.append([_named(*line), *cells])
    return markdown(["NDCG@10", *(promise_label(epsilon) for epsilon in epsilons)], body)


def _named(method: str, partition: str) -> str:
    label = method_label(method, partition)
    return f"**{label}**" if method == FEDERATED else label


def _relative(rows: Sequence[Row]) -> str:
    """What privacy and the partition leave of the federated model; nothing where there is one row of it."""
    found = {(row.group.partition, row.group.epsilon): row.means[HEADLINE] for row in rows if _is_ours(row)}
    if len(found) < 2:
        return ""
    body = [
        [
            f"federated ({partition}), {promise_label(epsilon)}",
            _share(value, found.get((partition, None))),
            _share(value, found.get(("iid", epsilon))),
        ]
        for (partition, epsilon), value in found.items()
    ]
    return markdown(["NDCG@10", "of the same without privacy", "of the same, IID"], body)


def _is_ours(row: Row) -> bool:
    return row.group.method == FEDERATED


def _share(value: float, whole: float | None) -> str:
    return "-" if not whole else f"{100 * value / whole:.1f} %"


def _promises(rows: Sequence[Row]) -> list[float | None]:
    given = sorted({row.group.epsilon for row in rows if row.group.epsilon is not None}, reverse=True)
    return [*([None] if any(row.group.epsilon is None for row in rows) else []), *given]


def _with_interval(row: Row | None, best: float) -> str:
    if row is None:
        return "-"
    value = f"{row.means[HEADLINE]:.4f}"
    if row.means[HEADLINE] == best:
        value = f"**{value}**"
    bounds = row.intervals.get(HEADLINE)
    return value if bounds is None else f"{value} ± {(bounds[1] - bounds[0]) / 2:.4f}"


def _all_figures(rows: Sequence[Row]) -> str:
    names = [name for name in COLUMNS if any(name in row.means for row in rows)]
    head = ["all figures", "privacy", "seeds", *(COLUMNS[name] for name in names), "seconds"]
    body = [
        [
            _named(row.group.method, row.group.partition),
            promise_label(row.group.epsilon),
            str(len(row.seeds)),
            *(f"{row.means[name]:.4f}" if name in row.means else "-" for name in names),
            f"{row.seconds:.0f}",
        ]
        for row in sorted(rows, key=lambda row: -row.means[HEADLINE])
    ]
    return markdown(head, body)


def _differences(compared: Sequence[Comparison]) -> str:
    if not compared:
        return ""
    lead = (
        "Federated minus the others, NDCG@10 over the same users (paired bootstrap, 95 %, 1,000 resamples of users,\n"
        "each with all seeds); in bold what is not zero by that:\n\n"
    )
    body = [
        [
            f"federated ({one.ours.partition}), {promise_label(one.ours.epsilon)}",
            f"{method_label(one.other.method, one.other.partition)}, {promise_label(one.other.epsilon)}",
            _signed(one),
        ]
        for one in compared
    ]
    return lead + markdown(["of", "against", "difference"], body)


def _signed(one: Comparison) -> str:
    text = f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
    return f"**{text}**" if one.low > 0 or one.high < 0 else text
