"""The app without a browser: its command, its handlers as functions, the demo as built, a lint over the sources."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import app
from workbench.cli import parse
from workbench.config import RunConfig
from workbench.errors import InputError, UsageError
from workbench.screens import children, curves, form, links, polling, rollout_index, rollouts, run_table, serving
from workbench.screens.links import Link, RolloutKey
from workbench.screens.rollout_index import Filters, RolloutIndex
from workbench.train.interrupts import identity
from workbench.train.reporting import view
from workbench.train.run_directory import JsonLines, RunDirectory

ROOT = Path(__file__).resolve().parents[1]


def row(step: int, index: int = 0, **more: object) -> dict[str, object]:
    """A line of rollouts.jsonl."""
    plain = {"problem": "a/b", "author": "student", "text": "x", "question": "q", "token_ids": [1, 2], "stop": "stop"}
    return {
        "step": step,
        "index": index,
        "status": "wrong",
        "score": 0.0,
        "kept": True,
        "divergence": [1.0, 3.0],
        **plain,
        **more,
    }


def written(folder: Path, *rows: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = JsonLines(folder / "rollouts.jsonl")
    for record in rows:
        lines.append(record)
    lines.close()
    return folder / "rollouts.jsonl"


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--prot", "1"], 2, "--prot"),
        (["--run", "nowhere"], 2, "no run.json"),
        (["--port", "99999"], 2, "0 to 65535"),
        (["--host", "0.0.0.0"], 2, "--auth-file"),
        (["--host", "0.0.0.0", "--auth-file", "nowhere"], 3, "cannot be read"),
    ],
)
def test_a_wrong_flag_is_answered_before_gradio_loads(argv: list[str], code: int, words: str) -> None:
    loaded = "assert not {'gradio', 'torch'} & set(sys.modules)"
    probe = f"import sys, app; code = app.main({argv!r}); {loaded}; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_the_next_free_port_is_taken() -> None:
    first, port = serving.listen("127.0.0.1", 0)
    second, other = serving.listen("127.0.0.1", port)
    assert other > port
    first.close()
    second.close()


def test_passwords_must_be_the_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("ada:pass:word\n\nnobody\n")
    file.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        serving.guard("0.0.0.0", file)
    file.chmod(0o600)
    assert serving.guard("0.0.0.0", file) == [("ada", "pass:word")]
    assert serving.guard("127.0.0.1", None) is None


# -- links ---------------------------------------------------------------------------------------------------------


@given(
    st.builds(
        RolloutKey,
        st.integers(0, 10**6),
        st.text(max_size=60),
        st.sampled_from(["student", "teacher"]),
        st.integers(0, 99),
    )
)
def test_a_rollouts_key_comes_back(key: RolloutKey) -> None:
    assert RolloutKey.parse(key.text) == key


@pytest.mark.parametrize(
    "params",
    [
        {"run": "../x"},
        {"run": "/etc"},
        {"run": "-x"},
        {"run": "a\nb"},
        {"rollout": "1/2"},
        {"rollout": "1/p/student/x"},
        {"rollout": "1/" + "p" * 400 + "/student/0"},
        {"tok": "-1"},
        {"tok": "1e9"},
        {"view": "admin"},
    ],
)
def test_a_link_is_never_a_path(params: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Link.parse(params)


def test_a_link_comes_back_from_its_query() -> None:
    from urllib.parse import parse_qsl

    link = Link("my run", "3/a&b=c/student/1", 7, "live")
    assert Link.parse(dict(parse_qsl(link.query[1:]))) == link
    assert Link.parse({"__theme": "dark"}) == Link()
    assert set(links.VIEWS) == {name for name, _ in app.TITLES}


# -- runs ----------------------------------------------------------------------------------------------------------


def test_states_come_from_the_process_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    path = tmp_path / "a"
    with RunDirectory.create(path) as run:
        run.write_run_json({"recipe": "opsd", "config": {"steps": 4}})
        run.status("training", 2)
        assert run_table.table([view(path)])[0][3:5] == ["running", "2/4"]
        status = json.loads((path / "status.json").read_text())
    # As the run of another process, which is killed without a word.
    born = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    (path / "status.json").write_text(json.dumps(status | {"pid": child.pid, "born": born}))
    assert run_table.state_word(view(path)) == "running"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    found = view(path)
    assert run_table.state_word(found) == "failed"
    assert "left no word" in run_table.standing(found)
    assert "--resume --name a" in run_table.way_on(found)
    assert identity()["pid"] == os.getpid()


def test_a_row_shows_the_last_whole_step_and_obeys_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RunDirectory.create(path) as run:
        run.write_run_json({"recipe": "\x1b[2Jopsd", "config": {"model": "x/y\u202e"}})
        run.metrics.append({"step": 1, "term.ReverseKL": 0.5, "correct": 1, "judged": 2, "tokens_mean": 7.6})
        run.status("finished", 1)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "term.Rev')
    cells = run_table.table([view(path)])[0]
    assert cells[:4] == ["a", "\\x1b[2Jopsd", "y\\u202e", "finished"]
    assert cells[5:8] == ["1/2 [0.09, 0.91] step", "8", "0.500"]
    assert run_table.divergence_name(run_table.last_step(path)) == "reverse KL"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
def test_thinning_keeps_ends_and_extremes(values: list[float]) -> None:
    points = list(enumerate(values))
    kept = curves.thinned(points)
    assert len(kept) <= curves.POINTS
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(v for _, v in kept), max(v for _, v in kept)} == {min(values), max(values)}


def test_curves_read_on_and_follow_a_resume(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step, "term.X": float(step), "correct": 1, "judged": 0, "tokens_mean": float("nan")})
    found = curves.curves(tmp_path)
    assert found.points("divergence") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert found.points("correct") == found.points("tokens") == []
    lines.append({"step": 2, "term.X": 9.0})  # a resumed run does steps again
    lines.close()
    assert curves.curves(tmp_path).points("divergence") == [(1, 1.0), (2, 9.0)]


def test_only_what_changed_is_sent() -> None:
    shown, updates = polling.changed({}, {"a": (1, "one"), "b": (2, "two")})
    assert updates == ["one", "two"]
    shown, updates = polling.changed(shown, {"a": (1, "one"), "b": (3, "three")})
    assert updates[1] == "three"
    assert updates[0]["__type__"] == "update"
    assert shown == {"a": 1, "b": 3}


# -- rollouts ------------------------------------------------------------------------------------------------------


def test_the_index_reads_whole_lines_and_starts_anew_when_the_file_was_cut(tmp_path: Path) -> None:
    file = written(tmp_path, row(1, 0), row(1, 1, status="correct", score=1.0), row(2, 0, text="Hello \u00dcber"))
    with open(file, "ab") as out:
        out.write(b"not json\n" + b'{"step": 3, "torn')
    found = RolloutIndex(file)
    found.grow()
    assert [e.key.text for e in found.entries] == ["1/a/b/student/0", "1/a/b/student/1", "2/a/b/student/0"]
    assert found.entries[0].divergence == 2.0
    assert found.row(found.entries[2])["text"] == "Hello \u00dcber"
    assert [e.key.step for e in found.wanted(Filters(words="\u00fcBER"))] == [2]
    assert [e.key.index for e in found.wanted(Filters(correct="correct"))] == [1]
    assert found.histogram(Filters(score=1.0)) == [(0.0, 2), (1.0, 1)]
    written(tmp_path, row(3, 0))  # opening for writing cuts the torn line off
    found.grow()
    assert found.entries[-1].key.step == 3
    file.unlink()
    written(tmp_path, row(1, 0))
    found.grow()
    assert [e.key.step for e in found.entries] == [1]


def test_a_large_file_is_read_a_while_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_index, "BLOCK", 1)
    file = written(tmp_path, *(row(step) for step in range(5)))
    found = RolloutIndex(file)
    clock = iter(range(100))
    monkeypatch.setattr(rollout_index.time, "monotonic", lambda: next(clock))
    found.grow(2)
    assert 0 < len(found.entries) < 5
    assert found.behind
    while found.behind:
        found.grow(3)
    assert len(found.entries) == 5


def test_sorting_and_neighbours(tmp_path: Path) -> None:
    rows = [row(1, 0), row(1, 1, divergence=[]), row(2, 0, divergence=[9.0]), row(3, 1), row(3, 0, problem="other")]
    found = RolloutIndex(written(tmp_path, *rows))
    found.grow()
    assert [e.key.step for e in found.wanted(Filters(sort="divergence"))] == [2, 1, 3, 3, 1]
    ways = found.neighbours(RolloutKey(1, "a/b", "student", 0))
    assert {way: key.text for way, key in ways.items()} == {"next": "1/a/b/student/1", "later": "2/a/b/student/0"}
    ways = found.neighbours(RolloutKey(3, "a/b", "student", 1))
    assert {way: key.text for way, key in ways.items()} == {"earlier": "2/a/b/student/0"}


def test_a_run_that_is_gone_is_not_passed_off_as_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with RunDirectory.create(tmp_path / name) as run:
            run.write_run_json({})
        written(tmp_path / name, row(1))
    runs = [view(tmp_path / "a"), view(tmp_path / "b")]
    said = rollouts.updates_for(runs, runs[0], Filters(), 0, "gone\x1b")["table"][1].label
    assert said == "gone\\x1b is gone; this is a. Rollouts 1 to 1 of 1; a row opens on Live"
    for wanted in ("", "a"):
        assert "gone" not in rollouts.updates_for(runs, runs[0], Filters(), 0, wanted)["table"][1].label


# -- train ---------------------------------------------------------------------------------------------------------


def test_every_field_of_a_run_is_in_the_form_once() -> None:
    shown = [*form.ESSENTIAL, *(name for names in form.GROUPS.values() for name in names)]
    assert sorted([*shown, *form.ELSEWHERE]) == sorted(RunConfig.__dataclass_fields__)
    assert set(form.helps()) == set(RunConfig.__dataclass_fields__)
    assert form.helps()["temperature"] == "Sampling temperature of the rollouts; both roles are compared at it."


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": "./my model; rm -rf *", "steps": "3", "lr": "1e-5", "activation_checkpointing": True},
        {"set": "terms.0.divergence.ceiling=0.1\n\n refresh.every=3 ", "columns": "problem=q\nsolution=a"},
        {"problems": "--help", "adapter": "none", "max_grad_norm": "inf", "name": "a-1", "verifier": "strict"},
    ],
)
def test_the_command_shown_parses_to_what_the_form_says(values: dict[str, object]) -> None:
    import shlex

    config = children.configured(values)
    line = shlex.split(children.command(config))
    assert line[:3] == ["python", "-m", "workbench.opsd"]
    assert parse(line[3:]) == config


@pytest.mark.parametrize(("name", "value"), [("steps", "three"), ("lr", "2"), ("name", "../x"), ("device", "tpu")])
def test_a_form_that_means_nothing_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError):
        children.configured({name: value})


class Idle:
    """Stands in the place of the training process: a child that waits to be told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[list[str]] = []
        real = subprocess.Popen

        def popen(command: list[str], **settings: object):
            self.started.append(command)
            # What a shell started in the background ignores SIGINT, and so would this child.
            settings["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            return real([sys.executable, "-c", "import time; time.sleep(600)"], **settings)

        monkeypatch.setattr(children.subprocess, "Popen", popen)


def test_start_is_idempotent_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Idle(monkeypatch)
    config = RunConfig(name="a", output=str(tmp_path))
    assert children.start(config) == (config, True)
    assert children.start(config) == (config, False)
    assert len(idle.started) == 1
    child = children._children[(tmp_path / "a").absolute()]
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert children.stop(tmp_path / "a")
    child.wait()
    assert not children.stop(tmp_path / "a")
    assert children.exit_code(tmp_path / "a") not in (0, None)
    assert "--name a" in children.said(tmp_path / "a")


def test_a_run_that_is_over_is_not_started_over(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.write_run_json({})
        run.status("finished", 1)
    with pytest.raises(UsageError, match="exists"):
        children.start(RunConfig(name="a", output=str(tmp_path)))
    named, _ = replace(RunConfig(output=str(tmp_path))), None
    assert re.fullmatch("opsd-smollm2-[0-9a-f]{4}", str(children.named(named).name))


# -- data ----------------------------------------------------------------------------------------------------------


def test_data_says_what_a_run_would_do_with_it(tmp_path: Path, tiny_folder: Path) -> None:
    from workbench.screens import data_facts

    rows = [
        {"question": "What is 1 + 1?", "rationale": "1 + 1 = 2", "answer": "2"},
        {"question": "What is 2 + 2?", "rationale": "2 + 2 = 4" * 40, "answer": "4"},
        {"question": "Why?", "rationale": "because", "answer": ""},
        {"question": "Which?", "rationale": "this", "answer": "\\boxed{"},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    facts = data_facts.look(RunConfig(model=str(tiny_folder), problems=str(file), max_prompt_tokens=700))
    assert facts.missing == ""
    assert facts.over == 1
    assert max(m.longest for m in facts.measured) > 700
    assert sum(bar.mark for panel in data_facts.panels(facts) for bar in panel.bars if bar.count) == 1
    assert sum(bar.count for bar in data_facts.panels(facts)[0].bars) == len(facts.measured)
    assert "rationale" in data_facts.summary(facts)
    lengths = [m.teacher for m in facts.measured]
    from workbench.engine.loading import load_speaker
    from workbench.recipes import ALL
    from workbench.records import Case

    speaker = load_speaker(str(tiny_folder))
    assert lengths == [len(speaker.renderer.prompt(ALL["opsd"].teacher, Case(m.problem)).ids) for m in facts.measured]


# -- the demo as built ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder = tmp_path_factory.mktemp("runs")

    async def build():
        return app.build(folder)

    return asyncio.run(build())  # outside a loop gradio makes several and closes none


def test_every_component_that_is_used_has_a_name_of_its_screen(demo) -> None:
    ids = [block.elem_id for block in demo.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    screens = {*links.VIEWS, "app", "tab"}
    assert {name for name in ids if not re.fullmatch(rf"({'|'.join(screens)})-[a-z0-9-]+", name)} == set()
    wanted = {"app-copy", "runs-table", "runs-curves", "rollouts-table", "rollouts-step", "train-start", "train-stop"}
    assert wanted | {"train-resume", "train-command", "data-look", "data-lengths"} <= set(ids)


def test_events_are_private_and_long_work_has_one_place(demo) -> None:
    assert {fn.api_visibility for fn in demo.fns.values()} == {"private"}
    limits = {fn.concurrency_id: fn.concurrency_limit for fn in demo.fns.values() if isinstance(fn.concurrency_id, str)}
    assert {limits[name] for name in ("dry-run", "data")} == {1}
    assert demo.max_size if hasattr(demo, "max_size") else demo._queue.max_size == 16


def test_an_app_at_rest_looks_at_its_queue_seldom(demo) -> None:
    from gradio.queueing import Queue

    assert "self.sleep_when_free = " in inspect.getsource(Queue.__init__), "gradio calls it otherwise now"
    assert demo._queue.sleep_when_free == app.QUIET


def test_the_first_paint_needs_no_run(demo) -> None:
    assert demo.title == "OPSD workbench"
    assert demo.get_config_file()["title"] == "OPSD workbench"


def test_the_page_asks_for_the_chosen_theme_before_it_paints_and_keeps_its_policy(demo) -> None:
    import httpx

    from workbench.screens.look import KEPT, look

    async def answers() -> list[httpx.Response]:
        served = serving.application(demo, look=look(), users=None, address=("127.0.0.1", 7860))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://127.0.0.1") as client:
            return [await client.get(path, headers={"Accept-Encoding": "br, gzip"}) for path in ("/", "/theme.css")]

    page, other = asyncio.run(answers())
    assert page.text.index(KEPT) < page.text.index("</head>") < page.text.index("<gradio-app")
    assert int(page.headers["content-length"]) == len(page.content)
    assert {r.headers["content-security-policy"] for r in (page, other)} == {serving.POLICY}
    assert "opsd-theme" not in other.text


# -- lint ----------------------------------------------------------------------------------------------------------

FORBIDDEN = {
    r"gr\.HTML\(\s*[frb]*f[\"']": "gr.HTML with an f-string",
    r"datatype\s*=\s*[\"']html": "a table that renders HTML",
    r"datatype\s*=\s*\[[^\]]*html": "a table that renders HTML",
    r"sanitize_html\s*=\s*False": "Markdown that is not sanitised",
    r"allowed_paths\s*=": "files served from disk",
    r"mcp_server\s*=\s*True": "an MCP server",
    r"share\s*=\s*True": "a public link",
    r"gr\.(Warning|Error|Info)\(": "a toast that is not escaped",
}


def test_no_source_opens_a_hole() -> None:
    sources = [ROOT / "app.py", *(ROOT / "workbench").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {what}"
        for path in sources
        for pattern, what in FORBIDDEN.items()
        if re.search(pattern, path.read_text(encoding="utf-8")) and path.name != "notify.py"
    ]
    assert found == []


def test_no_template_evaluates_what_it_is_given(demo) -> None:
    pages = [block for block in demo.blocks.values() if type(block).__mro__[0].__name__ != "Markdown"]
    templates = [getattr(block, name, "") or "" for block in pages for name in ("html_template", "css_template")]
    assert any("plots" in text for text in templates)
    assert [text for text in templates if "{{" in text or "${" in text] == [
        text for text in templates if text == "${value}"
    ]
    for path in (ROOT / "workbench").rglob("*.css"):
        assert not re.search(r"\{\{|\$\{", path.read_text()), path


def test_toasts_are_escaped() -> None:
    from workbench.screens import notify

    assert notify.escaped("<img src=x>\x1b[0m & 'a'") == "&lt;img src=x&gt;\\x1b[0m &amp; &#x27;a&#x27;"
    assert "<" not in str(notify.error("<b>").message)
    with pytest.raises(Exception, match="&lt;b&gt;"), notify.told():
        raise InputError("<b>")
