"""The service's page as somebody at a partner uses it: a real service, a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl
import pytest
from page_setting import Shop, Visit, make_shop, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Route

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TOKEN = "a-token-of-the-test-and-nobody-else"
MARKUP = "<img src=x onerror=\"document.title='markup'\"><b>Kettle</b>"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    tokens = folder / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(TOKEN + "\n")
    wanted = ("--data", str(shop.data), "--releases", str(shop.releases), "--trust", shop.key)
    with serving(folder / "log", *wanted, "--state", str(folder / "state"), "--tokens", str(tokens)) as at:
        yield at


@pytest.fixture(scope="module")
def browser(chromium: Browser) -> Iterator[BrowserContext]:
    """One browser for all visits; each has a tab, and so a session, of its own."""
    yield chromium.new_context(viewport={"width": 1440, "height": 900})


@pytest.fixture
def door(browser: BrowserContext, address: str) -> Iterator[Visit]:
    """A visit that has given no token yet; nothing of it may leave the service, or be complained of."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    visit = Visit(page)
    visit.watch()
    page.goto(address)
    page.get_by_label("Token").wait_for()
    yield visit
    page.close()
    assert visit.complaints == []
    assert visit.refusals <= {(401, "/v1/releases"), (404, "/v1/users/history")}  # no token; nothing held
    assert visit.requests and all(url.startswith(f"{address}/") for url in visit.requests)
    assert not any(TOKEN in url or "user-" in url for url in visit.requests)


@pytest.fixture
def visit(door: Visit) -> Visit:
    """A visit with a token."""
    door.page.get_by_label("Token").fill(TOKEN)
    door.page.get_by_role("button", name="Use token").click()
    door.page.get_by_label("User", exact=True).wait_for()
    return door


# --- the way in -----------------------------------------------------------------------------------


def test_a_wrong_token_says_so_and_a_right_one_opens(door: Visit) -> None:
    door.page.get_by_label("Token").fill("some other token")
    door.page.get_by_role("button", name="Use token").click()
    assert "one word" in door.page.locator("#door-error:not(:empty)").inner_text()
    door.page.get_by_label("Token").fill("not-a-token-of-this-service")
    door.page.get_by_role("button", name="Use token").click()
    door.page.locator("#door-error", has_text="does not know this token").wait_for()
    assert not door.page.locator("#work").is_visible()
    door.page.get_by_label("Token").fill(TOKEN)
    door.page.get_by_role("button", name="Use token").click()
    door.page.locator("#work").wait_for()


def test_the_release_its_privacy_and_its_signature_are_in_sight(visit: Visit) -> None:
    line = visit.page.get_by_role("region", name="Release", exact=True).inner_text()
    assert "Release 2" in line and "Signed by a trusted coordinator" in line
    assert "epsilon=7.5" in line and "delta=1e-05" in line


def test_a_lone_release_that_nobody_signed_says_so(door: Visit) -> None:
    """As with ``--run``: the service's answer is changed on its way, which spares a second service."""

    def lone(route: Route) -> None:
        told = route.fetch().json()
        route.fulfill(json=told | {"served": told["served"] | {"signed": False}, "versions": [2]})

    door.page.get_by_label("Token").fill(TOKEN)
    door.page.route("**/v1/releases", lone)
    door.page.get_by_role("button", name="Use token").click()
    door.page.get_by_text("Unsigned: a local run").wait_for()
    door.page.get_by_role("radio", name="Compare releases").check()
    door.page.get_by_text("There is one release to ask").wait_for()


# --- lists ----------------------------------------------------------------------------------------


def test_a_user_is_shown_with_history_and_list(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[1])
    assert "10 items from the history" in visit.told("release 2")
    assert len(visit.titles) == 10
    held = shop.events.interactions.filter(pl.col("user_id") == shop.users[1]).n_unique(
        ["item_id", "timestamp", "event"]
    )
    visit.held(f"{held} events, the newest first")
    times = [line.get_attribute("datetime") or "" for line in visit.page.locator("#events time").all()]
    assert times == sorted(times, reverse=True)
    why = visit.page.get_by_role("button", name="Why").first
    assert why.get_attribute("aria-expanded") == "false"
    why.click()
    effects = visit.page.locator(".why:visible .effect").all_inner_texts()
    assert effects and all(re.fullmatch(r"[\d.]+|less than 0\.01", effect) for effect in effects)


