"""The status as HTML. Whatever came from a file is escaped; the page has no script or style of its own in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from server.operator_page.chart import norm_chart, seconds_chart
from shared.status_words import UNKNOWN, duration, moment, number, size, spent_of

ROUNDS_SHOWN = 20
WARN_DAYS = 30
Status = dict[str, Any]

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>Veilrec: coordinator</title>
  <link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/assets/page.css">
  <script type="module" src="/assets/page.js"></script>
</head>
<body>
<a class="skip" href="#work">Skip to the status</a>
<header class="top">
  <h1>Veilrec</h1>
  <p>Coordinator {version}. Sums of partners' masked vectors, and no partner's data.</p>
  <p id="fresh" class="fresh" role="status">As of <time datetime="{iso}">{now}</time></p>
</header>
<noscript><p class="notice">Without JavaScript this page does not follow by itself: load it again.</p></noscript>
<main id="work">
{main}
</main>
<footer><p><a href="/status.json">status.json</a> <a href="/metrics">metrics</a></p></footer>
</body>
</html>
"""


def page_of(status: Status) -> str:
    """The whole page."""
    parts = (_run, _partners, _rounds, _traffic, _errors, _files)
    now = moment(status["time"])
    return _PAGE.format(
        version=escape(status["version"]),
        now=now,
        iso=now.replace(" UTC", "Z").replace(" ", "T"),
        main="\n".join(part(status) for part in parts),
    )


def _run(status: Status) -> str:
    run, coordinator = status["run"], status["coordinator"]
    state = coordinator["state"]
    told = f"{state}: no sign since {moment(coordinator['heard'])}" if coordinator["silent"] else state
    told = f"{state}: {coordinator['phase']}" if coordinator["phase"] not in (None, state) else told
    planned = UNKNOWN if run["rounds_planned"] is None else run["rounds_planned"]
    facts = [
        ("Coordinator", _mark(told, state == "running")),
        ("Since", moment(coordinator["since"])),
        ("Run", f"{escape(run['run_id'] or 'none')}, {run['state']}"),
        ("Rounds", f"{run['rounds_done']} of {planned}"),
        ("Epsilon so far", _budget(run)),
        ("Delta", number(run["delta"])),
        ("Last round", moment(run["last_round_at"])),
        ("Quorum", UNKNOWN if run["quorum"] is None else run["quorum"]),
        ("Releases", status["releases"]),
        *((f"Certificate {escape(name)}", _days(told)) for name, told in sorted(status["certificates"].items())),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return _section("run", "Run and budget", f'<dl class="facts">{rows}</dl>')


def _budget(run: Status) -> str:
    if run["mode"] == "none":
        return _mark("no bound: mode none", False)
    if run["epsilon_planned"] is None:
        return number(run["epsilon"])
    told = f"{spent_of(run['epsilon'], run['epsilon_planned'])} planned"
    most, spent = max(run["epsilon_planned"], 1e-9), run["epsilon"] or 0.0
    return f'{told} <meter min="0" max="{most:.6g}" value="{spent:.6g}">{told}</meter>'


def _days(certificate: Status) -> str:
    days = certificate["days_left"]
    told = f"{days:.0f} days left" if days >= 0 else f"ended {-days:.0f} days ago"
    return _mark(told, days >= WARN_DAYS)


def _partners(status: Status) -> str:
    rows = [
        (
            escape(str(row["name"])),
            escape(str(row["status"] or UNKNOWN)),
            _mark("connected" if row["online"] else "not connected", row["online"]),
            moment(row["seen"]),
            "none" if row["receipt"] is None else f"{row['receipt']} lines",
            size(row["bytes_in"]),
            size(row["bytes_out"]),
        )
        for row in status["partners"]
    ]
    heads = ("Partner", "Registry", "Node", "Last seen", "Ledger countersigned", "Received", "Sent")
    return _section("partners", "Partners", _table("Partners", heads, rows, "No partner is enrolled yet."))


def _rounds(status: Status) -> str:
    rounds = status["run"]["rounds"]
    norms, seconds = norm_chart(rounds), seconds_chart(rounds)
    charts = "".join(
        f"<figure><figcaption>{text}</figcaption>{chart}</figure>"
        for text, chart in (
            (
                'Norm of the <span class="key update">update</span> and of its <span class="key noise">noise</span>',
                norms,
            ),
            ("Seconds a round", seconds),
        )
        if chart
    )
    rows = [
        (
            line.get("round", ""),
            escape(str(line.get("stage", ""))),
            line.get("cohort", ""),
            duration(line.get("seconds")),
            size(line.get("bytes_up")),
            size(line.get("bytes_down")),
            number(line.get("epsilon")),
            _norm(line.get("update_norm")),
        )
        for line in rounds[: -ROUNDS_SHOWN - 1 : -1]
    ]
    heads = ("Round", "Stage", "Partners", "Time", "Up, a partner", "Down, a partner", "Epsilon", "Update norm")
    table = _table(f"The last {ROUNDS_SHOWN} rounds, the newest first", heads, rows, "No round is over yet.")
    return _section("rounds", "Rounds", f'<div class="charts">{charts}</div>{table}')


def _norm(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _traffic(status: Status) -> str:
    traffic = status["traffic"]
    rows = [(*map(escape, name.split(" ", 1)), f"{count:,}") for name, count in sorted(traffic["requests"].items())]
    table = _table("Requests at the gate", ("Route", "Answer", "Requests"), rows, "Nothing has come to the gate yet.")
    told = f"<p>Received {size(traffic['bytes_in'])}, sent {size(traffic['bytes_out'])}.</p>"
    return _section("traffic", "Traffic", told + table)


def _errors(status: Status) -> str:
    rows = [(moment(one["time"]), escape(one["family"])) for one in status["errors"]]
    again = [(escape(name), f"{count:,}") for name, count in sorted(status["restarts"].items())]
    told = _table("Attempts that failed, the newest first", ("When", "Error"), rows, "No attempt has failed.")
    restarts = _table("Processes started again", ("Process", "Times"), again, "No process was started again.")
    return _section("errors", "Errors and restarts", told + restarts)


def _files(status: Status) -> str:
    rows = [(escape(note["file"]), escape(note["what"])) for note in status["notes"]]
    return _section("files", "Files", _table("Files that could not be read", ("File", "Why"), rows, "All are there."))


def _section(name: str, title: str, body: str) -> str:
    head = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" class="card" aria-labelledby="{name}-title">{head}{body}</section>'


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], none: str) -> str:
    """A table with its headers; a line instead where there are no rows. Cells are HTML."""
    lines = [
        "<tr>" + "".join(f'<th scope="row">{v}</th>' if not k else f"<td>{v}</td>" for k, v in enumerate(row)) + "</tr>"
        for row in rows
    ]
    if not lines:
        return f'<p class="empty">{none}</p>'
    told = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{caption}">'
        f"<table><caption>{caption}</caption><thead><tr>{told}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _mark(text: str, good: bool) -> str:
    """Colour says it once more, never alone."""
    return f'<span class="{"good" if good else "bad"}">{escape(text)}</span>'
