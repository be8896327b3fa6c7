"""The token view as a component: drawn while it is written, in tabs nobody opened yet, two of them moving together."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gr = pytest.importorskip("gradio")  # the rest needs it

from tests.browser.test_token_view import ON, selected, story, tokens  # noqa: E402
from tests.browser.watching import pages  # noqa: E402
from tests.pages import HOSTILE, seen  # noqa: E402
from workbench.inspector.page import static  # noqa: E402
from workbench.inspector.page.value import detail, token_value  # noqa: E402
from workbench.screens.token_view import TokenView, _server  # noqa: E402
from workbench.text import printable  # noqa: E402

# Gradio 6.31 uses what pandas 3 has given up.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")


class Stage:
    """A small app with every use of the view, and what it heard."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.live = story(60)
        bad = seen(HOSTILE, rollout="bad", run="".join(HOSTILE))
        self.stored = {
            "live": replace(self.live, rollout="live"),
            "a": story(rollout="a"),
            "b": story(seed=1, rollout="b"),
            "bad": replace(bad, pieces=dict(enumerate(HOSTILE * 2))),
        }
        self.asked: list[tuple[str, str]] = []
        with gr.Blocks() as self.demo:
            with gr.Tab("now"):
                button, jump = gr.Button("Write", elem_id="write"), gr.Button("Jump", elem_id="jump")
                bad, whole = gr.Button("Bad", elem_id="bad"), gr.Button("Whole", elem_id="whole")
                lost = gr.Button("Lost", elem_id="lost")
                live = TokenView(find=self.find, branch=True, elem_id="live")
                heard = gr.Textbox(elem_id="heard")
            with gr.Tab("later"), gr.Row():
                for name in "ab":
                    with gr.Column():
                        TokenView(token_value(self.stored[name]), find=self.find, group="two", elem_id=name)
            quiet = {"show_progress": "hidden", "api_visibility": "private"}
            button.click(self.write, None, live, **quiet)
            jump.click(self.late, None, live, **quiet)
            whole.click(lambda: token_value(self.stored["live"]), None, live, **quiet)
            bad.click(lambda: token_value(self.stored["bad"]), None, live, **quiet)
            lost.click(lambda: token_value(self.stored["gone"]), None, live, **quiet)
            for event in (live.token, live.branch):
                event(self.hear, None, heard, **quiet)

    def find(self, run: str, rollout: str):
        self.asked.append((run, rollout))
        return self.stored.get(rollout)

    def write(self):
        """Pieces of 20 tokens, each when the test says so."""
        made = replace(self.live, rollout="live", source="live")
        for first in range(0, 60, 20):
            self.go.acquire(timeout=60)
            yield token_value(made.take(slice(first, first + 20)))

    def late(self):
        """A piece whose beginning this browser never saw."""
        return token_value(self.stored["live"].take(slice(50, 60)))

    def hear(self, event: gr.EventData) -> str:
        said = [event.run, event.rollout, event.t]
        more = [event.token, event.text] if hasattr(event, "token") else []
        return printable(" ".join(map(str, [*said, *more])))


@pytest.fixture(scope="module")
def stage():
    made = Stage()
    _, url, _ = made.demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False, show_error=False
    )
    made.url = url
    yield made
    made.demo.close()


@pytest.fixture
def app(stage, browser):
    with pages(browser) as fresh:
        yield from opened(stage, fresh())


def opened(stage, watched):
    watched.page.goto(stage.url)
    watched.page.locator("#write").wait_for()
    watched.stage = stage
    yield watched
    assert watched.strangers("http://127.0.0.1:", "ws://127.0.0.1:") == []
    assert [line for line in watched.said if line.startswith(("error", "uncaught"))] == []
    assert watched.opened == []


def count(page, n: int, where: str = "#live") -> None:
    page.wait_for_function(f"document.querySelectorAll('{where} [role=option]').length === {n}", timeout=60_000)


def test_what_is_written_is_appended_and_what_stands_does_not_move(app):
    page = app.page
    page.locator("#write").click()
    app.stage.go.release()
    count(page, 20)
    page.locator("#live [data-t='7']").click()
    page.evaluate("window.kept = document.querySelector('#live [data-t=\"7\"]')")
    where = "document.querySelector('#live [data-t=\"7\"]').getBoundingClientRect().top"
    before = page.evaluate(where), page.locator("#live canvas").bounding_box()["y"]
    for n in (40, 60):
        app.stage.go.release()
        count(page, n)
        assert (page.evaluate(where), page.locator("#live canvas").bounding_box()["y"]) == before
    assert page.evaluate("window.kept === document.querySelector('#live [data-t=\"7\"]')")
    assert selected(page) == [7]
    page.locator("#whole").click()  # what was written is stored, and shown once more as a whole
    page.wait_for_selector("#live .tv-root:not(.tv-live)")
    assert selected(page) == [7]
    assert "token 7" in page.locator("#live .tv-detail").inner_text()
    shown = page.locator("#live [role=listbox]").evaluate("e => e.textContent.replaceAll('↵', '')")
    assert shown == app.stage.live.completion


