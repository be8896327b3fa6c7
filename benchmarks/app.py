"""What the app costs: tokens a second of a rollout alone, and of the same one watched in a browser; how fast it draws.

    python benchmarks/app.py                     smollm2, 5 pairs of 64 tokens, then the drawing
    python benchmarks/app.py --drawing           the drawing alone: no model
    python benchmarks/app.py --model DIR --tokens 32 --pairs 3
    python benchmarks/app.py --json              the same as one JSON object

Both are the engine's own generator (`workbench.inspector.live`), timed where its pieces come out, from the first to
the last token; the browser is a headless Chromium on this machine, so what it takes of the processor is counted. The
two ways alternate, each pair gives a ratio, and the median is reported with the smallest and the largest. At most 15 %
may be lost: a ratio of 0.85 or more. Drawing is that of a completion in a file, until its tokens stand there; and of
the app, from the request to its first paint. Those are times, of this machine and whatever else it does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# This file is named as the app is: the root has to come before its folder.
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent)]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from workbench.screens import rolling, scoring  # noqa: E402
from workbench.screens.asking import Ask  # noqa: E402
from workbench.screens.session import MODEL, Ticket  # noqa: E402

REQUIRED = 0.85
DRAWN = {4096: 500, 16_384: 1500}
"""Tokens of a completion -> milliseconds until it is drawn."""
FIRST_PAINT = 3000
"""Milliseconds from the request to the app's first paint."""
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@dataclass(frozen=True)
class Result:
    """Tokens a second, pair by pair."""

    model: str
    tokens: int
    alone: list[float]
    watched: list[float]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.alone, self.watched, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": self.ratios, "ratio": self.ratio, "required": REQUIRED}


class Watch:
    """Passes pieces on and notes when they came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.done = threading.Event()

    def __call__(self, pieces: Iterator[Any]) -> Iterator[Any]:
        self.times, found = [], False
        self.done.clear()
        for piece in pieces:
            if piece.verdict is None:  # the whole, at the end, is no token
                self.times.append(time.perf_counter())
            found = True
            yield piece
        if found:
            self.done.set()

    @property
    def pace(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def alone(ask: Ask, watch: Watch) -> float:
    """The generator and nobody who looks."""
    ticket = Ticket("benchmark")
    with MODEL.entered(ticket):
        for _ in watch(scoring.first(scoring.scene(ask, ticket))):
            pass
    return watch.pace


@contextmanager
def served(ask: Ask) -> Iterator[str]:
    """The app on a port of its own."""
    import uvicorn

    from app import build
    from workbench.screens import serving
    from workbench.screens.look import look

    with tempfile.TemporaryDirectory() as runs:
        listener, port = serving.listen("127.0.0.1", 0)
        made = serving.application(
            build(Path(runs), (), [ask.model]), look=look(), users=None, address=("127.0.0.1", port)
        )
        server = uvicorn.Server(uvicorn.Config(made, log_level="warning", timeout_graceful_shutdown=1, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(20)


def watched(page: Any, watch: Watch) -> float:
    """The same through the app, drawn by a browser."""
    page.locator("#live-go").click()
    page.wait_for_function("document.querySelector('#live-stop').disabled === false", timeout=600_000)
    page.wait_for_function("document.querySelector('#live-stop').disabled === true", timeout=600_000)
    assert watch.done.wait(60), "the rollout did not end"
    return watch.pace


def measure(ask: Ask, pairs: int) -> Result:
    from playwright.sync_api import sync_playwright

    watch, plain = Watch(), rolling.paced
    rolling.paced = lambda pieces: plain(watch(pieces))
    found = Result(ask.model, ask.tokens, [], [])
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with served(ask) as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{url}/?view=live")
        page.locator("#live-tokens [role=listbox]").wait_for(timeout=120_000)
        page.get_by_role("button", name="Sampling and seed").click()
        page.locator("#live-max-tokens input").fill(str(ask.tokens))
        page.locator("#live-max-tokens input").blur()
        alone(ask, watch)  # loads the model and warms both
        watched(page, watch)
        for _ in range(pairs):
            found.alone.append(alone(ask, watch))
            found.watched.append(watched(page, watch))
        browser.close()
    rolling.paced = plain
    return found


def drawing(repeat: int) -> dict[str, tuple[list[float], int]]:
    """What is drawn -> (milliseconds of every time, milliseconds it may take)."""
    from playwright.sync_api import sync_playwright

    from tests.pages import seen
    from workbench.inspector.page import static

    found: dict[str, tuple[list[float], int]] = {}
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Ask(model="smollm2")) as url,
        sync_playwright() as started,
        started.chromium.launch(executable_path=chromium, args=list(FLAGS)) as browser,
    ):

        def opened(address: str, wanted: str, measure: str) -> float:
            with browser.new_context(viewport={"width": 1440, "height": 900}) as fresh:
                page = fresh.new_page()
                page.goto(address)
                page.locator(wanted).first.wait_for()
                return float(page.evaluate(measure))

        for tokens, most in DRAWN.items():
            file = Path(folder, f"{tokens}.html")
            file.write_text(static.page([seen([f" word{i % 97}" for i in range(tokens)], k=8)]))
            drawn = [opened(file.as_uri(), "body[data-drawn]", "document.body.dataset.drawn") for _ in range(repeat)]
            found[f"a completion of {tokens:,} tokens"] = drawn, most
        shown = [opened(f"{url}/?view=live", "#live-tokens [role=listbox]", paint) for _ in range(repeat)]
        found["the app's first paint"] = shown, FIRST_PAINT
    return found


def said(drawn: dict[str, tuple[list[float], int]]) -> None:
    """A line each."""
    for what, (times, most) in drawn.items():
        middle, spread = statistics.median(times), f"[{min(times):.0f}, {max(times):.0f}]"
        print(f"{what}: {middle:.0f} ms {spread}; at most {most}: {'holds' if middle <= most else 'does not hold'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--drawing", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.drawing:
        said(drawing(given.pairs))
        return 0
    # A prompt that is answered at length, so that no pair ends before its last token.
    found = measure(Ask(model=given.model, tokens=given.tokens), given.pairs)
    drawn = drawing(given.pairs)
    if given.json:
        print(json.dumps({**found.record(), "drawing": {what: times for what, (times, _) in drawn.items()}}))
        return 0
    pairs = ", ".join(f"{a:.1f} / {b:.1f}" for a, b in zip(found.alone, found.watched, strict=True))
    print(f"{found.model}, {found.tokens} tokens: alone / watched, tokens/s: {pairs}")
    low, high = min(found.ratios), max(found.ratios)
    verdict = "holds" if found.ratio >= REQUIRED else "does not hold"
    print(f"watched keeps {found.ratio:.3f} of the pace [{low:.3f}, {high:.3f}]; required {REQUIRED}: {verdict}")
    said(drawn)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
