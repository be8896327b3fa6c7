"""The screens Live and Compare in a real browser: what is clicked, what is seen, what nobody else may see."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="the app's extra is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.browser.conftest import LEAVING  # noqa: E402
from workbench.screens import rolling  # noqa: E402
from workbench.screens.session import MODEL, STORE  # noqa: E402

# Gradio 6.31 sets an option and a keyword that pandas 3 has given up.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
EXPECT = sync_api.expect
EXPECT.set_options(timeout=60_000)


class Slow:
    """A gate in front of every token: a rollout goes as far as the test lets it."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.steps = threading.Semaphore(0)

    def hold(self) -> None:
        self.free.clear()

    def let(self, tokens: int) -> None:
        for _ in range(tokens):
            self.steps.release()

    def go(self) -> None:
        self.free.set()
        self.let(10_000)

    def __call__(self, pieces):
        for piece in pieces:
            while not self.free.is_set() and not self.steps.acquire(timeout=0.05):
                pass
            yield piece


@pytest.fixture(scope="module")
def gate():
    """Between the engine and the frames."""
    return Slow()


@pytest.fixture(scope="module")
def app(model, gate, tiny_runs) -> Iterator[str]:
    """The whole app, its address."""
    import uvicorn

    from app import build
    from workbench.screens import serving
    from workbench.screens.look import look

    plain, rolling.INTERVAL = rolling.paced, 0.0
    rolling.paced = lambda pieces: plain(gate(pieces))
    demo = build(tiny_runs, (), [str(model)])
    listener, port = serving.listen("127.0.0.1", 0)
    made = serving.application(demo, look=look(), users=None, address=("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(made, log_level="warning", timeout_graceful_shutdown=1, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    listener.close()
    rolling.paced = plain


@pytest.fixture
def live(app, gate, open_page):
    """A page on Live; its rollouts are held back where a test says so. Watched by `open_page`."""
    gate.go()
    gate.steps = threading.Semaphore(0)

    opened = []

    def made(width=1440, height=900, *, query="?view=live", **settings):
        opened.append(open_page(app + "/" + query, viewport={"width": width, "height": height}, **settings))
        page = opened[-1].page
        page.locator("#live-tokens [role=listbox]").wait_for()
        return page

    made.opened = opened
    yield made
    gate.go()


def roll(page):
    """Roll out to the end."""
    before = page.locator("#live-rollouts li").count()
    page.locator("#live-go").click()
    ended(page, before + 1)


def ended(page, rollouts):
    """The list below the tokens has one more, and the next may begin."""
    EXPECT(page.locator("#live-rollouts li")).to_have_count(rollouts)
    EXPECT(page.locator("#live-go")).to_be_enabled()


def options(page):
    return page.locator("#live-tokens [role=option]")


def test_roll_out_and_the_keys_go_to_where_the_roles_part(live):
    page = live()
    roll(page)
    assert options(page).count() > 3
    EXPECT(page.locator("#live-tokens [role=listbox]")).to_be_focused()
    page.keyboard.press("n")
    EXPECT(page.locator("#live-tokens .tv-on")).to_have_count(1)
    EXPECT(page.locator("#live-tokens .tv-tops")).to_be_visible()
    EXPECT(page.locator("#live-tokens")).to_contain_text("rest of the vocabulary")
    page.get_by_role("tab", name="Teacher sees", exact=True).click()
    EXPECT(page.locator("#live-teacher-sees .only").first).to_be_visible()
    EXPECT(page.locator("#live-teacher-sees")).to_contain_text("<|im_start|>")
    page.get_by_role("tab", name="Verdict", exact=True).click()
    EXPECT(page.locator("#live-verdict dt").first).to_have_text("verdict")
    EXPECT(page.locator("#live-verdict")).to_contain_text("gold")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1200, 800), (1024, 768), (390, 844)])
def test_nothing_jumps_from_the_empty_screen_to_the_selected_token(live, gate, width, height):
    page = live(width, height)
    below = (
        "['live-tokens', 'live-onward'].map(id => document.getElementById(id).getBoundingClientRect().top + scrollY)"
    )
    EXPECT(page.locator("#live-status")).to_contain_text("Nothing is written yet")
    empty = page.evaluate(below)
    gate.hold()
    page.locator("#live-go").click()
    gate.let(2)
    EXPECT(options(page)).to_have_count(2)
    assert page.evaluate(below) == empty
    gate.go()
    ended(page, 1)
    assert page.evaluate(below) == empty
    options(page).nth(1).click()
    EXPECT(page.locator("#live-tokens .tv-tops")).to_be_visible()
    assert page.evaluate(below) == empty


