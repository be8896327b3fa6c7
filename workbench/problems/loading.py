"""Problems from files, the Hub and generators, with what a run has to know about them: mapping, hash, losses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import verifiers
from workbench.errors import InputError, UsageError, nearest
from workbench.problems import columns as cols
from workbench.problems.chats import UnusableRow
from workbench.problems.coding import code_problems, in_our_columns
from workbench.problems.pairing import split_train_held_out
from workbench.problems.procedural import BRIEF, STEP_BY_STEP, Sums, reasoning_gym_problems
from workbench.problems.reading import Rows, is_path, read_hub, read_path
from workbench.problems.wording import exact, reordering_key, same_answer
from workbench.records import Problem

_SUMS_OPTIONS = ("terms", "maximum", "minimum", "wording", "held_out")
_WORDINGS = {"brief": BRIEF, "verbose": STEP_BY_STEP}
_DEFAULT_TRAIN, _DEFAULT_HELD_OUT = 512, 48
_REPEAT = "repeats an earlier question"


@dataclass(frozen=True)
class ProblemSet:
    """Problems and where they come from."""

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    """Empty for files and the Hub until `with_held_out`; generated sets bring their own."""
    source: str
    mapping: str
    """Which column became which field, as printed."""
    columns: tuple[str, ...]
    """The columns of the data, for messages."""
    dropped: tuple[tuple[str, int], ...] = ()
    """Why problems were left out, and how many."""

    @property
    def sha256(self) -> str:
        """Hash of the problems themselves: a change of file, mapping, split or limit shows in it."""
        digest = hashlib.sha256()
        for problem in (*self.train, *self.held_out):
            fields = dataclasses.asdict(replace(problem, other=None))
            digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def with_held_out(self, n: int | float, seed: int = 0) -> ProblemSet:
        """A set that holds out `n` problems: the source's own first, then more from the end of a hash order.

        Raises UsageError where nothing would be left to train on.
        """
        if isinstance(n, int) and n <= len(self.held_out):
            return replace(self, held_out=self.held_out[:n])
        wanted = n - len(self.held_out) if isinstance(n, int) else n
        train, more = split_train_held_out(self.train, wanted, seed)
        return replace(self, train=train, held_out=(*self.held_out, *more))

    def apart_from(self, held_out: Sequence[Problem]) -> ProblemSet:
        """This set with `held_out` from elsewhere; what it would train on of them is left out and counted."""
        asked = {reordering_key(problem.question) for problem in held_out}
        train = tuple(p for p in self.train if reordering_key(p.question) not in asked)
        lost = len(self.train) - len(train)
        dropped = (*self.dropped, ("asked in the held-out set", lost)) if lost else self.dropped
        return replace(self, train=train, held_out=tuple(held_out), dropped=dropped)

    def __str__(self) -> str:
        """What is printed: source, sizes, mapping, and what was left out."""
        sizes = f"{self.source}: {len(self.train)} train, {len(self.held_out)} held out"
        lost = "; ".join(f"{n} left out: {why}" for why, n in self.dropped)
        return "\n".join(line for line in (sizes, self.mapping, lost) if line)


def load(
    source: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    require: Collection[str] = (),
    seed: int = 0,
) -> ProblemSet:
    """Problems from `source`, in its order.

    Args:
        source: `sums[:terms=2,max=30,...]`; `code[:difficulty=easy]`, the packaged programs; a .jsonl[.gz],
            .json[.gz] or .parquet file or a folder with one; a Hub id `owner/name[:config]`; or the name of a
            reasoning-gym family.
        split: of a Hub data set or a .json with several lists; by default the only one, or `train`.
        limit: rows read from the top; for generated problems how many there are to train on.
        columns: field to column, over the names that are found by themselves; see `columns.CANDIDATES`.
        require: fields without which a problem is left out and counted.
        seed: of generated problems; it does nothing to a file.

    Raises:
        UsageError: an option that cannot be meant.
        InputError: data that cannot be used; says where and how to go on.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} loads nothing. Give at least 1, or leave it out.")
    fields = _field_names(require)
    name, _, options = source.partition(":")
    if name not in ("sums", "code") and (is_path(source) or "/" in source):
        read = read_path if is_path(source) else read_hub
        return _require(_from_rows(read(source, split, limit), columns), fields)
    if split is not None or columns:
        raise UsageError(f"'{source}' is generated: it has no splits or columns. Leave --split and --columns out.")
    if name == "code":
        return _require(_code(source, options, limit), fields)
    return _require(_sums(options, limit, seed) if name == "sums" else _family(source, limit, seed), fields)


