"""Data from a database are the same as by CSV, the database is only read, and no password is shown or kept."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from postgres_server import GUARDED, execute, postgres_url
from typer.testing import CliRunner

from client.data.commands import app
from client.data.formats import database
from client.data.ingest import ColumnMapping, RawData, read, write
from shared.errors import ConfigError, DataError, SchemaError, VeilrecError

__all__ = ["postgres_url"]

CSV = '''who,what,at,stars,note,kind
7,lamp,2017-07-14T02:40:00+00:00,4.50,"good, ""really""",
7,Café,2017-07-14T02:40:00.900000+00:00,,,cart
8,lamp,1969-12-31T23:59:59+00:00,1.25,"two
lines",review
9,lamp,2024-02-29T00:00:00+00:00,,100%: a 'quote',Buy
'''
ITEMS_CSV = 'item_id,title,description,genre\nlamp,"Lamp, tall",Light,home\nCafé,,,\n'
MAPPING = ColumnMapping.parse(["user=who,item=what,timestamp=at,rating=stars,review=note,event=kind"])
VALUES = """
    (7, 'lamp', '2017-07-14 04:40:00+02', 4.50, 'good, "really"', NULL),
    (7, 'Café', '2017-07-14 02:40:00.9+00', NULL, '', 'cart'),
    (8, 'lamp', '1970-01-01 08:59:59+09', 1.25, 'two
lines', 'review'),
    (9, 'lamp', '2024-02-29 00:00:00+00', NULL, '100%: a ''quote''', 'Buy')
"""
ITEM_VALUES = "('lamp', 'Lamp, tall', 'Light', 'home'), ('Café', NULL, '', NULL)"


@pytest.fixture
def shop(postgres_url: str) -> str:
    """A shop's tables in PostgreSQL, with types as shops have them, one column that no CSV could hold, and one user."""
    execute(
        f"""CREATE TABLE events (who bigint, what varchar(20), at timestamptz, stars numeric(4, 2), note text,
            kind text, photo bytea DEFAULT '\\x00');
        INSERT INTO events VALUES {VALUES};
        CREATE TABLE "Items" (item_id text, title text, description text, genre text);
        INSERT INTO "Items" VALUES {ITEM_VALUES};
        CREATE SEQUENCE numbers;""",
        postgres_url,
    )
    return postgres_url


@pytest.fixture
def file_shop(tmp_path: Path) -> str:
    """The same in SQLite, which keeps times as text."""
    values = VALUES.replace("+02'", "+02:00'").replace("+00'", "+00:00'").replace("+09'", "+09:00'")
    with sqlite3.connect(tmp_path / "shop.v2.db") as db:
        db.executescript(
            f"""CREATE TABLE events (who INTEGER, what TEXT, at TIMESTAMP, stars NUMERIC, note TEXT, kind TEXT,
                photo BLOB DEFAULT x'00');
            INSERT INTO events (who, what, at, stars, note, kind) VALUES {values};
            CREATE TABLE "Items" (item_id, title, description, genre);
            INSERT INTO "Items" VALUES {ITEM_VALUES};"""
        )
    db.close()
    return f"sqlite:///{tmp_path / 'shop.v2.db'}"


def by_csv(folder: Path, csv: str = CSV, mapping: ColumnMapping = MAPPING) -> RawData:
    (folder / "events.csv").write_text(csv)
    (folder / "items.csv").write_text(ITEMS_CSV)
    return read(folder / "events.csv", mapping=mapping, items=folder / "items.csv")


def same_bytes(found: RawData, expected: RawData, folder: Path) -> None:
    assert found.interactions.equals(expected.interactions)
    for name, data in (("found", found), ("expected", expected)):
        write(data, folder / name)
    for file in ("interactions.parquet", "items.parquet"):
        assert (folder / "found" / file).read_bytes() == (folder / "expected" / file).read_bytes()


def refused(kind: type[VeilrecError], source: str, interactions: str | None, **options: object) -> str:
    with pytest.raises(VeilrecError) as caught:
        read(source, interactions=interactions, **{"mapping": MAPPING, **options})  # type: ignore[arg-type]
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