def test_stop_keeps_what_is_written_and_frees_the_model(live, gate):
    page = live()
    gate.hold()
    page.locator("#live-go").click()
    gate.let(3)
    EXPECT(options(page)).to_have_count(3)
    EXPECT(page.locator("#live-go")).to_be_disabled()
    assert MODEL.busy
    page.locator("#live-stop").click()
    gate.go()
    EXPECT(page.locator("#live-go")).to_be_enabled()
    EXPECT(page.locator("#live-status")).to_contain_text("unfinished")
    assert 3 <= options(page).count() <= 5
    roll(page)
    EXPECT(page.locator("#live-status")).not_to_contain_text("unfinished")
    EXPECT(page.locator("#live-rollouts li")).to_have_count(2)


def test_step_one_token(live):
    page = live()
    for n in (1, 2, 3):
        page.locator("#live-step").click()
        EXPECT(options(page)).to_have_count(n)
        ended(page, 1)
        assert not MODEL.busy
    EXPECT(page.locator("#live-rollouts li")).to_have_count(1)


def test_a_branch_keeps_the_original_and_the_panel(live):
    page = live()
    roll(page)
    options(page).nth(2).click()
    other = page.locator("#live-tokens .tv-tops button").first
    other.wait_for()
    before = [options(page).nth(i).inner_text() for i in range(2)]
    page.get_by_label("the teacher", exact=True).check()
    other.click()
    ended(page, 2)
    EXPECT(page.locator("#live-rollouts")).to_contain_text("from rollout 1 at token 2")
    EXPECT(page.locator("#live-rollouts")).to_contain_text("the teacher goes on")
    assert [options(page).nth(i).inner_text() for i in range(2)] == before
    EXPECT(page.locator("#live-tokens .tv-on")).to_have_count(1)
    EXPECT(page.locator("#live-tokens .tv-place")).to_contain_text("token 2")
    branched = options(page).count()
    page.get_by_role("button", name="Rollout 1", exact=True).click()
    EXPECT(page.get_by_role("button", name="Rollout 1", exact=True)).to_have_attribute("aria-pressed", "true")
    assert options(page).count() != 0
    page.get_by_role("button", name="Rollout 2", exact=True).click()
    EXPECT(options(page)).to_have_count(branched)


def test_two_pages_one_model_and_the_second_is_told(live, gate):
    first, second = live(), live()
    gate.hold()
    first.locator("#live-go").click()
    gate.let(2)
    EXPECT(options(first)).to_have_count(2)
    second.locator("#live-go").click()
    EXPECT(second.locator("#live-status")).to_contain_text("One rollout at a time: yours is second")
    first.locator("#live-stop").click()
    gate.go()
    ended(first, 1)
    ended(second, 1)
    assert options(second).count() > 2


def test_a_page_that_is_loaded_again_lets_go_of_the_model(live, gate):
    page = live()
    gate.hold()
    page.locator("#live-go").click()
    gate.let(2)
    EXPECT(options(page)).to_have_count(2)
    live.opened[-1].forgiven = LEAVING
    page.reload()
    gate.go()
    page.locator("#live-tokens [role=listbox]").wait_for()
    roll(page)
    assert options(page).count() > 2


def test_a_waiting_page_that_is_closed_leaves_the_line(live, gate):
    first, second, third = live(), live(), live()
    gate.hold()
    first.locator("#live-go").click()
    gate.let(1)
    EXPECT(options(first)).to_have_count(1)
    second.locator("#live-go").click()
    EXPECT(second.locator("#live-status")).to_contain_text("yours is second")
    third.locator("#live-go").click()
    EXPECT(third.locator("#live-status")).to_contain_text("yours is third")
    second.close()
    EXPECT(third.locator("#live-status")).to_contain_text("yours is second")
    gate.go()
    ended(third, 1)
    assert options(third).count() > 1


def test_a_link_opens_a_recorded_rollout_at_its_token(live, tiny_runs):
    from workbench.inspector.token_records import load_run
    from workbench.screens.links import Link

    listed = load_run(tiny_runs / "tiny").listed[0]
    page = live(query=Link("tiny", listed.rollout, 2, "live").query)
    EXPECT(page.locator("#live-status .tag")).to_have_text("recorded")
    EXPECT(options(page)).to_have_count(listed.tokens)
    EXPECT(page.locator("#live-tokens .tv-on")).to_have_count(1)
    EXPECT(page.locator("#live-tokens .tv-place")).to_contain_text("token 2")
    EXPECT(page.locator("#live-rollouts li")).to_have_count(1)
    page.locator("#live-again").click()
    EXPECT(page.locator("#live-status .tag")).to_have_text("recomputed")
    EXPECT(page.locator("#live-rollouts li")).to_have_count(2)