def check_needs(problems: ProblemSet, needs: Collection[str], shown_by: str) -> None:
    """Refuse a set in which a needed field is absent. Raises InputError.

    Args:
        problems: the set.
        needs: names of `Problem` fields, as a context or recipe states them; `other.solution` asks for `solution`.
        shown_by: how the message begins: `recipe opsd shows the teacher`.
    """
    everything = (*problems.train, *problems.held_out)
    for field in sorted({need.removeprefix("other.") for need in needs}):
        lacking = [problem for problem in everything if not getattr(problem, field)]
        if not lacking:
            continue
        if len(lacking) == len(everything):
            raise InputError(
                f"{shown_by} {{{field}}}; {problems.source} has {', '.join(problems.columns)}. "
                f"Map one: --columns {field}=COLUMN, or --recipe opsdc."
            )
        raise InputError(
            f"{len(lacking)} of {len(everything)} problems have no {field} (first: id {lacking[0].id}). "
            f"--require {field} drops them."
        )


def graded(
    problems: Sequence[Problem],
    check_gold: Callable[[str], str | None],
    check_tests: Callable[[Sequence[str]], str | None] = verifiers.check_tests,
) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """The problems whose answer a verifier can grade, and one line for each thing to report.

    Problems without an answer are kept: they can teach, and nobody can score them.

    Args:
        problems: in any order.
        check_gold: `verifiers.check_gold`: why an answer cannot be graded, None where it can.
        check_tests: why tests cannot be used. A problem with tests is judged by them alone.
    """
    untested = {p.id: why for p in problems if p.tests and (why := check_tests(p.tests)) is not None}
    answered = [p for p in problems if p.answer is not None and not p.tests]
    reasons = {p.id: why for p in answered if (why := check_gold(p.answer or "")) is not None}
    reports = []
    if untested:
        reports.append(
            f"tests of {_count(len(untested))} cannot be used (ids {_some(untested)}): left out, not scored 0. "
            f"First reason: {next(iter(untested.values()))}"
        )
    if reasons:
        why = next(iter(reasons.values()))
        reports.append(
            f"gold of {_count(len(reasons))} cannot be parsed (ids {_some(reasons)}): left out, not scored 0. "
            f"First reason: {why}"
        )
    bare = [p.id for p in problems if p.answer is None and not p.tests]
    if bare:
        reports.append(f"{_count(len(bare))} without an answer (ids {_some(bare)}): kept, but never scored.")
    return tuple(p for p in problems if p.id not in reasons and p.id not in untested), tuple(reports)


def _from_rows(read: Rows, given: Mapping[str, str] | None) -> ProblemSet:
    # Columns that somebody names are meant as they stand, whatever set they look like.
    read, dropped = (read, Counter[str]()) if given else in_our_columns(read)
    mapping = cols.map_columns(read, given)
    by_question: dict[str, Problem] = {}
    place_of_id: dict[str, str] = {}
    for at, (row, place) in enumerate(zip(read.rows, read.places, strict=True)):
        try:
            problem = cols.problem_from(row, f"{read.label} {place}", mapping, f"{read.stem}-{at:05d}")
        except UnusableRow as reason:
            dropped[str(reason)] += 1
            continue
        first = by_question.setdefault(exact(problem.question), problem)
        if first is not problem:
            _refuse_contradiction(first, problem, read.label)
            dropped[_REPEAT] += 1
        elif (earlier := place_of_id.setdefault(problem.id, place)) != place:
            raise InputError(
                f"{read.label}: id '{problem.id}' stands in {earlier} and {place}, but rollouts are told apart by "
                "it. Make ids unique, or leave them out: --columns id="
            )
    names = tuple(dict.fromkeys(name for row in read.rows for name in row))
    problems = tuple(by_question.values())
    return ProblemSet(problems, (), read.label, str(mapping), names, tuple(dropped.items()))