# --- the same as by CSV ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["shop", "file_shop"])
@pytest.mark.parametrize("rows_at_once", [1, 3, 20_000])
def test_a_table_gives_the_same_bytes_as_the_same_data_by_csv(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, rows_at_once: int
) -> None:
    monkeypatch.setattr(database, "ROWS_AT_ONCE", rows_at_once)
    url = request.getfixturevalue(source)
    found = read(url, interactions="events", items="Items", mapping=MAPPING)
    assert found.interactions.row(0) == ("7", "lamp", 1_500_000_000, "rating", 4.5, 'good, "really"')
    assert found.interactions.get_column("timestamp").to_list() == [1_500_000_000, 1_500_000_000, -1, 1_709_164_800]
    assert found.items.row(0) == ("lamp", "Lamp, tall", "Light", "home")
    same_bytes(found, by_csv(tmp_path), tmp_path)


def test_times_without_a_zone_dates_and_numbers_are_read_as_by_csv(postgres_url: str, tmp_path: Path) -> None:
    execute("CREATE TABLE t (u uuid, i smallint, d date, t timestamp, e float8, n numeric, r real)", postgres_url)
    one = "'{0}', {1}, '2017-07-14', '2017-07-14 02:40:00.25', 1500000000.9, 1500000000123, 4.1"
    users = ["0b0e6f0e-6d3c-4c6b-9d0a-3f0c7b9e1a11", "0b0e6f0e-6d3c-4c6b-9d0a-3f0c7b9e1a12"]
    rows = ", ".join(f"({one.format(user, k)})" for k, user in enumerate(users))
    execute(f"INSERT INTO t VALUES {rows}", postgres_url)
    lines = [f"{u},{k},2017-07-14,2017-07-14 02:40:00.25,1500000000.9,1500000000123,4.1" for k, u in enumerate(users)]
    csv = "\n".join(["u,i,d,t,e,n,r", *lines, ""])
    for column in "dten":
        mapping = ColumnMapping("u", "i", column, "r")
        (tmp_path / column).mkdir()
        found = read(postgres_url, interactions="t", mapping=mapping)
        expected = by_csv(tmp_path / column, csv, mapping)
        assert found.interactions.equals(expected.interactions)
        assert found.interactions.row(0)[2:5:2] == (1_499_990_400 if column == "d" else 1_500_000_000, 4.1)


def test_a_sessions_own_zone_does_not_matter(shop: str, tmp_path: Path) -> None:
    tokyo = f"{shop}%20-ctimezone%3DAsia/Tokyo"
    same_bytes(read(tokyo, interactions="events", items="Items", mapping=MAPPING), by_csv(tmp_path), tmp_path)


@pytest.mark.parametrize("source", ["shop", "file_shop"])
@pytest.mark.parametrize(
    "asked",
    [
        "SELECT * FROM events;",
        "-- all of them\n select * from events -- to the end",
        "WITH e AS (SELECT * FROM events) SELECT e.* FROM e WHERE note IS NULL OR note <> ':x'",
        "SELECT * FROM events WHERE coalesce(note, '') NOT LIKE '%s %(x)s%'",
        '"events"',
    ],
)
def test_a_select_is_taken_as_it_is(request: pytest.FixtureRequest, tmp_path: Path, source: str, asked: str) -> None:
    found = read(request.getfixturevalue(source), interactions=asked, mapping=MAPPING)
    assert found.interactions.equals(by_csv(tmp_path).interactions)
    assert found.items.is_empty()


def test_known_columns_need_no_mapping_and_a_table_may_be_named_with_its_schema(postgres_url: str) -> None:
    execute(
        """CREATE SCHEMA "My ""shop"; CREATE TABLE "My ""shop"."E.vents" (user_id int, item_id text, timestamp bigint);
        INSERT INTO "My ""shop"."E.vents" VALUES (1, 'a', 5)""",
        postgres_url,
    )
    found = read(postgres_url, interactions='"My ""shop"."E.vents"', name="mine")
    assert (found.name, found.interactions.rows()) == ("mine", [("1", "a", 5, "other", None, "")])
    assert read(postgres_url, interactions="SELECT 1 AS user_id, 2 AS item_id, 3 AS timestamp").name == "postgres"


def test_titles_may_stand_in_the_table_of_interactions(file_shop: str) -> None:
    mapping = ColumnMapping("who", "what", "at", item_title="kind")
    found = read(file_shop, interactions="events", mapping=mapping)
    assert found.items.rows() == [("Café", "cart", "", ""), ("lamp", "review", "", "")]


def test_rows_come_through_a_cursor_of_the_server(postgres_url: str) -> None:
    asked = "SELECT name AS user_id, statement AS item_id, 1 AS timestamp FROM pg_cursors"
    cursors = read(postgres_url, interactions=asked).interactions
    assert "pg_cursors" in cursors.get_column("item_id").item()  # the cursor that reads the list of cursors


