"""What a run says of itself, as text: its row in the table of runs, its state in words, why it ended, how to go on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.config import RunConfig, flag
from workbench.text import printable
from workbench.train.interrupts import read_json
from workbench.train.intervals import wilson
from workbench.train.report import words
from workbench.train.reporting import RunView, resume_command

HEADERS = ("run", "recipe", "model", "state", "step", "correct [95 %]", "tokens", "divergence", "age")
WIDTHS = ("20%", "9%", "13%", "9%", "7%", "16%", "7%", "13%", "6%")
TAIL = 65536
"""Bytes read from the end of metrics.jsonl for a run's last step."""
WORDS = {"dead": "failed", "interrupted": "stopped"}
"""Our states in a reader's words where they differ: who was killed has failed, who was asked to stop has not."""
ONGOING = ("running", "stalled")


def state_word(run: RunView) -> str:
    """running, stalled, stopped, finished or failed."""
    return WORDS.get(run.state, run.state)


def table(runs: list[RunView]) -> list[list[str]]:
    """A row a run, every cell text that obeys nothing."""
    return [[printable(cell) for cell in _row(run)] for run in runs]


def _row(run: RunView) -> list[str]:
    last, ending = last_step(run.path), read_json(run.path / "eval.json")
    total = run.run.get("steps") or config(run).get("steps")
    model = str(config(run).get("model", "?"))
    return [
        run.name,
        str(run.run.get("recipe", "?")),
        Path(model).name or model,
        state_word(run),
        f"{run.step}/{total}" if total else str(run.step),
        _accuracy(ending, last),
        _tokens(ending, last),
        _divergence(ending, last),
        age(run.heartbeat),
    ]


def config(run: RunView) -> Mapping[str, Any]:
    """The configuration stored with the run; empty where there is none."""
    found = run.run.get("config")
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class _Read:
    stamp: tuple[int, int]
    row: dict[str, Any]


_last: dict[Path, _Read] = {}


def last_step(path: Path) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; empty before the first step. Remembered until the file changes."""
    file = path / "metrics.jsonl"
    try:
        facts = file.stat()
        stamp = (facts.st_size, facts.st_mtime_ns)
        if (known := _last.get(file)) and known.stamp == stamp:
            return known.row
        with open(file, "rb") as stream:
            stream.seek(max(0, facts.st_size - TAIL))
            lines = stream.read().rpartition(b"\n")[0].splitlines()
    except OSError:
        return {}
    _last[file] = _Read(stamp, row := next(filter(None, map(_parsed, reversed(lines))), {}))
    return row


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _accuracy(ending: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Held-out after training with Wilson's interval; of a run on its way, the rollouts of its last step."""
    arm = _after(ending)
    if arm:
        low, high = (_number(arm["accuracy"].get(side)) for side in ("low", "high"))
        return f"{arm.get('correct')}/{arm.get('judged')} [{low:.2f}, {high:.2f}]"
    correct, judged = last.get("correct"), last.get("judged")
    if isinstance(correct, int) and isinstance(judged, int) and 0 <= correct <= judged and judged > 0:
        found = wilson(correct, judged)
        return f"{correct}/{judged} [{found.low:.2f}, {found.high:.2f}] step"
    return ""


def _tokens(ending: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    arm = _after(ending)
    value = _number(arm.get("tokens", {}).get("value") if arm else last.get("tokens_mean"))
    return f"{value:.0f}" if math.isfinite(value) else ""


def _divergence(ending: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Held-out before -> after; of a run on its way, its last step's. The name stands in the curves' title."""
    found = ending.get("divergence")
    if isinstance(found, dict):
        values = [_number((found.get(side) or {}).get("value")) for side in ("before", "after")]
        return f"{values[0]:.3f} to {values[1]:.3f}"
    value = _number(last.get(term(last)))
    return f"{value:.3f}" if math.isfinite(value) else ""


def term(row: Mapping[str, Any]) -> str:
    """The key of the first term in a row of metrics: what the loss compares."""
    return next((key for key in row if key.startswith("term.")), "")


def divergence_name(row: Mapping[str, Any]) -> str:
    """`forward KL`, of the run's first term."""
    return words(term(row).removeprefix("term.")) if term(row) else "divergence"


def _after(ending: Mapping[str, Any]) -> Mapping[str, Any]:
    arms = ending.get("arms")
    found = arms[-1] if isinstance(arms, list) and arms else {}
    return found if isinstance(found, dict) and isinstance(found.get("accuracy"), dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def age(heartbeat: str | None) -> str:
    """How long ago a run was last heard of, coarse enough not to flicker."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(heartbeat or "")).total_seconds()
    except (ValueError, TypeError):
        return "?"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "now"


def standing(run: RunView) -> str:
    """One or two lines: state, phase, step, and for a run that ended badly why and what to do."""
    first = f"{state_word(run)} at step {run.step}"
    if run.state in ONGOING:
        first += f": {run.phase}" if run.phase else ""
    lines = [first, *filter(None, [reason(run)])]
    return "\n".join(printable(line) for line in lines)


def reason(run: RunView) -> str:
    """Why a run is not going on; empty where nothing is wrong."""
    if run.state == "dead":
        heard = f"Last heard of {run.heartbeat}. " if run.heartbeat else ""
        return (
            "The process is gone and left no word: killed, out of memory, or the machine stopped. "
            f"{heard}Its checkpoints are sound: resume it."
        )
    if run.state == "stalled":
        return "The process exists but has said nothing for half a minute. A long step can do that; else stop it."
    return (run.error or "no reason was recorded") if run.state in ("failed", "interrupted") and run.error else ""


def way_on(run: RunView) -> str:
    """The command that goes on with the run."""
    steps = run.run.get("steps") or config(run).get("steps") or run.step
    more = [flag("steps"), str(2 * max(1, int(steps)))] if run.state == "finished" and isinstance(steps, int) else []
    return resume_command(run.path, more)


def settings(run: RunView) -> str:
    """What the run was started with, only what differs from the defaults first, then the recipe's own words."""
    known = {name: field.default for name, field in RunConfig.__dataclass_fields__.items()}
    said = {k: v for k, v in config(run).items() if k not in known or v not in (known[k], [])}
    lines = [f"{name} = {json.dumps(value)}" for name, value in said.items()]
    commit, data = str(run.run.get("commit", ""))[:12], str(run.run.get("data_sha256", ""))[:12]
    lines += [f"# data {data}  commit {commit}  created {run.run.get('created', '?')}"]
    text = "\n".join([*lines, "", str(run.run.get("recipe_text", ""))])
    return printable(text, lines=True)