def test_a_missed_range_is_asked_for(app):
    app.page.locator("#jump").click()
    count(app.page, 60)
    assert app.page.locator("#live [data-t='0']").inner_text() == app.stage.live.text[0]
    app.stage.asked.clear()
    app.stage.stored["gone"] = replace(app.stage.live.take(slice(50, 60)), rollout="gone")
    with app.page.expect_response(lambda answer: "component_server" in answer.url):
        app.page.locator("#lost").click()
    app.page.locator("#whole").click()
    app.page.locator("#live .tv-said", has_text="carry").wait_for()
    # What is stored begins later than what is missing: asked once, not for ever.
    assert app.stage.asked.count(("a-run", "gone")) == 1


def test_selecting_and_branching_reach_the_page_s_functions(app):
    page = app.page
    page.locator("#jump").click()
    count(page, 60)
    page.locator("#live [data-t='12']").click()
    page.locator("#live .tv-tops").wait_for()
    page.wait_for_function("document.querySelector('#heard textarea').value === 'a-run live 12'")
    wanted = next(a for a in detail(app.stage.live, 12)["alternatives"] if not a["written"])
    tokens(page).focus()
    page.keyboard.press("b")
    expected = f"a-run live 12 {wanted['token']} {wanted['text']}"
    page.wait_for_function(f"document.querySelector('#heard textarea').value === {expected!r}")
    last = app.stage.live.alternatives(12)[-1]
    page.locator("#live .tv-tops tbody tr", has_text=last.text).get_by_role("button").last.click()
    expected = f"a-run live 12 {last.token} {last.text}"
    page.wait_for_function(f"document.querySelector('#heard textarea').value === {expected!r}")


def test_a_tab_that_was_never_open_shows_its_value_and_two_views_move_together(app):
    page = app.page
    assert page.locator("#a [role=option]").count() == 0
    page.get_by_role("tab", name="later", exact=True).click()
    count(page, 45, "#a")
    count(page, 45, "#b")
    page.locator("#a [data-t='21']").click()
    assert page.locator("#b [aria-selected=true]").get_attribute("data-t") == "21"
    page.locator("#b .tv-tops").wait_for()
    page.locator("#b").get_by_label("Colour").select_option("ent_t")
    assert page.locator("#a").get_by_label("Colour").input_value() == "ent_t"
    lower = "(e, top) => { e.style.maxHeight = '8rem'; if (top !== null) e.scrollTop = top; return e.scrollTop; }"
    page.locator("#b [role=listbox]").evaluate(lower, None)
    page.locator("#a [role=listbox]").evaluate(lower, 60)
    page.wait_for_function("document.querySelector('#b [role=listbox]').scrollTop > 20")


def test_hostile_text_in_the_app(app):
    page = app.page
    page.locator("#bad").click()
    count(page, len(HOSTILE))
    for t in range(0, len(HOSTILE), 5):
        page.locator(f"#live [data-t='{t}']").click()
        page.locator("#live .tv-tops").wait_for()
    assert page.locator("#live").locator("img, script, iframe, svg[onload]").count() == 0
    inside = "[...document.querySelectorAll('#live .tv-root *')].flatMap(e => [...e.attributes])." + ON
    assert page.evaluate(inside) == 0


def test_the_view_follows_the_app_s_theme(app):
    page = app.page
    ground = "getComputedStyle(document.querySelector('#live .tv-tokens')).backgroundColor"
    page.locator("#live .tv-tokens").wait_for()
    light = page.evaluate(ground)
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(f"{ground} !== {light!r}")


@pytest.mark.parametrize(
    "asked",
    [
        None,
        [],
        "x",
        {},
        {"run": "r"},
        {"run": 1, "rollout": "a", "t": 0},
        {"run": "r", "rollout": "a", "t": -1},
        {"run": "r", "rollout": "a", "t": True},
        {"run": "r", "rollout": "a", "t": "0"},
        {"run": "r", "rollout": "a", "t": 10**9},
        {"run": "../..", "rollout": "../../etc/passwd", "t": 0},
    ],
)
def test_the_server_answers_what_a_browser_made_up_with_nothing(asked):
    found = {("r", "a"): story(5)}
    token_detail, token_span = _server(lambda run, rollout: found.get((run, rollout)))
    assert token_detail(asked) is None
    since = {**asked, "since": asked["t"]} if isinstance(asked, dict) and "t" in asked else asked
    assert token_span(since) is None


def test_the_template_is_constant_and_no_file_is_written_beside_the_source():
    view = TokenView("", elem_id="x")
    assert view.html_template == '<div class="tv-root"></div>'
    assert view.css_template == static.style()
    folder = static.files("workbench.screens")
    assert not [f for f in folder.iterdir() if f.name.endswith(".pyi")]
