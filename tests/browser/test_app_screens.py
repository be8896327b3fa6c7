"""Runs, Rollouts, Train and Data in a browser: what a person does with them, and what nobody may do to them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError

from tests.browser.conftest import LEAVING, App, Watched, until
from workbench.screens.serving import POLICY
from workbench.train.reporting import view
from workbench.train.run_directory import RunDirectory

pytestmark = pytest.mark.timeout(1200)  # a busy machine is no failure; each condition has a limit of its own

PAYLOADS = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)<\u2215script>",
    "<svg onload=alert(1)>",
    "{{7*7}} ${alert(1)} \\boxed{5}",
    "![x](http:\u2215\u2215203.0.113.9\u2215x.png) [y](javascript:alert(1))",
    "$\\href{javascript:alert(1)}{x}$ `</code>`",
    "\x1b[2J\u202e\u200b\ud800",
)
"""Texts as a model, a file or a user might leave them. A name of a run cannot hold a slash: there it is another."""


def at(url: str, view: str, **more: str) -> str:
    return url + "?" + "&".join(f"{k}={v}" for k, v in {"view": view, **more}.items())


def shown(page, view: str) -> None:
    """Wait until a screen is the selected one."""
    page.wait_for_selector(f"#tab-{view}-button[aria-selected=true]")


def value(page, name: str) -> str:
    return page.locator(f"#{name} textarea, #{name} input").first.input_value()


def fill(page, name: str, text: str) -> None:
    field = page.locator(f"#{name} textarea, #{name} input").first
    field.fill(text)
    if field.get_attribute("role") == "combobox":
        field.press("Enter")
    field.blur()  # not Tab: the next field could be a list that opens over what is clicked next


def says(page, name: str, text: str) -> None:
    """Wait until a text field holds a text (a regular expression)."""
    try:
        page.wait_for_function(
            """([name, text]) => {
                const field = document.querySelector(`#${name} textarea, #${name} input`);
                return field && new RegExp(text).test(field.value);
            }""",
            arg=[name, text],
        )
    except TimeoutError as error:
        raise AssertionError(f"{name} says {value(page, name)!r}, not {text!r}") from error


def test_the_app_opens_on_the_newest_run_and_shows_its_curves(page_watched: Watched, app_server: App) -> None:
    page = page_watched.page
    assert page.request.get(app_server.url).headers["content-security-policy"] == POLICY
    shown(page, "runs")
    says(page, "runs-standing", "tiny: finished at step 3")
    assert "--resume --name tiny" in value(page, "runs-command")
    assert "recipe_text" not in value(page, "runs-settings")
    assert "steps = 3" in value(page, "runs-settings")
    page.wait_for_selector("#runs-curves svg[role=img]")
    spoken = page.locator("#runs-curves svg[role=img]").first.get_attribute("aria-label")
    assert re.match(r"divergence, nat/token\. tiny: [0-9.]+ at step 1, [0-9.]+ at step 3", spoken)


GROUNDS = """() => {
  window.grounds = new Set();
  const look = () => {
    if (document.body) window.grounds.add(getComputedStyle(document.body).backgroundColor);
    const app = document.querySelector(".gradio-container");
    if (app) window.grounds.add(getComputedStyle(app).backgroundColor);
    requestAnimationFrame(look);
  };
  look();
}"""


def test_the_chosen_theme_is_there_at_the_first_paint_of_the_next_page(open_page, app_server: App) -> None:
    page = open_page(at(app_server.url, "runs", run="tiny", __theme="light"), color_scheme="light").page
    page.context.add_init_script(f"({GROUNDS})()")
    for dark in (True, False):
        page.locator("#app-theme").click()
        assert "__theme" not in page.url
        other = page.context.new_page()  # a second one: to load the first again would cut gradio's stream off
        other.goto(at(app_server.url, "data"))
        other.wait_for_selector("#app-copy")
        assert other.evaluate("document.body.classList.contains('dark')") == dark
        seen = other.evaluate("[...window.grounds].filter(c => c !== 'rgba(0, 0, 0, 0)')")
        assert seen, "no frame was looked at"
        assert all((sum(map(int, re.findall(r"\d+", c)[:3])) < 150) == dark for c in seen), seen
        other.close()


def test_without_runs_every_screen_says_what_to_do(start_app: Callable[..., App], open_page, tmp_path: Path) -> None:
    app = start_app(tmp_path / "none")
    page = open_page(app.url).page
    shown(page, "live")
    for name in ("runs", "rollouts", "data"):
        page.locator(f"#tab-{name}-button").click()
        page.wait_for_selector(f"#{name}-empty:visible")
    page.locator("#tab-train-button").click()
    says(page, "train-state", "No run yet")


def test_a_row_opens_live_and_a_link_leads_back_to_it(open_page, app_server: App) -> None:
    page = open_page(at(app_server.url, "rollouts", run="tiny")).page
    shown(page, "rollouts")
    page.get_by_text(re.compile("Rollouts 1 to 12 of 12")).wait_for()
    page.locator("#rollouts-table [data-testid='cell-0-0']").click(position={"x": 4, "y": 4})
    shown(page, "live")
    page.locator("#app-copy").click()
    page.wait_for_function("location.search.includes('rollout=')")
    link = page.url
    assert re.search(r"run=tiny&rollout=\d%2F\d+%2Fstudent%2F\d&view=live", link)
    page.locator("#tab-rollouts-button").click()
    page.wait_for_selector("#rollouts-text textarea")
    text, title = value(page, "rollouts-text"), value(page, "rollouts-title")
    rows = [json.loads(line) for line in (app_server.output / "tiny" / "rollouts.jsonl").read_text().splitlines()]
    assert title.startswith(f"step {rows[-1]['step']}, problem {rows[-1]['problem']}, student {rows[-1]['index']}:")
    again = open_page(link.replace("view=live", "view=rollouts")).page
    again.wait_for_selector("#rollouts-text textarea")
    assert (value(again, "rollouts-text"), value(again, "rollouts-title")) == (text, title)
    again.locator("#rollouts-previous:enabled").click()
    says(again, "rollouts-title", f"student {rows[-2]['index']}:")


def test_filters_and_rewards_narrow_the_rollouts(open_page, app_server: App) -> None:
    page = open_page(at(app_server.url, "rollouts", run="tiny")).page
    page.get_by_text(re.compile("of 12; a row")).wait_for()
    page.locator("#rollouts-rewards button.bar").first.click()
    page.wait_for_selector("#rollouts-rewards button[aria-pressed=true]")
    page.locator("#rollouts-correct").get_by_text("correct", exact=True).click()
    page.wait_for_selector("#rollouts-empty:visible")
    page.locator("#rollouts-correct").get_by_text("any", exact=True).click()
    page.wait_for_selector("#rollouts-empty", state="hidden")
    fill(page, "rollouts-search", "no such words")
    page.wait_for_selector("#rollouts-empty:visible")


@pytest.mark.parametrize("query", ["run=../../etc", "rollout=1/2", "tok=-1", "view=admin", "run=%3Cimg%20src%3Dx%3E"])
def test_a_link_that_is_none_opens_the_app_and_says_so(open_page, app_server: App, query: str) -> None:
    page = open_page(f"{app_server.url}?{query}").page
    page.locator(".toast-body, [data-testid=toast-body]").first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    page.wait_for_selector("[role=tab][aria-selected=true]")


def train(page, name: str, problems: Path, steps: int) -> None:
    """Fill the form and start."""
    page.locator("#tab-train-button").click()
    page.wait_for_selector("#train-essentials")
    for field, text in (("name", name), ("steps", str(steps)), ("batch", "2"), ("max-new-tokens", "8")):
        fill(page, f"train-{field}", text)
    fill(page, "train-eval-problems", "2")
    fill(page, "train-problems", str(problems))
    says(page, "train-command", f"--problems \\S*problems.jsonl .*--name {name}|--name {name} .*--problems")
    page.locator("#train-start").click()


def training(run: Path) -> bool:
    found = view(run)
    return found is not None and found.step >= 1


def test_a_run_started_here_is_watched_stopped_and_resumed(
    start_app: Callable[..., App], open_page, problem_file: Path, tmp_path: Path
) -> None:
    app = start_app(tmp_path)
    watched = open_page(app.url)
    watched.forgiven = LEAVING  # it is loaded again below
    page = watched.page
    train(page, "here", problem_file, 5000)
    until(lambda: training(tmp_path / "here"), "a first step")
    says(page, "train-state", "here: running at step [1-9]")
    page.locator("#train-start").click()  # again: nothing more is started
    page.get_by_text("here runs already.").first.wait_for()
    other = open_page(at(app.url, "runs")).page  # a second session, on its own screen
    says(other, "runs-standing", "here: running at step")
    page.reload()
    page.locator("#tab-train-button").click()
    says(page, "train-state", "here: running at step")
    page.wait_for_selector("#train-curves svg[role=img]")
    page.locator("#train-stop:enabled").click()
    says(page, "train-state", "here: stopped at step")
    says(other, "runs-standing", "here: stopped at step")
    done = view(tmp_path / "here").step
    fill(page, "train-more", str(done + 1))
    page.locator("#train-resume:enabled").click()
    says(page, "train-state", f"here: finished at step {done + 1}")
    assert f"resuming from step {done}" in value(page, "train-log")


def test_training_outlives_the_app_and_a_killed_run_says_why(
    start_app: Callable[..., App], open_page, problem_file: Path, tmp_path: Path
) -> None:
    app = start_app(tmp_path)
    page = open_page(app.url)
    train(page.page, "alone", problem_file, 5000)
    run = tmp_path / "alone"
    until(lambda: training(run), "a first step")
    page.page.context.close()
    app.kill()
    before = view(run).step
    until(lambda: view(run).step > before, "a step after the app's death")
    again = start_app(tmp_path)
    page = open_page(at(again.url, "runs")).page
    says(page, "runs-standing", "alone: running at step")
    os.kill(view(run).status["pid"], signal.SIGKILL)
    says(page, "runs-standing", "alone: failed at step \\d+\\nThe process is gone and left no word")
    assert "--resume --name alone" in value(page, "runs-command")
    page.locator("#runs-table [role=gridcell]").get_by_text("failed", exact=True).wait_for()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose names, configurations, figures, rollouts and errors are attacks; written as a run writes itself."""
    output = tmp_path_factory.mktemp("hostile")
    for number, text in enumerate(PAYLOADS[:5]):
        name = re.sub(r"[^ -~]|[/\\]", "", text)[:90].lstrip(".-") + f" {number}"
        with RunDirectory.create(output / name) as run:
            facts = {"recipe": text, "recipe_text": text, "config": {"model": text, "problems": text, "name": text}}
            run.write_run_json(facts | {"commit": text, "created": text})
            run.metrics.append({"step": 1, f"term.{text}": 1.0, "correct": 1, "judged": 2, "tokens_mean": text})
            for index, more in enumerate(PAYLOADS):
                row = {"step": 1, "problem": more, "question": more, "index": index, "author": "student", "text": more}
                row |= {"token_ids": [1], "stop": "length", "status": more, "score": 0.0, "extracted": more}
                run.rollouts.append(row | {"reason": more, "kept": True, "divergence": [0.5], "sampler_logp": [0.1]})
            run.status("failed", 1, text)
    return output


