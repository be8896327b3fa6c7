"""Sets of problems: train against held out, and whose solution a control shows instead of one's own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from workbench.errors import InputError, UsageError
from workbench.problems.wording import answer_key, normalised, reordering_key, text_hash
from workbench.records import Problem


def split_train_held_out(
    problems: Sequence[Problem], held_out: int | float, seed: int = 0
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Two sets that share no question, not even a reordering of its words; the order of `problems` is kept.

    A problem's place depends on the hash of its text alone. `held_out` as a fraction: adding a problem moves no
    other. As a count: the smallest hashes, so adding one displaces as many as it and its reorderings are; a few
    less than asked where reorderings, which stay together, do not fit. Raises UsageError where nothing would be
    left to train on.
    """
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[reordering_key(problem.question)].append(problem)
    by_hash = sorted((text_hash(key, seed), key) for key in groups)
    if isinstance(held_out, float):
        if not 0.0 <= held_out < 1.0:
            raise UsageError(f"held_out={held_out} is no fraction. Give 0 <= held_out < 1, or a whole number.")
        chosen = {key for place, key in by_hash if place < held_out * 2**64}
    else:
        chosen = set()
        room = held_out
        for _, key in by_hash:
            if len(groups[key]) <= room:
                chosen.add(key)
                room -= len(groups[key])
        if held_out < 0 or held_out >= max(len(problems), 1) or len(chosen) == len(groups) > 0:
            raise UsageError(
                f"{held_out} of {len(problems)} problems cannot be held out: some must be left to train on. "
                "Ask for fewer, or load more problems."
            )
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        sides[reordering_key(problem.question) in chosen].append(problem)
    return tuple(sides[0]), tuple(sides[1])


def pair_with_others(problems: Sequence[Problem], seed: int = 0) -> tuple[Problem, ...]:
    """Every problem with `other` set to one that asks something else, close in length of solution.

    Each problem is used exactly once. Where it can be, the other's answer differs from one's own: with the same
    answer the control would leak it. Same seed and set, same map, whatever the order. Raises InputError where
    more than half ask the same question, or fewer than two are distinct: then no such map exists.
    """
    texts = [normalised(problem.question) for problem in problems]
    counts = Counter(texts)
    if len(counts) < 2:
        raise InputError(
            f"{len(problems)} problems ask {len(counts)} distinct question(s), so there is no other problem to "
            "show. Give at least two distinct ones."
        )
    if 2 * max(counts.values()) > len(problems):
        raise InputError(
            f"{max(counts.values())} of {len(problems)} problems ask the same question, so the others cannot be "
            "used equally often. Drop the repeats."
        )

    # A problem without an answer leaks nothing: its key equals no other's.
    answers = [("none", p.id) if p.answer is None else answer_key(p.answer) for p in problems]

    def asks_same(i: int, j: int) -> bool:
        return texts[i] == texts[j]

    def leaks(i: int, j: int) -> bool:
        return texts[i] == texts[j] or answers[i] == answers[j]

    order = sorted(
        range(len(problems)),
        key=lambda i: (len(problems[i].solution or ""), text_hash(texts[i], seed), problems[i].id),
    )
    donor = _neighbours(order)
    _repair(order, donor, asks_same, texts)
    _repair(order, donor, leaks, answers)
    return tuple(replace(p, other=replace(problems[donor[i]], other=None)) for i, p in enumerate(problems))


def _neighbours(order: Sequence[int]) -> dict[int, int]:
    """A cycle through all that goes up the even places and down the odd ones: nobody is more than two away."""
    up, down = order[0::2], order[1::2]
    cycle = [*up, *reversed(down)]
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def _repair(
    order: Sequence[int], donor: dict[int, int], bad: Callable[[int, int], bool], kinds: Sequence[object]
) -> None:
    """Exchange donors, nearest in length first, until no pair is `bad` or no exchange helps.

    An exchange makes no pair bad, so the number of bad pairs falls with each. Where bad means `same class` and no
    class of m is more than half of the n problems, an exchange exists: at most 2m - 1 < n partners are unfit.
    """
    place = {i: at for at, i in enumerate(order)}
    hopeless: set[object] = set()
    for i in order:
        if not bad(i, donor[i]) or kinds[i] in hopeless:
            continue
        fit = (j for j in _outward(order, place[i]) if not bad(i, donor[j]) and not bad(j, donor[i]))
        if (swap := next(fit, None)) is None:
            # The next of its kind would search the whole set as vainly.
            hopeless.add(kinds[i])
        else:
            donor[i], donor[swap] = donor[swap], donor[i]


def _outward(order: Sequence[int], place: int) -> Iterator[int]:
    for distance in range(1, len(order)):
        for at in (place - distance, place + distance):
            if 0 <= at < len(order):
                yield order[at]