def test_a_user_of_whom_nothing_is_held_gets_what_is_popular(visit: Visit) -> None:
    visit.show("somebody new")
    assert "popular" in visit.told("nothing is held")
    visit.held("Nothing is held")


def test_a_wish_in_words_changes_the_list_of_a_user(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[1])
    before = visit.titles
    visit.show(shop.users[1], "a tent for hiking in the rain")
    visit.told("from the history and the wish")
    assert visit.titles != before
    visit.show("", "a tent for hiking in the rain")
    visit.told("from the wish in words")
    assert not visit.page.get_by_role("button", name="Bought").count()  # of nobody


def test_a_category_leaves_items_of_it_alone(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[1])
    visit.page.get_by_text("Categories: all").click()
    visit.page.get_by_label("Find a category").fill("pets")
    with visit.page.expect_response("**/v1/rank"):
        visit.page.get_by_label("Pets", exact=True).check()
    visit.page.locator("#results[aria-busy=false]").wait_for()
    pets = shop.events.items.filter(pl.col("categories").str.starts_with("Pets")).get_column("item_id").to_list()
    shown = [row.get_attribute("data-item") for row in visit.page.locator("#lists li[data-item]").all()]
    assert shown and set(shown) <= set(pets)


# --- what moves it --------------------------------------------------------------------------------


def test_a_slider_changes_the_list_and_shows_the_old_places(visit: Visit, shop: Shop) -> None:
    """Those before the slider was first moved, however often it is moved on."""
    visit.show(shop.users[1])
    before = visit.titles
    slider = visit.page.get_by_label("Long tail")
    for key in ("End", "PageDown"):
        with visit.page.expect_response("**/v1/rank"):
            slider.press(key)
        visit.page.locator("#results[aria-busy=false]").wait_for()
        assert re.search(r"\d+ (moved|new).* since “Long tail” was moved", visit.told("since"))
        assert visit.titles != before
        for place, title in enumerate(visit.titles, start=1):
            was = before.index(title) + 1 if title in before else None
            arrow = "▲up, " if was is None or was > place else "▼down, "
            mark = "new" if was is None else "" if was == place else f"{arrow}was {was}"
            assert visit.entry(place).locator(".rank").text_content() == f"{place}{mark}"
    visit.page.get_by_role("button", name="Back to the model's order").click()
    visit.told("since the reset")
    assert visit.titles == before


def test_a_pinned_item_stays_and_one_that_is_left_out_goes(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[1])
    third, first = visit.titles[2], visit.titles[0]
    visit.entry(3).get_by_role("button", name="Pin").click()
    visit.told("since the pin")
    visit.entry(1).get_by_role("button", name="Leave out").click()
    visit.told("left out")
    assert visit.titles[2] == third and first not in visit.titles


def test_an_answer_that_was_overtaken_is_not_shown(visit: Visit, shop: Shop) -> None:
    """The list without the long tail comes last, although it was asked for first."""
    visit.show(shop.users[1])
    page, held = visit.page, []

    def late(route: Route) -> None:
        asked = route.request.post_data_json or {}
        if asked.get("rerank", {}).get("long_tail", {}).get("strength") == 0.05:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/rank", late)
    slider = page.get_by_label("Long tail")
    with page.expect_request("**/v1/rank"):
        slider.press("ArrowRight")
    slider.press("End")
    visit.told("since “Long tail” was moved")
    after = visit.titles
    with page.expect_response("**/v1/rank"):
        held[0].continue_()
    page.wait_for_timeout(100)
    assert visit.titles == after
    page.unroute("**/v1/rank")


def test_a_click_changes_the_next_list_and_the_history(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[2])
    bought = visit.titles[0]
    visit.entry(1).get_by_role("button", name="Bought").click()
    visit.told("was bought")
    assert bought not in visit.titles
    visit.page.locator("#events li:first-child", has_text="bought").filter(has_text=bought).wait_for()
    assert "Left the list" in visit.page.locator("#lists").inner_text()