@pytest.fixture(scope="module")
def hostile_app(start_app: Callable[..., App], hostile: Path) -> App:
    return start_app(hostile)


def unharmed(page) -> None:
    """No element of a payload is in the page, and no attribute that would run."""
    found = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((e) => {
            const [source, target] = ["src", "href"].map((name) => e.getAttribute(name) || "");
            return e.hasAttribute("onerror") || e.hasAttribute("onload") || source === "x"
                || source.includes("203.0.113") || target.startsWith("javascript:");
        }).map((e) => e.outerHTML)"""
    )
    assert found == []


def test_hostile_runs_and_rollouts_are_text(open_page, hostile_app: App) -> None:
    watched = open_page(at(hostile_app.url, "runs"))
    page = watched.page
    page.wait_for_selector("#runs-curves svg[role=img]")
    for row in range(5):
        page.locator(f"#runs-table [data-testid='cell-{row}-0']").click(position={"x": 4, "y": 4})
        says(page, "runs-standing", f" {4 - row}: failed at step 1\\n")
        unharmed(page)
    page.locator("#runs-rollouts").click()
    page.get_by_text(re.compile("Rollouts 1 to 7 of 7")).wait_for()
    assert page.locator("#rollouts-table [role=gridcell]").get_by_text("${alert(1)}").count() > 0
    unharmed(page)
    page.locator("#rollouts-table [data-testid='cell-0-0']").click(position={"x": 4, "y": 4})
    shown(page, "live")
    unharmed(page)
    page.locator("#tab-rollouts-button").click()
    page.wait_for_selector("#rollouts-text textarea")
    unharmed(page)
    page.locator("#tab-train-button").click()
    says(page, "train-state", "failed at step 1")
    unharmed(page)


def test_of_two_rows_chosen_at_once_the_second_is_shown(open_page, hostile_app: App) -> None:
    """Gradio drops an event that comes while the last is under way, unless it is told not to."""
    page = open_page(at(hostile_app.url, "runs")).page
    page.wait_for_selector("#runs-curves svg[role=img]")
    cells = [page.locator(f"#runs-table [data-testid='cell-{row}-0']").bounding_box() for row in (1, 2, 3)]
    for box in cells:
        page.mouse.click(box["x"] + 4, box["y"] + 4)
    says(page, "runs-standing", " 1: failed at step 1\\n")


def test_hostile_fields_and_problems_are_text(open_page, hostile_app: App, tmp_path: Path) -> None:
    page = open_page(at(hostile_app.url, "train")).page
    fill(page, "train-name", PAYLOADS[0])
    says(page, "train-command", "not a command yet: --name '<img")
    page.locator("#train-start").click()
    page.get_by_text(re.compile("cannot be a run's name")).first.wait_for()
    unharmed(page)
    file = tmp_path / "hostile.jsonl"
    rows = [{"id": text, "question": text, "solution": text, "answer": text} for text in PAYLOADS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.locator("#tab-data-button").click()
    fill(page, "data-problems", str(file))
    page.locator("#data-look").click()
    page.wait_for_selector("#data-table:visible")
    says(page, "data-summary", "1 left out: text that is not Unicode .*\\n.*gold: 6 of 6 have one")
    unharmed(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(open_page, app_server: App, scheme: str) -> None:
    """axe-core's rules on every screen of ours, in both themes."""
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(at(app_server.url, "runs", run="tiny", __theme=scheme), color_scheme=scheme).page
    signs = ("#runs-curves svg", "#rollouts-table [role=gridcell]", "#train-curves svg", "#data-empty")
    for name, sign in zip(("runs", "rollouts", "train", "data"), signs, strict=True):
        page.locator(f"#tab-{name}-button").click()
        page.wait_for_selector(sign)
        found = Axe().run(page).response["violations"]
        serious = [
            (name, rule["id"], [node["html"][:160] for node in rule["nodes"]][:4])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]
        assert serious == []
