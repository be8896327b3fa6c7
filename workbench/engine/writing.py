"""From requests to rollouts: who writes each, what they read, and what the student's tokens make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from workbench.engine.generating import HfGenerator, in_batches
from workbench.engine.mixing import decode_mixed
from workbench.engine.sampling import Row, uniforms
from workbench.engine.speakers import own_end
from workbench.records import Author, Case, Request, Role, Rollout, Sample, Sampling, Told, Wanted

if TYPE_CHECKING:
    from workbench.engine.engine import Engine


def written(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, stopped: Callable[[], bool], wrote: Told
) -> list[Rollout]:
    """One rollout a request, in order, by whoever plays its author."""
    found: list[Rollout | None] = [None] * len(requests)
    authors: tuple[Author, ...] = ("student", "teacher")
    for author in authors:
        mine = [i for i, request in enumerate(requests) if request.author == author]
        asked = [requests[i] for i in mine]
        if author == "teacher" and engine.external is not None and engine.external.recorded:
            written = engine.external.write(asked, sampling, engine.pen)
            if engine.external.anew:  # a server; what was recorded is read and not written
                engine.meter.wrote("teacher", sum(len(rollout.tokens) for rollout in written), here=False)
        else:
            written = _sampled(engine, author, asked, sampling, stopped, wrote)
        for i, rollout in zip(mine, written, strict=True):
            found[i] = rollout
    return [rollout for rollout in found if rollout is not None]


def _sampled(
    engine: Engine,
    author: Author,
    requests: Sequence[Request],
    sampling: Sampling,
    stopped: Callable[[], bool],
    wrote: Told,
) -> list[Rollout]:
    role: Role = "teacher" if author == "teacher" else "student"
    prompts = [engine.prompt(r.context, Case(r.problem), role).ids for r in requests]
    wanted = [Wanted(prompt, r.key) for prompt, r in zip(prompts, requests, strict=True)]

    def told(place: int, sample: Sample) -> None:
        made[place] = _rollout(engine, sample, requests[place], role)
        wrote(made[place])

    made = dict[int, Rollout]()
    # Either end token ends: in the student's eyes nothing could follow its own.
    ends = engine.stop_ids | engine.speaker(role).stop_ids
    mixed = any(r.teacher_share > 0.0 for r in requests)
    if mixed:
        samples = _mixed(engine, requests, wanted, sampling, stopped)
    else:
        samples = engine.generators[role].generate(wanted, sampling, ends, stopped, told)
    here = mixed or isinstance(engine.generators[role], HfGenerator)
    engine.meter.wrote(role, sum(len(sample.tokens) for sample in samples), here=here)
    rest = enumerate(zip(samples, requests, strict=True))
    return [made[i] if i in made else _rollout(engine, sample, request, role) for i, (sample, request) in rest]


def _mixed(
    engine: Engine,
    requests: Sequence[Request],
    wanted: Sequence[Wanted],
    sampling: Sampling,
    stopped: Callable[[], bool],
) -> list[Sample]:
    """Every token from a mixture of both roles, each behind its own prompt."""
    rows = [Row(w.prompt, uniforms(w.key, sampling.max_new_tokens)) for w in wanted]
    for row, r in zip(rows, requests, strict=True):
        assert r.teacher_context is not None, "a mixture names what the teacher sees"
        guide = engine.prompt(r.teacher_context, Case(r.problem), "teacher").ids
        row.share, row.guide = r.teacher_share, Row(guide, row.draws)
    ends = engine.stop_ids | engine.speaker("teacher").stop_ids
    voices = partial(engine.voice, "student"), engine.beside

    def write(batch: list[Row]) -> None:
        decode_mixed(*voices, batch, sampling, ends, stopped)

    in_batches(sorted(rows, key=lambda row: len(row.prompt)), engine.settings.decode_rows, write)
    engine.meter.wrote("teacher", sum(len(row.tokens) for row in rows), beside=True)
    return [row.sample(engine.weights_version) for row in rows]


def _rollout(engine: Engine, sample: Sample, request: Request, role: Role) -> Rollout:
    tokens = own_end(sample.tokens, engine.speaker(role), engine.speaker("student"))
    return Rollout(
        problem=request.problem,
        author=request.author,
        tokens=tuple(tokens),
        text=engine.decoded(tokens),
        logprobs=sample.logprobs,
        stop=sample.stop,
        weights_version=sample.versions[0],
        index=request.index,
    )
