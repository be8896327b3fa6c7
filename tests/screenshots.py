"""`make docs`: the README's screenshots and the example page, from a real run and a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
EXAMPLE = ROOT / "docs" / "example-rollout.html"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PATIENCE = 300_000
RUN = [
    "--recipe",
    "opsdc",
    "--steps",
    "1",
    "--batch",
    "4",
    "--eval-problems",
    "0",
    "--progress",
    "plain",
    "--save-every",
    "9",
]
QUESTION = (
    "A baker sells 12 loaves in the morning and twice as many in the afternoon. Each loaf costs 3 dollars. "
    "How much does she earn?"
)
SOLUTION = "In the afternoon she sells 2 * 12 = 24 loaves, together 12 + 24 = 36. She earns 36 * 3 = 108 dollars."
HERE = os.environ | {"HF_HUB_OFFLINE": "1"}


def main() -> int:
    """0; 1 with a reason where there is no Chromium."""
    if not Path(CHROMIUM).exists():
        print(f"note: no pictures: {CHROMIUM} is missing. apt install chromium, or name another in CHROMIUM.")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        command([*python("workbench.opsd"), *RUN, "--name", "example", "--output", str(runs)])
        command([*python("workbench.inspect_run"), str(runs / "example"), "--html", str(runs / "page.html")])
        shutil.copyfile(runs / "page.html", EXAMPLE)
        IMAGES.mkdir(exist_ok=True)
        with app(runs) as url:
            shoot(url)
    for path in (EXAMPLE, *sorted(IMAGES.glob("*.png"))):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


def python(module: str) -> list[str]:
    """This interpreter, running a command."""
    return [sys.executable, "-m", module]


def command(line: list[str]) -> None:
    """Run it to its end."""
    subprocess.run(line, cwd=ROOT, check=True, env=HERE, stdout=subprocess.DEVNULL)


@contextmanager
def app(runs: Path) -> Iterator[str]:
    """The app on the run that was just made."""
    line = [sys.executable, "app.py", "--port", "0", "--output", str(runs)]
    process = subprocess.Popen(line, cwd=ROOT, env=HERE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield next(at[1] for said in process.stderr if (at := re.search(r"is at (http://127\.0\.0\.1:\d+)", said)))
    finally:
        process.terminate()
        process.wait()


def shoot(url: str) -> None:
    """Live, light and dark: a rollout of a problem of our own, at the first token where the roles part."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}/?view=live")
        page.locator("#live-tokens [role=listbox]").wait_for()
        page.get_by_role("button", name="Problems, or your own").click()
        for field, text in (("problem", QUESTION), ("solution", SOLUTION), ("answer", "108")):
            page.locator(f"#live-own-{field} textarea, #live-own-{field} input").first.click()
            page.keyboard.type(text)
        page.wait_for_function("document.querySelector('#live-problem input').value.startsWith('your own')")
        page.get_by_role("button", name="Problems, or your own").click()
        roll_out(page)
        for name in ("live-light", "live-dark"):
            page.wait_for_function("document.fonts.status === 'loaded'")
            page.screenshot(path=IMAGES / f"{name}.png")
            page.locator("#app-theme").click()
            page.wait_for_function("document.body.classList.contains('dark')" if name == "live-light" else "true")
        browser.close()


def roll_out(page: Any) -> None:
    """To its end, then to the first of the tokens that carry the most divergence."""
    page.locator("#live-go").click()
    page.wait_for_function("document.querySelector('#live-stop').disabled === false")
    page.wait_for_function("document.querySelector('#live-stop').disabled === true")
    for key in "[" * 16 + "n" + "]" * 16:
        page.keyboard.press(key)
    page.locator("#live-tokens .tv-tops").wait_for()
    page.evaluate("scrollTo(0, 0)")  # filling the fields has scrolled
    page.mouse.move(0, 0)


if __name__ == "__main__":
    raise SystemExit(main())