def test_a_link_leads_to_a_rollout_that_was_written_on_another_page(app, live):
    page = live()
    roll(page)
    page.locator("#app-copy").click()
    page.wait_for_function("location.search.includes('rollout=live-')")
    assert "tok=" not in page.url, "nobody has selected a token"
    options(page).nth(2).click()
    EXPECT(page.locator("#live-tokens .tv-on")).to_have_count(1)
    page.locator("#app-copy").click()
    page.wait_for_function("location.search.includes('tok=2')")
    other = live(query=page.url.removeprefix(app + "/"))
    EXPECT(other.locator("#live-tokens .tv-place")).to_contain_text("token 2")
    assert options(other).all_inner_texts() == options(page).all_inner_texts()
    EXPECT(other.locator("#live-recorded")).to_be_hidden()
    STORE.drop([page.url.partition("rollout=")[2].partition("&")[0]])
    gone = live(query=page.url.removeprefix(app + "/"))
    EXPECT(gone.locator(".toast-body, [data-testid=toast-body]").first).to_contain_text("no longer held")
    EXPECT(gone.locator("#live-status")).to_contain_text("Nothing is written yet")


def test_compare_two_recipes_side_by_side(live):
    page = live()
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator("#compare-go").click()
    EXPECT(page.locator("#compare-totals h3")).to_have_count(2)
    EXPECT(page.locator("#compare-go")).to_be_enabled()
    left, right = (page.locator(f"#compare-{side}-tokens [role=option]") for side in ("left", "right"))
    assert left.count() == right.count() > 3
    left.nth(2).click()
    EXPECT(page.locator("#compare-right-tokens .tv-on")).to_have_count(1)
    EXPECT(page.locator("#compare-totals")).to_contain_text("opsd_other_problem")
    EXPECT(page.locator("#compare-status")).to_contain_text("nat/token")


def test_exports_are_saved_by_the_browser(live):
    page = live()
    roll(page)
    page.get_by_role("tab", name="Export", exact=True).click()
    for kind, begins in (("html", b"<!doctype html>"), ("csv", b"run,rollout"), ("json", b'[{"value":')):
        with page.expect_download() as saved:
            page.locator(f"#live-save-{kind}").click()
        file = saved.value
        assert file.suggested_filename.endswith(f".{kind}")
        assert Path(file.path()).read_bytes().startswith(begins)
    with page.expect_download() as saved:
        page.locator("#live-tokens").get_by_role("button", name="Save strip", exact=True).click()
    assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "${alert(2)}",
    "{{alert(3)}}",
    "\x1b[2J\u202e\u200b",
    "</script><script>alert(4)</script>",
)


def test_what_models_write_stays_text_in_every_place(live):
    page = live()
    roll(page)
    name = next(reversed(STORE._kept))
    kept = STORE.get(name)
    seen = kept.seen
    bad = [HOSTILE[i % len(HOSTILE)] for i in range(len(seen))]
    everything = "".join(HOSTILE)
    STORE.put(
        replace(
            kept,
            label=everything,
            seen=replace(
                seen,
                text=tuple(bad),
                pieces={token: HOSTILE[token % len(HOSTILE)] for token in seen.pieces},
                prompts=(tuple(HOSTILE), (*HOSTILE, everything)),
                why=tuple(bad),
                question=everything,
                answer=everything,
                solution=everything,
                recipe=everything,
                terms=(everything,) * len(seen.terms),
                verdict=replace(seen.verdict, extracted=everything, reason=everything, feedback=everything),
            ),
        ),
        name,
    )
    page.get_by_role("button", name="Rollout 1", exact=True).click()
    EXPECT(page.locator("#live-status")).to_contain_text("onerror")
    options(page).nth(1).click()
    EXPECT(page.locator("#live-tokens .tv-tops")).to_be_visible()
    for tab in ("Student sees", "Teacher sees", "Verdict"):
        page.get_by_role("tab", name=tab, exact=True).click()
    EXPECT(page.locator("#live-verdict")).to_contain_text("onerror")
    assert page.locator("#live-main img, #live-main script, #live-main iframe").count() == 0


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 768), (390, 844)])
def test_nothing_runs_over_the_edge(live, width, height):
    page = live(width, height)
    roll(page)
    options(page).nth(1).click()
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert over <= 0
