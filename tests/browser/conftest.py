"""The app as a child process and a real browser in front of it; both are watched for what must never happen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import build_tiny
from tests.smoke import problems
from workbench import opsd
from workbench.screens import children
from workbench.train.reporting import view

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120_000
"""Milliseconds a condition may take on a machine that does other things too."""
LEAVING = ("AbortError", "Unexpected error Connection errored out", "Unexpected error 404: Not Found")
"""What gradio's client says when its page goes away in the middle of a stream, or finds its session closed then."""
HERE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SMALL = ["--batch", "2", "--max-new-tokens", "8", "--eval-problems", "2", "--eval-tokens", "4", "--progress", "quiet"]


@dataclass
class App:
    """The app as it runs."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path
    said: Path
    """The file with its stderr."""

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()


@dataclass
class Watched:
    """A page, and everything it did that a person might not see."""

    page: object
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    forgiven: tuple[str, ...] = ()
    """Beginnings of console lines that are no finding; `LEAVING` for a page that was loaded again."""

    def check(self) -> None:
        """Nothing asked, nothing complained, nothing left this machine."""
        outside = [url for url in self.requests if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:|about:)", url)]
        assert outside == []
        assert self.dialogs == []
        assert self.errors == []
        assert [line for line in self.console if not line.startswith(self.forgiven)] == []


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE / 1000) -> None:
    """Wait for what no page shows: files and processes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a browser test; those that load models and train are slow ones too."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)
            if item.path.name in ("test_app_screens.py", "test_live.py"):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder."""
    return build_tiny(tmp_path_factory.mktemp("browser-model"))


@pytest.fixture(scope="session")
def problem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums in a file."""
    return problems(tmp_path_factory.mktemp("browser-data") / "problems.jsonl", 24)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory, model: Path, problem_file: Path) -> Path:
    """A folder with one real run, `tiny`: three steps of four rollouts."""
    output = tmp_path_factory.mktemp("browser-runs")
    where = ["--model", str(model), "--problems", str(problem_file), "--output", str(output), "--name", "tiny"]
    assert opsd.main([*where, "--steps", "3", "--group", "2", *SMALL]) == 0
    return output


@pytest.fixture(scope="session")
def start_app(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., App]]:
    """`start_app(output, *more)` starts another app; all end with the session."""
    started: list[subprocess.Popen[bytes]] = []
    outputs: set[Path] = set()

    def start(output: Path, *more: str) -> App:
        outputs.add(output)
        said = tmp_path_factory.mktemp("app") / "stderr"
        command = [sys.executable, "app.py", "--port", "0", "--output", str(output), "--model", str(model), *more]
        with open(said, "wb") as err:
            process = subprocess.Popen(command, cwd=ROOT, stderr=err, env=os.environ | HERE)
        started.append(process)
        at = re.compile(r"the workbench is at (http://127\.0\.0\.1:\d+)")
        until(lambda: at.search(said.read_text()) or process.poll() is not None, "the app to start")
        found = at.search(said.read_text())
        assert found, said.read_text()
        return App(process, found[1], output, said)

    yield start
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for run in (path for output in outputs if output.is_dir() for path in output.iterdir()):
        if children.running(run) and (found := view(run)):  # a test that failed leaves its run at work
            os.kill(found.status["pid"], signal.SIGKILL)


@pytest.fixture(scope="session")
def app_server(start_app: Callable[..., App], tiny_runs: Path) -> App:
    """The app on the folder with the run `tiny`."""
    return start_app(tiny_runs)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """The system's Chromium. Absent it is skipped, but not where CI says that it must be there."""
    if not Path(CHROMIUM).exists():
        if os.environ.get("CI"):
            pytest.fail(f"{CHROMIUM} is missing, and CI is set: the browser tests must run (apt install chromium)")
        pytest.skip(f"{CHROMIUM} is missing: no browser tests (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Watched]]:
    """`open_page(url, **context)` opens a page of a profile of its own; all are checked and closed at the end."""
    opened: list[Watched] = []
    contexts = []

    def start(url: str, **settings: object) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **settings})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        watched = Watched(page)
        opened.append(watched)

        def asked(dialog) -> None:
            watched.dialogs.append(f"{dialog.type}: {dialog.message}")
            dialog.dismiss()

        page.on("console", lambda m: watched.console.append(m.text) if m.type in ("error", "warning") else None)
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on("dialog", asked)
        page.goto(url)
        page.wait_for_selector("#app-copy")
        return watched

    yield start
    for context in contexts:
        context.close()
    for watched in opened:
        watched.check()


@pytest.fixture
def page_watched(open_page: Callable[..., Watched], app_server: App) -> Watched:
    """A page on the app, opened where the app opens."""
    return open_page(app_server.url)
