"""What a person, a pipe and a tracker get to see, whatever text the model wrote."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from verifiers.verdict import Verdict
from workbench.errors import UsageError
from workbench.records import Judged, Problem, Rollout
from workbench.train.reporting import Alarms, StepLine, duration
from workbench.train.terminal import Json, Live, Plain, Quiet, Reporter, choose

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m C1 control",
    "over\rwritten",
    "back\x08\x08space \x7f \x00 \x0c",
    "\u202eright to left\u202c \u2066isolate\u2069 \u200f",
    "zero\u200bwidth\ufeff",
    "line\u2028and\u2029paragraph",
    "[bold red]markup[/] [link=http://evil]x[/link] :smile: [/nothing]",
    "lone \ud800 surrogate",
    "\U0001f600 emoji and \u6a21\u578b",
    "{not.a} %s {0} \\boxed{}",
]
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
RICH_MAY = re.compile(r"\x1b\[(?:\?25[lh]|[0-9;]*m|[12]K|1A)|\r")
"""Cursor on and off, colour, erase line, one line up: what the live screen is drawn with."""


def line(text: str = "reverse KL", **changes: Any) -> StepLine:
    figures: dict[str, Any] = {
        "step": 1,
        "total": 4,
        "seconds": {"rollout": 16.2, "score": 3.04, "update": 9.7},
        "divergence": text,
        "value": 0.409,
        "kept": 4,
        "rollouts": 4,
        "correct": 0,
        "judged": 3,
        "tokens": 158.4,
        "truncated": 2,
    }
    return StepLine(**figures | changes)


def judged(text: str) -> Judged:
    rollout = Rollout(Problem(text, text), "student", (1, 2, 3), text, None, "stop")
    return Judged(rollout, Verdict("wrong", extracted=text, reason=text))


def say_everything(reporter: Reporter, text: str) -> None:
    with reporter as r:
        r.header([f"run {text}", text])
        r.phase(text)
        r.step(line(text, unit=text, note=text, seconds={text: 1.0}, more={text: 0.5}))
        r.rollout(judged(text))
        r.note(text)
        r.result("verdict", text, {"text": text, text: math.nan})
        r.result("", text)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


# The step line


def test_a_step_in_one_line() -> None:
    assert line().text() == (
        "step 1/4  rollout 16s score 3.0s update 10s | reverse KL 0.409 nat/token | kept 4/4 | correct 0/3 | tokens 158"
        " | truncated 2/4"
    )
    full = line(
        grad_norm=1.234, tokens_per_second=32.4, seconds_left=170.0, peak_bytes=3 * 2**30, more={"turned": 0.02}
    )
    assert full.text().removeprefix(line().text()) == (
        " | turned 0.020 | grad 1.234 | 32 tok/s | peak 3.00 GiB | about 3 min left"
    )


def test_a_step_without_signal_says_why() -> None:
    text = line(kept=0, rollouts=8, value=math.nan, tokens=math.nan, note="all 8 rollouts rejected by Correct").text()
    assert text.endswith("kept 0/8 | correct 0/3 | truncated 2/8 | no signal: all 8 rollouts rejected by Correct")
    assert "nan" not in text
    assert "KL" not in text


def test_small_and_large_numbers_stay_readable() -> None:
    assert "KL 4.00e-05 nat" in line(value=4e-5).text()
    assert "grad 1.00e+06" in line(grad_norm=1e6).text()
    assert "KL 0.000 nat" in line(value=0.0).text()
    assert [duration(s) for s in (-1, 40, 170, 7600)] == ["0 s", "40 s", "3 min", "2.1 h"]


# Hostile text through every renderer (experience, rule 8)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", [Plain, Json, Quiet])
def test_no_renderer_passes_a_command_on(kind: Callable[[Any, Any], Reporter], text: str) -> None:
    err, out = io.StringIO(), io.StringIO()
    say_everything(kind(err, out), text)
    written = err.getvalue() + out.getvalue()
    assert written
    assert written.isascii()
    assert not FORBIDDEN.findall(written)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("text", HOSTILE)
def test_the_live_screen_is_drawn_with_its_own_commands_only(text: str, encoding: str) -> None:
    err, out = Terminal(), io.StringIO()
    err.encoding = encoding
    say_everything(Live(err, out, width=100), text)
    assert "\x1b[?25l" in err.getvalue(), "it was live"
    left = RICH_MAY.sub("", err.getvalue())
    assert not FORBIDDEN.findall(left)
    left.encode(encoding)
    if "markup" in text:
        assert "[link=http://evil]x[/link] :smile:" in left, "markup is shown, not obeyed"
    if "emoji" in text and encoding == "utf-8":
        assert "\u6a21\u578b" in left, "what can be read stays readable"


def test_without_colour_the_live_screen_has_none() -> None:
    err = Terminal()
    say_everything(Live(err, io.StringIO(), colour=False, width=100), "text")
    codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", err.getvalue()) for code in found.split(";")}
    assert codes <= {"0", "1", "2", ""}, "bold and dim are no colours"


def test_the_live_screen_shows_title_last_steps_and_one_rollout() -> None:
    err = Terminal()
    with Live(err, io.StringIO(), width=200) as live:
        live.header(["workbench 0.1  OPSD", "student sees\nmany lines"])
        for step in range(1, 12):
            live.step(line(step=step, total=11))
        live.rollout(judged("\n".join(f"line {i}" for i in range(20)) + "x" * 1000))
        live.phase("rollout 3/4")
    screen = RICH_MAY.sub("", err.getvalue()[err.getvalue().rindex("workbench 0.1") :])
    assert [f"step {i}/11" in screen for i in range(1, 12)] == [False] * 3 + [True] * 8
    assert "wrong  problem" in screen
    assert "... 12 more lines" in screen
    assert screen.rstrip("\n").endswith("rollout 3/4")
    assert screen.count("\n") < 30
    assert "student sees" in err.getvalue()


def test_the_live_screen_steps_aside_for_a_result() -> None:
    both = Terminal()
    with Live(both, both, width=100) as live:
        live.header(["title"])
        live.step(line())
        live.result("after", "correct 1/16")
        live.step(line(step=2))
    text = both.getvalue()
    before = text[: text.index("after          correct 1/16\n")]
    assert before.endswith("\x1b[1A\x1b[2K"), "the screen was erased before the result was written in its place"
    assert "step 2/4" in text[len(before) :]


# What goes where


def test_progress_goes_to_stderr_and_results_to_stdout() -> None:
    err, out = io.StringIO(), io.StringIO()
    say_everything(Plain(err, out), "T")
    assert out.getvalue() == "verdict        T\nT\n"
    assert err.getvalue().count("\n") == 4
    assert err.getvalue().startswith("run T\nT\nstep 1/4")
    assert err.getvalue().endswith("note: T\n")


def test_quiet_still_warns_and_answers() -> None:
    err, out = io.StringIO(), io.StringIO()
    say_everything(Quiet(err, out), "T")
    assert (err.getvalue(), out.getvalue()) == ("note: T\n", "verdict        T\nT\n")


def test_a_table_keeps_its_lines_and_a_label_its_column() -> None:
    out = io.StringIO()
    quiet = Quiet(io.StringIO(), out)
    quiet.result("", "arm  n\nbefore  3")
    quiet.result("after", "one\ntwo")
    assert out.getvalue() == "arm  n\nbefore  3\nafter          one\n               two\n"


def test_json_is_an_object_a_line_and_the_text_as_it_was() -> None:
    err, out = io.StringIO(), io.StringIO()
    say_everything(Json(err, out), HOSTILE[0])
    events = [json.loads(row) for row in out.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["header", "phase", "step", "rollout", "note", "result", "result"]
    assert events[2]["divergence"] == HOSTILE[0]
    assert events[2]["value"] == 0.409
    assert (events[3]["status"], events[3]["tokens"], events[3]["text"]) == ("wrong", 3, HOSTILE[0])
    assert events[5]["data"] == {"text": HOSTILE[0], HOSTILE[0]: None}
    assert err.getvalue() == ""


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("kind", [Plain, Json, Quiet, Live])
def test_a_terminal_that_went_away_does_not_stop_a_run(kind: Callable[[Any, Any], Reporter]) -> None:
    say_everything(kind(Broken(), Broken()), "T")
    closed = Terminal()
    closed.close()
    say_everything(kind(closed, closed), "T")


# Which one


TTY = {"TERM": "xterm", "COLUMNS": "100"}


@pytest.mark.parametrize(
    ("progress", "stream", "environment", "kind"),
    [
        ("auto", Terminal, {}, Live),
        ("auto", Terminal, {"COLUMNS": "79"}, Plain),
        ("auto", Terminal, {"COLUMNS": "80"}, Live),
        ("auto", Terminal, {"CI": "true"}, Plain),
        ("auto", Terminal, {"CI": "false"}, Live),
        ("auto", Terminal, {"TERM": "dumb"}, Plain),
        ("auto", Terminal, {"NO_COLOR": "1"}, Live),
        ("auto", io.StringIO, {}, Plain),
        ("live", Terminal, {"COLUMNS": "60", "CI": "1"}, Live),
        ("live", io.StringIO, {}, Plain),
        ("plain", Terminal, {}, Plain),
        ("json", Terminal, {}, Json),
        ("quiet", Terminal, {}, Quiet),
    ],
)
def test_the_reporter_fits_the_terminal(
    progress: str, stream: Callable[[], Any], environment: dict[str, str], kind: type
) -> None:
    assert type(choose(progress, stream(), io.StringIO(), TTY | environment)) is kind


def test_no_color_is_respected() -> None:
    for environment, colour in (({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)):
        reporter = choose("auto", Terminal(), io.StringIO(), TTY | environment)
        assert isinstance(reporter, Live)
        assert reporter._console.no_color is not colour


def test_a_width_nobody_knows_is_the_usual_one() -> None:
    assert isinstance(choose("auto", Terminal(), io.StringIO(), {"TERM": "xterm"}), Live)


def test_an_unknown_progress_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'plain'") as caught:
        choose("plane")
    assert caught.value.exit_code == 2


# Alarms


def row(**figures: Any) -> dict[str, Any]:
    calm = {
        "truncated_share": 0.5,
        "equal_context_kl": 1e-3,
        "sampler_gap": 0.05,
        "surprise": 1.0,
        "tokens_mean": 100.0,
    }
    return {**calm, "statuses": {"correct": 98, "error": 2}, **figures}


def test_nothing_is_said_at_the_limits() -> None:
    alarms = Alarms()
    assert [alarms.observe(row()) for _ in range(10)] == [[]] * 10


@pytest.mark.parametrize(
    ("figures", "phrase"),
    [
        ({"truncated_share": 0.51}, "more than half of the rollouts were cut (0.51)"),
        ({"equal_context_kl": 2e-3}, "KL of equal contexts is 0.0020"),
        ({"sampler_gap": 0.06}, "sampler and trainer differ by 0.060"),
        ({"statuses": {"correct": 97, "error": 3}}, "the verifier failed on 0.03"),
    ],
)
def test_an_alarm_is_said_once_and_not_again_after_a_resume(figures: dict[str, Any], phrase: str) -> None:
    alarms = Alarms()
    (text,) = alarms.observe(row(**figures))
    assert phrase in text
    assert alarms.observe(row(**figures)) == []
    stored = json.loads(json.dumps(alarms.state_dict()))
    assert Alarms(stored).observe(row(**figures)) == []
    assert len(Alarms().observe(row(**figures))) == 1


@pytest.mark.parametrize(
    ("name", "value", "phrase"),
    [
        ("surprise", 0.5, "entropy is 0.50 of the start"),
        ("tokens_mean", 200.0, "2.00 times as long"),
        ("tokens_mean", 50.0, "0.50 times as long"),
    ],
)
def test_a_trend_is_measured_against_the_start_over_several_steps(name: str, value: float, phrase: str) -> None:
    alarms = Alarms()
    for _ in range(3):
        assert alarms.observe(row()) == []
    assert alarms.observe(row(**{name: value})) == [], "one step of few rollouts is noise"
    alarms = Alarms(json.loads(json.dumps(alarms.state_dict())))
    assert alarms.observe(row(**{name: value})) == []
    (text,) = alarms.observe(row(**{name: value}))
    assert phrase in text
    assert alarms.observe(row(**{name: value})) == []


def test_more_entropy_is_no_alarm() -> None:
    alarms = Alarms()
    assert [alarms.observe(row(surprise=s)) for s in (1.0, 1.0, 1.0, 9.0, 9.0, 9.0)] == [[]] * 6


def test_missing_and_undefined_figures_are_passed_over() -> None:
    alarms = Alarms()
    assert alarms.observe({}) == []
    assert alarms.observe({"truncated_share": math.nan, "surprise": None, "statuses": {}}) == []
    assert alarms.state_dict() == {"said": [], "start": {}, "recent": {}}
