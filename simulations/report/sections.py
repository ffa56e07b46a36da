"""The parts of the page. Each takes the run and gives markup, or None where the run has nothing for it."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report import guarantee
from simulations.report.charts import bar
from simulations.report.figures import (
    NOTHING,
    bytes_text,
    compact_text,
    duration_text,
    epsilon_text,
    number_text,
    ratio_text,
)
from simulations.report.markup import Html, element, fragment
from simulations.report.methods import (
    COLD,
    HEADLINE,
    METRICS,
    SEGMENT_NAMES,
    Comparison,
    Method,
    compare,
    compare_segments,
    ratio,
)
from simulations.report.source import Fields, Run
from simulations.report.tables import leaves, table

MODE_NAMES = {
    "distributed": "distributed: every partner adds a share of the noise",
    "local": "local: every partner adds the whole noise",
    "none": "none: no noise, no guarantee",
}
TIMING_NAMES = {
    "total_s": "Total",
    "text_stage_s": "Text stage",
    "training_s": "Training",
    "evaluation_s": "Evaluation",
}
NOT_CONFIGURATION = ("metrics", "epsilons", "timing", "traffic", "partners", COLD)


def header(run: Run) -> Html:
    """Model, data and the three figures that matter."""
    return element(
        "header",
        element("p", "Veilrec run report", class_="soft"),
        element("h1", title(run)),
        element("p", _data_line(run.fields.section("data")), class_="soft"),
        *(_notice(notice) for notice in guarantee.notices(run) if notice.severe),
        element("div", _quality_card(compare(run.fields)), _privacy_card(run), _mode_card(run), class_="cards"),
    )


def title(run: Run) -> str:
    """Model and data set, as far as the run names them."""
    model, data = run.fields.section("model").text("base"), run.fields.section("data").text("name")
    return " on ".join(part for part in (model, data) if part) or "A federated run"


def reach(run: Run) -> Html | None:
    """The reach of the guarantee; in mode none the banner in the header says all there is."""
    terms = guarantee.statements(run)
    if not terms:
        return None
    entries = [part for term in terms for part in (element("dt", term.name), element("dd", term.text))]
    return _section(
        "Reach of the guarantee",
        element("p", element("strong", _sentence(guarantee.headline(run)))),
        *(_notice(notice) for notice in guarantee.notices(run)),
        element("dl", *entries),
        *_readings(run),
    )


def _readings(run: Run) -> list[Html]:
    rows = [
        [
            *(row.text(key) or NOTHING for key in ("name", "unit", "adjacency")),
            epsilon_text(row.required_amount("epsilon")),
            row.text("note") or NOTHING,
        ]
        for row in run.fields.sections("epsilons")
    ]
    head = ["Reading", "Unit", "Adjacency", "Epsilon", "What it says"]
    return [table("The same plan read in other ways. Only the first row is the promise.", head, rows)] if rows else []


def results(run: Run) -> Html | None:
    """The table of all methods."""
    comparison = compare(run.fields)
    if not comparison.methods:
        return None
    beaten = comparison.best_non_neural
    columns = [METRICS[key] for key in comparison.columns]
    head = ["Method", *columns, "to popularity", f"to {beaten.label}" if beaten else "to best non-neural"]
    rows = [_method_row(method, comparison) for method in comparison.methods]
    caption = (
        "Full ranking over all items that the user has not seen; the last interaction is held out. The best"
        " value of each column is bold. The last columns are ratios of NDCG@10: to popularity, and to the"
        " best method without a neural network."
    )
    return _section("Results", table(caption, head, rows), _segments(run.fields), _cold(run.fields))


def costs(run: Run) -> Html | None:
    """Time and traffic."""
    tables = [table for table in (_timing(run.fields.section("timing")), _traffic(run)) if table is not None]
    return _section("Time and traffic", *tables) if tables else None


def partners(run: Run) -> Html | None:
    """Who took part."""
    listed = run.fields.sections("partners")
    if not listed:
        return None
    rows = [
        [partner.text("name") or NOTHING, *(_count(partner.number(key)) for key in ("users", "interactions"))]
        for partner in listed
    ]
    return _section(
        "Partners",
        table("Only a simulation knows these numbers.", ["Partner", "Users", "Interactions"], rows),
    )


def configuration(run: Run) -> Html:
    """Every setting that the run wrote down."""
    kept = {key: value for key, value in run.fields.values.items() if key not in NOT_CONFIGURATION}
    rows: list[Sequence[str]] = [[key, element("td", text, class_="text")] for key, text in leaves(kept)]
    return element(
        "section",
        element("h2", "Configuration"),
        element(
            "details",
            element("summary", "All settings of run.json"),
            table("Settings of the run.", ["Field", element("th", "Value", scope="col", class_="text")], rows),
        ),
    )


def _section(name: str, *children: Html | None) -> Html:
    return element("section", element("h2", name), *children)


def _notice(notice: guarantee.Notice) -> Html:
    return element(
        "div",
        element("strong", notice.name),
        element("p", notice.text),
        class_="notice severe" if notice.severe else "notice",
        role="note",
    )


def _card(name: str, value: str, *lines: str | None) -> Html:
    told = (element("p", line, class_="soft") for line in lines if line)
    return element("div", element("p", name, class_="soft"), element("p", value, class_="value"), *told, class_="card")


def _data_line(data: Fields) -> str:
    counts = ((data.number(key), key) for key in ("users", "items", "interactions", "partners"))
    return ", ".join(f"{_count(count)} {key}" for count, key in counts if count is not None)


def _quality_card(comparison: Comparison) -> Html:
    ours, base = comparison.get("federated"), comparison.best_baseline
    if ours is None or ours.headline is None:
        return _card("NDCG@10, federated", NOTHING, "This run was not evaluated.")
    versus = None
    if base is not None:
        versus = (
            f"{ratio_text(ratio(ours.headline, base))} the best baseline, {base.label} ({number_text(base.headline)})."
        )
    popular = ratio(ours.headline, comparison.get("popularity"))
    return _card(
        "NDCG@10, federated",
        number_text(ours.headline),
        versus,
        f"{ratio_text(popular)} popularity." if popular is not None else None,
    )


def _privacy_card(run: Run) -> Html:
    if run.mode == "none":
        return _card("Privacy", "none", "No epsilon: nothing bounds what the model reveals.")
    limits = "; ".join(notice.name.lower() for notice in guarantee.notices(run) if notice.name != "Warning")
    return _card(
        "Privacy",
        f"ε = {epsilon_text(run.epsilon)}",
        _sentence(guarantee.headline(run)),
        f"Read with care: {limits}." if limits else None,
    )


def _mode_card(run: Run) -> Html:
    rounds = run.privacy.number("rounds") or len(run.rounds) or None
    return _card(
        "Mode",
        run.mode,
        _sentence(MODE_NAMES[run.mode].partition(": ")[2]),
        f"{_count(rounds)} rounds." if rounds is not None else None,
    )


def _method_row(method: Method, comparison: Comparison) -> Sequence[str]:
    bases = (comparison.get("popularity"), comparison.best_non_neural)
    return [
        _method_name(method),
        *(_metric_cell(method, key, comparison) for key in comparison.columns),
        *(ratio_text(ratio(method.headline, base)) for base in bases),
    ]


def _method_name(method: Method) -> Html:
    return element("th", method.label, element("span", method.what) if method.what else None, scope="row")


def _metric_cell(method: Method, key: str, comparison: Comparison) -> Html:
    value, best = method.values.get(key), comparison.best_value(key)
    if key == "users" or value is None or best is None:
        return element("td", _count(value) if key == "users" else number_text(value))
    is_best = value == best
    drawing = bar(value / best if best > 0 else 0.0, is_best) if key == HEADLINE else None
    return element("td", number_text(value), drawing, class_="best" if is_best else None)


def _segments(fields: Fields) -> Html | None:
    tables = [
        table(
            SEGMENT_NAMES.get(name, name.replace("_", " ")),
            ["Method", *(METRICS[key] for key in comparison.columns)],
            [
                [_method_name(method), *(_metric_cell(method, key, comparison) for key in comparison.columns)]
                for method in comparison.methods
            ],
        )
        for name, comparison in compare_segments(fields).items()
    ]
    return fragment([element("h3", "Segments"), *tables]) if tables else None


def _cold(fields: Fields) -> Html | None:
    metrics = fields.section("metrics")
    cold = (metrics if COLD in metrics.values else fields).section(COLD)
    rows = [[key.replace("_", " "), text] for key, text in leaves(cold.values)]
    if not rows:
        return None
    return fragment([element("h3", "Cold items"), table("Items with few interactions.", ["Figure", "Value"], rows)])


def _timing(timing: Fields) -> Html | None:
    rows = [
        [name, duration_text(seconds)]
        for key, name in TIMING_NAMES.items()
        if (seconds := timing.number(key)) is not None
    ]
    speed = timing.number("users_per_s")
    if speed is not None:
        rows.append(["Users per second in training", compact_text(speed)])
    return table("Time.", ["Part", "Time"], rows) if rows else None


def _traffic(run: Run) -> Html | None:
    traffic = run.fields.section("traffic")
    rows = []
    for direction, name in (("up", "To the server"), ("down", "From the server")):
        each = traffic.number(f"bytes_{direction}_per_partner_round")
        counts = [line.bytes_up if direction == "up" else line.bytes_down for line in run.rounds]
        known = [count for count in counts if count is not None]
        if each is not None or known:
            rows.append(
                [
                    name,
                    bytes_text(each) if each is not None else NOTHING,
                    bytes_text(sum(known)) if known else NOTHING,
                ]
            )
    head = ["Traffic of one partner", "A round", "The whole run"]
    return table("Traffic.", head, rows) if rows else None


def _count(value: float | None) -> str:
    return number_text(value, 0)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
