"""`python -m workbench.cache_teacher --teacher MODEL --out DIR (--hidden | --top-k K)`: ask a teacher once.

Takes every flag of the main job, and reads them as it does: what is cached is what a run with the same flags will ask.
`--teacher DIR` then trains from the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli import Arguments, parse, run_command
from workbench.config import RunConfig
from workbench.errors import InputError, UsageError
from workbench.launch import alone
from workbench.text import printable

if TYPE_CHECKING:
    from workbench.engine.cache_format import Identity
    from workbench.engine.engine import Engine
    from workbench.planning import Plan
    from workbench.records import Problem, Rollout, StopReason
    from workbench.train.batches import Entry


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def arguments() -> argparse.ArgumentParser:
    """The flags that the main job does not have."""
    parser = Arguments(
        prog="python -m workbench.cache_teacher",
        description="Ask a teacher once and keep what it says. All flags of python -m workbench.opsd are taken too.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="the cache's folder; one of the same teacher is added to")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--hidden", action="store_true", help="last hidden states and the head: exact, any temperature")
    kinds.add_argument("--top-k", type=int, help="the K likeliest tokens with the mass outside, at --temperature")
    parser.add_argument("--store", choices=("float32", "bfloat16"), default="float32", help="type of hidden states")
    parser.add_argument("--rollouts", help="completions to score: a run's rollouts.jsonl, or {problem, text} lines")
    parser.add_argument("--distillkit", help="take over a parquet of DistillKit's instead of asking")
    parser.add_argument("--compression", help="the settings that parquet was compressed with: JSON or YAML")
    return parser


def _main(argv: Sequence[str]) -> int:
    alone("workbench.cache_teacher")
    asked, rest = arguments().parse_known_args(argv)
    config = parse(rest)
    if config.teacher is None:
        raise UsageError("--teacher MODEL is missing. It is who is asked. Give a model as --model takes it.")
    if asked.top_k is not None and asked.top_k < 1:
        raise UsageError(f"--top-k {asked.top_k} keeps nothing. Papers keep 16 to 128. Use --top-k 64.")
    if asked.distillkit and not asked.compression:
        raise UsageError("--distillkit needs --compression FILE. The columns cannot be read without their settings.")
    return _ask(config, asked)


def _ask(config: RunConfig, asked: argparse.Namespace) -> int:
    """Load, score, write. Imports torch."""
    from workbench.engine.allocator import retain_heap
    from workbench.planning import plan

    planned = plan(config)
    recipe = planned.recipe
    if recipe.teacher is None or not recipe.needs_teacher:
        raise UsageError(f"recipe {recipe.name} compares with no teacher, so there is nothing to cache. Give another.")
    retain_heap()
    if asked.distillkit:
        return _take_over(config, planned, asked)
    from workbench.engine.caching import Asked, begin, identity_of, said
    from workbench.train.batches import micro_batches

    engine = _teacher(config)
    found = _entries(engine, planned, config, asked)
    identity = identity_of(engine, top_k=asked.top_k, temperature=recipe.temperature, dtype=asked.store)
    begin(Path(asked.out), Asked.of(engine), identity)
    rows: list[dict[str, Any]] = []
    # Alone by default: to the bit what a run with --micro-tokens 1 computes.
    for batch in micro_batches(found, config.micro_tokens or 1):
        words = said(engine, identity, [e.teacher_prompt or () for e in batch], [e.tokens for e in batch])
        for entry, row in zip(batch, words, strict=True):
            rollout = entry.judged.rollout
            names = {"problem": rollout.problem.id, "index": rollout.index, "author": rollout.author}
            rows.append({**names, "stop": rollout.stop, **row})
    return _keep(Path(asked.out), identity, rows)


def _keep(folder: Path, identity: Identity, rows: list[dict[str, Any]]) -> int:
    from workbench.engine.cache_format import write_rows

    if not rows:
        raise InputError("no completion belongs to a problem of the set. Nothing is cached. Check --problems.")
    path = write_rows(folder, identity, rows)
    tokens = sum(len(row["tokens"]) for row in rows)
    print(printable(f"{path}: {len(rows)} completions, {tokens} tokens, {path.stat().st_size / 2**20:.1f} MiB"))
    print(printable(f"train from it: python -m workbench.opsd --teacher {folder} (and the same other flags)"))
    return 0


def _take_over(config: RunConfig, planned: Plan, asked: argparse.Namespace) -> int:
    """A parquet of DistillKit's as a cache of ours; of the teacher only the tokenizer is read."""
    from workbench.engine.cache_format import Identity
    from workbench.engine.caching import Asked, begin
    from workbench.engine.distillkit import Compression, taken_over
    from workbench.engine.loading import load_speaker
    from workbench.engine.vocabularies import tokenizer_hash
    from workbench.records import Case

    compression = Compression.read(asked.compression)
    if asked.top_k != compression.k:
        raise UsageError(
            f"--top-k {asked.top_k}: the parquet keeps {compression.k} a token. Use --top-k {compression.k}."
        )
    speaker = load_speaker(str(config.teacher), config.chat_template)
    context = planned.recipe.teacher
    assert context is not None, "checked by the caller"
    problems = (*planned.train, *planned.held_out)
    prompts = {problem.id: speaker.renderer.prompt(context, Case(problem)).ids for problem in problems}
    rows = taken_over(asked.distillkit, compression, prompts, speaker.stop_ids)
    identity = Identity(
        model=str(config.teacher),
        weights_sha256="not stated",
        tokenizer_sha256=tokenizer_hash(speaker.tokenizer),
        kind="top_k",
        temperature=1.0,
        top_k=compression.k,
        dtype="float32",
    )
    begin(Path(asked.out), Asked(speaker, compression.d, 0), identity)
    return _keep(Path(asked.out), identity, [{"index": 0, "author": "dataset", **row} for row in rows])