def _refuse_contradiction(first: Problem, second: Problem, label: str) -> None:
    if first.answer is None or second.answer is None or same_answer(first.answer, second.answer):
        return
    raise InputError(
        f"{label}: '{first.id}' and '{second.id}' ask the same question, but answer {first.answer[:40]} and "
        f"{second.answer[:40]}. One is wrong. Correct or remove it."
    )


def _require(found: ProblemSet, fields: Sequence[str]) -> ProblemSet:
    dropped = Counter(dict(found.dropped))
    train, held_out = found.train, found.held_out
    for field in fields:
        n_before = len(train) + len(held_out)
        train = tuple(problem for problem in train if getattr(problem, field))
        held_out = tuple(problem for problem in held_out if getattr(problem, field))
        if lost := n_before - len(train) - len(held_out):
            dropped[f"no {field}"] += lost
    if not train:
        why = "; ".join(f"{n}: {reason}" for reason, n in dropped.items()) or "nothing was read"
        raise InputError(
            f"no usable problem in {found.source} ({why}). Read as {found.mapping}. Map other columns, or require less."
        )
    return replace(found, train=train, held_out=held_out, dropped=tuple(dropped.items()))


def _field_names(require: Collection[str]) -> list[str]:
    valid = {
        name: name for name in ("answer", "solution", "document", "demonstration", "feedback", "tests", "difficulty")
    }
    fields = []
    for name in [require] if isinstance(require, str) else require:
        if name not in valid:
            raise UsageError(f"--require {name}: a problem has no such field. {nearest(name, valid)}")
        fields.append(name)
    return fields


def _sums(options: str, limit: int | None, seed: int) -> ProblemSet:
    chosen: dict[str, str] = {}
    for pair in filter(None, options.split(",")):
        name, mark, value = pair.partition("=")
        name = {"max": "maximum", "min": "minimum"}.get(name.strip(), name.strip())
        if name not in _SUMS_OPTIONS or not mark:
            raise UsageError(f"sums has no option '{pair}'. {nearest(name, _SUMS_OPTIONS)}")
        chosen[name] = value.strip()
    wording = chosen.pop("wording", "brief")
    if wording not in _WORDINGS:
        raise UsageError(f"sums has no wording '{wording}'. {nearest(wording, _WORDINGS)}")
    try:
        numbers = {name: int(value) for name, value in chosen.items()}
    except ValueError:
        raise UsageError(f"sums:{options}: options other than wording are whole numbers. Write terms=2.") from None
    asked = numbers.pop("held_out", None)
    sums = Sums(wording=_WORDINGS[wording], **numbers)
    # A small space keeps most of itself for training.
    n_held_out = min(_DEFAULT_HELD_OUT, sums.n_sets // 4) if asked is None else asked
    train, held_out = sums.problems(limit, n_held_out, seed)
    name = f"sums:{options}" if options else "sums"
    return ProblemSet(train, held_out, name, f"generated: {sums!r}", ("question", "answer", "solution", "document"))


def _code(source: str, options: str, limit: int | None) -> ProblemSet:
    train, held_out = code_problems(options, limit)
    mapping = "packaged: programs judged by their tests; document=manual entries on what the solution uses"
    return ProblemSet(train, held_out, source, mapping, ("question", "solution", "document", "tests", "difficulty"))


def _family(source: str, limit: int | None, seed: int) -> ProblemSet:
    name, mark, _ = source.partition(":")
    if mark:
        raise UsageError(f"'{source}': only sums takes options. Write {name}.")
    problems, n_repeats = reasoning_gym_problems(name, limit or _DEFAULT_TRAIN, seed)
    dropped = ((_REPEAT, n_repeats),) if n_repeats else ()
    mapping = "generated: problem=question solution=metadata.answer_cot answer=answer"
    return ProblemSet(tuple(problems), (), name, mapping, ("question", "answer", "metadata"), dropped)


def _count(n: int) -> str:
    return "1 problem" if n == 1 else f"{n} problems"


def _some(ids: Collection[str]) -> str:
    listed = list(ids)
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