def test_a_user_is_forgotten_after_a_question(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[3])
    visit.page.get_by_role("button", name="Forget user…").click()
    visit.page.get_by_role("button", name="Keep").click()
    visit.page.get_by_role("button", name="Forget user…").click()
    visit.page.get_by_role("dialog").get_by_role("button", name="Forget").click()
    assert "nothing is held" in visit.told("events were erased")
    assert not visit.page.locator("#recent button").count()
    assert sum(url.endswith("/v1/users/forget") for url in visit.requests) == 1


# --- releases -------------------------------------------------------------------------------------


def test_two_releases_stand_side_by_side(visit: Visit, shop: Shop) -> None:
    visit.show(shop.users[1])
    alone = visit.titles
    visit.page.get_by_role("radio", name="Compare releases").check()
    line = visit.told("in both lists")
    lists = [
        visit.page.get_by_role("region", name=f"Release {version}", exact=True).locator("h3:not(.column-title)")
        for version in (2, 1)
    ]
    left, right = (one.all_inner_texts() for one in lists)
    assert left == alone and left != right
    shared = len(set(left) & set(right))
    assert f"{shared} of 10 items in both lists ({10 * shared} %)" in line
    assert visit.page.get_by_text("only here").count() == 2 * (10 - shared)
    visit.page.get_by_label("Right", exact=True).select_option("2")
    visit.told(r"10 of 10 items in both lists \(100 %\)")


# --- what goes wrong ------------------------------------------------------------------------------


def test_foreign_text_is_shown_as_text(visit: Visit, shop: Shop) -> None:
    """What is imported is cleaned of markup; the page does not rely on that, so the answers get some on their way."""

    def planted(route: Route) -> None:
        told = route.fetch().json()
        for entry in told.get("items", told.get("events")):
            entry |= {key: MARKUP for key in ("title", "reason", "review", "kind") if key in entry}
            for reason in entry.get("because", ()):
                reason |= {"title": MARKUP, "kinds": [MARKUP]}
        route.fulfill(json=told)

    for path in ("**/v1/rank", "**/v1/users/history"):
        visit.page.route(path, planted)
    visit.show(shop.users[1])
    assert visit.titles == [MARKUP] * 10
    visit.held(MARKUP)
    visit.entry(3).get_by_role("button", name="Pin").click()
    visit.told("since the pin")
    visit.entry(1).get_by_role("button", name="Why").click()
    assert visit.page.get_by_text(MARKUP, exact=True).count() > 30
    assert not visit.page.locator("img, main script, h3 b, p b b").count()
    assert visit.page.title() == "Veilrec: local ranking"


def test_an_error_is_one_line_and_what_was_typed_stays(visit: Visit, shop: Shop) -> None:
    visit.page.route("**/v1/rank", lambda route: route.abort())
    visit.page.get_by_label("User", exact=True).fill(shop.users[1])
    visit.page.get_by_label("Wish in words").fill("a red tent")
    visit.page.get_by_role("button", name="Show list").click()
    alert = visit.page.get_by_role("alert").filter(has_text="does not answer")
    alert.wait_for()
    assert visit.page.get_by_label("Wish in words").input_value() == "a red tent"
    visit.page.unroute("**/v1/rank")
    alert.get_by_role("button", name="Try again").click()
    visit.told("from the history and the wish")
    assert not alert.is_visible()


def test_it_fits_a_phone_and_runs_by_keyboard(visit: Visit, shop: Shop) -> None:
    page = visit.page
    page.set_viewport_size({"width": 380, "height": 800})
    page.get_by_label("User", exact=True).focus()
    page.keyboard.type(shop.users[1])
    page.keyboard.press("Enter")
    visit.told("from the history")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 380
    page.get_by_role("button", name="Viewed").first.focus()
    page.keyboard.press("Enter")
    visit.told("was viewed")
    assert page.locator(":focus").get_attribute("data-name") == "view"  # of the item that took its place
