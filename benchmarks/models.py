"""The rows about a whole model: decoding, and a training step."""

from __future__ import annotations

import json
from typing import Any

from harness import Measured, Way, paired
from rows import OURS, TRL, Bench, Claim, Row, RowFunction
from states import FOLDER

GENERATE, PLAIN_TRL = "HF generate", "TRL, without checkpointing"


def decode(bench: Bench) -> Row:
    """32 prompts of mixed lengths, temperature 0, at most 128 new tokens: >= 1.4 x HF `generate`, the same tokens."""
    row = Row("Decoding, end to end")
    if bench.model is None:
        row.skipped.append("no model was named")
        return row
    count, tokens = (4, 8) if bench.quick else (32, 128)
    given = {"model": bench.model, "count": count, "tokens": tokens}
    ways = {OURS: Way("with_models:Decode", given), GENERATE: Way("with_models:Generate", given)}
    found = paired(ways, bench.repeat)
    facts = found.warm.get(OURS, {}).get("facts", {"prompts": [0], "tokens": [[]]})
    lengths = sorted(facts["prompts"])
    label = f"{count} prompts of {lengths[0]} to {lengths[-1]} tokens"
    _same(row, found)
    row.add(label, found, [("HF generate's time over ours", GENERATE, OURS, {"at_least": 1.4})])
    return row


def step(bench: Bench) -> Row:
    """A whole step (rollouts, teacher, student, update), same prompts, same completions: >= 2 x TRL, less memory."""
    row = Row("A whole self-distillation step")
    if bench.model is None or bench.peers is None:
        row.skipped.append(bench.no_peers or "no model was named")
        return row
    from with_models import work

    FOLDER.mkdir(parents=True, exist_ok=True)
    for count, group, tokens in ((4, 2, 8),) if bench.quick else ((8, 1, 64), (4, 4, 64)):
        path = FOLDER / f"step-{count}.json"
        path.write_text(json.dumps(work(bench.model, count)))
        _step(row, bench, {"tokens": tokens, "group": group}, count, str(path))
    row.notes.append(
        "every rollout takes the likeliest token, so those of a group are one text: only their cost counts"
    )
    return row


def _step(row: Row, bench: Bench, given: dict[str, Any], count: int, work: str) -> None:
    """One size: `count` problems, so many rollouts each."""
    ways = {OURS: Way("with_models:Step", {**given, "model": bench.model, "count": count})}
    for name, checkpointing in ((TRL, True), (PLAIN_TRL, False)):
        more = {**given, "work": work, "checkpointing": checkpointing}
        size = int((3 if checkpointing else 5) * 1e9) * (count * given["group"]) // 8
        ways[name] = Way("with_sdft:Step", more, bench.peers, bytes=size)
    found = paired(ways, bench.repeat)
    _same(row, found)
    label = f"{count} problems x {given['group']}, at most {given['tokens']} new tokens"
    row.add(
        label,
        found,
        [
            ("TRL's time over ours, as TRL is set by default", TRL, OURS, {"at_least": 2.0}),
            ("TRL's time over ours, without activation checkpointing", PLAIN_TRL, OURS, {}),
        ],
    )
    mine = found.warm.get(OURS, {}).get("resident")
    for name in (TRL, PLAIN_TRL):
        if mine and name in found.warm:
            what = f"{label}: ours over {name}, memory that the first step takes"
            limit = {"at_most": 1.0} if name == TRL else {}
            row.claims.append(Claim(what, [mine / found.warm[name]["resident"]], **limit))


def _same(row: Row, found: Measured) -> None:
    """Say whether every way wrote the same tokens, and keep only their number."""
    written: dict[str, Any] = {}
    for name, warm in found.warm.items():
        tokens = warm["facts"].pop("tokens", [])
        written[name] = tokens
        warm["facts"]["written"] = sum(map(len, tokens))
        warm["facts"].pop("prompts", None)
    if len(written) > 1:
        first = next(iter(written.values()))
        row.notes.append(
            f"all wrote the same {sum(map(len, first))} tokens"
            if all(tokens == first for tokens in written.values())
            else f"they did not write the same tokens: { ({n: sum(map(len, t)) for n, t in written.items()}) }"
        )


MODEL_ROWS: dict[str, RowFunction] = {"decode": decode, "step": step}
