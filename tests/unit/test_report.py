"""The report of a run: what it says, what it must not say, and what it does with bad input."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from html_page import Page
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.errors import DataError, SchemaError
from simulations.report import render

SVG = "{http://www.w3.org/2000/svg}"

RUN: dict[str, Any] = {
    "veilrec_version": "0.1.0",
    "seed": 0,
    "engine": "inprocess",
    "data": {"name": "bgg25", "users": 43660, "items": 901, "interactions": 1200345, "partners": 4},
    "model": {"base": "a-bert", "base_sha256": "53aa", "adapted_layers": 2, "lora_rank": 8},
    "privacy": {
        "mode": "distributed",
        "unit": "user",
        "adjacency": "add-or-remove",
        "epsilon": 2.9971,
        "delta": 1e-6,
        "accountant": "pld",
        "rounds": 3,
        "masked": False,
        "prior_epsilon": 1.5,
        "partners_per_user": 1,
        "randomness": "seeded",
        "warnings": ["The plan is tight."],
    },
    "metrics": {
        "federated": {"ndcg@10": 0.15, "hr@10": 0.24, "mrr": 0.11, "coverage@10": 0.6, "users": 40123},
        "prior_only": {"ndcg@10": 0.12, "hr@10": 0.2, "mrr": 0.1},
        "pooled": {"ndcg@10": 0.2, "hr@10": 0.3, "mrr": 0.2},
        "popularity": {"ndcg@10": 0.05, "hr@10": 0.1, "mrr": 0.05},
        "ease": {"ndcg@10": 0.1, "hr@10": None},
        "frozen_bert": {"ndcg@10": 0.125},
        "local_only": {},
        "cold_items": {"users": 12, "threshold": 5, "among_cold_ndcg@10": 0.21},
    },
    "timing": {"total_s": 900.2, "text_stage_s": 5.3, "users_per_s": 95.0},
    "traffic": {"bytes_up_per_partner_round": 2048, "bytes_down_per_partner_round": 1024},
    "partners": [{"name": "north", "users": 4000, "interactions": 90000}],
}
ROUNDS: list[dict[str, Any]] = [
    {"round": 1, "stage": "prior", "cohort": 4, "seconds": 2.0, "bytes_up": 10240, "epsilon": 1.5},
    {"round": 2, "stage": "train", "seconds": 1.0, "epsilon": 2.1, "update_norm": 0.4, "noise_norm": 0.3},
    {"round": 3, "seconds": 1.1, "epsilon": 2.9971, "update_norm": 0.5, "noise_norm": 0.3, "ndcg@10": 0.15},
]


def write(folder: Path, run: object, rounds: list[dict[str, Any]] | None = None) -> Path:
    (folder / "run.json").write_text(json.dumps(run))
    if rounds is not None:
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    return folder


def page(folder: Path, run: object, rounds: list[dict[str, Any]] | None = None) -> str:
    return render(write(folder, run, rounds)).read_text(encoding="utf-8")


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    run = copy.deepcopy(RUN)
    change(run)
    return run


def without_privacy() -> dict[str, Any]:
    return edited(lambda run: run.update(privacy={"mode": "none", "epsilon": None, "masked": False}))


def svgs(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg xmlns.*?</svg>", text, re.DOTALL)]


def test_report_is_one_valid_page_that_needs_nothing_else(tmp_path: Path) -> None:
    text = page(tmp_path, RUN, ROUNDS)
    parsed = Page(text)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert not {name for _, attributes in parsed.tags for name in attributes} & {"src", "href", "onload"}
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text and "@import" not in text
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'") in [
        (tag, attributes.get("content")) for tag, attributes in parsed.tags
    ]


def test_every_table_has_a_caption_and_every_header_a_scope(tmp_path: Path) -> None:
    tags = Page(page(tmp_path, RUN, ROUNDS)).tags
    headers = [attributes for tag, attributes in tags if tag == "th"]
    assert headers and all(attributes.get("scope") in {"row", "col"} for attributes in headers)
    count = {name: sum(tag == name for tag, _ in tags) for name in ("table", "caption")}
    assert count["table"] == count["caption"] >= 6


def test_every_chart_is_xml_with_title_and_description(tmp_path: Path) -> None:
    charts = svgs(page(tmp_path, RUN, ROUNDS))
    ids: list[str] = []
    for chart in charts:
        title, desc = chart.find(f"{SVG}title"), chart.find(f"{SVG}desc")
        assert title is not None and desc is not None and title.text and desc.text
        ids += [title.attrib["id"], desc.attrib["id"]]
        assert chart.attrib["aria-labelledby"].split() == ids[-2:]
    assert len(charts) == 4
    assert len(set(ids)) == len(ids)


def test_headline_compares_with_the_best_baseline_and_states_the_guarantee(tmp_path: Path) -> None:
    text = Page(page(tmp_path, RUN, ROUNDS)).text
    assert "a-bert on bgg25" in text
    assert "1.20 × the best baseline, Frozen BERT (0.1250)." in text
    assert "3.00 × popularity." in text
    assert "User-level epsilon = 2.998 at delta = 1e-6." in text


def test_headline_without_baselines_or_without_evaluation_says_only_what_is_known(tmp_path: Path) -> None:
    alone = Page(page(tmp_path, edited(lambda run: run.update(metrics={"federated": {"ndcg@10": 0.1}})))).text
    assert "0.1000" in alone and "best baseline" not in alone
    nothing = Page(page(tmp_path, edited(lambda run: run.update(metrics={})))).text
    assert "This run was not evaluated." in nothing and "Results" not in nothing


def test_results_table_takes_ratios_to_popularity_and_the_best_non_neural_method(tmp_path: Path) -> None:
    text = page(tmp_path, RUN)
    row = next(row for row in re.findall(r"<tr>.*?</tr>", text) if "Federated" in row)
    assert Page(row).words[-2:] == ["3.00 ×", "1.25 ×"]
    assert "to Prior only" in text


def test_best_value_of_each_column_is_bold(tmp_path: Path) -> None:
    best = re.findall(r'<td class="best">([^<]+)', page(tmp_path, RUN))
    assert best == ["0.6000", "0.2000", "0.3000", "0.2000"]


def test_each_segment_has_a_table_of_its_own_and_is_no_method(tmp_path: Path) -> None:
    segments = {
        "odd_ones": {"federated": {"ndcg@10": 0.5}},
        "query_only": {"category_popularity": {"ndcg@10": 0.0625}},
        "long_tail": {"federated": {"ndcg@10": 0.03, "users": 77}, "item_knn": {"ndcg@10": 0.02, "users": 77}},
        "few_events": {},
    }
    text = page(tmp_path, edited(lambda run: run["metrics"].update(segments=segments)))
    shown = Page(text).text
    assert shown.index("Long tail: the held-out item") < shown.index("Category popularity") < shown.index("odd ones")
    assert "New users:" not in shown, "nobody was measured"
    assert "0.0300" in re.findall(r'<td class="best">([^<]+)', text)
    row = next(row for row in re.findall(r"<tr>.*?</tr>", text) if "Federated" in row)
    assert Page(row).words[-2:] == ["3.00 ×", "1.25 ×"], "the table of all methods is as it was"


def test_unknown_methods_are_shown_last_and_count_as_baselines(tmp_path: Path) -> None:
    run = edited(lambda run: run["metrics"].update(my_method={"ndcg@10": 0.3}))
    text = Page(page(tmp_path, run)).text
    assert "0.50 × the best baseline, my method (0.3000)." in text
    assert text.rindex("my method") > text.rindex("Popularity")


def test_all_values_are_escaped(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\"'&"
    run = edited(lambda run: None)
    run["data"]["name"] = run["model"]["base"] = run["partners"][0]["name"] = attack
    run["metrics"][attack] = {"ndcg@10": 0.1}
    run["privacy"] |= {"warnings": [attack], "adjacency": attack, "accountant": attack, "unit": attack}
    run[attack] = attack
    text = page(tmp_path, run, [{"round": 1, "stage": attack, "seconds": 1.0}])
    assert "<script" not in text.lower()
    assert Page(text).text.count("alert(1)") >= 9


def test_names_that_are_no_valid_unicode_are_written(tmp_path: Path) -> None:
    assert "Results" in page(tmp_path, edited(lambda run: run["data"].update(name="\ud800")))


def test_same_run_gives_the_same_bytes_and_leaves_no_other_file(tmp_path: Path) -> None:
    first = page(tmp_path, RUN, ROUNDS)
    assert page(tmp_path, RUN, ROUNDS) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "rounds.jsonl", "run.json"]


def test_reach_of_the_guarantee_is_told_term_by_term(tmp_path: Path) -> None:
    text = page(tmp_path, RUN)
    words = Page(text).text
    assert "The sum was not masked" in words and "protects nobody's real data" in words
    assert "The plan is tight." in words
    assert text.count("<dt>") == text.count("<dd>") == 9


def test_run_without_privacy_has_a_red_banner_and_no_epsilon(tmp_path: Path) -> None:
    text = page(tmp_path, without_privacy(), [{"round": 1, "epsilon": None, "loss": 5.0}])
    assert '<div class="notice severe"' in text
    words = Page(text).text
    assert "There is no bound on what its models reveal" in words
    assert "Reach of the guarantee" not in words and "ε =" not in words


def test_private_run_has_no_red_banner(tmp_path: Path) -> None:
    assert '<div class="notice severe"' not in page(tmp_path, RUN, ROUNDS)


def test_loss_is_drawn_only_without_privacy(tmp_path: Path) -> None:
    rounds = [{"round": 1, "loss": 5.25, "seconds": 1.0}]
    assert 'id="loss-title"' in page(tmp_path, without_privacy(), rounds)
    assert page(tmp_path, RUN, rounds) == page(tmp_path, RUN, [{"round": 1, "seconds": 1.0}])


def test_norm_of_the_prior_is_not_drawn_among_those_of_training(tmp_path: Path) -> None:
    rounds = [{**ROUNDS[0], "update_norm": 777.0}, *ROUNDS[1:]]
    chart = next(svg for svg in svgs(page(tmp_path, RUN, rounds)) if "norms" in svg.attrib["aria-labelledby"])
    assert "777" not in (chart.findtext(f"{SVG}desc") or "777")


MINIMAL = {"privacy": {"mode": "distributed", "epsilon": 1.0, "delta": 1e-6}}


def leaf_paths(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += leaf_paths(value, (*prefix, key))
    return found


def test_minimal_run_has_no_empty_sections(tmp_path: Path) -> None:
    headings = re.findall(r"<h2>([^<]+)", page(tmp_path, MINIMAL))
    assert headings == ["Reach of the guarantee", "Configuration"]


def test_any_optional_field_may_be_missing(tmp_path: Path) -> None:
    needed = {("privacy",), ("privacy", "mode"), ("privacy", "epsilon"), ("privacy", "delta")}
    for path in leaf_paths(RUN):
        run = copy.deepcopy(RUN)
        parent = run
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        if path in needed:
            with pytest.raises(SchemaError, match=r"run\.json"):
                page(tmp_path, run, ROUNDS)
        else:
            Page(page(tmp_path, run, ROUNDS))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("privacy",), [], "an object in field privacy of "),
        (("privacy", "mode"), "central", "one of distributed, local, none in field privacy.mode of "),
        (("privacy", "epsilon"), "3", "a number in field privacy.epsilon of "),
        (("privacy", "epsilon"), -1, "a number of at least 0 in field privacy.epsilon of "),
        (("privacy", "delta"), math.nan, "a number of at least 0 in field privacy.delta of "),
        (("privacy", "masked"), "yes", "true or false in field privacy.masked of "),
        (("privacy", "warnings"), [1], "a list of strings in field privacy.warnings of "),
        (("data", "name"), 7, "a string in field data.name of "),
        (("data", "users"), True, "a number in field data.users of "),
        (("data", "users"), 10**400, "a number in field data.users of "),
        (("metrics", "ease"), 0.1, "an object in field metrics.ease of "),
        (("metrics", "ease", "mrr"), "a", "a number in field metrics.ease.mrr of "),
        (("metrics", "segments"), 0.1, "an object in field metrics.segments of "),
        (("metrics", "segments"), {"long_tail": []}, "an object in field metrics.segments.long_tail of "),
        (("partners",), {}, "a list of objects in field partners of "),
        (("timing", "total_s"), [], "a number in field timing.total_s of "),
    ],
)
def test_mistyped_field_is_named_with_its_file(
    tmp_path: Path, place: tuple[str, ...], value: object, expected: str
) -> None:
    run = copy.deepcopy(RUN)
    parent = run
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    with pytest.raises(SchemaError) as caught:
        page(tmp_path, run)
    assert str(caught.value) == f"Expected {expected}{tmp_path / 'run.json'}."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "Expected JSON in "),
        (b"[" * 100_000, "Expected JSON in "),
        (b"[1]", "Expected a JSON object in "),
        (b"\xff", "Expected UTF-8 text in "),
    ],
)
def test_run_json_that_is_no_object_is_an_error(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=expected + ".*run.json"):
        render(tmp_path)


def test_missing_run_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected a file .*run\.json"):
        render(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "Expected JSON in "),
        ('{"seconds": 1}', "Expected a number of at least 0 in field round of "),
        ('{"round": 1.5}', "Expected a whole number in field round of "),
        ('{"round": 1e300}', "Expected a whole number in field round of "),
        ('{"round": 2, "epsilon": -1e25}', "Expected a number of at least 0 in field epsilon of "),
        ('{"round": 2, "epsilon": "x"}', "Expected a number in field epsilon of "),
    ],
)
def test_bad_line_of_rounds_is_named_by_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    write(tmp_path, RUN)
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        render(tmp_path)
    assert str(caught.value) == f"{expected}{tmp_path / 'rounds.jsonl'}, line 3."


def test_report_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = page(tmp_path, RUN, ROUNDS)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        render(write(tmp_path, MINIMAL))
    assert (tmp_path / "report.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "rounds.jsonl", "run.json"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(leaf_paths(RUN)), json_values)
def test_any_json_in_any_field_gives_a_valid_page_or_a_data_error(
    tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    run = copy.deepcopy(RUN)
    parent = run
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        text = page(tmp_path, run, ROUNDS)
    except DataError:
        return
    Page(text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"round": st.integers(0, 10**9), "update_norm": st.floats()}), max_size=5))
@example([{"round": 1, "update_norm": 5e-324}, {"round": 1, "update_norm": 1.7e308}])
@example([{"round": 1, "update_norm": 1e-300}, {"round": 2, "update_norm": 1e300}])
def test_any_numbers_in_the_rounds_can_be_drawn(tmp_path: Path, rounds: list[dict[str, Any]]) -> None:
    text = page(tmp_path, RUN, rounds)
    Page(text)
    svgs(text)


def test_long_runs_have_a_table_of_bounded_length_that_ends_with_the_last_round(tmp_path: Path) -> None:
    rounds = [{"round": k, "epsilon": k / 5000} for k in range(1, 5001)]
    text = page(tmp_path, MINIMAL, rounds)
    numbers = re.findall(r'<tr><th scope="row">(\d+)</th>', text)
    assert len(numbers) <= 201
    assert numbers[-1] == "5000"
    assert "every 25th round" in text
