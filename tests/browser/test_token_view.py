"""The token view in a real browser: as a file, and as a component of an app."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.browser.watching import pages
from tests.pages import HOSTILE, seen
from workbench.inspector.diagnostics.record import TokenRecord
from workbench.inspector.diagnostics.where import concentration
from workbench.inspector.page import static
from workbench.inspector.page.value import token_value
from workbench.text import printable

ON = "filter(a => /^on|^src|^href/.test(a.name)).length"
"""JavaScript: how many of these attributes fetch or run something."""
WORDS = (
    "So",
    " John",
    " has",
    " 3",
    " bananas",
    " and",
    " 4",
    " pears",
    ".",
    "\n",
    "In",
    " all",
    " 7",
    ".",
    " </think>",
)


def story(n: int = 45, **others: Any):
    """A completion of several lines; its divergence is concentrated on every ninth token."""
    made = seen([WORDS[i % len(WORDS)] for i in range(n)], **others)
    spiky = np.where(np.arange(n) % 9 == 4, 2.0, 0.01)
    return replace(made, reverse_kl=spiky, values=spiky[None])


@pytest.fixture
def fresh_page(browser):
    with pages(browser) as made:
        yield made


@pytest.fixture
def opened(fresh_page, tmp_path):
    """Open a file of completions: `opened(seen, ...)` gives the watched page, drawn."""

    def made(*completions, linked: bool = False, **how: Any):
        path = tmp_path / f"page-{len(list(tmp_path.iterdir()))}.html"
        path.write_text(static.page(list(completions), linked=linked))
        watched = fresh_page(**how)
        watched.page.goto(path.as_uri())
        watched.page.wait_for_selector("body[data-drawn]")
        return watched

    return made


def tokens(page: Any, nth: int = 0) -> Any:
    return page.get_by_role("listbox").nth(nth)


def selected(page: Any, nth: int = 0) -> list[int]:
    return [
        int(t) for t in tokens(page, nth).locator("[aria-selected=true]").evaluate_all("x => x.map(e => e.dataset.t)")
    ]


def clean(watched: Any) -> None:
    """Nothing said on the console, nobody asked but the file itself, nothing opened."""
    assert watched.said == []
    assert watched.opened == []
    assert watched.strangers("file:") == []


def test_every_key_of_the_text_does_what_its_button_does(opened):
    watched = opened(story())
    page = watched.page
    tokens(page).focus()
    for key, there in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 44), ("Home", 0)):
        page.keyboard.press(key)
        assert selected(page) == [there], key
    page.keyboard.press("n")
    assert selected(page) == [4]
    page.keyboard.press("n")
    page.keyboard.press("p")
    assert selected(page) == [4]
    page.get_by_role("button", name="Next", exact=True).click()
    assert selected(page) == [13]
    page.get_by_role("button", name="Previous", exact=True).click()
    assert selected(page) == [4]
    tokens(page).focus()
    page.keyboard.press("ArrowDown")
    below = selected(page)[0]
    assert 9 < below < 25  # the second line begins after token 9
    page.keyboard.press("ArrowUp")
    assert abs(selected(page)[0] - 4) <= 1
    assert tokens(page).get_attribute("aria-activedescendant") == tokens(page).locator(
        "[aria-selected=true]"
    ).get_attribute("id")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "the selected token"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "listbox"
    page.keyboard.press("Escape")
    assert selected(page) == []
    clean(watched)


def test_one_tab_stop_for_the_whole_text(opened):
    page = opened(story()).page
    assert tokens(page).get_attribute("tabindex") == "0"
    assert tokens(page).locator("[tabindex]").count() == 0


def test_the_threshold_counts_and_dims(opened):
    page = opened(story()).page
    said = page.locator(".tv-said")
    # 5 tokens of 2.0 nat and 40 of 0.01: four carry 77 %, five 96 %.
    assert said.inner_text() == "5 of 45 tokens carry 80 % of the divergence"
    assert page.locator(".tv-dim").count() == 0
    tokens(page).focus()
    for _ in range(4):
        page.keyboard.press("[")
    assert said.inner_text() == "5 of 45 tokens carry 80 % of the divergence"
    assert page.locator(".tv-dim").count() == 40
    page.keyboard.press("[")
    assert said.inner_text() == "4 of 45 tokens carry 75 % of the divergence"
    for _ in range(5):
        page.keyboard.press("]")
    assert page.locator(".tv-dim").count() == 0
    page.get_by_label("Threshold").fill("50")
    assert said.inner_text() == "3 of 45 tokens carry 50 % of the divergence"


def test_what_is_out_of_the_loss_is_hatched_and_not_counted(opened):
    watched = opened(story(weight=[0.0] * 9 + [1.0] * 36))
    page = watched.page
    assert page.locator(".tv-said").inner_text() == "4 of the 36 tokens in the loss carry 80 % of the divergence"
    assert tokens(page).locator(".tv-off").count() == 9
    assert "repeating-linear-gradient" in tokens(page).locator("span").first.evaluate(
        "e => getComputedStyle(e).backgroundImage"
    )
    tokens(page).locator("[data-t='3']").click()
    assert "gated by Correct" in page.locator(".tv-detail").inner_text()


def test_search_counts_hits_and_walks_through_them(opened):
    page = opened(story()).page
    tokens(page).focus()
    page.keyboard.press("/")
    page.keyboard.type("3 banan")
    assert page.locator(".tv-found").inner_text() == "3 hits"
    assert tokens(page).locator(".tv-hit").count() == 6
    walked = []
    for _ in range(4):
        page.keyboard.press("Enter")
        walked += selected(page)
    assert walked == [3, 18, 33, 3]
    page.keyboard.press("Escape")
    assert tokens(page).locator(".tv-hit").count() == 0


def test_who_says_more_has_a_bar_as_well_as_a_colour(opened):
    made = story(4)
    made = replace(
        made, student_logp=np.array([-4.0, -1.0, -2.0, -2.0]), teacher_logp=np.array([-1.0, -4.0, -2.0, np.nan])
    )
    page = opened(made).page
    shadow = "e => getComputedStyle(e).boxShadow"
    under, over, same, unknown = (tokens(page).locator("[role=option]").nth(i).evaluate(shadow) for i in range(4))
    assert "0px -3px 0px 0px inset" in under
    assert "0px 3px 0px 0px inset" in over
    assert " 0px 0px 0px 0px inset" in same
    assert " 0px 0px 0px 0px inset" in unknown
    tokens(page).locator("[role=option]").nth(0).click()
    assert "the teacher says more by 3.000 nat" in page.locator(".tv-line").inner_text()
    for mode in ("div", "ent_s", "ent_t", "rank_s", "rank_t", "w", "none", "delta"):
        page.get_by_label("Colour").select_option(mode)
        assert page.locator(".tv-legend-name").inner_text()
    assert page.locator(".tv-numbers").inner_text().split() == ["−3.0", "0", "+3.0"]


def test_a_masked_outlier_does_not_flatten_the_scale(opened):
    made = story(50, weight=[0.0] + [1.0] * 49)
    made = replace(made, student_logp=np.full(50, -3.0), teacher_logp=np.array([-50.0] + [-2.0] * 49))
    page = opened(made).page
    page.get_by_label("Scale").select_option("p99")
    assert page.locator(".tv-numbers").inner_text().split() == ["−1.0", "0", "+1.0"]


def test_the_panel_shows_the_numbers_of_the_record(opened):
    made = story()
    page = opened(made).page
    tokens(page).locator("[data-t='7']").click()
    panel = page.locator(".tv-detail").inner_text()
    for number in (
        made.student_logp[7],
        made.teacher_logp[7],
        made.forward_kl[7],
        made.jsd[7],
        made.student_entropy[7],
    ):
        assert f"{number:.3f}".replace("-", "−") in panel
    rows = page.locator(".tv-tops tbody tr")
    assert rows.count() == len(made.alternatives(7)) + 1
    assert "rest of the vocabulary" in rows.last.inner_text()
    first = made.alternatives(7)[0]
    assert f"{100 * np.exp(first.teacher_logp):.2f}"[:4] in rows.first.inner_text()
    assert page.locator(".tv-line").get_attribute("aria-live") == "polite"


def test_every_term_of_the_loss_where_there_are_several(opened):
    made = story()
    two = {"terms": ("ReverseKL", "SampledLogRatio"), "values": np.stack([made.reverse_kl, np.full(45, 1.25)])}
    page = opened(replace(made, **two, weights=np.full((2, 45), 0.5))).page
    tokens(page).locator("[data-t='7']").click()
    assert page.locator(".tv-terms tbody tr").all_inner_texts() == [
        "ReverseKL\t0.01\t0.5",
        "SampledLogRatio\t1.25\t0.5",
    ]
    assert f"token 7, id {made.token_ids[7]}" in page.locator(".tv-line").inner_text()


def test_both_prompts_with_their_difference(opened):
    page = opened(story()).page
    page.get_by_text("Teacher sees, 7 tokens").click()
    assert page.locator(".tv-differs").all_inner_texts() == [" It is 2"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_hostile_text_is_shown_and_obeyed_nowhere(opened, dark):
    name = "".join(HOSTILE)
    made = seen(
        HOSTILE,
        run=name,
        rollout=name,
        question=name,
        answer=name,
        recipe=name,
        stop="stop",
        prompts=((name,), (name, name)),
    )
    made = replace(made, why=HOSTILE, pieces=dict.fromkeys(made.pieces, name))
    harmless = opened(seen(["x"] * len(HOSTILE), question="q", answer="a", recipe="r"), dark=dark)
    watched = opened(made, dark=dark)
    kinds = "() => [...new Set([...document.querySelectorAll('*')].map(e => e.tagName))].sort()"
    handlers = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes])." + ON
    for t in range(len(HOSTILE)):
        for page in (watched.page, harmless.page):
            tokens(page).locator(f"[data-t='{t}']").click()
    for page in (watched.page, harmless.page):
        for fold in page.locator("details.tv-prompt").all():
            fold.locator("summary").click()
    assert set(watched.page.evaluate(kinds)) - set(harmless.page.evaluate(kinds)) <= {"MARK"}
    assert watched.page.evaluate(handlers) == 0
    for t, text in enumerate(HOSTILE):
        shown = tokens(watched.page).locator(f"[data-t='{t}']").evaluate("e => e.textContent")
        if "\u0301" not in text:
            assert shown.replace("↵\n", "\\n") == printable(text)
    clean(watched)


def test_more_tokens_than_a_window_are_drawn_in_time_and_all_can_be_reached(opened):
    watched = opened(story(16_384, k=0))
    page = watched.page
    assert int(page.locator("body").get_attribute("data-drawn")) < 6000  # four times the budget: this machine is shared
    assert tokens(page).locator("[role=option]").count() == 4096
    assert "tokens 0 to 4,095 of 16,384" in page.locator(".tv-pages").inner_text()
    page.get_by_role("button", name="Later").click()
    assert tokens(page).locator("[role=option]").first.get_attribute("data-t") == "4096"
    tokens(page).focus()
    page.keyboard.press("End")
    assert selected(page) == [16_383]
    assert tokens(page).locator("[role=option]").count() == 4096
    strip = page.locator("canvas")
    box = strip.bounding_box()
    strip.click(position={"x": box["width"] / 2, "y": 40})
    assert abs(selected(page)[0] - 8192) <= 16_384 / box["width"] + 1
    clean(watched)


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 768), (360, 740)])
def test_nothing_is_cut_off_and_nothing_is_small(opened, width, height):
    page = opened(story(), width=width, height=height).page
    tokens(page).locator("[data-t='4']").click()
    page.get_by_text("Keys", exact=True).click()
    box = page.locator(".tv-keys").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('body *')].filter(e => e.childNodes.length && e.innerText)"
    sizes = shown + ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(page.evaluate(sizes)) >= 12


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_finding_of_accessibility(opened, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    long = tuple("a line of the prompt\n" for _ in range(100))
    made = story(weight=[0.0] * 5 + [1.0] * 40, prompts=(long, (*long, " and more")), question="What?", answer="4")
    page = opened(made, dark=dark, height=600, bypass_csp=True).page
    tokens(page).locator("[data-t='4']").click()
    page.get_by_text("Teacher sees, 101 tokens").click()
    page.get_by_label("Threshold").fill("50")
    page.get_by_text("Keys", exact=True).click()
    found = axe.run(page).response["violations"]
    serious = [
        (v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


def contrast(page: Any, locator: Any) -> float:
    """WCAG contrast of a token's text against its tint on the ground."""
    colours = locator.evaluate(
        "e => [[e, 'color'], [e, 'backgroundColor'], [e.closest('.tv-tokens'), 'backgroundColor']]"
        ".map(([node, what]) => getComputedStyle(node)[what])"
    )
    text, tint, ground = (
        [float(x) for x in c[c.index("(") + 1 : -1].replace("/", " ").replace(",", " ").split()] for c in colours
    )
    alpha = tint[3] if len(tint) > 3 else 1.0
    mixed = [alpha * a + (1 - alpha) * b for a, b in zip(tint, ground, strict=False)]

    def luminance(rgb):
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((luminance(text), luminance(mixed)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_on_the_deepest_tint_can_be_read(opened, dark):
    made = replace(story(3), student_logp=np.array([-9.0, -1.0, -2.0]), teacher_logp=np.array([-1.0, -9.0, -2.0]))
    page = opened(made, dark=dark).page
    options = tokens(page).locator("[role=option]")
    page.wait_for_function(f"document.body.classList.contains('dark') === {str(dark).lower()}")
    assert all(contrast(page, options.nth(i)) >= 4.7 for i in range(3))
    page.get_by_label("Colour").select_option("div")
    assert all(contrast(page, options.nth(i)) >= 4.7 for i in range(3))


def test_linked_completions_share_one_selection_and_one_scale(opened):
    page = opened(story(), story(seed=1), linked=True).page
    tokens(page, 0).locator("[data-t='11']").click()
    assert selected(page, 0) == selected(page, 1) == [11]
    page.get_by_label("Colour").first.select_option("ent_s")
    assert page.get_by_label("Colour").nth(1).input_value() == "ent_s"
    page = opened(story(), story(seed=1)).page
    tokens(page, 0).locator("[data-t='11']").click()
    assert selected(page, 1) == []


def test_the_copied_numbers_are_the_record_s(opened):
    made = story()
    watched = opened(made, permissions=["clipboard-read", "clipboard-write"])
    tokens(watched.page).locator("[data-t='9']").click()
    watched.page.get_by_role("button", name="Copy").click()
    watched.page.get_by_text("Copied.").wait_for()
    text = watched.page.evaluate("navigator.clipboard.readText()")
    assert text.startswith(f"token 9 (id {made.token_ids[9]}): \\n\n")
    assert f"{made.forward_kl[9]:.3f}" in text


def test_the_page_keeps_the_theme_that_was_chosen(opened):
    page = opened(story()).page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for chosen, kept in (("dark", "dark"), ("light", "light"), ("", "light")):
        page.get_by_label("Theme").select_option(chosen)
        page.reload()
        page.wait_for_selector("body[data-drawn]")
        assert page.get_by_label("Theme").input_value() == chosen
        assert (page.evaluate(ground) == light) == (kept == "light")


def test_the_value_of_the_file_is_the_value_of_the_app():
    assert token_value(story()) in static.page(story()).replace("\\u003c", "<").replace("\\u003e", ">").replace(
        "\\u0026", "&"
    )


def test_the_strip_can_be_kept_as_an_image(opened, tmp_path):
    page = opened(story()).page
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save strip").click()
    kept = tmp_path / "strip.png"
    waiting.value.save_as(kept)
    assert kept.read_bytes().startswith(b"\x89PNG")


def test_the_sentence_counts_as_the_diagnostics_do(opened):
    made = seen(["x"] * 40, seed=4, weight=[0.0, 0.3] * 5 + [1.0] * 30)
    record = TokenRecord(
        problem="p",
        text=made.text,
        student_logp=made.student_logp,
        teacher_logp=made.teacher_logp,
        student_entropy=made.student_entropy,
        teacher_entropy=made.teacher_entropy,
        divergence=made.divergence,
        weight=made.weight,
    )
    page = opened(made).page
    for share in (30, 50, 80, 95):
        page.get_by_label("Threshold").fill(str(share))
        found = concentration(record, share / 100)
        said = f"{len(found.positions)} of the {found.counted} tokens in the loss carry {share} % of the divergence"
        assert page.locator(".tv-said").inner_text() == said


def test_pieces_of_one_character_are_joined_and_marked_and_special_tokens_have_their_name(opened):
    made = seen(["So ", "", "", "語", "!", ""], vocabulary=400)
    pieces = dict.fromkeys(made.token_ids[1:3], "�") | {made.token_ids[5]: "<|im_end|>"}
    page = opened(replace(made, pieces={**made.pieces, **pieces})).page
    assert tokens(page).locator("[role=option]").all_inner_texts() == ["So ", "▹", "▹", "語", "!", "<|im_end|>"]
    assert tokens(page).locator(".tv-part").count() == 2
    assert tokens(page).locator(".tv-whole").all_inner_texts() == ["語"]
    tokens(page).locator("[data-t='1']").click()
    assert "part of a character" in page.locator(".tv-line").inner_text()
    tokens(page).locator("[data-t='5']").click()
    assert "<|im_end|>" in page.locator(".tv-line").inner_text()
