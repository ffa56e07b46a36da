"""Every form is read into the same two frames, and bad input is named by file, row and column."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from client.data.commands import app
from client.data.formats.columns import INTERACTION_COLUMNS, ITEM_COLUMNS
from client.data.formats.files import json_table
from client.data.ingest import ColumnMapping, RawData, read, write
from shared.errors import ConfigError, DataError, SchemaError

CSV = "user_id,item_id,timestamp,rating\n" + "".join(f"u{k},i{k},{1_500_000_000 + k},4\n" for k in range(20))
AMAZON_2018 = {
    "reviewerID": "A1",
    "asin": "B1",
    "overall": 5.0,
    "reviewText": "Works well.",
    "summary": "Great",
    "unixReviewTime": 1_400_000_000,
    "style": {"Color:": "red"},
}
AMAZON_2023 = {
    "user_id": "A2",
    "parent_asin": "B2",
    "asin": "B2-red",
    "rating": 1.0,
    "text": "Broke.",
    "title": "Bad!",
    "timestamp": 1_600_000_000_123,
}


def file(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def row(data: RawData, k: int = 0) -> dict[str, object]:
    return data.interactions.row(k, named=True)


# --- the forms ------------------------------------------------------------------------------------


def test_the_parquet_form_is_read_and_rows_with_placeholder_dates_are_dropped(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "user_id": [1, 2],
            "item_id": ["a", "b"],
            "timestamp": [10, 20],
            "rating": [float("nan"), 5.0],
            "review_title": ["", "Fine"],
            "review": ["", "I like it."],
            "date_is_placeholder": [True, False],
        }
    ).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item_id": ["a"], "title": ["A"], "text": [None], "categories": ["x"]}).write_parquet(
        tmp_path / "items.parquet"
    )
    data = read(tmp_path)
    assert data.name == tmp_path.name
    assert data.interactions.rows() == [("2", "b", 20, "rating", 5.0, "Fine. I like it.")]
    assert data.items.rows() == [("a", "A", "", "x")]


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    data = read(file(tmp_path, "events.csv", CSV))
    write(data, tmp_path / "out")
    again = read(tmp_path / "out", name="events")
    assert again.interactions.equals(data.interactions)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "interactions.parquet",
        "items.parquet",
    ]


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    data = read(file(tmp_path, "events.csv", CSV))
    broken = RawData("x", data.interactions.drop("review"), data.items)
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        write(broken, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_writing_to_a_place_that_is_a_file_is_a_config_error(tmp_path: Path) -> None:
    path = file(tmp_path, "events.csv", CSV)
    with pytest.raises(ConfigError, match="can be written"):
        write(read(path), path)


@pytest.mark.parametrize("packed", [False, True])
def test_amazon_reviews_of_both_generations_are_read_with_their_metadata(tmp_path: Path, packed: bool) -> None:
    pack = gzip.compress if packed else bytes
    old = file(tmp_path, "old.json", pack(jsonl(AMAZON_2018).encode()))
    meta = {
        "asin": "B1",
        "title": "Lamp",
        "brand": "Glow",
        "description": ["A lamp."],
        "category": ["Home", "Light"],
    }
    data = read(old, items=file(tmp_path, "meta.json", pack(jsonl(meta).encode())))
    assert data.interactions.rows() == [("A1", "B1", 1_400_000_000, "rating", 5.0, "Great. Works well.")]
    assert data.items.rows() == [("B1", "Lamp", "Glow | A lamp.", "Home, Light")]

    new = read(file(tmp_path, "new.jsonl.gz", pack(jsonl(AMAZON_2023).encode())))
    assert new.name == "new"
    assert new.interactions.rows() == [("A2", "B2", 1_600_000_000, "rating", 1.0, "Bad! Broke.")]


def test_movielens_100k_is_read_with_latin_1_titles_and_genres(tmp_path: Path) -> None:
    file(tmp_path, "u.data", "196\t242\t3\t881250949\n186\t242\t5\t891717742\n")
    flags = "|".join("1" if k in (8, 12) else "0" for k in range(19))
    file(tmp_path, "u.item", f"242|Misérables, Les (1995)|01-Jan-1995||http://x|{flags}\n".encode("latin-1"))
    data = read(tmp_path)
    assert data.interactions.row(0) == ("196", "242", 881250949, "rating", 3.0, "")
    assert data.items.rows() == [("242", "Misérables, Les (1995)", "Drama, Musical", "Drama, Musical")]


def test_movielens_dat_files_are_read(tmp_path: Path) -> None:
    file(tmp_path, "ratings.dat", "1::1193::5::978300760\n")
    file(tmp_path, "movies.dat", "1193::Café Fear (1975)::Drama|Horror\n".encode("latin-1"))
    data = read(tmp_path)
    assert data.interactions.row(0) == ("1", "1193", 978300760, "rating", 5.0, "")
    assert data.items.rows() == [("1193", "Café Fear (1975)", "Drama, Horror", "Drama, Horror")]


def test_movielens_csv_files_are_read_and_tags_become_the_users_own_words(tmp_path: Path) -> None:
    file(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n1,10,4.5,964982703\n2,10,3.0,964982704\n")
    file(
        tmp_path,
        "movies.csv",
        'movieId,title,genres\n10,"Net, The (1995)",Action|Crime\n11,X,(no genres listed)\n',
    )
    file(tmp_path, "tags.csv", "userId,movieId,tag,timestamp\n1,10,tense,9\n1,10,dated,8\n2,99,lost,7\n")
    data = read(tmp_path)
    assert data.interactions.get_column("review").to_list() == ["dated, tense", ""]
    assert data.items.rows() == [
        ("10", "Net, The (1995)", "Action, Crime", "Action, Crime"),
        ("11", "X", "", ""),
    ]


def test_recbole_atomic_files_are_read_from_the_folder_or_the_file(tmp_path: Path) -> None:
    inter = file(
        tmp_path,
        "s.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t8.8e8\n",
    )
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    file(tmp_path, "s.item", head + '2\tThe "Big" One\t1995\tAnimation Comedy\n3\tNone\t\tunknown\n')
    for source in (tmp_path, inter):
        data = read(source)
        assert data.interactions.row(0) == ("1", "2", 880_000_000, "rating", 3.0, "")
        assert data.items.rows() == [
            ("2", 'The "Big" One (1995)', "Animation, Comedy", "Animation, Comedy"),
            ("3", "None", "", ""),
        ]


@pytest.mark.parametrize(("separator", "suffix"), [(",", "csv"), ("\t", "tsv"), (";", "csv"), ("|", "txt")])
def test_a_table_with_any_separator_is_read_with_a_mapping(tmp_path: Path, separator: str, suffix: str) -> None:
    text = 'who,what,when,kind,said,name\nu,i,2024-01-02,Buy,"two\nlines",Lamp\n'.replace(",", separator)
    mapping = ColumnMapping.parse(["user=who,item=what", "timestamp=when", "event=kind", "review=said"])
    mapping = ColumnMapping(**{**mapping_fields(mapping), "item_title": "name"})
    data = read(file(tmp_path, f"t.{suffix}", text), mapping=mapping)
    assert data.interactions.rows() == [("u", "i", 1_704_153_600, "purchase", None, "two\nlines")]
    assert data.items.rows() == [("i", "Lamp", "", "")]


def mapping_fields(mapping: ColumnMapping) -> dict[str, str]:
    return {
        name: getattr(mapping, name) for name in ("user", "item", "timestamp", "rating", "event", "review", "title")
    }


def test_json_lines_are_read_with_a_mapping(tmp_path: Path) -> None:
    path = file(tmp_path, "t.jsonl", jsonl({"u": 1, "i": 2, "t": 3.0, "x": [1]}, {"u": 2, "i": 2, "t": "4"}))
    data = read(path, mapping=ColumnMapping("u", "i", "t"), name="mine")
    assert data.name == "mine"
    assert data.interactions.rows() == [("1", "2", 3, "other", None, ""), ("2", "2", 4, "other", None, "")]


def test_a_partner_folder_without_items_has_an_empty_catalogue(tmp_path: Path) -> None:
    write(read(file(tmp_path, "e.csv", CSV)), tmp_path / "partner")
    (tmp_path / "partner" / "items.parquet").unlink()
    assert read(tmp_path / "partner").items.columns == list(ITEM_COLUMNS)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1500000000", 1_500_000_000),
        (" 1500000000.9 ", 1_500_000_000),
        ("1500000000123", 1_500_000_000),
        ("1500000000123456", 1_500_000_000),
        ("1500000000123456789", 1_500_000_000),
        ("17", 17),
        ("-5", -5),
        ("2017-07-14", 1_499_990_400),
        ("2017-07-14T02:40:00Z", 1_500_000_000),
        ("2017-07-14 02:40:00", 1_500_000_000),
        ("2017-07-14T04:40:00.5+02:00", 1_500_000_000),
        ("2017-07-14T02:40", 1_500_000_000),
    ],
)
def test_times_become_utc_seconds(tmp_path: Path, written: str, seconds: int) -> None:
    data = read(file(tmp_path, "t.csv", f"user_id,item_id,timestamp\nu,i,{written}\n"))
    assert row(data)["timestamp"] == seconds


def test_parquet_dates_and_times_with_zones_become_utc_seconds(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": ["2017-07-14 02:40:00"]})
    stamped = frame.with_columns(pl.col("timestamp").str.to_datetime(time_zone="UTC"))
    stamped.with_columns(pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo")).write_parquet(tmp_path / "t.parquet")
    assert row(read(tmp_path / "t.parquet"))["timestamp"] == 1_500_000_000


@pytest.mark.parametrize(
    ("event", "rating", "review", "kind"),
    [
        ("", "5", "good", "rating"),
        ("", "", "good", "review"),
        ("", "nan", "", "other"),
        ("Add_To_Cart", "", "", "cart"),
        (" TIP ", "", "", "tip"),
        ("levitate", "5", "", "other"),
    ],
)
def test_the_kind_of_event_is_named_or_told_from_what_the_row_holds(
    tmp_path: Path, event: str, rating: str, review: str, kind: str
) -> None:
    text = f"user_id,item_id,timestamp,event,rating,review\nu,i,1,{event},{rating},{review}\n"
    assert row(read(file(tmp_path, "t.csv", text)))["event"] == kind


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = file(tmp_path, "t.csv", b"\xef\xbb\xbfuser_id,item_id,timestamp\r\n\r\nu,i,1\r\n\r\n")
    assert read(path).interactions.height == 1


def test_half_a_surrogate_pair_in_json_becomes_a_question_mark(tmp_path: Path) -> None:
    path = file(tmp_path, "t.jsonl", '{"user_id": "u\\ud800", "item_id": "i", "timestamp": 1}\n')
    assert row(read(path))["user_id"] == "u?"


# --- errors ---------------------------------------------------------------------------------------


def refused(path: Path, kind: type[Exception], *words: str, **options: object) -> str:
    with pytest.raises(kind) as caught:
        read(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert type(caught.value) is kind
    assert all(word in message for word in (path.name, *words)), message
    return message


def test_a_time_that_is_none_is_named_by_file_row_and_column_and_never_shown(tmp_path: Path) -> None:
    lines = CSV.splitlines()
    lines[16] = "u16,i16,SECRET,4"
    message = refused(file(tmp_path, "events.csv", "\n".join(lines)), SchemaError, "row 17", "column timestamp")
    assert "SECRET" not in message


def test_rows_are_lines_of_the_file_even_behind_quoted_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp,review\nu,i,1,"a\nb\nc"\n\nu,i,soon,x\n'
    refused(file(tmp_path, "t.csv", text), SchemaError, "row 6,", "column timestamp")


def test_rows_of_a_file_without_header_and_of_json_lines_are_counted_from_one(tmp_path: Path) -> None:
    file(tmp_path, "u.item", "")
    file(tmp_path, "u.data", "1\t1\t5\t10\n1\t2\tmany\t11\n")
    with pytest.raises(SchemaError, match=r"u\.data, row 2, column rating: Expected a number"):
        read(tmp_path)
    records = jsonl({"user_id": "u", "item_id": "i", "timestamp": 1}) * 2
    late = "\n" + jsonl({"user_id": "u", "item_id": "i"})
    refused(file(tmp_path, "t.jsonl", records + late), SchemaError, "row 4", "column timestamp")


@pytest.mark.parametrize("rating", ["four", "inf"])
def test_a_rating_that_is_no_number_is_refused(tmp_path: Path, rating: str) -> None:
    path = file(tmp_path, "t.csv", f"user_id,item_id,timestamp,rating\nu,i,1,\nu,i,2,{rating}\n")
    refused(path, SchemaError, "row 3", "column rating")


def test_missing_columns_are_named_and_the_header_is_not_repeated(tmp_path: Path) -> None:
    message = refused(file(tmp_path, "t.csv", "secret-user,item_id,x\n1,2,3\n"), SchemaError, "user_id", "timestamp")
    assert "secret" not in message
    refused(file(tmp_path, "e.csv", CSV), SchemaError, "column(s) said", mapping=ColumnMapping(review="said"))
    refused(
        file(tmp_path, "e.jsonl", jsonl(AMAZON_2018)),
        SchemaError,
        "column(s) who",
        mapping=ColumnMapping("who", "asin", "unixReviewTime"),
    )


def test_a_parquet_column_of_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"user_id": [["u"]], "item_id": ["i"], "timestamp": [1]}).write_parquet(path)
    refused(path, SchemaError, "column user_id")


def test_a_json_list_where_a_text_belongs_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "t.jsonl", jsonl({"user_id": ["u"], "item_id": "i", "timestamp": 1}))
    refused(path, SchemaError, "row 1", "column user_id")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("{not json", "valid JSON"), ("[1]", "JSON object"), ('{"user_id": "\\', "valid JSON")],
)
def test_a_broken_json_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    good = jsonl({"user_id": "u", "item_id": "i", "timestamp": 1})
    refused(file(tmp_path, "t.jsonl", good + line + "\n" + good), DataError, "row 2", expected)


def test_a_gzip_file_that_is_cut_short_or_damaged_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress((jsonl(AMAZON_2018) * 5000).encode(), mtime=0)
    refused(file(tmp_path, "a.json.gz", packed[:-20]), DataError, "whole gzip")
    packed = gzip.compress(CSV.encode(), mtime=0)
    other_checksum = packed[:-8] + bytes(4) + packed[-4:]
    for name, data in (("b.csv.gz", packed[: len(packed) // 2]), ("c.csv.gz", other_checksum)):
        refused(file(tmp_path, name, data), DataError, "whole gzip")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.csv.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    refused(file(tmp_path, name, gzip.compress(b"") if name.endswith("gz") else b" \n"), DataError, "empty")


def test_a_table_of_a_header_only_is_refused(tmp_path: Path) -> None:
    refused(file(tmp_path, "t.csv", "user_id,item_id,timestamp\n"), DataError, "at least one row")


def test_text_that_is_not_utf_8_is_refused_with_its_row(tmp_path: Path) -> None:
    refused(file(tmp_path, "t.csv", CSV.encode() + b"u\xff,i,1,1\n"), DataError, "row 22", "UTF-8")
    good = jsonl({"user_id": "u", "item_id": "i", "timestamp": 1}).encode()
    refused(file(tmp_path, "t.jsonl", good + b'{"user_id": "\xff"}\n'), DataError, "row 2", "UTF-8")


@pytest.mark.parametrize("bad", ["u,i,1,1,1", 'u,"i,1,1', 'u,"i"x,1,1'])
def test_a_row_with_too_many_columns_or_an_open_quote_is_named(tmp_path: Path, bad: str) -> None:
    refused(file(tmp_path, "t.csv", CSV + bad + "\n"), DataError, "row 22")


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.csv", DataError, "there is none")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    refused(file(tmp_path, "t.parquet", b"PAR1 and nothing more"), DataError, "whole parquet")


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}).write_parquet(path)
    refused(path, DataError, "at least one interaction")


def test_an_unknown_form_says_what_was_found_and_what_is_understood(tmp_path: Path) -> None:
    refused(file(tmp_path, "t.xlsx", b"PK\x03\x04\0\0\0"), SchemaError, ".xlsx", "MovieLens", "JSON lines")
    folder = tmp_path / "folder"
    folder.mkdir()
    file(folder, "notes.md", "hello")
    refused(folder, SchemaError, "1 entries", ".md", "RecBole")


def test_a_movielens_file_with_another_number_of_columns_is_refused(tmp_path: Path) -> None:
    file(tmp_path, "ratings.dat", "1::2::3\n")
    file(tmp_path, "movies.dat", "2::X::Y\n")
    with pytest.raises(SchemaError, match="columns=4 without a header, got columns=3"):
        read(tmp_path)


def test_a_mapping_for_a_form_with_fixed_columns_is_refused(tmp_path: Path) -> None:
    file(tmp_path, "u.data", "1\t1\t1\t1\n")
    file(tmp_path, "u.item", "x")
    with pytest.raises(ConfigError, match="no column mapping"):
        read(tmp_path, mapping=ColumnMapping())


@pytest.mark.parametrize("pairs", [["user"], ["user="], ["usr=x"], ["user=a", "user=b"]])
def test_a_mapping_that_is_not_key_and_column_is_refused(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match="key=COLUMN"):
        ColumnMapping.parse(pairs)


def test_items_without_an_id_column_are_refused(tmp_path: Path) -> None:
    source = file(tmp_path, "t.csv", CSV)
    for name, text in (("items.csv", "sku,title\n1,A\n"), ("items.jsonl", '{"sku": 1}\n')):
        with pytest.raises(SchemaError, match=rf"{name}.*item_id"):
            read(source, items=file(tmp_path, name, text))


def test_a_catalogue_is_read_from_any_form_of_file(tmp_path: Path) -> None:
    source = file(tmp_path, "t.csv", CSV)
    expected = [("i1", "Lamp", "Light", "")]
    write(RawData("x", read(source).interactions, pl.DataFrame(expected, ITEM_COLUMNS, orient="row")), tmp_path)
    forms = {
        "items.csv": "item_id,title,text\ni1,Lamp,Light\n",
        "items.tsv": "id\tname\tdescription\ni1\tLamp\tLight\n",
        "items.jsonl": jsonl({"item_id": "i1", "title": "Lamp", "text": "Light", "price": {"eur": 3}}),
        "x.item": "item_id:token\ttitle:token_seq\ttext:token_seq\ni1\tLamp\tLight\n",
    }
    paths = [tmp_path / "items.parquet", *(file(tmp_path, name, text) for name, text in forms.items())]
    for path in paths:
        assert read(source, items=path).items.rows() == expected


def test_a_folder_or_an_atomic_file_with_a_column_twice_is_no_catalogue(tmp_path: Path) -> None:
    source = file(tmp_path, "t.csv", CSV)
    with pytest.raises(DataError, match="readable file"):
        read(source, items=tmp_path)
    twice = file(tmp_path, "x.item", "item_id:token\ttitle:token\ttitle:token_seq\n1\t2\t3\n")
    with pytest.raises(SchemaError, match="every column once"):
        read(source, items=twice)


def test_long_json_files_are_read_in_pieces(tmp_path: Path) -> None:
    path = file(tmp_path, "t.jsonl", jsonl(*({"a": k} for k in range(7))))
    table = json_table(path, ["a", "b"], rows_at_once=3)
    assert table.frame.get_column("a").to_list() == [str(k) for k in range(7)]
    assert table.frame.columns == ["a"]
    assert table.line_of(6) == 7


# --- commands -------------------------------------------------------------------------------------


def test_import_and_describe_as_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILREC_HOME", str(tmp_path / "home"))
    source = str(file(tmp_path, "t.csv", CSV.replace("user_id", "who").replace("item_id", "what")))
    items = str(file(tmp_path, "items.csv", "item_id,title\ni1,Lamp\n"))
    arguments = ["import", source, "--mapping", "user=who", "--map", "item=what", "--items", items]
    done = CliRunner().invoke(app, [*arguments, "--name", "mine"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "20 interactions and 1 items" in done.stderr
    folder = tmp_path / "home" / "data" / "mine"
    assert pl.read_parquet_schema(folder / "interactions.parquet").names() == list(INTERACTION_COLUMNS)

    shown = CliRunner().invoke(app, ["describe", str(folder), "--json"], catch_exceptions=False)
    found = json.loads(shown.stdout)
    assert (found["users"], found["items"], found["interactions"]) == (20, 20, 20)
    assert found["events"] == {"rating": 20}
    assert found["density"] == 0.05
    assert found["cleaning"]["items_added"] == 19
    assert found["interactions_per_user"]["median"] == 1
    assert found["time_span"] == ["2017-07-14", "2017-07-14"]
    text = CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False).stdout
    assert "items added" in text
    assert "2017-07-14 to 2017-07-14" in text


def test_import_to_a_folder_of_ones_own_and_not_under_a_reserved_name(tmp_path: Path) -> None:
    source = str(file(tmp_path, "t.csv", CSV))
    done = CliRunner().invoke(app, ["import", source, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert read(tmp_path / "out").interactions.height == 20
    for name in ("marketplace", "../x"):
        refusal = CliRunner().invoke(app, ["import", source, "--name", name])
        assert isinstance(refusal.exception, ConfigError)


def test_ordinals_have_no_time_span(tmp_path: Path) -> None:
    path = file(tmp_path, "t.csv", "user_id,item_id,timestamp\nu,i,1\n")
    assert "ordinal" in CliRunner().invoke(app, ["describe", str(path)], catch_exceptions=False).stdout


@pytest.mark.parametrize("command", [[], ["import"], ["describe"]])
def test_every_command_has_help(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_the_commands_load_nothing_heavy() -> None:
    check = "import sys, client.data.commands; print({'polars', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_shared_sets_are_read_whole(real_data: Path) -> None:
    counts = {"ml_100k": 100_000, "amazon_gift_cards": 2_972, "rotten_tomatoes_critics": 18_025 - 8_382}
    for name, count in counts.items():
        data = read(real_data / name)
        assert data.interactions.height == count
        assert data.interactions.null_count().drop("rating").row(0) == (0,) * 5
    assert set(read(real_data / "foursquare_nyc").interactions.get_column("event")) == {"checkin", "tip"}