def _teacher(config: RunConfig) -> Engine:
    """An engine whose student is the teacher, its head without padding."""
    from workbench.engine.engine import Engine, EngineSettings
    from workbench.engine.loading import load, pick_device, pick_dtype
    from workbench.engine.vocabularies import real_size
    from workbench.parts.refresh import LIVE

    device = pick_device(config.device if config.teacher_device == "auto" else config.teacher_device)
    dtype = pick_dtype(config.teacher_dtype, device, adapter=True)
    loaded = load(str(config.teacher), dtype=dtype, fallback_template=config.chat_template)
    engine = Engine(loaded, adapter=None, refresh=LIVE, settings=EngineSettings(device=device))
    engine.student.requires_grad_(False)
    engine.vocabulary = real_size(loaded.tokenizer)
    return engine


def _entries(engine: Engine, planned: Plan, config: RunConfig, asked: argparse.Namespace) -> list[Entry]:
    """The completions to score, behind the teacher's prompts."""
    from verifiers import Verdict
    from workbench.records import Judged
    from workbench.train.batches import entries

    rollouts = _recorded(engine, planned, asked.rollouts) if asked.rollouts else _written(engine, planned, config)
    groups = [[Judged(rollout, Verdict("unjudged"))] for rollout in rollouts]
    return entries(engine, planned.recipe, groups)


def _written(engine: Engine, planned: Plan, config: RunConfig) -> list[Rollout]:
    """The data set's solutions and what the teacher writes now, as the recipe's authors are."""
    from workbench.engine.generating import never
    from workbench.parts.writers import ByTeacher, Desk, FromDataset

    recipe = planned.recipe
    rollouts: list[Rollout] = []
    problems = (*planned.train, *planned.held_out)
    if "student" in recipe.rollouts.authors:
        raise UsageError(
            f"recipe {recipe.name} learns from what the student writes as it trains. That is not known yet. Give "
            "--rollouts FILE with completions, or --set rollouts=FromDataset()"
        )
    desk = Desk(engine, recipe.student, recipe.teacher, recipe.sampling, (config.seed, 0), never)
    if "dataset" in recipe.rollouts.authors:
        rollouts += FromDataset().draw(desk, problems)
    if "teacher" in recipe.rollouts.authors:
        rollouts += ByTeacher(getattr(recipe.rollouts, "per_problem", 1)).draw(desk, problems)
    return rollouts


def _recorded(engine: Engine, planned: Plan, source: str) -> list[Rollout]:
    """The completions of a file. Raises InputError with the line for one that belongs to no problem of the set."""
    from workbench.problems.reading import read_path

    read = read_path(source, None, None)
    problems = {problem.id: problem for problem in (*planned.train, *planned.held_out)}
    found = []
    for row, place in zip(read.rows, read.places, strict=True):
        problem = problems.get(str(row.get("problem", row.get("id"))))
        if problem is None:
            raise InputError(
                f"{read.label} {place}: its problem is not in the set. A completion is scored behind its problem's "
                "prompt. Give the --problems, --limit and --eval-problems it was written for."
            )
        found.append(_rollout(row, problem, engine, planned, f"{read.label} {place}"))
    return found


def _rollout(row: Mapping[str, Any], problem: Problem, engine: Engine, planned: Plan, where: str) -> Rollout:
    from workbench.records import Request, Rollout

    author, index = row.get("author", "dataset"), int(row.get("index", 0))
    tokens = [int(token) for token in row.get("token_ids") or ()]
    if tokens and row.get("stop") == "stop":  # its end token is the student's
        tokens = [*tokens[:-1], engine.speaker("student").end]
    if tokens:
        stop: StopReason = "stop" if row.get("stop") == "stop" else "length"
        return Rollout(problem, author, tuple(tokens), str(row.get("text", "")), None, stop, 0, index)
    if not isinstance(row.get("text"), str):
        raise InputError(f"{where}: neither token_ids nor text. There is nothing to score. Add one of them.")
    request = Request(problem, planned.recipe.student, author, index)
    return engine.pen.rollout(row["text"], request, author, planned.recipe.sampling)


if __name__ == "__main__":
    raise SystemExit(main())