# --- the database is only read --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("SELECT nextval('numbers') AS who", DataError),
        ("WITH gone AS (DELETE FROM events RETURNING *) SELECT * FROM gone", DataError),
        ("SELECT 1 AS who) AS x; DELETE FROM events; SELECT (1", DataError),
        ("DELETE FROM events", ConfigError),
        ("events; DELETE FROM events", ConfigError),
    ],
)
def test_what_would_write_is_refused(shop: str, asked: str, kind: type[VeilrecError]) -> None:
    refused(kind, shop, asked)
    assert read(shop, interactions="events", mapping=MAPPING).interactions.height == 4


def test_a_sqlite_file_is_neither_made_nor_changed(file_shop: str, tmp_path: Path) -> None:
    before = (tmp_path / "shop.v2.db").read_bytes()
    read(file_shop, interactions="events", mapping=MAPPING)
    assert (tmp_path / "shop.v2.db").read_bytes() == before
    assert "not there" in refused(ConfigError, f"sqlite:///{tmp_path / 'none.db'}", "events")
    assert [path.name for path in tmp_path.iterdir()] == ["shop.v2.db"]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["shop", "file_shop"])
@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ("nowhere", DataError, "no such table"),
        ("SELECT hush FROM events", DataError, "no such column"),
        ("SELECT * FROM events WHERE AND", DataError, "syntax error"),
        ("SELECT who AS x FROM events", SchemaError, "found none"),
        ("SELECT who, what FROM events", SchemaError, "column(s) at, stars, kind, note"),
        ("SELECT who, what, 'hush' AS at, stars, note, kind FROM events", SchemaError, "row 1, column at"),
        ("SELECT who, what, at, stars, photo AS note, kind FROM events", SchemaError, "column note: Expected text"),
        ("SELECT * FROM events WHERE who = 0", DataError, "at least one interaction"),
        ("", ConfigError, "SELECT"),
    ],
)
def test_what_cannot_be_read_is_one_error(
    request: pytest.FixtureRequest, source: str, asked: str, kind: type[VeilrecError], words: str
) -> None:
    message = refused(kind, request.getfixturevalue(source), asked)
    assert words in message
    assert "hush" not in message


def test_the_message_of_the_server_which_may_hold_a_value_is_not_passed_on(shop: str) -> None:
    message = refused(DataError, shop, "SELECT who, what, at, note::int AS stars, note, kind FROM events")
    assert "really" not in message
    assert "InvalidTextRepresentation" in message


def test_a_table_that_may_not_be_read_is_refused(shop: str) -> None:
    execute("CREATE ROLE visitor LOGIN", shop)
    execute("GRANT USAGE ON SCHEMA public TO visitor", shop)
    message = refused(DataError, shop.replace("postgres@", "visitor@"), "pg_authid")
    assert "permission is denied" in message


def test_tables_are_asked_for_beside_a_database_and_nowhere_else(file_shop: str, tmp_path: Path) -> None:
    assert "interactions=TABLE" in refused(ConfigError, file_shop, None)
    by_csv(tmp_path)
    assert "beside the URL" in refused(ConfigError, str(tmp_path / "events.csv"), "events")
    assert "other kinds" in refused(ConfigError, "https://example.org/events.csv", "events")


# --- passwords ------------------------------------------------------------------------------------


def test_a_password_is_taken_from_the_environment_and_is_neither_shown_nor_kept(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        f"CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD 'hunter2'",  # its rights do not matter here
        shop,
    )
    url = shop.replace("postgres@", f"{GUARDED}@")
    pairs = ("user", "who"), ("item", "what"), ("timestamp", "at"), ("rating", "stars"), ("review", "note")
    options = [word for key, column in pairs for word in ("--map", f"{key}={column}")]

    def imported(source: str) -> tuple[int, str]:
        given = ["import", source, "--interactions", "events", "--items", "Items", "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*given, *options])
        assert "hunter" not in result.output + str(result.exception)
        return result.exit_code, result.output + str(result.exception)

    assert "asks for a password" in imported(url)[1]
    assert "password or user is refused" in imported(url.replace("@", ":hunter3@"))[1]
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    assert imported(url)[0] == 0
    monkeypatch.delenv("PGPASSWORD")
    code, output = imported(url.replace("@", ":hunter2@"))
    assert (code, "4 interactions and 2 items" in output) == (0, True)
    files = list((tmp_path / "out").iterdir())
    assert sorted(path.name for path in files) == ["interactions.parquet", "items.parquet"]
    assert not any(b"hunter" in path.read_bytes() for path in files)
    assert read(tmp_path / "out").interactions.height == 4
